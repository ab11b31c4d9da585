"""Reptile against exact answers: joint training, the paper's expansion on an enumerated problem, averages by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metarl_lib import reptile, results, supervised_maml
from metarl_lib.experiments import maml_sinusoid, reptile_sinusoid
from metarl_lib.sinusoids import Examples, Sinusoids
from metarl_lib.supervised_maml import apply, init, spread
from metarl_lib.types import Params, index_tasks

TINY = reptile.Config(iterations=3, learners=2, tasks=4, shots=6, minibatch=2, inner_steps=4)
DOUBLE = Sinusoids(dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(learners: int = 1) -> Params:
    params = init(learners, generator(), (1, 5, 6, 1), torch.float64)
    return {name: p + 0.3 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype) for name, p in params.items()}


def init_double(learners: int, generator: torch.Generator) -> Params:
    return init(learners, generator, (1, 5, 6, 1), torch.float64)


def draw(tasks: int, shots: int = 6, seed: int = 0) -> Examples:
    draws = generator(seed)
    return DOUBLE.sample(DOUBLE.sample_tasks(tasks, draws), shots, draws)


# --- adaptation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_adapting_all_tasks_at_once_is_what_torchs_own_optimiser_does_on_each(name):
    theta, batches = start(4), list(reptile.minibatches(draw(4), 2, 5, generator(2)))
    phi, losses = reptile.adapt(theta, 0.03, batches, name)
    for i in range(4):
        alone = {n: p[i : i + 1].clone().requires_grad_() for n, p in theta.items()}
        of_torch = {
            "sgd": lambda parameters: torch.optim.SGD(parameters, 0.03),
            "adam": lambda parameters: torch.optim.Adam(parameters, 0.03, betas=(0.0, 0.999)),
        }
        optimizer = of_torch[name](list(alone.values()))
        for x, y in batches:
            optimizer.zero_grad()
            loss = functional.mse_loss(apply(alone, x[i : i + 1]), y[i : i + 1])
            loss.backward()
            optimizer.step()
        for n in theta:
            torch.testing.assert_close(phi[n][i : i + 1], alone[n].detach(), rtol=1e-8, atol=1e-10)
        assert losses[i].item() == pytest.approx(loss.item(), rel=1e-8)


def test_adaptation_leaves_its_start_alone():
    theta = start(3)
    kept = {name: p.clone() for name, p in theta.items()}
    phi, losses = reptile.adapt(theta, 0.03, [draw(3)])
    assert all(torch.equal(p, kept[name]) and not p.requires_grad for name, p in theta.items())
    assert not losses.requires_grad and not any(p.requires_grad for p in phi.values())


def test_minibatches_use_every_example_once_before_any_twice():
    examples = draw(5, shots=6)
    batches = list(reptile.minibatches(examples, 2, 7, generator(3)))
    assert len(batches) == 7 and all(batch.x.shape == batch.y.shape == (5, 2, 1) for batch in batches)
    for first in (0, 3):
        together = [torch.cat([getattr(batch, leaf) for batch in batches[first : first + 3]], 1) for leaf in ("x", "y")]
        order = [leaf[..., 0].sort(1) for leaf in (together[0], examples.x)]
        assert torch.equal(order[0].values, order[1].values)
        # x and y stay together.
        ys = [y[..., 0].gather(1, o.indices) for y, o in zip((together[1], examples.y), order, strict=True)]
        assert torch.equal(ys[0], ys[1])
    assert not torch.equal(batches[0].x, batches[3].x), "shuffled anew"
    ranks = [examples.x[..., 0].eq(batches[0].x[:, j]).nonzero()[:, 1].tolist() for j in range(2)]
    assert len(set(zip(*ranks, strict=True))) > 1, "each task has an order of its own"


# --- the outer update -------------------------------------------------------------------------------------------------


def test_the_outer_update_moves_towards_the_mean_of_each_learners_own_tasks():
    theta = {"w": torch.tensor([1.0, 10.0])[:, None, None]}
    phi = {"w": torch.tensor([2.0, 4.0, 20.0, 40.0])[:, None, None]}
    assert reptile.move(theta, phi, 0.5)["w"].flatten().tolist() == [1 + 0.5 * 2, 10 + 0.5 * 20]
    assert reptile.move(theta, phi, 0.0)["w"].flatten().tolist() == [1, 10]
    assert reptile.move(theta, phi, 1.0)["w"].flatten().tolist() == [3, 30]


def test_with_one_inner_step_it_is_a_gradient_step_of_joint_training():
    config = replace(TINY, iterations=1, learners=1, inner_steps=1, minibatch=6, meta_step_size=0.5, inner_step_size=0.03)
    (log,) = reptile.train(DOUBLE, config, init_double)
    draws = generator(config.seed)
    theta = {name: p.requires_grad_() for name, p in init_double(1, draws).items()}
    x, y = DOUBLE.sample(DOUBLE.sample_tasks(4, draws), 6, draws)
    pooled = functional.mse_loss(apply(theta, x.reshape(1, -1, 1)), y.reshape(1, -1, 1))
    for (name, p), gradient in zip(theta.items(), torch.autograd.grad(pooled, list(theta.values())), strict=True):
        torch.testing.assert_close(log.params[name], p.detach() - 0.5 * 0.03 * gradient, rtol=1e-12, atol=1e-13)
    assert log.loss.item() == pytest.approx(pooled.item(), rel=1e-12)


def test_the_outer_step_size_falls_in_a_straight_line():
    class Still(Sinusoids):
        """One task for ever, y = 1 at x = 1, so that a step is known by hand."""

        def sample(self, task, shots, generator):
            return Examples(*(torch.ones(len(task.phase), shots, 1, dtype=torch.float64),) * 2)

    def zero(learners, generator):
        return {"w": torch.zeros(learners, 1, 1, dtype=torch.float64)}

    config = reptile.Config(4, tasks=3, shots=1, minibatch=1, inner_steps=1, inner_step_size=0.25, final_meta_step_size=0.2)
    logs = list(reptile.train(Still(), config, zero, lambda params, x: params["w"] * x))
    error, expected = 1.0, []
    for epsilon in (1.0, 0.8, 0.6, 0.4):
        error *= 1 - epsilon * 2 * 0.25  # L = (w − 1)², L' = 2 (w − 1)
        expected.append(1 - error)
    assert [log.params["w"].item() for log in logs] == pytest.approx(expected, rel=1e-12)


# --- the expansion of the paper ---------------------------------------------------------------------------------------


def linear(params: Params, x: Tensor) -> Tensor:
    return x @ params["w"]


def enumerated(k: int) -> list[Examples]:
    """Two tasks of linear regression with three examples each; every sequence of k one-example minibatches, as a task each."""
    draws = generator(4)
    x = torch.randn(2, 3, 2, generator=draws, dtype=torch.float64)
    y = torch.randn(2, 3, 1, generator=draws, dtype=torch.float64)
    sequences = list(itertools.product(range(3), repeat=k))
    return [Examples(*(torch.cat([leaf[:, s[step]][:, None] for s in sequences]) for leaf in (x, y))) for step in range(k)]


W = torch.tensor([[[0.4], [-1.1]]], dtype=torch.float64)


def gradient(w: Tensor, batch: Examples) -> Tensor:
    """∇L of L = (x·w − y)² with one example a task, by hand: 2 (x·w − y) x, ``[task, 2, 1]``."""
    return 2 * (batch.x @ w - batch.y) * batch.x.transpose(1, 2)


def averages() -> tuple[Tensor, Tensor]:
    """The paper's AvgGrad and AvgGradInner: E g̅ and E[H̅ g̅'] over pairs of minibatches of one task."""
    first, second = enumerated(2)
    hessian = 2 * first.x.transpose(1, 2) @ first.x
    return gradient(W, first).mean(0), (hessian @ gradient(W, second)).mean(0)


def reptile_gradient(k: int, alpha: float) -> Tensor:
    """E (θ − φ) / α, by the library."""
    batches = enumerated(k)
    phi, _ = reptile.adapt(spread({"w": W}, len(batches[0].x)), alpha, batches, apply=linear)
    return (W[0] - phi["w"].mean(0)) / alpha


def test_two_inner_steps_on_a_quadratic_are_the_papers_two_terms_exactly():
    average, inner = averages()
    for alpha in (0.01, 0.2):
        torch.testing.assert_close(reptile_gradient(2, alpha), 2 * average - alpha * inner, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("k", [3, 4])
def test_more_inner_steps_are_the_papers_two_terms_to_leading_order(k):
    average, inner = averages()
    rests = []
    for alpha in (2e-3, 1e-3):
        leading = k * average - k * (k - 1) / 2 * alpha * inner
        rests.append((reptile_gradient(k, alpha) - leading).norm().item())
        assert rests[-1] < 0.05 * (k * (k - 1) / 2 * alpha * inner).norm(), "what is left is smaller than the second term"
    assert rests[0] / rests[1] == pytest.approx(4, rel=0.02), "and of second order in α"


def test_maml_and_first_order_maml_have_the_same_two_terms_with_other_weights():
    average, inner = averages()
    support, query = enumerated(2)
    for first_order, weight in ((False, 2), (True, 1)):
        rests = []
        for alpha in (2e-3, 1e-3):
            theta = {"w": W.clone().requires_grad_()}
            step_sizes = {"w": torch.full((1, 1, 1), alpha, dtype=torch.float64)}
            config = supervised_maml.Config(first_order=first_order)
            losses = supervised_maml.meta_loss(theta, step_sizes, support, query, config, linear)
            (found,) = torch.autograd.grad(losses.mean(), theta["w"])
            rests.append((found[0] - average + weight * alpha * inner).norm().item())
        if first_order:  # the gradient at φ of a quadratic is linear in α
            assert max(rests) < 1e-12
        else:
            assert rests[0] / rests[1] == pytest.approx(4, rel=0.02)


# --- training ---------------------------------------------------------------------------------------------------------


def last(config: reptile.Config, tasks: Sinusoids | None = None, **functions) -> reptile.Log:
    *_, log = reptile.train(tasks or Sinusoids(), config, **functions)
    return log


def test_it_learns_to_adapt():
    theta = last(reptile.Config(iterations=400, learners=2, inner_step_size=0.02)).params
    joint = last(reptile.Config(iterations=3200, learners=2, inner_step_size=0.02, inner_steps=1, shots=10)).params
    draws = generator(9)
    support, query = Sinusoids().support_and_query(Sinusoids().sample_tasks(200, draws, "test"), 10, 50, draws)
    for learner in range(2):
        after, after_joint = (
            supervised_maml.adaptation_curve({n: p[learner : learner + 1] for n, p in params.items()}, 0.02, support, query, 8)
            for params in (theta, joint)
        )
        after, after_joint = after.mean(1), after_joint.mean(1)
        assert after[8] < after[0] - 0.5, after
        assert after[8] < after_joint[8] - 0.2, (after, after_joint)


def test_one_iteration_is_adaptation_and_a_move():
    log = next(iter(reptile.train(DOUBLE, TINY, init_double)))
    draws = generator(TINY.seed)
    theta = init_double(2, draws)
    examples = DOUBLE.sample(DOUBLE.sample_tasks(8, draws), 6, draws)
    batches = list(reptile.minibatches(examples, 2, 4, draws))
    for learner in range(2):
        mine = slice(4 * learner, 4 * learner + 4)
        own = {name: p[learner : learner + 1] for name, p in theta.items()}
        phi, losses = reptile.adapt(spread(own, 4), 0.01, [index_tasks(batch, mine) for batch in batches])
        assert log.loss[learner].item() == pytest.approx(losses.mean().item(), rel=1e-10)
        for name in theta:
            torch.testing.assert_close(log.params[name][learner], phi[name].mean(0), rtol=1e-10, atol=1e-12)


def test_a_learner_is_untouched_by_the_others():
    def one_is_different(learners: int, generator: torch.Generator) -> Params:
        params = init(learners, generator)
        return {name: torch.cat((p[:1], 1.2 * p[1:] + 0.05)) for name, p in params.items()}

    one, two = last(TINY, init=init), last(TINY, init=one_is_different)
    for name, p in one.params.items():
        assert torch.equal(p[0], two.params[name][0]) and not torch.equal(p[1], two.params[name][1])
    assert torch.equal(one.loss[0], two.loss[0]) and one.loss[1] != two.loss[1]


def test_the_same_seed_gives_the_same_run_and_a_log_never_changes():
    logs, again, other = (list(reptile.train(Sinusoids(), config)) for config in (TINY, TINY, replace(TINY, seed=1)))
    assert [log.iteration for log in logs] == [1, 2, 3]
    first = next(iter(reptile.train(Sinusoids(), TINY)))
    for name in first.params:
        assert torch.equal(first.params[name], logs[0].params[name])
        assert torch.equal(again[-1].params[name], logs[-1].params[name])
        assert not torch.equal(logs[0].params[name], logs[1].params[name])
    assert not torch.equal(other[0].loss, logs[0].loss)


def test_every_class_is_in_a_shot():
    class Classes:
        """Three classes a shot, as in classification: 3 · shots examples."""

        seen = []

        def sample_tasks(self, n, generator):
            return torch.zeros(n)

        def sample(self, task, shots, generator):
            x = torch.randn(len(task), 3 * shots, 1, generator=generator)
            return Examples(x, torch.zeros(len(task), 3 * shots, dtype=torch.int64))

    def remember(params, x):
        Classes.seen.append(x.shape[1])
        return apply(params, x).expand(-1, -1, 2)

    list(reptile.train(Classes(), TINY, apply=remember, loss=supervised_maml.cross_entropy))
    assert set(Classes.seen) == {6}


def test_parameters_that_are_not_numbers_stop_training_with_iteration_and_learner_named():
    def one_explodes(learners: int, generator: torch.Generator) -> Params:
        params = init(learners, generator)
        return {name: torch.cat((p[:1], 1e30 * p[1:])) for name, p in params.items()}

    with pytest.raises(FloatingPointError, match="iteration 1: the parameters of learner 1 are NaN or infinite"):
        last(TINY, init=one_explodes)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"minibatch": 0}, "minibatch must be at least 1, got 0"),
        ({"inner_steps": 0}, "inner_steps must be at least 1, got 0"),
        ({"minibatch": 4}, r"shots \(6\) must be a multiple of minibatch \(4\)"),
        ({"inner_step_size": math.inf}, "inner_step_size must be positive and finite, got inf"),
        ({"meta_step_size": 1.5}, r"meta_step_size must be in \[0, 1\], got 1.5"),
        ({"final_meta_step_size": math.nan}, r"final_meta_step_size must be in \[0, 1\], got nan"),
        ({"optimizer": "rmsprop"}, "unknown optimizer 'rmsprop'; there are sgd, adam"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


# --- the full-size run, made small ------------------------------------------------------------------------------------


def test_the_experiment_gives_a_result_of_the_one_form(monkeypatch):
    def run_here(work, pieces, *_):
        return [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]

    monkeypatch.setattr(maml_sinusoid, "run_pieces", run_here)
    monkeypatch.setattr(reptile_sinusoid, "run_pieces", run_here)
    result = json.loads(json.dumps(reptile_sinusoid.run(2, 0.001, None), allow_nan=False))
    results.check(result)
    assert result["name"] == reptile_sinusoid.NAME and result["seeds"] == [0, 1]
    tried = result["config"]["tried"]
    assert set(tried) == set(reptile_sinusoid.TRIALS)
    assert sum(tried[result["config"]["chosen"]]) == pytest.approx(min(map(sum, tried.values())), abs=2e-3)
    for method in ("Reptile", "Reptile, own step size", "MAML", "MAML, own step size"):
        assert f"5-shot · {method} · after 10" in result["metrics"]


def test_a_trial_that_diverges_is_not_chosen(monkeypatch):
    monkeypatch.setitem(reptile_sinusoid.TRIALS, "wild", replace(reptile_sinusoid.REPTILE, inner_step_size=1e20))
    piece = reptile_sinusoid.tune("wild", 0.001)
    assert piece["errors"] == [maml_sinusoid.CEILING] * reptile_sinusoid.TUNING_SEEDS and "iteration 1" in piece["stopped"]


def test_what_diverges_in_the_full_run_gives_way_to_the_next_best(monkeypatch):
    def run_here(work, pieces, *_):
        return [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]

    wild = replace(reptile_sinusoid.REPTILE, inner_step_size=1e20)
    monkeypatch.setattr(reptile_sinusoid, "TRIALS", {"tame": reptile_sinusoid.REPTILE, "wild": wild})
    monkeypatch.setattr(reptile_sinusoid, "tune", lambda label, scale: {"errors": [0.1 if label == "wild" else 0.2]})
    monkeypatch.setattr(maml_sinusoid, "run_pieces", run_here)
    monkeypatch.setattr(reptile_sinusoid, "run_pieces", run_here)
    config = reptile_sinusoid.run(2, 0.001, None)["config"]
    assert config["chosen"] == "tame"
    assert "iteration 1" in config["better in tuning, but one of the seeds diverged"]["wild"]
