"""Environments that never stop: where an episode ends, the next one begins.

Algorithms that learn while they act (DQN, PPO, SAC, actor-critic) take a step at a time from a :class:`Stream`. Whole
episodes, as REINFORCE and MAML need them, come from :func:`~metarl_lib.collect.collect`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .types import Step, World, select


class Stream:
    """``envs`` environments for each of ``learners`` learners, every learner with a task of its own: ``task``, or one drawn here.

    ``observation`` ``[learner, env, observation]`` is what to act on next. Raises ``FloatingPointError`` if a reward or an
    observation is not finite.
    """

    def __init__(self, world: World, learners: int, envs: int, generator: torch.Generator, task: Any = None) -> None:
        self.world, self.generator, self.envs = world, generator, envs
        self.task = world.sample_tasks(learners, generator) if task is None else task
        self.state, self.observation = world.reset(self.task, envs, generator)
        if len(self.observation) != learners:
            raise ValueError(f"task must hold {learners} tasks, one for each of the learners, got {len(self.observation)}")
        self._running = torch.zeros_like(self.observation[..., 0])  # return so far of every episode
        self._total, self._count = self._running.sum(-1), self._running.sum(-1)

    def step(self, action: Tensor) -> Step:
        """Take ``action`` ``[learner, env]`` (``[learner, env, action]`` if continuous) in every environment.

        The step's observation is the one reached. Where the episode ended, ``self.observation`` is already the first one
        of the next episode, and no transition leads from the one to the other.
        """
        state, step = self.world.step(self.task, self.state, action, self.generator)
        self._running += step.reward
        if not torch.isfinite(self._running).all() or not torch.isfinite(step.observation).all():
            raise FloatingPointError("the environment returned a reward or an observation that is not finite (NaN or infinity)")
        ended = step.terminated | step.truncated
        if ended.device.type != "cpu" or ended.any():  # asking an accelerator would stall it at every step
            self._total += (self._running * ended).sum(-1)
            self._count += ended.sum(-1)
            self._running *= ~ended
            self.state, self.observation = self._restart(state, step.observation, ended)
        else:
            self.state, self.observation = state, step.observation
        return step

    def finished_returns(self) -> Tensor:
        """Mean undiscounted return ``[learner]`` of the episodes that ended since the last call, NaN where none did."""
        mean = self._total / self._count
        self._total, self._count = torch.zeros_like(self._total), torch.zeros_like(self._count)
        return mean

    def _restart(self, state, observation: Tensor, ended: Tensor):
        if hasattr(self.world, "restart"):  # an environment that keeps its own state
            return self.world.restart(state, observation, ended)
        fresh, first = self.world.reset(self.task, self.envs, self.generator)
        return select(ended, fresh, state), torch.where(ended[..., None], first, observation)
