"""The enumerated decision processes: two ways to every number, closed forms of a bandit, finite differences."""

from __future__ import annotations

from math import comb

import pytest
import torch

from metarl_lib import enumerable
from metarl_lib.random_mdps import RandomMDPs, Task


def problem(states: int = 3, actions: int = 2, tasks: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    task = RandomMDPs(states, actions, dtype=torch.float64).sample_tasks(tasks, generator)
    return task, torch.randn(task.reward.shape, generator=generator, dtype=torch.float64)


def bandit(rewards: list[float], logits: list[float]):
    reward, theta = (torch.tensor([[x]], dtype=torch.float64) for x in (rewards, logits))
    return Task(reward, torch.ones(1, 1, len(rewards), 1, dtype=torch.float64)), theta


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_episodes_are_all_different_and_their_probabilities_sum_to_one(steps):
    task, theta = problem()
    episodes = enumerable.every_episode(task, steps)
    rows = torch.cat([episodes.states, episodes.actions], 1)
    assert len(rows) == len(rows.unique(dim=0)) == 2 * 6 ** (steps - 1)
    assert (episodes.states[:, 0] == 0).all()
    torch.testing.assert_close(enumerable.probability(theta, episodes).sum(-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("discount", [1.0, 0.6])
def test_the_sum_over_episodes_is_backward_induction(discount):
    task, theta = problem()
    episodes = enumerable.every_episode(task, 4)
    returns = (episodes.rewards * discount ** torch.arange(4)).sum(-1)
    summed = (enumerable.probability(theta, episodes) * returns).sum(-1)
    torch.testing.assert_close(summed, enumerable.expected_return(theta, task, 4, discount))


def test_values_by_hand():
    # From state 0, action 0 stays and pays 1, action 1 goes to state 1 and pays 0; state 1 pays 10 and stays.
    reward = torch.tensor([[[1.0, 0.0], [10.0, 10.0]]], dtype=torch.float64)
    transition = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]], dtype=torch.float64)
    task, even = Task(reward, transition), torch.zeros(1, 2, 2, dtype=torch.float64)
    values = enumerable.state_values(even, task, 2, discount=0.5)
    # Last step: 0.5 and 10. Before it: (1 + 0.25)/2 + (0 + 5)/2 and 10 + 5.
    torch.testing.assert_close(values, torch.tensor([[[3.125, 15.0], [0.5, 10.0]]], dtype=torch.float64))
    assert float(enumerable.expected_return(even, task, 2, 0.5)) == 3.125
    p = enumerable.probability(even, enumerable.every_episode(task, 2))
    assert sorted(p[0].tolist()) == [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25]


def test_axes_between_task_and_state_are_other_policies_of_the_same_task():
    task, _ = problem()
    theta = torch.randn(4, 5, 2, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = enumerable.expected_return(theta, task, 3)
    assert together.shape == (4, 5, 2)
    for i in range(5):
        torch.testing.assert_close(together[:, i, 1], enumerable.expected_return(theta[:, i, 1], task, 3))


def test_derivatives_of_a_bandit_are_its_closed_forms():
    task, theta = bandit([0.9, 0.2, 0.5], [0.3, -1.0, 0.4])
    j = lambda theta: enumerable.expected_return(theta, task, 1)  # noqa: E731
    pi, r = theta.softmax(-1)[0, 0], task.reward[0, 0]
    a = pi * (r - pi @ r)
    torch.testing.assert_close(enumerable.gradient(j, theta)[0], a)
    torch.testing.assert_close(enumerable.hessian(j, theta)[0], torch.diag(a) - torch.outer(a, pi) - torch.outer(pi, a))


def test_the_hessian_agrees_with_finite_differences_of_the_gradient():
    task, theta = problem()
    j = lambda theta: enumerable.expected_return(theta, task, 3, 0.9)  # noqa: E731
    hessian, h = enumerable.hessian(j, theta), 1e-5
    for k in range(6):
        move = torch.zeros(6, dtype=torch.float64)
        move[k] = h
        up, down = (enumerable.gradient(j, theta + sign * move.view(3, 2)) for sign in (1, -1))
        torch.testing.assert_close(hessian[..., k], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


def test_no_tasks_hessian_depends_on_another_task():
    task, theta = problem()
    alone = Task(*(leaf[1:2] for leaf in task))
    first = enumerable.hessian(lambda theta: enumerable.expected_return(theta, task, 3), theta)
    second = enumerable.hessian(lambda theta: enumerable.expected_return(theta, alone, 3), theta[1:2])
    torch.testing.assert_close(first[1:2], second)


def test_the_meta_gradient_is_automatic_differentiation_through_the_step():
    task, theta = problem()
    j = lambda theta: enumerable.expected_return(theta, task, 3, 0.9)  # noqa: E731
    start = theta.clone().requires_grad_()
    (inner,) = torch.autograd.grad(j(start).sum(), start, create_graph=True)
    (through,) = torch.autograd.grad(j(start + 2.5 * inner).sum(), start)
    found = enumerable.meta_gradient(theta, task, 3, 2.5, enumerable.hessian(j, theta), 0.9)
    torch.testing.assert_close(found, through.flatten(-2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kinds", "size"), [(5, 1), (5, 4), (3, 7)])
def test_all_batches_have_the_multinomial_distribution(kinds, size):
    counts, log_ways = enumerable.every_batch(kinds, size)
    assert counts.shape == (comb(kinds + size - 1, size), kinds)
    assert (counts.sum(-1) == size).all()
    p = torch.randn(kinds, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    weights = (log_ways + counts @ p.log()).exp()
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(weights @ counts, size * p)
    torch.testing.assert_close(weights @ counts[:, 0] ** 2 - (size * p[0]) ** 2, size * p[0] * (1 - p[0]))


def test_too_much_to_enumerate_is_refused():
    task, _ = problem()
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        enumerable.every_episode(task, 0)
    with pytest.raises(ValueError, match="at most a million episodes to enumerate, got 9, which makes 3359232"):
        enumerable.every_episode(task, 9)
