"""CartPole as a distribution over tasks, batched in torch.

At default physics this is Gymnasium's ``CartPole-v1`` step for step :cite:p:`barto1983neuronlike,towers2024gymnasium`.
Gravity, masses, pole length, motor force *with its sign* and a constant wind belong to the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .nets import PolicyNet
from .types import Step

TIME_STEP = 0.02  # s
X_LIMIT = 2.4  # m
ANGLE_LIMIT = 12 * 2 * math.pi / 360  # rad


class Physics(NamedTuple):
    """A task: one value per task, ``[task]``."""

    gravity: Tensor  # m/s²
    cart_mass: Tensor  # kg
    pole_mass: Tensor  # kg
    half_length: Tensor  # m, half of the pole
    force: Tensor  # N, of action 1; action 0 pushes with −force. Negative: the motor is wired backwards
    wind: Tensor  # N, a constant horizontal push on the cart


class State(NamedTuple):
    body: Tensor  # [task, env, 4]: x (m), ẋ (m/s), θ (rad, 0 is upright), θ̇ (rad/s)
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True)
class Ranges:
    """Where a distribution's physics are drawn from, uniformly; ``force`` and ``wind`` are magnitudes.

    ``flip``: half of the tasks, exactly, have their motor wired backwards. Wind blows from either side.
    """

    gravity: tuple[float, float] = (9.8, 9.8)
    cart_mass: tuple[float, float] = (1.0, 1.0)
    pole_mass: tuple[float, float] = (0.1, 0.1)
    half_length: tuple[float, float] = (0.5, 0.5)
    force: tuple[float, float] = (10.0, 10.0)
    wind: tuple[float, float] = (0.0, 0.0)
    flip: bool = False


_MILD = dict(gravity=(8.0, 12.0), cart_mass=(0.8, 1.2), pole_mass=(0.05, 0.15), half_length=(0.4, 0.6), force=(9.0, 11.0))
_WIDE = dict(gravity=(6.0, 14.0), cart_mass=(0.5, 2.0), pole_mass=(0.05, 0.5), half_length=(0.25, 1.5), force=(7.0, 15.0))

DISTRIBUTIONS = {
    "default": Ranges(),
    "mild": Ranges(**_MILD),
    "wide": Ranges(**_WIDE),
    "windy": Ranges(**_MILD, wind=(0.0, 4.0)),
    "flip": Ranges(**_MILD, flip=True),
    "flipwide": Ranges(**_WIDE, flip=True),
}

SPLITS = {"train": (0, 2, 4), "validation": (1,), "test": (3,), "ood": ()}
_SLICES = 20  # of the range of one parameter, here the pole's length; slice i belongs to the split that holds i mod 5


@dataclass(frozen=True)
class CartPole:
    """A distribution of cart-poles. Reward is 1 a step; an episode terminates when the pole or the cart leaves
    its limits and is truncated after ``max_steps``.

    ``distribution`` names an entry of :data:`DISTRIBUTIONS`. With ``observe_task`` the six physical parameters,
    scaled to about ±1, are appended to the observation: that is what an oracle sees.
    """

    distribution: str = "flipwide"
    max_steps: int = 200
    observe_task: bool = False
    dtype: torch.dtype = torch.float32

    actions = 2

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {self.distribution!r}; there are {', '.join(DISTRIBUTIONS)}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    @property
    def observation_size(self) -> int:
        return 10 if self.observe_task else 4

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Physics:
        """Draw ``n`` tasks of a split: ``train``, ``validation``, ``test`` or ``ood``.

        The range of pole lengths is cut into 20 slices with gaps between them, three fifths of them for training,
        one for validation and one for testing, so that no held-out task can equal a training task (``default``, which is a
        single task, excepted). In ``ood`` *every* varied parameter lies outside its range: up to a third below or up to
        half above it.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        device = generator.device

        def uniform() -> Tensor:
            return torch.rand(n, generator=generator, device=device, dtype=torch.float64)

        ranges = DISTRIBUTIONS[self.distribution]
        values = {}
        for name in Physics._fields:
            low, high = getattr(ranges, name)
            u = uniform()
            if split == "ood" and low < high:
                below = uniform() < 0.5
                values[name] = torch.where(below & (low > 0), low * (2 + u) / 3, high * (1.5 - u / 2))
                continue
            if name == "half_length" and split != "ood":
                u = in_split(u, split, generator)
            values[name] = low + (high - low) * u
        values["wind"] = values["wind"] * signs(n, generator)
        if ranges.flip:
            values["force"] = values["force"] * signs(n, generator)
        return Physics(**{name: value.to(self.dtype) for name, value in values.items()})

    def reset(self, task: Physics, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """Start ``n`` episodes of every task, each body variable uniform in ±0.05."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        shape = (*task.gravity.shape, n)
        body = torch.rand(*shape, 4, generator=generator, device=generator.device, dtype=self.dtype) * 0.1 - 0.05
        state = State(body, torch.zeros(shape, dtype=torch.int32, device=generator.device))
        return state, self._observe(task, body)

    def step(self, task: Physics, state: State, action: Tensor, generator: torch.Generator | None = None) -> tuple[State, Step]:
        """One Euler step of 0.02 s. ``generator`` is unused: the dynamics are deterministic."""
        gravity, cart_mass, pole_mass, half_length, force, wind = (leaf[..., None] for leaf in task)
        total_mass = cart_mass + pole_mass
        pole_moment = pole_mass * half_length
        _, x_dot, theta, theta_dot = state.body.unbind(-1)
        cos, sin = torch.cos(theta), torch.sin(theta)

        push = torch.where(action == 1, force, -force) + wind
        temp = (push + pole_moment * theta_dot.square() * sin) / total_mass
        theta_acc = (gravity * sin - cos * temp) / (half_length * (4.0 / 3.0 - pole_mass * cos.square() / total_mass))
        x_acc = temp - pole_moment * theta_acc * cos / total_mass
        body = torch.add(state.body, torch.stack((x_dot, x_acc, theta_dot, theta_acc), -1), alpha=TIME_STEP)

        steps = state.steps + 1
        terminated = (body[..., 0].abs() > X_LIMIT) | (body[..., 2].abs() > ANGLE_LIMIT)
        reward = torch.ones_like(theta)
        return State(body, steps), Step(self._observe(task, body), reward, terminated, steps >= self.max_steps)

    def _observe(self, task: Physics, body: Tensor) -> Tensor:
        if not self.observe_task:
            return body
        centre = torch.tensor([10.0, 1.25, 0.275, 0.875, 0.0, 0.0], dtype=body.dtype, device=body.device)
        width = torch.tensor([4.0, 0.75, 0.225, 0.625, 11.0, 4.0], dtype=body.dtype, device=body.device)
        features = (torch.stack(tuple(task), -1) - centre) / width
        return torch.cat((body, features[..., None, :].expand(*body.shape[:-1], len(task))), -1)


def signs(n: int, generator: torch.Generator) -> Tensor:
    """``n`` signs in float64, half of them −1, exactly; the odd one out by a coin."""
    order = torch.randperm(n + n % 2, generator=generator, device=generator.device)[:n]
    return (1 - 2 * (order % 2)).to(torch.float64)


def in_split(u: Tensor, split: str, generator: torch.Generator) -> Tensor:
    """``u`` ``[task]``, uniform in [0, 1], moved into the slices of [0, 1] that belong to ``split``: no two splits touch."""
    kinds = torch.tensor(SPLITS[split], device=generator.device)
    kind = kinds[torch.randint(len(kinds), u.shape, generator=generator, device=generator.device)]
    fifth = torch.randint(_SLICES // 5, u.shape, generator=generator, device=generator.device)
    return (5 * fifth + kind + 0.05 + 0.9 * u) / _SLICES


def policy_for(world: CartPole) -> PolicyNet:
    """The book's policy network for a cart-pole world, its angle scaled to the size of the other observations."""
    features = world.observation_size - 4
    return PolicyNet(world.observation_size, world.actions, observation_scale=(1.0, 1.0, 10.0, 1.0) + (1.0,) * features)
