"""The experiment on meta-gradient estimators, against automatic differentiation of the objectives themselves."""

from __future__ import annotations

import math

import pytest
import torch

from metarl_lib import enumerable, results
from metarl_lib.experiments import estimator_bias
from metarl_lib.experiments.estimator_bias import (
    OBJECTIVES,
    SAMPLING,
    STEP_SIZE,
    draw,
    errors,
    moments,
    problem_of,
    supports,
    tabulate,
)
from metarl_lib.meta_gradient import log_prob


def of(states: int, actions: int, steps: int, tasks: int = 3):
    return problem_of(*draw(tasks, states, actions, steps), steps)


def gradient_with_supports(problem, i: int, size: int) -> torch.Tensor:
    """∇F_N by differentiating Σ_D P(D; θ) J(θ + α ĝ(D; θ)) over ordered supports; the advantages are numbers."""
    one = problem_of(type(problem.task)(*(leaf[i : i + 1] for leaf in problem.task)), problem.theta[i : i + 1], problem.steps)
    theta = one.theta.clone().requires_grad_()
    own = theta[:, None].expand(-1, len(one.episodes.states), -1, -1)
    log_probs = enumerable.log_probs(own, one.episodes)
    objective = log_prob(log_probs, one.advantages).sum()
    (each,) = torch.autograd.grad(objective, own, create_graph=True)  # [1, episode, state, action]
    p, kinds = enumerable.probability(theta, one.episodes)[0], len(one.episodes.states)
    f = 0
    for support in torch.cartesian_prod(*[torch.arange(kinds)] * size).view(-1, size):
        phi = theta + STEP_SIZE * each[:, support].mean(1)
        f = f + p[support].prod() * one.expected_return(phi)[0]
    return torch.autograd.grad(f, theta)[0].flatten()


@pytest.mark.parametrize(("world", "size"), [((1, 5, 1), 1), ((1, 5, 1), 3), ((2, 2, 2), 1), ((2, 2, 2), 2), ((2, 2, 3), 1)])
def test_the_target_of_a_small_support_is_the_gradient_of_its_objective(world, size, monkeypatch):
    problem = of(*world)
    truth = gradient_with_supports(problem, 1, size)
    drawn = supports(problem.probability[1], size, 10, torch.Generator().manual_seed(0))
    assert math.isinf(drawn[2]), "all supports are there"
    found = moments(problem, 1, tabulate(problem, 1), size, drawn)

    counts, weights, _ = drawn
    table = tabulate(problem, 1)
    j = lambda theta: enumerable.expected_return(theta, type(problem.task)(*(leaf[1:2] for leaf in problem.task)), world[2])  # noqa: E731
    phi = problem.theta[1:2, None] + STEP_SIZE * (counts @ table.gradient / size).view(1, -1, *world[:2])
    outer = enumerable.gradient(j, phi)[0]
    bias = (weights @ outer - truth).norm() / truth.norm()
    assert found["first-order · bias"] == pytest.approx(float(bias), rel=1e-9)
    variance = weights @ (outer - weights @ outer).square().sum(-1)
    assert found["first-order · sd"] == pytest.approx(float(variance.sqrt() / truth.norm()), rel=1e-9)

    # With the sampling term the naive estimator is unbiased, which moments() takes for granted.
    hessian = (counts @ table.hessians["log-probability, baseline"].flatten(1) / size).view(-1, *table.score.shape[1:] * 2)
    unbiased = outer + STEP_SIZE * (hessian @ outer[..., None])[..., 0]
    for name, b in zip(SAMPLING, (j(problem.theta[1:2]), weights @ j(phi)[0]), strict=True):
        with_term = unbiased + (j(phi)[0] - b)[:, None] * (counts @ table.score)
        torch.testing.assert_close(weights @ with_term, truth, rtol=1e-9, atol=1e-12)
        assert found[f"{name} · bias"] == 0
        variance = weights @ (with_term - truth).square().sum(-1)
        assert found[f"{name} · sd"] == pytest.approx(float(variance.sqrt() / truth.norm()), rel=1e-9)


def test_sampled_supports_agree_with_all_supports(monkeypatch):
    problem, generator = of(2, 2, 2), torch.Generator().manual_seed(0)
    every = moments(problem, 0, tabulate(problem, 0), 3, supports(problem.probability[0], 3, 0, generator))
    monkeypatch.setattr(estimator_bias, "ENUMERATED", 0)
    drawn = supports(problem.probability[0], 3, 40_000, generator)
    assert drawn[0].shape == (40_000, 8) and (drawn[0].sum(-1) == 3).all()
    sampled = moments(problem, 0, tabulate(problem, 0), 3, drawn)
    for label, value in every.items():
        assert sampled[label] == pytest.approx(value, abs=0.02), label


def test_with_many_episodes_what_is_left_is_the_bias_of_the_hessian():
    problem = of(1, 5, 1, tasks=9)
    exact, generator = errors(problem, OBJECTIVES["first-order"])["bias"], torch.Generator()
    for size, tolerance in ((5, 0.4), (20, 0.1)):
        drawn = [supports(problem.probability[i], size, 0, generator) for i in range(9)]
        found = [moments(problem, i, tabulate(problem, i), size, drawn[i]) for i in range(9)]
        off = torch.tensor([float(f["first-order · bias"] / exact[i] - 1) for i, f in enumerate(found)])
        assert float(off.abs().median()) < tolerance
        assert float(torch.tensor([f["ratio, baseline · bias"] for f in found]).median()) < tolerance / 2
        assert float(torch.tensor([f["∇F_N from its limit"] for f in found]).median()) < tolerance / 2


def test_the_noise_of_the_sampling_term_grows_unless_the_baseline_is_right_and_that_of_the_others_falls():
    problem = of(1, 5, 1)
    small, large = (
        moments(problem, 0, tabulate(problem, 0), n, supports(problem.probability[0], n, 0, torch.Generator())) for n in (5, 20)
    )
    at_hand, ideal = SAMPLING
    assert large[f"{at_hand} · sd"] > 1.5 * small[f"{at_hand} · sd"]
    assert large[f"{ideal} · sd"] < 1.3 * small[f"{ideal} · sd"]
    assert large["ratio, baseline · sd"] < 0.6 * small["ratio, baseline · sd"] < small[f"{ideal} · sd"]


def test_on_a_bandit_the_ratio_is_exact_and_the_naive_one_may_point_the_wrong_way():
    problem = of(1, 5, 1, tasks=500)
    naive = errors(problem, OBJECTIVES["log-probability"])["cosine"]
    assert 0.87 < float(naive.median()) < 0.96, "0.924 in another draw"
    assert float(naive.min()) < -0.8, "-0.969 in another draw"
    for name in ("ratio", "ratio, baseline", "DiCE", "Loaded DiCE, baseline"):
        found = errors(problem, OBJECTIVES[name])
        assert float(found["bias"].max()) < 1e-9
        assert float(found["cosine"].min()) > 1 - 1e-12
    first, with_baseline = (errors(problem, OBJECTIVES[name]) for name in ("first-order", "log-probability, baseline"))
    torch.testing.assert_close(first["bias"], with_baseline["bias"], rtol=1e-8, atol=1e-10)
    assert float(first["sd"].max()) == 0 < float(with_baseline["sd"].min())


def test_over_several_steps_the_ratio_is_biased_and_dice_noisier_but_not():
    problem = of(3, 3, 3, tasks=20)
    ratio, dice = (errors(problem, OBJECTIVES[name]) for name in ("ratio, baseline", "Loaded DiCE, baseline"))
    assert float(ratio["bias"].min()) > 1e-3
    assert float(dice["bias"].max()) < 1e-8
    assert float(errors(problem, OBJECTIVES["DiCE"])["bias"].max()) < 1e-8
    assert float(dice["sd"].median()) > 1.3 * float(ratio["sd"].median())
    assert float(errors(problem, OBJECTIVES["first-order"])["bias"].median()) > 3 * float(ratio["bias"].median())


def test_a_quick_run_has_the_form_of_a_result(monkeypatch, tmp_path):
    monkeypatch.setattr(estimator_bias, "HORIZONS", (1, 2))
    monkeypatch.setattr(estimator_bias, "BATCHES", (1, 2, 16))
    # In this process: others would take seconds to start.
    monkeypatch.setattr(
        estimator_bias, "run_pieces", lambda work, pieces, *_: [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]
    )
    result = estimator_bias.run(4, 0.01, lambda *_: None)
    results.save(result, tmp_path / "estimator-bias.json")
    assert result["cpu_seconds"] == len(estimator_bias.PARTS)
    assert result["seeds"] == [0, 1, 2, 3]
    assert result["metrics"]["bandit · ratio · bias"]["value"] == 0
    assert len(result["curves"]["bandit · worst cases · true"]) == 4
    assert len(result["curves"]["MDP · by episodes · ratio, baseline · error · median"]) == 3
