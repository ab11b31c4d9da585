"""The pendulum that is to be swung up and held, batched in torch: Gymnasium's ``Pendulum-v1`` step for step
:cite:p:`towers2024gymnasium`.

The motor is too weak to lift the pendulum in one go, so that a policy has to swing it. Gravity, mass and length belong to
the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .types import Step

TIME_STEP = 0.05  # s
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m


class Physics(NamedTuple):
    """A task: one value per task, ``[task]``."""

    gravity: Tensor  # m/s²
    mass: Tensor  # kg
    length: Tensor  # m


class State(NamedTuple):
    body: Tensor  # [task, env, 2]: θ (rad, 0 is upright), θ̇ (rad/s)
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True)
class Pendulum:
    """The pendulum of Gymnasium. Its observation is (cos θ, sin θ, θ̇), its action a torque, its reward

    .. math::
        r = -(\\theta^2 + 0.1\\,\\dot\\theta^2 + 0.001\\,u^2), \\qquad \\theta \\in [-\\pi, \\pi),

    of the state before the step. An episode never terminates and is truncated after ``max_steps``.
    """

    max_steps: int = 200
    dtype: torch.dtype = torch.float32

    observation_size = 3
    action_low, action_high = (-MAX_TORQUE,), (MAX_TORQUE,)

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Physics:
        """Gymnasium's own physics, ``n`` times over, whatever the split."""
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        return Physics(*(torch.full((n,), value, dtype=self.dtype, device=generator.device) for value in (10.0, 1.0, 1.0)))

    def reset(self, task: Physics, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """Start ``n`` episodes of every task, θ uniform in ±π and θ̇ in ±1."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        shape = (*task.gravity.shape, n)
        body = 2 * torch.rand(*shape, 2, generator=generator, device=generator.device, dtype=self.dtype) - 1
        body[..., 0] *= math.pi
        return State(body, torch.zeros(shape, dtype=torch.int32, device=generator.device)), self._observe(body)

    def step(self, task: Physics, state: State, action: Tensor, generator: torch.Generator | None = None) -> tuple[State, Step]:
        """One step of 0.05 s under the torque ``action``, ``[task, env, 1]``, clipped to ±2 N m.

        ``generator`` is unused: the dynamics are deterministic.
        """
        if action.shape != (*state.body.shape[:-1], 1):
            raise ValueError(f"action must be [task, env, 1], here {[*state.body.shape[:-1], 1]}, got {list(action.shape)}")
        gravity, mass, length = (leaf[..., None] for leaf in task)
        theta, theta_dot = state.body.unbind(-1)
        torque = action[..., 0].clamp(-MAX_TORQUE, MAX_TORQUE)
        angle = (theta + math.pi) % (2 * math.pi) - math.pi
        reward = -(angle.square() + 0.1 * theta_dot.square() + 0.001 * torque.square())

        acceleration = 1.5 * gravity / length * torch.sin(theta) + 3 / (mass * length.square()) * torque
        theta_dot = (theta_dot + acceleration * TIME_STEP).clamp(-MAX_SPEED, MAX_SPEED)
        body = torch.stack((theta + theta_dot * TIME_STEP, theta_dot), -1)
        steps = state.steps + 1
        terminated = torch.zeros_like(steps, dtype=torch.bool)
        return State(body, steps), Step(self._observe(body), reward, terminated, steps >= self.max_steps)

    def _observe(self, body: Tensor) -> Tensor:
        theta, theta_dot = body.unbind(-1)
        return torch.stack((torch.cos(theta), torch.sin(theta), theta_dot), -1)
