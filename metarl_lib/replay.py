"""Experience replay :cite:p:`lin1992self,mnih2015human`: the transitions seen so far, for updates to draw from.

Every learner has a memory of its own and draws from it independently of the others. A transition is stored with
``terminated`` alone: where the clock cut an episode short, the state that was reached still has a value to bootstrap from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transitions(NamedTuple):
    """What was seen of the world, of any episodes and in any order."""

    observation: Tensor  # [learner, n, observation]
    action: Tensor  # [learner, n], or [learner, n, action] where it is continuous
    reward: Tensor  # [learner, n]
    next_observation: Tensor  # [learner, n, observation], the one reached, before any reset
    terminated: Tensor  # [learner, n] bool: nothing follows; not set where the clock cut the episode short
    steps: Tensor | int = 1  # [learner, n] int64, from observation to next_observation; reward sums theirs


class Replay:
    """The last ``capacity`` transitions of each of ``learners`` learners, in preallocated tensors ``[learner, slot, ...]``.

    ``action_shape`` is that of one action, ``()`` for a discrete one. Once full, the newest transitions take the places of the
    oldest.
    """

    def __init__(
        self,
        learners: int,
        capacity: int,
        observation_size: int,
        action_shape: tuple[int, ...] = (),
        action_dtype: torch.dtype = torch.int64,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, value in (("learners", learners), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(learners, capacity, *shape, dtype=dtype, device=device)

        self.learners, self.capacity = learners, capacity
        self._memory = Transitions(
            observation=empty(observation_size),
            action=empty(*action_shape, dtype=action_dtype),
            reward=empty(),
            next_observation=empty(observation_size),
            terminated=empty(dtype=torch.bool),
            steps=empty(dtype=torch.int64),
        )
        self._first_row = torch.arange(learners, device=device)[:, None] * capacity  # of each learner, in the flattened memory
        self._next, self._size = 0, 0

    def __len__(self) -> int:
        """Transitions of each learner, at most ``capacity``."""
        return self._size

    def add(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        terminated: Tensor,
        steps: Tensor | None = None,
    ) -> None:
        """Store one transition of every environment, ``[learner, env, ...]``; without ``steps`` each is a single step."""
        if steps is None:
            steps = torch.ones_like(terminated, dtype=torch.int64)
        new = Transitions(observation, action, reward, next_observation, terminated, steps)
        n = reward.shape[-1]
        if n > self.capacity:
            raise ValueError(f"capacity must hold the {n} transitions that are added at once, got {self.capacity}")
        for name, values, memory in zip(Transitions._fields, new, self._memory, strict=True):
            expected = (self.learners, n, *memory.shape[2:])
            if values.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {tuple(values.shape)}")
        before_end = min(n, self.capacity - self._next)
        for values, memory in zip(new, self._memory, strict=True):
            memory[:, self._next : self._next + before_end] = values[:, :before_end].detach()
            memory[:, : n - before_end] = values[:, before_end:].detach()
        self._next = (self._next + n) % self.capacity
        self._size = min(self._size + n, self.capacity)

    def sample(self, n: int, generator: torch.Generator) -> Transitions:
        """Draw ``n`` transitions for every learner, uniformly with replacement and independently of the others."""
        if not self._size:
            raise ValueError("there is nothing to sample before the first add()")
        slots = torch.randint(self._size, (self.learners, n), generator=generator, device=self._first_row.device)
        return self._at(slots)

    def latest(self, n: int) -> Transitions:
        """The ``n`` newest transitions of every learner, oldest first."""
        if not 1 <= n <= self._size:
            raise ValueError(f"n must be between 1 and the {self._size} transitions stored, got {n}")
        slots = torch.arange(self._next - n, self._next, device=self._first_row.device) % self.capacity
        return self._at(slots.expand(self.learners, n))

    def _at(self, slots: Tensor) -> Transitions:
        # One row lookup in the flattened memory is several times quicker than indexing by (learner, slot).
        rows = (self._first_row + slots).flatten()
        return Transitions(*(leaf.flatten(0, 1).index_select(0, rows).unflatten(0, slots.shape) for leaf in self._memory))
