"""Worlds so small that the right value, and the right action, are known: each catches one kind of fault in an agent.

The idea is Andy Jones's. Every episode's reward and length are fixed; what an agent should believe is in ``VALUES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarl_lib.types import Step


class Task(NamedTuple):
    nothing: Tensor  # [task]


class State(NamedTuple):
    sign: Tensor  # [task, env]: ±1, drawn at the start of an episode
    time: Tensor  # [task, env]


KINDS = ("one-step", "two-step", "sign", "action", "truncation")
DISCOUNT = 0.5
# The value of the first observation, by its sign, under the best policy, with the discount above.
VALUES = {
    "one-step": {1: 1.0, -1: 1.0},  # reward 1, then the end: is a value learned at all?
    "two-step": {1: DISCOUNT, -1: DISCOUNT},  # reward 1 at the second step: is it discounted and carried back?
    "sign": {1: 1.0, -1: -1.0},  # the reward is the observation: does the value depend on it?
    "action": {1: 1.0, -1: 1.0},  # reward 1 for the action that has the observation's sign, −1 for the other
    "truncation": {1: 1 / (1 - DISCOUNT), -1: 1 / (1 - DISCOUNT)},  # reward 1 for ever, cut after every step by the clock
}


@dataclass(frozen=True)
class Probe:
    """One of :data:`KINDS`. Observation: (sign, time). Discrete actions 0 and 1 stand for −1 and +1."""

    kind: str
    max_steps: int = 8

    observation_size = 2
    actions = 2

    def sample_tasks(self, n, generator, split="train"):
        return Task(torch.zeros(n))

    def reset(self, task, n, generator):
        shape = (len(task.nothing), n)
        sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
        if self.kind == "truncation":  # the observation never changes, so that the next state's value is this one's
            sign = torch.ones(shape)
        state = State(sign, torch.zeros(shape))
        return state, self._observe(state)

    def step(self, task, state, action, generator=None):
        signed = 2.0 * action - 1 if action.dim() == state.sign.dim() else action[..., 0]
        state = State(state.sign, state.time + (self.kind != "truncation"))
        nothing = torch.zeros_like(state.sign)
        reward = {
            "one-step": nothing + 1,
            "two-step": (state.time == 2).float(),
            "sign": state.sign,
            "action": 1 - (signed - state.sign).abs() if self.continuous else signed * state.sign,
            "truncation": nothing + 1,
        }[self.kind]
        last = 2 if self.kind == "two-step" else 1
        terminated = (state.time >= last) if self.kind != "truncation" else nothing.bool()
        truncated = ~terminated & (nothing.bool() | (self.kind == "truncation"))
        return state, Step(self._observe(state), reward, terminated, truncated)

    continuous = False

    def _observe(self, state):
        return torch.stack((state.sign, state.time), -1)


@dataclass(frozen=True)
class ContinuousProbe(Probe):
    """The same with an action in [−1, 1]; in ``action`` the reward is 1 less its distance from the sign."""

    continuous = True
    action_low, action_high = (-1.0,), (1.0,)


def first_observations() -> Tensor:
    """The two observations that an episode can begin with, sign −1 and +1, ``[2, observation]``."""
    return torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


def best_values(kind: str) -> Tensor:
    """Their values, ``[2]``; where only the sign +1 occurs, both entries are its value."""
    return torch.tensor([VALUES[kind][-1], VALUES[kind][1]])
