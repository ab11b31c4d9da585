"""What environments, policies and algorithms hand to one another.

Every array carries its leading axes in one order, ``[learner, env, time, ...]``, and code addresses
the trailing axes from the right. In meta-learning a learner is a task.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""A network's parameters by name; every leaf has a leading learner axis, ``[learner, ...]``."""


class Step(NamedTuple):
    """One transition of every environment. ``terminated`` and ``truncated`` are never merged."""

    observation: Tensor  # [..., observation], the one reached, before any reset
    reward: Tensor  # [...]
    terminated: Tensor  # [...] bool: the episode ended by the task's own rules
    truncated: Tensor  # [...] bool: the clock ran out; the state still has a value


class Rollout(NamedTuple):
    """Episodes side by side. Entries at which ``alive`` is False are padding after an episode's end."""

    observations: Tensor  # [..., env, time, observation]
    actions: Tensor  # [..., env, time], or [..., env, time, action] where they are continuous
    log_probs: Tensor  # [..., env, time], log π(action | observation) of the policy that acted
    rewards: Tensor  # [..., env, time]
    next_observations: Tensor  # [..., env, time, observation], before any reset
    terminated: Tensor  # [..., env, time] bool
    truncated: Tensor  # [..., env, time] bool
    alive: Tensor  # [..., env, time] bool: this step was taken before the episode ended

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, ``[..., env]``."""
        return (self.rewards * self.alive).sum(-1)


class Batch(NamedTuple):
    """Transitions of every learner, packed; ``weights`` sum to one per learner and are 0 at padding."""

    observations: Tensor  # [learner, sample, observation]
    actions: Tensor  # [learner, sample], or [learner, sample, action] where they are continuous
    log_probs: Tensor  # [learner, sample], of the policy that acted
    advantages: Tensor  # [learner, sample]
    weights: Tensor  # [learner, sample]


class World(Protocol):
    """An environment as three functions; whatever changes is passed in and handed back.

    A *task* is a NamedTuple of tensors ``[task]`` and is not part of the state: no reset resamples it.
    All randomness comes from ``generator``, whose device is the device of everything returned.

    A world with continuous actions has, in place of ``actions``, their bounds ``action_low`` and ``action_high``, a number per
    dimension, and its ``step`` takes ``[task, env, action]``.
    """

    observation_size: int
    actions: int
    max_steps: int

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Any: ...

    def reset(self, task: Any, n: int, generator: torch.Generator) -> tuple[Any, Tensor]:
        """Start ``n`` episodes of every task: state, and observation ``[task, env, observation]``."""
        ...

    def step(self, task: Any, state: Any, action: Tensor, generator: torch.Generator | None = None) -> tuple[Any, Step]:
        """Advance every environment by ``action``, ``[task, env]``."""
        ...


def select(mask: Tensor, if_true: Any, if_false: Any) -> Any:
    """``torch.where`` over the leaves of a NamedTuple of tensors, ``mask`` addressing the leading axes."""

    def where(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.dim() - mask.dim())), a, b)

    return type(if_true)(*map(where, if_true, if_false))


def index_tasks(tasks: Any, index: slice | Tensor) -> Any:
    """Some of a NamedTuple's tasks, chosen along the leading axis."""
    return type(tasks)(*(leaf[index] for leaf in tasks))
