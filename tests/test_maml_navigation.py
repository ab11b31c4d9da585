"""The experiment at a size at which it takes a moment: its form, its choices, and what it measures."""

from dataclasses import replace

import pytest
import torch

from metarl_lib import checkpoint, results
from metarl_lib.evaluate import adaptation_curve
from metarl_lib.experiments import maml_navigation as experiment
from metarl_lib.navigation import Navigation, best_return, paper_goals


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    small = {name: replace(c, iterations=min(c.iterations, 2), tasks=4, episodes=3) for name, c in experiment.METHODS.items()}
    monkeypatch.setattr(experiment, "METHODS", small)
    monkeypatch.setattr(experiment, "WORLD", Navigation(max_steps=4))
    monkeypatch.setattr(experiment, "STEP_SIZES", (0.1, 1.0))
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    here = lambda work, pieces, *_: [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]  # noqa: E731
    monkeypatch.setattr(experiment, "run_pieces", here)
    return tmp_path


def test_the_result_has_the_books_form_and_the_weights_are_those_that_were_measured(tiny):
    result = experiment.run(2, 1.0, lambda *_: None)
    results.check(result)
    metrics = result["metrics"]
    for method in experiment.METHODS:
        assert all(f"{split} · {method} · after {k}" in metrics for split in experiment.SPLITS for k in range(4))
    exact = best_return(Navigation(max_steps=4), paper_goals()).mean().item()
    assert metrics["paper · oracle"]["value"] == pytest.approx(exact, abs=1e-9)
    assert metrics["paper · oracle"]["low"] == metrics["paper · oracle"]["high"]
    assert all(m["published"] is None or label.startswith("paper · ") for label, m in metrics.items())
    assert metrics["paper · MAML, trust region · after 1"]["published"].startswith("−11.68")
    assert metrics["random init · environment steps"]["value"] == 0
    assert metrics["pretraining · environment steps"]["value"] > 0
    assert len(result["curves"]["training · MAML, clipped"]) == 2 and len(result["curves"]["training · pretraining"][0][0]) == 1

    saved = checkpoint.load(tiny / "maml-navigation.pt")["MAML, clipped"]
    alpha, later = (
        saved["step_sizes"],
        result["config"]["step sizes and factors chosen after 1, 2, 3 steps"]["MAML, clipped"][0][2][1],
    )
    config = experiment.METHODS["MAML, clipped"]
    again = experiment.evaluate(saved["params"], alpha, ("learned", later), paper_goals(), 0, config, 40)
    assert again[3] == result["curves"]["paper · MAML, clipped"][0][3]


def test_a_step_size_is_chosen_by_the_return_after_as_many_steps_and_one_that_diverges_loses(tiny, monkeypatch):
    earned = {(0.1, 1.0): [-9, -5, -5, -5], (0.1, 0.5): [-9, -5, -4, -4], (0.1, 0.25): [-9, -5, -4, -3]}

    def evaluate(theta, learned, pair, *_):
        if pair == (1.0, 0.5):
            raise FloatingPointError
        return earned.get(pair, [-9, -4, -8, -8])

    monkeypatch.setattr(experiment, "evaluate", evaluate)
    chosen = experiment.best_step_sizes({}, {}, True, 0, experiment.METHODS["pretraining"])
    assert chosen == [(1.0, 1.0), (0.1, 0.5), (0.1, 0.25)]


def test_a_fixed_step_size_and_a_factor_reach_the_adaptation(tiny):
    config = experiment.METHODS["random init"]
    theta = experiment.POLICY.init(1, torch.Generator().manual_seed(3))
    got = experiment.evaluate(theta, {}, (0.7, 0.5), paper_goals(), 5, config, 6)
    generator = torch.Generator().manual_seed(20_005)
    world, alpha = experiment.WORLD, dict.fromkeys(theta, 0.7)
    curve = adaptation_curve(world, experiment.POLICY, theta, alpha, paper_goals(), generator, 3, 6, "ratio", 0.99, 0.9, 0.5)
    assert got == curve.mean(-1).tolist()
