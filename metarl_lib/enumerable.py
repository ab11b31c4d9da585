"""Decision processes so small that every expectation is a sum over all episodes, and every derivative exact.

A task is that of :mod:`metarl_lib.random_mdps` without noise in its rewards: an episode starts in state 0 and lasts a given
number of steps. The policy is a softmax with one logit for each state and action, θ ``[task, state, action]``. A bandit is the
case of one state and one step. With p for the transitions,

.. math::
    J(\\theta) = \\sum_\\tau P(\\tau; \\theta) \\sum_t \\gamma^t r_t, \\qquad
    P(\\tau; \\theta) = \\prod_t \\pi_\\theta(a_t | s_t) \\, p(s_{t+1} | s_t, a_t).

Here it is summed the other way, by backward induction over :math:`V_t(s)`, which tests compare with the sum over episodes.
Derivatives come from differentiating twice; in them θ is one vector of ``parameter`` = state · action entries.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from .random_mdps import Task


class Episodes(NamedTuple):
    """Every episode that can happen, one a row."""

    states: Tensor  # [episode, time]
    actions: Tensor  # [episode, time]
    rewards: Tensor  # [task, episode, time]
    chance: Tensor  # [task, episode], what the transitions contribute to its probability


# --- expectations -----------------------------------------------------------------------------------------------------


def every_episode(task: Task, steps: int) -> Episodes:
    """All episodes of ``steps`` steps: A (S A)^(steps − 1) of them for S states and A actions."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    states, actions = (torch.arange(n, device=task.reward.device) for n in task.reward.shape[1:])
    number = len(actions) * (len(states) * len(actions)) ** (steps - 1)
    if number > 10**6:
        raise ValueError(f"steps must leave at most a million episodes to enumerate, got {steps}, which makes {number}")
    rows = torch.cartesian_prod(actions, *[states, actions] * (steps - 1)).view(number, -1)  # a_0, s_1, a_1, s_2, …
    a, s = rows[:, ::2], torch.nn.functional.pad(rows[:, 1::2], (1, 0))
    chance = task.transition[:, s[:, :-1], a[:, :-1], s[:, 1:]].prod(-1)
    return Episodes(s, a, task.reward[:, s, a], chance)


def log_probs(theta: Tensor, episodes: Episodes) -> Tensor:
    """log π of what was done, ``[task, episode, time]``; θ may be each episode's own, ``[task, episode, state, action]``."""
    theta = theta if theta.ndim == 4 else theta[:, None]
    table = theta.log_softmax(-1).flatten(-2)
    entry = episodes.states * theta.shape[-1] + episodes.actions
    shape = episodes.rewards.shape
    return table.expand(*shape[:2], -1).gather(-1, entry.expand(shape))


def probability(theta: Tensor, episodes: Episodes) -> Tensor:
    """P(τ; θ), ``[task, episode]``."""
    return episodes.chance * log_probs(theta, episodes).sum(-1).exp()


def state_values(theta: Tensor, task: Task, steps: int, discount: float = 1.0) -> Tensor:
    """V_t(s) by backward induction, ``[task, ..., time, state]``; θ may have axes between task and state."""
    middle = (1,) * (theta.ndim - 3)
    reward = task.reward.view(len(task.reward), *middle, *task.reward.shape[1:])
    transition = task.transition.view(len(task.reward), *middle, *task.transition.shape[1:])
    pi, values = theta.softmax(-1), [torch.zeros_like(theta[..., 0])]
    for _ in range(steps):
        q = reward + discount * (transition * values[0][..., None, None, :]).sum(-1)
        values.insert(0, (pi * q).sum(-1))
    return torch.stack(values[:-1], -2)


def expected_return(theta: Tensor, task: Task, steps: int, discount: float = 1.0) -> Tensor:
    """J(θ), ``[task, ...]``."""
    return state_values(theta, task, steps, discount)[..., 0, 0]


def every_batch(kinds: int, size: int) -> tuple[Tensor, Tensor]:
    """All ways to draw ``size`` of ``kinds`` episodes with replacement, order aside.

    Counts ``[batch, kind]``, and the logarithm of the number of orders ``[batch]``, both float64.
    """
    drawn = torch.tensor(list(combinations_with_replacement(range(kinds), size)))
    counts = torch.zeros(len(drawn), kinds, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts, torch.lgamma(torch.tensor(size + 1.0, dtype=torch.float64)) - torch.lgamma(counts + 1).sum(-1)


# --- derivatives ------------------------------------------------------------------------------------------------------


def gradient(objective: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """∇ of ``objective``, ``[..., parameter]``; it maps θ ``[..., state, action]`` to one number for each leading entry."""
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(objective(theta).sum(), theta)[0].flatten(-2)


def hessian(objective: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """∇² of ``objective``, ``[..., parameter, parameter]``."""
    theta = theta.detach().requires_grad_()
    (first,) = torch.autograd.grad(objective(theta).sum(), theta, create_graph=True)
    # No entry's objective holds another's parameters, so that one row of all Hessians comes from one backward pass.
    rows = [torch.autograd.grad(g.sum(), theta, retain_graph=True)[0] for g in first.flatten(-2).unbind(-1)]
    return torch.stack(rows, -3).flatten(-2)


def of_each_episode(derivative: Callable, objective: Callable[[Tensor], Tensor], theta: Tensor, episodes: Episodes) -> Tensor:
    """``derivative`` of an inner objective of log π ``[task, episode, time]``, for each episode as if it were alone.

    ``[task, episode, parameter]`` for :func:`gradient`, and with one more such axis for :func:`hessian`.
    """
    own = theta[:, None].expand(-1, len(episodes.states), -1, -1)  # then no two episodes share a parameter
    return derivative(lambda own: objective(log_probs(own, episodes)), own)


def meta_gradient(theta: Tensor, task: Task, steps: int, step_size: float, hessian: Tensor, discount: float = 1.0) -> Tensor:
    """:math:`(I + \\alpha H) \\nabla J(\\theta + \\alpha \\nabla J(\\theta))`, ``[task, parameter]``, with a Hessian of your own.

    With ∇²J as H it is the gradient of :math:`J(\\theta + \\alpha \\nabla J(\\theta))`.
    """

    def j(theta: Tensor) -> Tensor:
        return expected_return(theta, task, steps, discount)

    outer = gradient(j, theta + step_size * gradient(j, theta).view_as(theta))
    return outer + step_size * (hessian @ outer[..., None])[..., 0]
