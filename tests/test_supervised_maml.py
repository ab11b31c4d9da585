"""Supervised MAML against exact answers: a case in closed form, finite differences, per-task loops, functional transforms."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from metarl_lib import results, supervised_maml as maml
from metarl_lib.experiments import maml_sinusoid
from metarl_lib.nets import mlp
from metarl_lib.sinusoids import Examples, Sinusoids
from metarl_lib.types import Params, index_tasks

TINY = maml.Config(iterations=3, learners=2, tasks=4, shots=5, queries=6)
SMALL = (1, 5, 6, 1)
DOUBLE = Sinusoids(dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(learners: int = 1, seed: int = 0, sizes: tuple[int, ...] = SMALL) -> Params:
    """Parameters of some size, biases too, so that no unit is always on or always off."""
    params = maml.init(learners, generator(seed), sizes, torch.float64)
    return {name: p + 0.3 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype) for name, p in params.items()}


def examples(tasks: int, seed: int = 0, shots: int = 5, queries: int = 7) -> tuple[Examples, Examples]:
    draws = generator(seed)
    return DOUBLE.support_and_query(DOUBLE.sample_tasks(tasks, draws), shots, queries, draws)


def smooth(params: Params, x: Tensor) -> Tensor:
    """The network with tanh in place of rectified linear units, whose kinks finite differences stumble over."""
    return mlp(params, x, torch.tanh)


def alphas(params: Params, alpha: float) -> Params:
    return {name: torch.full_like(p[:, :1, :1], alpha) for name, p in params.items()}


# --- in closed form ---------------------------------------------------------------------------------------------------


def slope(params: Params, x: Tensor) -> Tensor:
    """A network of one parameter: y = w x."""
    return params["w"] * x


def one_parameter(theta: float) -> tuple[Params, Examples, Examples]:
    """Two tasks, y = 2x and y = −x, from one example each: x = 1 in support; x = 2 and x = 3 in the queries."""
    slopes = torch.tensor([2.0, -1.0], dtype=torch.float64)[:, None, None]
    support_x = torch.tensor([1.0, 0.5], dtype=torch.float64)[:, None, None]
    query_x = torch.tensor([[2.0], [3.0]], dtype=torch.float64)[:, None]
    w = {"w": torch.full((1, 1, 1), theta, dtype=torch.float64, requires_grad=True)}
    return w, Examples(support_x, slopes * support_x), Examples(query_x, slopes * query_x)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_of_one_parameter_is_that_worked_out_by_hand(steps, first_order):
    # L(w) = (w − a)² x², so that a step takes w − a to (1 − 2 α x²)(w − a): the adapted loss is that of a shrunken error.
    theta, alpha = 0.7, 0.1
    w, support, query = one_parameter(theta)
    config = maml.Config(inner_steps=steps, first_order=first_order)
    losses = maml.meta_loss(w, {"w": torch.full((1, 1, 1), alpha, dtype=torch.float64)}, support, query, config, slope)
    (gradient,) = torch.autograd.grad(losses.sum(), w["w"])
    expected_losses, expected = [], 0.0
    for a, x, x_query in ((2.0, 1.0, 2.0), (-1.0, 0.5, 3.0)):
        shrink = (1 - 2 * alpha * x**2) ** steps
        expected_losses.append((shrink * (theta - a) * x_query) ** 2)
        expected += 2 * x_query**2 * shrink * (theta - a) * (1 if first_order else shrink)
    assert losses[0].tolist() == pytest.approx(expected_losses, rel=1e-12)
    assert gradient.item() == pytest.approx(expected, rel=1e-12)


def test_one_step_by_hand():
    # At θ = 0.7, α = 0.1: φ = 0.7 − 0.1 · 2 · (0.7 − 2) = 0.96 and 0.7 − 0.1 · 2 · 0.25 · 1.7 = 0.615.
    w, support, query = one_parameter(0.7)
    phi = maml.adapt(maml.spread(w, 2), 0.1, support, apply=slope)
    assert phi["w"].flatten().tolist() == pytest.approx([0.96, 0.615])
    curve = maml.adaptation_curve(w, 0.1, support, query, 1, apply=slope)
    assert curve.tolist() == [pytest.approx([1.3**2 * 4, 1.7**2 * 9]), pytest.approx([1.04**2 * 4, 1.615**2 * 9])]


def test_the_best_start_for_two_opposite_slopes_is_between_them_weighted_by_what_adaptation_leaves():
    # ½ Σ c_i (θ − a_i)² with c = (x' · shrink)²: θ* = Σ c a / Σ c. Joint training weighs by x'² alone.
    @dataclass(frozen=True)
    class Two:
        def sample_tasks(self, n, generator):
            return None

        def support_and_query(self, task, shots, queries, generator):
            return one_parameter(0.0)[1:]

    def zero(learners, generator):
        return {"w": torch.zeros(learners, 1, 1, dtype=torch.float64)}

    for steps, weights in ((0, (4, 9)), (2, (4 * 0.8**4, 9 * 0.95**4))):
        config = maml.Config(1500, inner_steps=steps, tasks=2, shots=1, queries=1, inner_step_size=0.1, meta_step_size=1e-2)
        *_, log = maml.train(Two(), config, zero, slope)
        best = (2 * weights[0] - weights[1]) / sum(weights)
        assert log.params["w"].item() == pytest.approx(best, abs=1e-6)


# --- adaptation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_adapting_all_tasks_at_once_is_adapting_each_alone(steps):
    support, theta = examples(6)[0], start(6)
    together = maml.adapt(theta, 0.05, support, steps)
    for i in range(6):
        alone = maml.adapt({n: p[i : i + 1] for n, p in theta.items()}, 0.05, index_tasks(support, slice(i, i + 1)), steps)
        for name in theta:
            torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=1e-10, atol=1e-12)


def test_adapting_is_what_torchs_own_modules_and_optimiser_do():
    support, theta = examples(4)[0], start(4)
    adapted = maml.adapt(theta, 0.05, support, steps=3)
    for i in range(4):
        layers = [torch.nn.Linear(*theta[f"weight_{k}"].shape[1:], dtype=torch.float64) for k in range(3)]
        network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
        with torch.no_grad():
            for k, layer in enumerate(layers):
                layer.weight.copy_(theta[f"weight_{k}"][i].T)
                layer.bias.copy_(theta[f"bias_{k}"][i, 0])
        optimizer = torch.optim.SGD(network.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            functional.mse_loss(network(support.x[i]), support.y[i]).backward()
            optimizer.step()
        for k, layer in enumerate(layers):
            torch.testing.assert_close(adapted[f"weight_{k}"][i], layer.weight.detach().T, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(adapted[f"bias_{k}"][i, 0], layer.bias.detach(), rtol=1e-10, atol=1e-12)


def test_adaptation_is_vmap_of_grad():
    support, theta = examples(6)[0], start(6)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(maml.apply({name: p[None] for name, p in params.items()}, x[None])[0], y)

    gradients = vmap(grad(loss))(theta, *support)
    adapted = maml.adapt(theta, 0.05, support)
    for name in theta:
        torch.testing.assert_close(adapted[name], theta[name] - 0.05 * gradients[name], rtol=1e-10, atol=1e-12)


def test_a_task_is_untouched_by_a_change_to_another():
    support, theta = examples(3)[0], maml.spread(start(), 3)
    before = maml.adapt(theta, 0.05, support, steps=2)
    changed = support.y.clone()
    changed[1] *= -5
    after = maml.adapt(theta, 0.05, support._replace(y=changed), steps=2)
    for name in theta:
        assert torch.equal(before[name][[0, 2]], after[name][[0, 2]])
        assert not torch.equal(before[name][1], after[name][1])


def test_adaptation_leaves_its_start_alone_and_nothing_leaks_from_one_evaluation_to_the_next():
    (support, query), theta = examples(5), start()
    kept = {name: p.clone() for name, p in theta.items()}
    first, again = (maml.adaptation_curve(theta, 0.02, support, query, 4) for _ in range(2))
    assert torch.equal(first, again) and not first.requires_grad
    assert all(torch.equal(p, kept[name]) and not p.requires_grad for name, p in theta.items())
    torch.testing.assert_close(first[3], maml.adaptation_curve(theta, 0.02, support, query, 3)[3])
    assert first.shape == (5, 5)
    on_support = maml.adaptation_curve(theta, 0.005, support, support, 4)
    assert (on_support.diff(dim=0) < 0).all(), "small steps descend on what they are taken on"


def test_each_parameter_has_its_own_step_size():
    support, theta = examples(2)[0], start(2)
    sizes = {name: (0.01 * (1 + k)) * torch.ones_like(p) for k, (name, p) in enumerate(theta.items())}
    mixed = maml.adapt(theta, sizes, support)
    for k, name in enumerate(theta):
        torch.testing.assert_close(mixed[name], maml.adapt(theta, 0.01 * (1 + k), support)[name])


def test_the_inner_loop_of_anil_moves_the_head_alone_and_its_meta_gradient_reaches_everything():
    (support, query), theta = examples(4), start()
    adapted = maml.adapt(maml.spread(theta, 4), 0.05, support, 3, adapted=maml.HEAD)
    whole = maml.adapt(maml.spread(theta, 4), 0.05, support, 1)
    for name, p in theta.items():
        assert torch.equal(adapted[name], p.expand_as(adapted[name])) == (name not in maml.HEAD)
        assert not torch.equal(whole[name], p.expand_as(whole[name]))
    one = maml.adapt(maml.spread(theta, 4), 0.05, support, 1, adapted=maml.HEAD)
    for name in maml.HEAD:
        torch.testing.assert_close(one[name], whole[name])
    theta = {name: p.requires_grad_() for name, p in theta.items()}
    gradients = []
    for first_order in (False, True):
        config = maml.Config(inner_steps=2, adapted=maml.HEAD, first_order=first_order)
        losses = maml.meta_loss(theta, alphas(theta, 0.05), support, query, config)
        gradients.append(torch.autograd.grad(losses.sum(), list(theta.values())))
    assert all((g != 0).any() for g in gradients[0])
    # The body's second-order term: the head's inner gradient depends on the features.
    assert (gradients[0][0] - gradients[1][0]).norm() > 1e-3 * gradients[0][0].norm()


# --- the meta-gradient ------------------------------------------------------------------------------------------------


def meta_gradients(config: maml.Config, apply: maml.Apply = maml.apply, tasks: int = 3) -> list[Tensor]:
    theta = {name: p.requires_grad_() for name, p in start().items()}
    losses = maml.meta_loss(theta, alphas(theta, 0.05), *examples(tasks), config, apply)
    return list(torch.autograd.grad(losses.mean(), list(theta.values())))


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("adapted", [None, maml.HEAD], ids=["all", "head"])
def test_the_second_order_meta_gradient_agrees_with_finite_differences(steps, adapted):
    theta = {name: p.requires_grad_() for name, p in start().items()}
    log_alpha = {name: torch.full_like(p, math.log(0.05)).requires_grad_() for name, p in theta.items()}
    leaves = [*theta.values(), *log_alpha.values()]
    config, data = maml.Config(inner_steps=steps, adapted=adapted), examples(3)

    def objective(leaves: list[Tensor]) -> Tensor:
        moved = iter(leaves)
        phi = {name: next(moved) for name in theta}
        alpha = {name: next(moved).exp() for name in theta}
        return maml.meta_loss(phi, alpha, *data, config, smooth).mean()

    gradients = torch.autograd.grad(objective(leaves), leaves, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)]
    draws = generator(1)
    for _ in range(5):
        direction = [torch.randn(p.shape, generator=draws, dtype=p.dtype) for p in leaves]
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        h, values = 1e-5, []
        for sign in (1, -1):
            moved = [(p.detach() + sign * h * d).requires_grad_() for p, d in zip(leaves, direction, strict=True)]
            values.append(objective(moved).item())
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_first_order_meta_gradient_is_the_query_gradient_at_the_adapted_parameters(steps):
    config = maml.Config(inner_steps=steps)
    second_order, first_order = meta_gradients(config), meta_gradients(replace(config, first_order=True))
    support, query = examples(3)
    phi = maml.adapt(maml.spread(start(), 3), 0.05, support, steps)
    phi = {name: p.requires_grad_() for name, p in phi.items()}
    at_phi = torch.autograd.grad(maml.squared_error(maml.apply(phi, query.x), query.y).mean(), list(phi.values()))
    for found, expected in zip(first_order, at_phi, strict=True):
        torch.testing.assert_close(found, expected.sum(0, keepdim=True), rtol=1e-10, atol=1e-12)
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in (first_order, second_order)]
    assert (flat[0] - flat[1]).norm() > 0.05 * flat[1].norm(), "the Hessian's term is not negligible here"


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_of_all_tasks_is_the_mean_of_a_loop_over_modules(steps):
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 5), torch.nn.ReLU(), torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1)
    ).double()
    theta, (support, query) = start(), examples(4)
    with torch.no_grad():
        for k in range(3):
            network[2 * k].weight.copy_(theta[f"weight_{k}"][0].T)
            network[2 * k].bias.copy_(theta[f"bias_{k}"][0, 0])
    for i in range(4):
        phi = dict(network.named_parameters())
        for _ in range(steps):
            inner = functional.mse_loss(functional_call(network, phi, support.x[i]), support.y[i])
            gradients = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
            phi = {name: p - 0.05 * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        (functional.mse_loss(functional_call(network, phi, query.x[i]), query.y[i]) / 4).backward()
    found = dict(zip(theta, meta_gradients(maml.Config(inner_steps=steps), tasks=4), strict=True))
    for k in range(3):
        torch.testing.assert_close(found[f"weight_{k}"][0].T, network[2 * k].weight.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[f"bias_{k}"][0, 0], network[2 * k].bias.grad, rtol=1e-10, atol=1e-12)


def test_without_inner_steps_it_is_the_gradient_of_joint_training():
    theta, query = start(), examples(4)[1]
    found = meta_gradients(maml.Config(inner_steps=0), tasks=4)
    theta = {name: p.requires_grad_() for name, p in theta.items()}
    pooled = functional.mse_loss(maml.apply(theta, query.x.reshape(1, -1, 1)), query.y.reshape(1, -1, 1))
    for g, expected in zip(found, torch.autograd.grad(pooled, list(theta.values())), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-12)


# --- losses and other networks ----------------------------------------------------------------------------------------


def test_losses_are_torchs_own_task_by_task():
    draws = generator()
    logits = torch.randn(3, 8, 5, generator=draws, dtype=torch.float64)
    labels = torch.randint(5, (3, 8), generator=draws)
    values = torch.randn(3, 8, 5, generator=draws, dtype=torch.float64)
    for found, expected in (
        (maml.cross_entropy(logits, labels), [functional.cross_entropy(a, b) for a, b in zip(logits, labels, strict=True)]),
        (maml.squared_error(logits, values), [functional.mse_loss(a, b) for a, b in zip(logits, values, strict=True)]),
    ):
        torch.testing.assert_close(found, torch.stack(expected))


class Bars:
    """Two classes of 4×4 pictures, upright and lying bars, whose labels a task may swap: [task, example, 1, 4, 4]."""

    def sample_tasks(self, n, generator, split="train"):
        return torch.randint(2, (n,), generator=generator)

    def sample(self, task, shots, generator):
        n = len(task)
        lying = (torch.rand(n, 2 * shots, generator=generator).argsort(1) % 2).bool()
        place = torch.randint(4, (n, 2 * shots), generator=generator)
        upright = functional.one_hot(place, 4).float()[..., None, None, :].expand(n, 2 * shots, 1, 4, 4)
        x = torch.where(lying[..., None, None, None], upright.transpose(-1, -2), upright)
        return Examples(x, lying.long() ^ task[:, None])

    def support_and_query(self, task, shots, queries, generator):
        return self.sample(task, shots, generator), self.sample(task, queries, generator)


def convolutional(params: Params, x: Tensor) -> Tensor:
    """Every task's own 3×3 filters, as groups of one convolution; ``[task, example, 1, 4, 4]`` to two logits."""
    tasks, n = x.shape[:2]
    tasks_as_channels = x.transpose(0, 1).reshape(n, tasks, 4, 4)
    h = functional.conv2d(tasks_as_channels, params["filters"].flatten(0, 1), groups=tasks, padding=1).relu()
    features = h.unflatten(1, (tasks, -1)).amax((-2, -1)).transpose(0, 1)  # [task, example, filter]
    return torch.baddbmm(params["bias"], features, params["weight"])


def init_convolutional(learners: int, generator: torch.Generator) -> Params:
    draw = lambda *shape: torch.randn(learners, *shape, generator=generator) / 3  # noqa: E731
    return {"filters": draw(8, 1, 3, 3), "weight": draw(8, 2), "bias": draw(1, 2)}


def test_a_network_with_convolutions_learns_to_classify_with_swapped_labels():
    config = maml.Config(250, learners=2, inner_steps=2, tasks=8, shots=2, queries=4, inner_step_size=0.5, meta_step_size=0.02)
    *_, log = maml.train(Bars(), config, init_convolutional, convolutional, maml.cross_entropy)
    assert (log.loss < 0.2).all(), log.loss
    draws = generator(5)
    support, query = Bars().support_and_query(Bars().sample_tasks(100, draws), 2, 10, draws)
    theta = {name: p[:1] for name, p in log.params.items()}
    losses = maml.adaptation_curve(theta, 0.5, support, query, 2, apply=convolutional, loss=maml.cross_entropy).mean(1)
    assert losses[0] > 0.6, "before adaptation the labels may be either way"
    assert losses[2] < 0.2


# --- training ---------------------------------------------------------------------------------------------------------


def last(config: maml.Config, tasks: Sinusoids | None = None, **functions) -> maml.Log:
    *_, log = maml.train(tasks or Sinusoids(), config, **functions)
    return log


def test_it_learns_to_adapt():
    config = maml.Config(iterations=600, learners=2, meta_step_size=3e-3)
    maml_theta, joint_theta = (last(replace(config, inner_steps=steps)).params for steps in (1, 0))
    draws = generator(9)
    support, query = Sinusoids().support_and_query(Sinusoids().sample_tasks(200, draws, "test"), 10, 50, draws)
    for learner in range(2):
        adapted, joint = (
            maml.adaptation_curve({n: p[learner : learner + 1] for n, p in theta.items()}, 0.01, support, query, 1).mean(1)
            for theta in (maml_theta, joint_theta)
        )
        assert adapted[1] < adapted[0] - 1, adapted
        assert adapted[1] < joint[1] - 0.5, (adapted, joint)


def test_the_first_outer_step_is_adams_on_the_meta_gradient():
    theta = last(replace(TINY, iterations=1)).params
    draws = generator(TINY.seed)
    before = {name: p.requires_grad_() for name, p in maml.init(2, draws).items()}
    data = Sinusoids().support_and_query(Sinusoids().sample_tasks(8, draws), 5, 6, draws)
    losses = maml.meta_loss(before, alphas(before, 0.01), *data, TINY)
    assert losses.shape == (2, 4)
    for (name, p), g in zip(before.items(), torch.autograd.grad(losses.mean(1).sum(), list(before.values())), strict=True):
        step = 1e-3 * g / (g.abs() + 1e-8)  # Adam's first
        torch.testing.assert_close(theta[name], p.detach() - step, rtol=1e-4, atol=1e-6)


def test_a_learner_is_untouched_by_the_others():
    def one_is_different(learners: int, generator: torch.Generator) -> Params:
        params = maml.init(learners, generator)
        return {name: torch.cat((p[:1], 3 * p[1:] + 0.1)) for name, p in params.items()}

    for config in (TINY, replace(TINY, step_sizes="per_tensor")):
        one, two = last(config), last(config, init=one_is_different)
        for kind in ("params", "step_sizes"):
            for name, p in getattr(one, kind).items():
                assert torch.equal(p[0], getattr(two, kind)[name][0])
        assert torch.equal(one.loss[0], two.loss[0]) and one.loss[1] != two.loss[1]


@pytest.mark.parametrize("kind", ["fixed", "per_tensor", "per_parameter"])
@pytest.mark.parametrize("adapted", [None, maml.HEAD])
def test_step_sizes_are_learned_or_stay(kind, adapted):
    log = last(replace(TINY, step_sizes=kind, adapted=adapted))
    assert set(log.step_sizes) == set(adapted or log.params)
    for name, alpha in log.step_sizes.items():
        assert alpha.shape == (log.params[name].shape if kind == "per_parameter" else (2, 1, 1))
        assert (alpha > 0).all() and bool((alpha.log() - math.log(0.01)).abs().max() < 1e-6) == (kind == "fixed")


def test_the_same_seed_gives_the_same_run_and_a_log_never_changes():
    logs, again, other = (list(maml.train(Sinusoids(), config)) for config in (TINY, TINY, replace(TINY, seed=1)))
    assert [log.iteration for log in logs] == [1, 2, 3]
    first = next(iter(maml.train(Sinusoids(), TINY)))
    for name in first.params:
        assert torch.equal(first.params[name], logs[0].params[name])
        assert torch.equal(again[-1].params[name], logs[-1].params[name])
        assert not torch.equal(logs[0].params[name], logs[1].params[name])
    assert not torch.equal(other[0].loss, logs[0].loss)


def test_without_iterations_there_is_no_log():
    assert list(maml.train(Sinusoids(), replace(TINY, iterations=0))) == []


class Broken(Sinusoids):
    """Sinusoids whose third meta-batch holds NaN for the second learner."""

    calls = 0

    def support_and_query(self, task, shots, queries, generator):
        support, query = super().support_and_query(task, shots, queries, generator)
        type(self).calls += 1
        if type(self).calls == 3:
            (support if self.observe_task else query).y[4] = math.nan
        return support, query


def test_a_loss_that_is_not_a_number_stops_training_with_iteration_and_learner_named():
    Broken.calls = 0
    logs = maml.train(Broken(), replace(TINY, iterations=9))
    assert [log.iteration for log in islice(logs, 2)] == [1, 2]
    with pytest.raises(FloatingPointError, match="iteration 3: the meta-loss of learner 1 or its gradient is NaN"):
        next(logs)


def test_a_gradient_that_is_not_a_number_stops_training_though_the_loss_is_one():
    def kinked(prediction: Tensor, y: Tensor) -> Tensor:  # √0 has an infinite slope, and 0 · ∞ is NaN
        return (0 * prediction).sqrt().flatten(1).mean(1)

    with pytest.raises(FloatingPointError, match="iteration 1: the meta-loss of learner 0 or its gradient is NaN"):
        list(maml.train(Sinusoids(), replace(TINY, inner_steps=0), loss=kinked))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, got -1"),
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"inner_step_size": 0.0}, "inner_step_size must be positive and finite, got 0.0"),
        ({"meta_step_size": math.nan}, "meta_step_size must be positive and finite, got nan"),
        ({"step_size_step_size": math.inf}, "step_size_step_size must be positive and finite, got inf"),
        ({"step_sizes": "per_layer"}, "unknown step_sizes 'per_layer'; there are fixed, per_tensor, per_parameter"),
        ({"adapted": ()}, "adapted must name at least one parameter, got none"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_an_unknown_parameter_cannot_be_adapted():
    with pytest.raises(ValueError, match="adapted names 'weight_9', which is no parameter; there are weight_0, bias_0"):
        list(maml.train(Sinusoids(), replace(TINY, adapted=("weight_9",))))
    with pytest.raises(ValueError, match="adapted names 'weight_9', which is no parameter"):
        maml.adapt(start(), 0.1, examples(1)[0], adapted=("weight_9",))


# --- the full-size run, made small ------------------------------------------------------------------------------------


def test_the_experiment_gives_a_result_of_the_one_form(monkeypatch):
    monkeypatch.setattr(
        maml_sinusoid, "run_pieces", lambda work, pieces, *_: [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]
    )
    result = json.loads(json.dumps(maml_sinusoid.run(2, 0.001, None), allow_nan=False))
    results.check(result)
    assert result["name"] == maml_sinusoid.NAME and result["seeds"] == [0, 1]
    rows = 14 * 6 + 6 * (4 + 6)  # four numbers of steps, and two shares but from ten examples
    assert len(result["metrics"]) == rows + 3, "and the oracle, which does not adapt, in three settings"
    metrics = result["metrics"]
    assert metrics["5-shot · MAML · after 1"]["published"] == 0.67
    assert metrics["5-shot · pretraining, own step size · after 10"]["published"] == 2.19
    assert metrics["10-shot · MAML · after 1"]["published"] is None
    for setting in maml_sinusoid.SETTINGS:
        fixed, own = (metrics[f"{setting} · pretraining, {which} · after 0"] for which in ("α 0.01", "own step size"))
        assert fixed == own, "before the first step there is no step size"
    for label, curve in result["curves"].items():
        if not label.startswith("training") and "oracle" not in label:
            assert [round(sum(of_k) / 2, 2) for of_k in zip(*curve, strict=True)][5] == pytest.approx(
                metrics[f"{label} · after 5"]["value"], abs=0.01
            )


def test_errors_are_on_tasks_that_are_a_seeds_own_and_the_same_for_every_method():
    theta = maml.init(1, generator())
    first, again, other = (maml_sinusoid.errors(theta, 0.01, "5-shot", 3, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    blind = {**theta, "weight_0": torch.cat((theta["weight_0"], torch.zeros(1, 2, 40)), 1)}  # sees the task and ignores it
    seeing = maml_sinusoid.errors(blind, 0.01, "5-shot", 3, 0, observe_task=True)
    torch.testing.assert_close(seeing[0], first[0])
    validation = maml_sinusoid.errors(theta, 0.01, "5-shot", 3, 0, validation=True)
    assert not torch.equal(validation[0], first[0])


def test_an_error_without_bound_is_counted_at_the_ceiling():
    diverged = maml_sinusoid.errors(maml.init(1, generator()), 1e8, "5-shot", 3, 0)
    assert (diverged[-1] == maml_sinusoid.CEILING).all() and (diverged[0] < 100).all()


def test_the_parameter_mean_is_that_of_networks_that_know_their_own_task(monkeypatch):
    monkeypatch.setattr(maml_sinusoid, "NETWORKS", 4)
    config = replace(maml_sinusoid.METHODS["parameter mean"], iterations=1500)
    mean, _, losses = maml_sinusoid.parameter_mean(config, 2, 1.0)
    assert max(losses[0]) < 0.5 and all(p.shape[0] == 2 for p in mean.values())
    task = Sinusoids().sample_tasks(4, maml_sinusoid.generator_for(40_000, 1))
    for log in maml.train(maml_sinusoid.Fixed(task=task), replace(config, learners=4, seed=1)):  # noqa: B007
        pass
    for name, p in log.params.items():
        torch.testing.assert_close(mean[name][1], p.mean(0))
    x = torch.linspace(-5, 5, 50).expand(4, 50)[..., None]
    assert maml.squared_error(maml.apply(log.params, x), Sinusoids().function(task, x)).max() < 1
