"""Inner objectives against derivatives worked out by hand and against exact expectations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarl_lib import enumerable
from metarl_lib.enumerable import gradient, hessian, of_each_episode
from metarl_lib.meta_gradient import dice, loaded_dice, log_prob, ratio
from metarl_lib.random_mdps import RandomMDPs
from metarl_lib.returns import discounted_returns

OBJECTIVES = [log_prob, ratio, dice, loaded_dice]


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    return discounted_returns(rewards, torch.zeros_like(rewards, dtype=torch.bool), discount)


# --- one episode, by hand ---------------------------------------------------------------------------------------------

# log π_t(x) = u_t x + c_t x²/2, so that at x = 0 its derivatives are u_t and c_t. γ = 1/2; γ^t G_t is 3.25, 0.25, 1.25.
U, C = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
REWARDS = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
RETURNS = torch.tensor([3.25, 0.5, 5.0], dtype=torch.float64)


def two_derivatives(objective) -> tuple[float, float]:
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = objective((U * x + C * x**2 / 2)[None, None])
    assert value.shape == (1, 1)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return float(first.detach()), float(torch.autograd.grad(first, x)[0])


@pytest.mark.parametrize(
    ("objective", "second"),
    [
        (lambda log_probs: log_prob(log_probs, RETURNS[None, None], 0.5), 3.25 * 0.5 - 0.25 * 1 + 1.25 * 2),
        (lambda log_probs: ratio(log_probs, RETURNS[None, None], 0.5), 3.875 + 3.25 * 1 + 0.25 * 4 + 1.25 * 1),
        # 3 (0.5 + 1²) − 1 (0.5 − 1 + 3²) + 1.25 (0.5 − 1 + 2 + 2²)
        (lambda log_probs: dice(log_probs, REWARDS[None, None], 0.5), 4.5 - 8.5 + 6.875),
        (lambda log_probs: loaded_dice(log_probs, RETURNS[None, None], 0.5), 2.875),
        # The ratio's, and products of scores: 2·0.25·(0.5·1)·2 − 2·1.25·(0.25·1 + 0.5·2)·1
        (lambda log_probs: loaded_dice(log_probs, RETURNS[None, None], 0.5, decay=0.5), 9.375 + 0.5 - 3.125),
        (lambda log_probs: loaded_dice(log_probs, RETURNS[None, None], 0.5, decay=0.0), 9.375),
    ],
    ids=["log_prob", "ratio", "dice", "loaded_dice", "half the decay", "no memory"],
)
def test_one_first_derivative_and_the_second_worked_out_by_hand(objective, second):
    assert two_derivatives(objective) == pytest.approx((3.25 * 1 + 0.25 * 2 - 1.25 * 1, second), abs=1e-12)


def test_values():
    log_probs = torch.log(torch.tensor([[[0.5, 0.25, 0.1]]], dtype=torch.float64))
    rewards = REWARDS[None, None]
    assert float(log_prob(log_probs, rewards)) == pytest.approx(3 * -0.693147 + 2 * 1.386294 + 5 * -2.302585, abs=1e-5)
    assert float(ratio(log_probs, rewards)) == float(dice(log_probs, rewards)) == 6, "the undiscounted return"
    assert float(dice(log_probs, rewards, 0.5)) == 3 - 1 + 1.25, "the discounted return"
    assert float(loaded_dice(log_probs, rewards)) == 0


# --- shapes, padding, other episodes ----------------------------------------------------------------------------------


def random_problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """θ ``[task, state, action]``, features of log π ``[task, episode, time, …]``, and rewards."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(2, 1, 3), draw(2, 4, 5, 3), draw(2, 4, 5)


def curved(theta: Tensor, features: Tensor) -> Tensor:
    """Something with curvature to stand for log π, ``[task, episode, time]``."""
    return -torch.nn.functional.softplus((features * theta[:, :, None]).sum(-1))


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_loaded_dice_is_dice_at_one_end_and_the_ratio_at_the_other(discount):
    theta, features, rewards = random_problem()
    returns = returns_to_go(rewards, discount)
    for decay, other, values in ((1.0, dice, rewards), (0.0, ratio, returns)):
        for derivative in (gradient, hessian):
            a, b = (
                derivative(lambda theta, f=f: f(curved(theta, features)).mean(-1), theta)
                for f in (
                    lambda x, decay=decay: loaded_dice(x, returns, discount, decay),
                    lambda x, other=other, values=values: other(x, values, discount),
                )
            )
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_stands_behind_an_episodes_end_counts_for_nothing(objective):
    theta, features, rewards = random_problem(1)
    rewards[:, 1, 3:] = 0
    junk = features.clone()
    junk[:, 1, 3:] = 7.0
    for derivative in (gradient, hessian):
        clean, dirty = (
            derivative(lambda theta, f=f: objective(curved(theta, f), rewards)[:, 1], theta) for f in (features, junk)
        )
        assert torch.equal(clean, dirty)
    short = hessian(lambda theta: objective(curved(theta, features[:, 1:2, :3]), rewards[:, 1:2, :3])[:, 0], theta)
    torch.testing.assert_close(short, clean)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_episode_alone_is_the_episode_among_others(objective):
    theta, features, rewards = random_problem(2)
    together = hessian(lambda theta: objective(curved(theta, features), rewards).sum(-1), theta)
    alone = sum(
        hessian(lambda theta, n=n: objective(curved(theta, features[:, n : n + 1]), rewards[:, n : n + 1]).sum(-1), theta)
        for n in range(4)
    )
    torch.testing.assert_close(together, alone)


# --- expectations -----------------------------------------------------------------------------------------------------

MDP = RandomMDPs(states=2, actions=3, max_steps=4, dtype=torch.float64)


def problem(discount: float, steps: int = 4, seed: int = 0, tasks: int = 3):
    generator = torch.Generator().manual_seed(seed)
    task = MDP.sample_tasks(tasks, generator)
    theta = torch.randn(task.reward.shape, generator=generator, dtype=torch.float64)
    episodes = enumerable.every_episode(task, steps)
    return task, theta, episodes, returns_to_go(episodes.rewards, discount)


def expected(objective, theta: Tensor, episodes, derivative=hessian) -> Tensor:
    each = of_each_episode(derivative, objective, theta, episodes)
    return torch.einsum("te,te...->t...", enumerable.probability(theta, episodes), each)


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_all_are_the_policy_gradient_in_expectation(discount):
    task, theta, episodes, returns = problem(discount)
    true = gradient(lambda theta: enumerable.expected_return(theta, task, 4, discount), theta)
    for objective, values in ((log_prob, returns), (ratio, returns), (dice, episodes.rewards), (loaded_dice, returns)):
        found = expected(lambda x, f=objective, v=values: f(x, v, discount), theta, episodes, gradient)
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_dice_is_unbiased_with_and_without_a_baseline(discount):
    task, theta, episodes, returns = problem(discount)
    true = hessian(lambda theta: enumerable.expected_return(theta, task, 4, discount), theta)
    anything = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)  # [task, time, state]
    advantages = returns - anything[:, torch.arange(4), episodes.states]
    for found in (
        expected(lambda x: dice(x, episodes.rewards, discount), theta, episodes),
        expected(lambda x: loaded_dice(x, advantages, discount), theta, episodes),
    ):
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)


def test_dice_divided_by_the_number_of_episodes_before_the_sum_loses_earlier_actions():
    """A mistake found in public code: each weight must hold whole log-probabilities, whatever the mean is taken over."""
    task, theta, episodes, _ = problem(1.0)
    true = hessian(lambda theta: enumerable.expected_return(theta, task, 4), theta)
    wrong = expected(lambda x: 20 * dice(x / 20, episodes.rewards), theta, episodes)
    assert (wrong - true).norm() > 0.1 * true.norm()


def test_what_the_ratio_leaves_out_is_the_products_of_scores_at_different_times():
    task, theta, episodes, returns = problem(0.7)
    true = hessian(lambda theta: enumerable.expected_return(theta, task, 4, 0.7), theta)
    found = expected(lambda x: ratio(x, returns, 0.7), theta, episodes)
    # Scores of a softmax, by their own formula: 1[s, a] − 1[s] π(·|s).
    pi = theta.softmax(-1)
    score = torch.zeros(*returns.shape, 2, 3, dtype=torch.float64)
    for t in range(4):
        for n, (s, a) in enumerate(zip(episodes.states[:, t], episodes.actions[:, t], strict=True)):
            score[:, n, t, s] = -pi[:, s]
            score[:, n, t, s, a] += 1
    score, missing = score.flatten(-2), torch.zeros_like(true)
    for t in range(4):
        for k in range(t):
            product = score[:, :, k, :, None] * score[:, :, t, None, :]
            weight = enumerable.probability(theta, episodes) * 0.7**t * returns[:, :, t]
            missing += torch.einsum("te,tepq->tpq", weight, product + product.mT)
    torch.testing.assert_close(true - found, missing, rtol=0, atol=1e-12)
    assert (missing.flatten(1).norm(dim=1) > 0.05 * true.flatten(1).norm(dim=1)).all()


def test_the_ratio_is_unbiased_for_one_decision_and_any_baseline():
    task, theta, episodes, returns = problem(1.0, steps=1)
    true = hessian(lambda theta: enumerable.expected_return(theta, task, 1), theta)
    for baseline in (0.0, 3.0):
        found = expected(lambda x, b=baseline: ratio(x, returns - b), theta, episodes)
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)


def test_a_constant_added_to_rewards_changes_the_naive_hessian_by_the_fisher_information():
    task, theta, _, _ = problem(1.0, steps=1)
    found = []
    for shift in (0.0, 2.0):
        episodes = enumerable.every_episode(task._replace(reward=task.reward + shift), 1)
        found.append(expected(lambda x, r=episodes.rewards: log_prob(x, r), theta, episodes))
    pi = theta.softmax(-1)[:, 0]
    fisher = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None]
    torch.testing.assert_close((found[1] - found[0])[:, :3, :3], -2 * fisher, rtol=0, atol=1e-12)


def test_with_the_exact_value_as_baseline_the_naive_hessian_of_a_softmax_is_zero_so_that_it_is_first_order():
    task, theta, episodes, returns = problem(0.7)
    values = enumerable.state_values(theta, task, 4, 0.7)[:, torch.arange(4), episodes.states]
    found = expected(lambda x: log_prob(x, returns - values, 0.7), theta, episodes)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    without = expected(lambda x: log_prob(x, returns, 0.7), theta, episodes)
    assert (without.flatten(1).norm(dim=1) > 0.1).all()


def test_the_third_derivative_of_dice_is_exact_too_and_the_ratios_is_not():
    task, theta, episodes, returns = problem(1.0, steps=4, seed=1, tasks=1)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def third(f) -> float:
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        value = f(theta + x * direction)
        for _ in range(3):
            (value,) = torch.autograd.grad(value, x, create_graph=True)
        return float(value.detach())

    p = enumerable.probability(theta, episodes)
    true = third(lambda theta: enumerable.expected_return(theta, task, 4).sum())
    found = third(lambda theta: (p * dice(enumerable.log_probs(theta, episodes), episodes.rewards)).sum())
    assert found == pytest.approx(true, rel=1e-10)
    assert third(lambda theta: (p * ratio(enumerable.log_probs(theta, episodes), returns)).sum()) != pytest.approx(true, rel=0.05)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_bad_argument_is_named(objective):
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"one shape \[task, episode, time\], got \(2, 3, 4\) and \(2, 3, 5\)"):
        objective(x, torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\], got 1.5"):
        objective(x, x, 1.5)


def test_a_bad_decay_is_named():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got -1"):
        loaded_dice(x, x, decay=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    x = torch.zeros(2, 3, 4, dtype=dtype)
    assert all(f(x, x, 0.9).dtype == dtype for f in OBJECTIVES)
