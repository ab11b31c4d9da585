"""MAML against exact answers: enumerated bandits, finite differences, per-task loops, functional transforms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metarl_lib import maml
from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.nets import PolicyNet
from metarl_lib.types import Batch, Params, index_tasks

TINY = maml.Config(iterations=2, tasks=4, episodes=4, group=3)


# --- a bandit whose expectations are sums -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Softmax:
    """A policy without observations: the parameters are the logits, ``[task, arms]``."""

    def log_prob(self, params: Params, observations: Tensor, actions: Tensor) -> Tensor:
        return params["logits"].log_softmax(-1).expand(len(actions), -1).gather(-1, actions)


def expected_reward(logits: Tensor, reward: Tensor) -> Tensor:
    return (logits.softmax(-1) * reward).sum(-1)


def every_arm(logits: Tensor, reward: Tensor, baseline: bool) -> Batch:
    """The batch that holds each arm once, weighted by its probability: its means are expectations."""
    logits = logits.detach()
    probabilities = logits.softmax(-1)
    advantages = reward - (probabilities * reward).sum(-1, keepdim=True) if baseline else reward
    actions = torch.arange(reward.shape[-1]).expand_as(reward)
    return Batch(torch.zeros(*reward.shape, 1), actions, logits.log_softmax(-1).expand_as(reward), advantages, probabilities)


def estimated_gradient(logits: Tensor, reward: Tensor, alpha: float, config: maml.Config, baseline: bool = True) -> Tensor:
    """The library's meta-gradient with every expectation enumerated, ``[arms]``."""
    theta = {"logits": logits[None].clone().requires_grad_()}
    step_sizes = {"logits": torch.tensor(alpha, dtype=logits.dtype)}
    support = every_arm(theta["logits"], reward[None], baseline)
    phi = maml.adapt(Softmax(), theta, step_sizes, support, config.surrogate)
    query = every_arm(phi["logits"], reward[None], baseline=False)
    objective = maml.meta_objective(Softmax(), theta, step_sizes, [support], query, config).sum()
    return torch.autograd.grad(objective, theta["logits"])[0][0]


def true_gradient(logits: Tensor, reward: Tensor, alpha: float) -> Tensor:
    theta = logits.clone().requires_grad_()
    (inner,) = torch.autograd.grad(expected_reward(theta, reward), theta, create_graph=True)
    return torch.autograd.grad(expected_reward(theta + alpha * inner, reward), theta)[0]


def bandits(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(), draw()) for _ in range(n)]


UNCLIPPED = maml.Config(clip=0)


@pytest.mark.parametrize("baseline", [True, False])
def test_the_ratio_surrogate_gives_the_exact_meta_gradient_of_a_bandit(baseline):
    for logits, reward in bandits(50):
        estimate = estimated_gradient(logits, reward, 5.0, UNCLIPPED, baseline)
        torch.testing.assert_close(estimate, true_gradient(logits, reward, 5.0), rtol=1e-9, atol=1e-12)


def test_the_naive_surrogate_points_elsewhere_and_with_an_exact_baseline_is_first_order():
    cosines = []
    for logits, reward in bandits(200):
        naive = estimated_gradient(logits, reward, 5.0, replace(UNCLIPPED, surrogate="log_prob"))
        first_order = estimated_gradient(logits, reward, 5.0, replace(UNCLIPPED, first_order=True))
        torch.testing.assert_close(naive, first_order, rtol=1e-9, atol=1e-12)
        cosines.append(float(torch.cosine_similarity(naive, true_gradient(logits, reward, 5.0), dim=0)))
    assert min(cosines) < -0.5, "somewhere it points nearly the opposite way"
    assert sorted(cosines)[20] < 0.9, "and it is far off in more than one bandit of ten"


def test_without_a_baseline_the_naive_surrogate_is_neither_first_order_nor_right():
    logits, reward = bandits(1)[0]
    naive = estimated_gradient(logits, reward, 5.0, replace(UNCLIPPED, surrogate="log_prob"), baseline=False)
    first_order = estimated_gradient(logits, reward, 5.0, replace(UNCLIPPED, first_order=True), baseline=False)
    assert (naive - first_order).norm() > 0.01 * first_order.norm()
    assert (naive - true_gradient(logits, reward, 5.0)).norm() > 0.01 * naive.norm()


# --- adaptation -------------------------------------------------------------------------------------------------------


def random_batch(policy: PolicyNet, tasks: int, samples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights = draw(tasks, samples).abs()
    return Batch(
        observations=draw(tasks, samples, policy.observation_size),
        actions=torch.randint(policy.actions, (tasks, samples), generator=generator),
        log_probs=-0.7 + 0.1 * draw(tasks, samples),
        advantages=draw(tasks, samples),
        weights=weights / weights.sum(-1, keepdim=True),
    )


SMALL = PolicyNet(3, 4, hidden=(5, 6))


def start(learners: int = 1, seed: int = 0) -> Params:
    params = SMALL.init(learners, torch.Generator().manual_seed(seed), torch.float64)
    return {name: p + 0.3 * torch.ones_like(p) if "bias" in name else 3 * p for name, p in params.items()}


@pytest.mark.parametrize("kind", ["ratio", "log_prob"])
def test_adapting_all_tasks_at_once_is_adapting_each_alone(kind):
    batch, theta = random_batch(SMALL, 6, 20, 0), start(6)
    together = maml.adapt(SMALL, theta, 0.7, batch, kind)
    for i in range(6):
        alone = maml.adapt(SMALL, index_params(theta, i), 0.7, index_tasks(batch, slice(i, i + 1)), kind)
        for name in theta:
            torch.testing.assert_close(together[name][i : i + 1], alone[name])


@pytest.mark.parametrize("kind", ["ratio", "log_prob"])
def test_adaptation_is_vmap_of_grad(kind):
    batch, theta = random_batch(SMALL, 6, 20, 1), start(6)

    def objective(params: Params, task: Batch) -> Tensor:
        lead = {name: p[None] for name, p in params.items()}
        return maml.surrogate(SMALL, lead, Batch(*(x[None] for x in task)), kind)[0]

    gradients = vmap(grad(objective))(theta, batch)
    adapted = maml.adapt(SMALL, theta, 0.7, batch, kind)
    for name in theta:
        torch.testing.assert_close(adapted[name], theta[name] + 0.7 * gradients[name])


def index_params(params: Params, i: int) -> Params:
    return {name: p[i : i + 1] for name, p in params.items()}


def test_a_task_is_untouched_by_a_change_to_another():
    batch, theta = random_batch(SMALL, 3, 20, 2), start()
    before = maml.adapt(SMALL, theta, 0.7, batch)
    advantages = batch.advantages.clone()
    advantages[1] *= -5
    after = maml.adapt(SMALL, theta, 0.7, batch._replace(advantages=advantages))
    for name in theta:
        assert torch.equal(before[name][[0, 2]], after[name][[0, 2]])
        assert not torch.equal(before[name][1], after[name][1])


def test_on_policy_both_surrogates_have_the_policy_gradient_as_first_derivative():
    batch, theta = random_batch(SMALL, 3, 20, 3), start(3)
    batch = batch._replace(log_probs=SMALL.log_prob(theta, batch.observations, batch.actions))
    for a, b in zip(
        maml.adapt(SMALL, theta, 1.0, batch).values(), maml.adapt(SMALL, theta, 1.0, batch, "log_prob").values(), strict=True
    ):
        torch.testing.assert_close(a, b)


# --- the meta-gradient ------------------------------------------------------------------------------------------------


def meta_objective(theta: Params, log_alpha: Params, steps: int, config: maml.Config) -> Tensor:
    *support, query = (random_batch(SMALL, 3, 20, seed) for seed in range(10, 11 + steps))
    alpha = {name: p.exp() for name, p in log_alpha.items()}
    return maml.meta_objective(SMALL, theta, alpha, support, query, config).mean()


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "config", [UNCLIPPED, maml.Config(), replace(UNCLIPPED, surrogate="log_prob")], ids=["ratio", "clipped", "naive"]
)
def test_the_second_order_meta_gradient_agrees_with_finite_differences(steps, config):
    theta = {name: p.requires_grad_() for name, p in start().items()}
    log_alpha = {name: torch.full_like(p, -0.5).requires_grad_() for name, p in theta.items()}
    leaves = [*theta.values(), *log_alpha.values()]
    gradients = torch.autograd.grad(meta_objective(theta, log_alpha, steps, config), leaves, allow_unused=steps == 0)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in leaves]
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        h, values = 1e-5, []
        for sign in (1, -1):
            moved = iter(p.detach() + sign * h * d for p, d in zip(leaves, direction, strict=True))
            moved_theta = {name: next(moved).requires_grad_() for name in theta}
            moved_alpha = {name: next(moved) for name in log_alpha}
            values.append(float(meta_objective(moved_theta, moved_alpha, steps, config).detach()))
        assert abs((values[0] - values[1]) / (2 * h) - expected) < 1e-4 * max(abs(expected), 1e-3)


def test_the_first_order_meta_gradient_is_the_outer_gradient_at_the_adapted_parameters():
    theta = {name: p.requires_grad_() for name, p in start().items()}
    alpha = {name: torch.tensor(0.6, dtype=torch.float64) for name in theta}
    support, query = random_batch(SMALL, 3, 20, 4), random_batch(SMALL, 3, 20, 5)
    first_order, second_order = (
        torch.autograd.grad(maml.meta_objective(SMALL, theta, alpha, [support], query, config).sum(), list(theta.values()))
        for config in (replace(UNCLIPPED, first_order=True), UNCLIPPED)
    )
    phi = {name: p.detach().requires_grad_() for name, p in maml.adapt(SMALL, theta, alpha, support).items()}
    outer = torch.autograd.grad(maml.surrogate(SMALL, phi, query).sum(), list(phi.values()))
    for f, o in zip(first_order, outer, strict=True):
        torch.testing.assert_close(f, o.sum(0, keepdim=True))
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in (first_order, second_order)]
    assert (flat[0] - flat[1]).norm() > 0.05 * flat[1].norm(), "the Hessian's term is not negligible here"


def test_clipping_is_the_smaller_of_two_gains():
    query = random_batch(SMALL, 3, 20, 6)
    theta = start()
    ratio = (
        SMALL.log_prob({n: p.expand(3, *p.shape[1:]) for n, p in theta.items()}, query.observations, query.actions)
        - query.log_probs
    ).exp()
    expected = (query.weights * torch.minimum(ratio * query.advantages, ratio.clip(0.8, 1.2) * query.advantages)).sum(-1)
    torch.testing.assert_close(maml.meta_objective(SMALL, theta, {}, [], query, maml.Config()), expected)
    assert (ratio - 1).abs().max() > 0.2, "some ratios are clipped"


def test_the_outer_gradient_does_not_depend_on_how_tasks_are_grouped():
    world = CartPole("flip", max_steps=30)
    ends = []
    for group in (1, 3, 4):
        (log,) = islice(maml.train(world, policy_for(world), replace(TINY, group=group, epochs=1)), 1)
        ends.append(log.params)
    for name in ends[0]:
        for other in ends[1:]:
            torch.testing.assert_close(ends[0][name], other[name], rtol=1e-3, atol=1e-4)


# --- training ---------------------------------------------------------------------------------------------------------


def run(config: maml.Config, distribution: str = "flip", max_steps: int = 30) -> list[maml.Log]:
    world = CartPole(distribution, max_steps=max_steps)
    return list(maml.train(world, policy_for(world), config))


def test_a_few_iterations_teach_it_to_adapt():
    config = maml.Config(iterations=8, tasks=10, episodes=10)
    returns = torch.tensor([log.returns for log in run(config, max_steps=100)])
    assert returns[-1, 1] > returns[0, 1] + 15, returns
    assert returns[-1, 1] > returns[-1, 0] + 15, returns


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, again, other = run(TINY), run(TINY), run(replace(TINY, seed=1))
    assert [log.returns for log in first] == [log.returns for log in again]
    assert all(torch.equal(p, again[-1].params[name]) for name, p in first[-1].params.items())
    assert [log.returns for log in first] != [log.returns for log in other]


def test_resuming_goes_on_bit_for_bit():
    whole = run(replace(TINY, iterations=4))
    world = CartPole("flip", max_steps=30)
    resumed = list(maml.train(world, policy_for(world), replace(TINY, iterations=4), resume=whole[1].state))
    assert [log.iteration for log in resumed] == [3, 4]
    assert [log.returns for log in resumed] == [log.returns for log in whole[2:]]
    assert all(torch.equal(p, resumed[-1].params[name]) for name, p in whole[-1].params.items())
    assert resumed[-1].env_steps == whole[-1].env_steps


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_a_return_before_and_after_each_inner_step(inner_steps):
    assert len(run(replace(TINY, inner_steps=inner_steps))[-1].returns) == inner_steps + 1


@pytest.mark.parametrize("kind", ["per_tensor", "per_parameter", "fixed"])
def test_step_sizes_are_learned_or_stay(kind):
    log = run(replace(TINY, step_sizes=kind))[-1]
    for name, alpha in log.step_sizes.items():
        assert alpha.shape == (log.params[name].shape if kind == "per_parameter" else (1, 1, 1))
        assert bool((alpha == 0.5).all()) == (kind == "fixed") or "bias" in name
    assert all(bool((alpha > 0).all()) for alpha in log.step_sizes.values())


def test_a_pool_of_tasks_is_all_that_is_trained_on():
    world = CartPole("flip", max_steps=10)
    seen, original = set(), CartPole.step

    class Spy(CartPole):
        def step(self, task, state, action, generator=None):
            seen.update(task.gravity.tolist())
            return original(self, task, state, action, generator)

    list(maml.train(Spy("flip", max_steps=10), policy_for(world), replace(TINY, task_pool=5, iterations=6)))
    assert len(seen) == 5


def test_a_reward_that_is_not_a_number_stops_training_with_the_iteration_named():
    class Broken(CartPole):
        calls = 0

        def step(self, task, state, action, generator=None):
            state, step = super().step(task, state, action, generator)
            type(self).calls += 1
            return state, step._replace(reward=step.reward * (float("nan") if type(self).calls > 70 else 1.0))

    world = Broken("flip", max_steps=30)
    with pytest.raises(FloatingPointError, match=r"iteration 2: .*rewards that are not finite.*good state.*iteration 1"):
        list(maml.train(world, policy_for(world), replace(TINY, iterations=9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, got -1"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"inner_step_size": 0.0}, "inner_step_size must be positive"),
        ({"meta_step_size": float("nan")}, "meta_step_size must be positive and finite"),
        ({"surrogate": "dice"}, "unknown surrogate 'dice'; there are ratio, log_prob"),
        ({"step_sizes": "per_layer"}, "unknown step_sizes"),
        ({"task_pool": 3}, "task_pool"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
