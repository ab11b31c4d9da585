"""A point that is to find a goal in the plane, as a distribution over goals, batched in torch :cite:p:`finn2017model`.

The goal is what tells one task from another, and no observation shows it: only the reward does. The point starts at the origin,
moves by at most 0.1 a step along either axis, and earns minus its distance to the goal:

.. math::
    x_{t+1} = x_t + \\operatorname{clip}(a_t, \\pm 0.1), \\qquad r_t = -\\lVert x_{t+1} - g \\rVert

Where the paper and its released code differ, this follows the code, whose figures are the published ones. The paper says that
the reward is minus the *squared* distance; its code takes the distance, and a return of −40 before adaptation is out of
reach with squares, the mean of which is 1/6 at the origin (``squared=True`` has the paper's words). The paper ends an
episode within 0.01 of the goal; its code where both coordinates are within 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .cartpole import SPLITS, in_split, signs
from .nets import GaussianPolicyNet
from .types import Step

MAX_MOVE = 0.1  # a step, along either axis
GOAL_LIMIT = 0.5  # goals are uniform in the square of this half-width
GOAL_RADIUS = 0.01  # an episode ends where both coordinates are within this of the goal's


class Goal(NamedTuple):
    """A task."""

    position: Tensor  # [task, 2]


class State(NamedTuple):
    position: Tensor  # [task, env, 2]
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True)
class Navigation:
    """A distribution of goals. The observation is the point's position, the action its move.

    An episode terminates at the goal and is truncated after ``max_steps``. The reward of a step is minus the distance to the
    goal after it, or with ``squared`` minus the square of that.
    """

    max_steps: int = 100
    squared: bool = False
    dtype: torch.dtype = torch.float32

    observation_size = 2
    action_low, action_high = (-MAX_MOVE, -MAX_MOVE), (MAX_MOVE, MAX_MOVE)

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Goal:
        """Draw ``n`` goals of a split: ``train``, ``validation``, ``test`` or ``ood``.

        The square is cut into 20 upright strips with gaps between them, three fifths of them for training, one for validation
        and one for testing, so that no held-out goal can equal a training goal; within a split's strips goals are uniform. In
        ``ood`` goals lie outside the square: one coordinate, chosen by a coin, is up to half as far out again, the other
        anywhere in as wide a range.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        u = torch.rand(2, n, generator=generator, device=generator.device, dtype=torch.float64)
        if split == "ood":
            outside = GOAL_LIMIT * (1.5 - u[0] / 2) * signs(n, generator)
            pair = torch.stack((outside, 1.5 * GOAL_LIMIT * (2 * u[1] - 1)), -1)
            position = torch.where(signs(n, generator)[:, None] > 0, pair, pair.flip(-1))
        else:
            position = GOAL_LIMIT * (2 * torch.stack((in_split(u[0], split, generator), u[1]), -1) - 1)
        return Goal(position.to(self.dtype))

    def reset(self, task: Goal, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """Start ``n`` episodes of every task at the origin."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        shape, device = (len(task.position), n), task.position.device
        position = torch.zeros(*shape, 2, dtype=self.dtype, device=device)
        return State(position, torch.zeros(shape, dtype=torch.int32, device=device)), position

    def step(self, task: Goal, state: State, action: Tensor, generator: torch.Generator | None = None) -> tuple[State, Step]:
        """Move by ``action`` ``[task, env, 2]``, clipped to ±0.1. ``generator`` is unused: the dynamics are deterministic."""
        if action.shape != state.position.shape:
            raise ValueError(f"action must be [task, env, 2], here {list(state.position.shape)}, got {list(action.shape)}")
        position = state.position + action.clamp(-MAX_MOVE, MAX_MOVE)
        offset = position - task.position[:, None]
        square, steps = offset.square().sum(-1), state.steps + 1
        reward = -(square if self.squared else square.sqrt())
        terminated = (offset.abs() < GOAL_RADIUS).all(-1)
        return State(position, steps), Step(position, reward, terminated, steps >= self.max_steps)


def paper_goals(dtype: torch.dtype = torch.float32) -> Goal:
    """The forty goals that the paper's released code evaluates on. They are drawn from the whole square: of no split."""
    return Goal(torch.from_numpy(np.random.RandomState(1).uniform(-0.5, 0.5, (40, 2))).to(dtype))


def best_return(world: Navigation, task: Goal) -> Tensor:
    """The highest return there is, ``[task]``: both coordinates go straight for the goal's, as fast as they may.

    After t moves coordinate i cannot be nearer to the goal than :math:`(|g_i| - 0.1\\,t)_+`, and both can be as near at once.
    """
    t = torch.arange(1, world.max_steps + 1, dtype=world.dtype, device=task.position.device)
    offset = (task.position.abs()[:, None] - MAX_MOVE * t[:, None]).clamp(min=0)
    square = offset.square().sum(-1)
    reward = -(square if world.squared else square.sqrt())
    # Past the end of the episode nothing is earned: the step that reaches the goal is the last.
    arrived = (offset < GOAL_RADIUS).all(-1).cumsum(-1)
    return (reward * (arrived <= 1)).sum(-1)


def policy_for(world: Navigation) -> GaussianPolicyNet:
    """The book's policy network for this world: positions and moves are scaled to about ±1."""
    return GaussianPolicyNet(2, 2, observation_scale=(2.0, 2.0), action_scale=MAX_MOVE, initial_std=0.5)
