"""Bernoulli bandits, and what is known about playing them well.

A task is a set of arms whose probabilities of reward are uniform in [0, 1]; a trial is a number of pulls of one task. The
references below know that prior. For few pulls the best expected reward is computed exactly, by dynamic programming over
what has been seen; for many, finite-horizon Gittins indices are nearly as good :cite:p:`gittins1979bandit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .types import Step

# --- the world --------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    probability: Tensor  # [task, arm], of reward 1


class State(NamedTuple):
    steps: Tensor  # [task, env] int: pulls since the episode began


@dataclass(frozen=True)
class Bandits:
    """Bandits with ``arms`` arms. An episode is one pull, and there is nothing to observe: the observation is a constant 1.

    The splits are independent draws from one continuous distribution, so that no task occurs twice; ``ood`` draws the
    probabilities from Beta(2, 2), under which few arms are nearly sure.
    """

    arms: int = 5
    dtype: torch.dtype = torch.float32

    max_steps = 1
    observation_size = 1

    def __post_init__(self) -> None:
        if self.arms < 2:
            raise ValueError(f"arms must be at least 2, got {self.arms}")

    @property
    def actions(self) -> int:
        return self.arms

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Task:
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        if split not in ("train", "validation", "test", "ood"):
            raise ValueError(f"unknown split {split!r}; there are train, validation, test, ood")
        u = torch.rand(n, self.arms, 3, generator=generator, device=generator.device, dtype=self.dtype)
        return Task(u.median(-1).values if split == "ood" else u[..., 0])  # the median of three uniforms is Beta(2, 2)

    def reset(self, task: Task, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        steps = torch.zeros(len(task.probability), n, dtype=torch.int32, device=task.probability.device)
        return State(steps), self._observe(steps)

    def step(self, task: Task, state: State, action: Tensor, generator: torch.Generator) -> tuple[State, Step]:
        """Pull arm ``action`` ``[task, env]`` everywhere."""
        u = torch.rand(action.shape, generator=generator, device=action.device, dtype=self.dtype)
        reward = (u < task.probability.gather(-1, action)).to(self.dtype)
        steps = state.steps + 1
        return State(steps), Step(
            self._observe(steps), reward, torch.ones_like(steps, dtype=torch.bool), torch.zeros_like(steps, dtype=torch.bool)
        )

    def _observe(self, steps: Tensor) -> Tensor:
        return torch.ones(*steps.shape, 1, dtype=self.dtype, device=steps.device)


# --- strategies that know the prior -----------------------------------------------------------------------------------

Strategy = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]
"""(rewards, failures, both ``[trial, arm]`` counts, pulls left, rng) to a score ``[trial, arm]``; the highest is pulled."""


def play(strategy: Strategy, probability: np.ndarray, pulls: int, rng: np.random.Generator) -> np.ndarray:
    """Total reward of every trial, ``[trial]``, for arms ``probability`` ``[trial, arm]``. Ties are broken at random."""
    if pulls < 1 or probability.ndim != 2:
        raise ValueError(f"pulls must be at least 1 and probability [trial, arm], got {pulls} and shape {probability.shape}")
    rewards, failures = np.zeros_like(probability), np.zeros_like(probability)
    trial = np.arange(len(probability))
    for t in range(pulls):
        score = strategy(rewards, failures, pulls - t, rng)
        best = score == score.max(-1, keepdims=True)
        arm = (best * rng.random(best.shape)).argmax(-1)
        reward = rng.random(len(trial)) < probability[trial, arm]
        rewards[trial, arm] += reward
        failures[trial, arm] += ~reward
    return rewards.sum(-1)


def random(rewards: np.ndarray, failures: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """Every arm with the same probability."""
    return np.zeros_like(rewards)


def greedy(rewards: np.ndarray, failures: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """The posterior mean, (rewards + 1)/(pulls + 2): it never tries an arm to learn about it."""
    return (rewards + 1) / (rewards + failures + 2)


def thompson(rewards: np.ndarray, failures: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """A draw from the posterior, Beta(rewards + 1, failures + 1) :cite:p:`thompson1933likelihood`."""
    return rng.beta(rewards + 1, failures + 1)


def optimistic_thompson(rewards: np.ndarray, failures: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """The same, never below the posterior mean."""
    return np.maximum(thompson(rewards, failures, left, rng), greedy(rewards, failures, left, rng))


def ucb1(rewards: np.ndarray, failures: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
    """Mean reward and √(2 ln t / n), after one pull of every arm :cite:p:`auer2002finite`."""
    n = rewards + failures
    with np.errstate(divide="ignore", invalid="ignore"):
        score = rewards / n + np.sqrt(2 * np.log(n.sum(-1, keepdims=True)) / n)
    return np.where(n == 0, np.inf, score)


def gittins(pulls: int) -> Strategy:
    """The finite-horizon Gittins index: the sure reward per pull that is worth exactly as much as going on with the arm.

    Best for a discounted, unending bandit; with an end it is an approximation, and a close one. A trial that it plays may
    have at most ``pulls`` pulls.
    """
    table = gittins_indices(pulls)

    def strategy(rewards: np.ndarray, failures: np.ndarray, left: int, rng: np.random.Generator) -> np.ndarray:
        if left > pulls:
            raise ValueError(f"pulls must be at most {pulls}, for which these indices were made, got {left}")
        return table[left, rewards.astype(int), failures.astype(int)]

    return strategy


# --- dynamic programming ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def gittins_indices(pulls: int, resolution: int = 500) -> np.ndarray:
    """Indices ``[left, rewards, failures]`` for ``left`` pulls to go, to within 1/resolution; NaN for no state.

    For a sure reward λ a pull, V(s, f, r) = max(λ r, p (1 + V(s + 1, f, r − 1)) + (1 − p) V(s, f + 1, r − 1)) with
    p = (s + 1)/(s + f + 2). The index is the λ at which stopping becomes as good as going on.
    """
    if pulls < 1:
        raise ValueError(f"pulls must be at least 1, got {pulls}")
    sure = (np.arange(resolution) + 0.5) / resolution  # λ
    counts = np.arange(pulls + 1)
    p = (counts[:, None] + 1) / (counts[:, None] + counts + 2)
    table = np.full((pulls + 1, pulls + 1, pulls + 1), np.nan)
    value = np.zeros((resolution, pulls + 1, pulls + 1))
    for left in range(1, pulls + 1):
        n = pulls - left + 1  # rewards and failures so far are each below n
        go_on = p[:n, :n] * (1 + value[:, 1 : n + 1, :n]) + (1 - p[:n, :n]) * value[:, :n, 1 : n + 1]
        stop = (sure * left)[:, None, None]
        index = (go_on > stop).mean(0)
        table[left, :n, :n] = np.where(counts[:n, None] + counts[:n] <= pulls - left, index, np.nan)
        value[:, :n, :n] = np.maximum(go_on, stop)
    return table


def best_expected_reward(arms: int, pulls: int) -> float:
    """What the best strategy earns on average, exactly. The work grows steeply: 10 pulls take a second, 20 are too many.

    A state is the multiset of (rewards, failures) of the arms pulled so far; arms never pulled are all alike.
    """
    if arms < 1 or pulls < 1:
        raise ValueError(f"arms and pulls must be at least 1, got {arms} and {pulls}")

    @cache
    def value(pulled: tuple[tuple[int, int], ...], left: int) -> float:
        if left == 0:
            return 0.0
        options = []
        for i, (s, f) in enumerate(pulled):
            if i == 0 or pulled[i] != pulled[i - 1]:  # equal arms are one option
                options.append((pulled[:i] + pulled[i + 1 :], s, f))
        if len(pulled) < arms:
            options.append((pulled, 0, 0))
        best = 0.0
        for rest, s, f in options:
            p = (s + 1) / (s + f + 2)
            won, lost = (tuple(sorted((*rest, arm))) for arm in ((s + 1, f), (s, f + 1)))
            best = max(best, p * (1 + value(won, left - 1)) + (1 - p) * value(lost, left - 1))
        return best

    return value((), pulls)
