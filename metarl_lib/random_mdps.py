"""Random tabular Markov decision processes, and what is known about acting in them :cite:p:`osband2013more,duan2016rl2`.

A task has 10 states and 5 actions. Transitions are drawn from a flat Dirichlet, mean rewards from N(1, 1), and every reward
has unit variance. An episode starts in state 0 and is cut after 10 steps; a trial is several episodes of one task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .types import Step

# --- the world --------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    reward: Tensor  # [task, state, action], its mean
    transition: Tensor  # [task, state, action, state], probabilities


class State(NamedTuple):
    position: Tensor  # [task, env] int64: the number of the state
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True)
class RandomMDPs:
    """The distribution. The observation is the state as a one-hot vector. An episode never terminates.

    The splits are independent draws from one continuous distribution, so that no task occurs twice. In ``ood`` transitions are
    drawn from a Dirichlet of concentration 0.2, which makes them nearly deterministic.
    """

    states: int = 10
    actions: int = 5
    max_steps: int = 10
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("states", "actions", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def observation_size(self) -> int:
        return self.states

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Task:
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        if split not in ("train", "validation", "test", "ood"):
            raise ValueError(f"unknown split {split!r}; there are train, validation, test, ood")
        shape, device = (n, self.states, self.actions), generator.device
        reward = 1 + torch.randn(shape, generator=generator, device=device, dtype=self.dtype)
        concentration = torch.full((*shape, self.states), 0.2 if split == "ood" else 1.0, dtype=torch.float64, device=device)
        gamma = torch._standard_gamma(concentration, generator=generator)  # Dirichlet: gammas, normalised
        return Task(reward, (gamma / gamma.sum(-1, keepdim=True)).to(self.dtype))

    def reset(self, task: Task, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        position = torch.zeros(len(task.reward), n, dtype=torch.int64, device=task.reward.device)
        return State(position, position.to(torch.int32)), self._observe(position)

    def step(self, task: Task, state: State, action: Tensor, generator: torch.Generator) -> tuple[State, Step]:
        entry = (torch.arange(len(task.reward), device=action.device)[:, None], state.position, action)
        noise = torch.randn(action.shape, generator=generator, device=action.device, dtype=self.dtype)
        u = torch.rand(action.shape, generator=generator, device=action.device, dtype=self.dtype)
        position = (u[..., None] >= task.transition[entry].cumsum(-1)[..., :-1]).sum(-1)
        steps = state.steps + 1
        terminated = torch.zeros_like(steps, dtype=torch.bool)
        step = Step(self._observe(position), task.reward[entry] + noise, terminated, steps >= self.max_steps)
        return State(position, steps), step

    def _observe(self, position: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(position, self.states).to(self.dtype)


# --- acting with knowledge of the prior -------------------------------------------------------------------------------


def best_policy(reward: np.ndarray, transition: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Best actions ``[steps, task, state]`` and values with ``steps`` to go ``[task, state]``, by backward induction."""
    value = np.zeros(reward.shape[:-1])
    policy = np.empty((steps, *value.shape), dtype=int)
    for t in reversed(range(steps)):
        q = reward + np.einsum("tsaz,tz->tsa", transition, value)
        policy[t], value = q.argmax(-1), q.max(-1)
    return policy, value


def psrl(world: RandomMDPs, task: Task, episodes: int, rng: np.random.Generator) -> np.ndarray:
    """Posterior sampling :cite:p:`osband2013more`: the total reward of a trial of every task, ``[task]``.

    Before each episode a whole MDP is drawn from the posterior, and the best policy of that MDP is played. The prior is the
    true one: N(1, 1) for the mean rewards, a flat Dirichlet for the transitions. :cite:t:`duan2016rl2` do not say which prior
    theirs had; their figures are 3% above these for 10 episodes and the same for 50.
    """
    mean, transition = (leaf.double().cpu().numpy() for leaf in task)
    n, trial = len(mean), np.arange(len(mean))
    visits, rewards, moves = np.zeros_like(mean), np.zeros_like(mean), np.zeros_like(transition)
    total = np.zeros(n)
    for _ in range(episodes):
        drawn_reward = (1 + rewards) / (1 + visits) + rng.standard_normal(mean.shape) / np.sqrt(1 + visits)
        gamma = rng.standard_gamma(1 + moves)
        policy, _ = best_policy(drawn_reward, gamma / gamma.sum(-1, keepdims=True), world.max_steps)
        state = np.zeros(n, dtype=int)
        for t in range(world.max_steps):
            action = policy[t, trial, state]
            reward = mean[trial, state, action] + rng.standard_normal(n)
            reached = (rng.random((n, 1)) >= transition[trial, state, action].cumsum(-1)[:, :-1]).sum(-1)
            total += reward
            visits[trial, state, action] += 1
            rewards[trial, state, action] += reward
            moves[trial, state, action, reached] += 1
            state = reached
    return total


def best_return(world: RandomMDPs, task: Task) -> np.ndarray:
    """What an episode earns on average under the best policy for the task, ``[task]``: the bound for whoever knows it."""
    _, value = best_policy(*(leaf.double().cpu().numpy() for leaf in task), world.max_steps)
    return value[:, 0]
