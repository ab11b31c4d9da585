"""A car that is to stay in its lane, as a distribution over vehicles, batched in torch.

The car is a kinematic bicycle at constant speed v on a winding road of curvature κ(s). In the road's own coordinates, with s
the distance along its centre line, y the offset to the left of it and ψ the heading relative to it,

.. math::
    \\dot s = \\frac{v \\cos ψ}{1 - κ(s)\\, y}, \\qquad
    \\dot y = v \\sin ψ, \\qquad
    \\dot ψ = \\operatorname{clip}\\Bigl(\\frac{v \\tan δ}{L}, \\pm\\frac{a_{\\max}}{v}\\Bigr) - κ(s)\\, \\dot s .

Wheelbase L, the gain from the steering wheel to the angle δ of the front wheels *with its sign*, grip a_max and the delay before
the wheels obey belong to the task. A negative gain is a mis-wired actuator, or a ship's tiller: whoever does not find out which
way the car turns leaves the road. Nothing in a single observation tells it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cartpole import SPLITS, in_split, signs
from .nets import constant
from .types import Step

TIME_STEP = 0.1  # s
SPEED = 10.0  # m/s
HALF_LANE = 1.75  # m, from the centre line to the edge of the lane
MAX_STEER = 0.25  # rad, of the front wheels at full lock and gain 1
LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # positions of the steering wheel, of full lock; positive is to the left
MAX_DELAY = 5  # steps
PREVIEW = (0.0, 5.0, 10.0, 20.0)  # m ahead: where the road's curvature is seen
WAVES, MAX_CURVATURE = 2, 0.02  # 1/m: a road is a sum of this many waves of curvature, together never above that
WAVELENGTH = (50.0, 150.0)  # m


class Vehicle(NamedTuple):
    """A task: one value per task, ``[task]``."""

    wheelbase: Tensor  # m
    gain: Tensor  # of the steering, 1 is nominal. Negative: it is reversed
    grip: Tensor  # m/s², the highest lateral acceleration; beyond it the front wheels slide and the car turns no faster
    delay: Tensor  # int64, steps before the front wheels obey


class State(NamedTuple):
    body: Tensor  # [task, env, 3]: s (m), y (m, positive to the left), ψ (rad, positive to the left)
    commands: Tensor  # [task, env, MAX_DELAY + 1]: positions of the steering wheel, the newest first
    waves: Tensor  # [task, env, 2, WAVES]: the road, wave numbers (rad/m) and phases (rad)
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True)
class Ranges:
    """Where a distribution's vehicles are drawn from, uniformly; ``gain`` is a magnitude.

    ``flip``: half of the vehicles, exactly, steer the wrong way.
    """

    wheelbase: tuple[float, float] = (3.0, 3.0)
    gain: tuple[float, float] = (1.0, 1.0)
    grip: tuple[float, float] = (6.0, 6.0)
    delay: tuple[int, int] = (1, 1)
    flip: bool = False


_VARIED = dict(wheelbase=(2.4, 3.6), gain=(0.7, 1.3), grip=(4.0, 8.0), delay=(0, 3))
DISTRIBUTIONS = {"nominal": Ranges(), "varied": Ranges(**_VARIED), "reversed": Ranges(**_VARIED, flip=True)}


@dataclass(frozen=True)
class LaneKeeping:
    """A distribution of vehicles, each episode on a road of its own.

    The reward of a step is 1 − 0.9 (y / half a lane)² − 0.1 u², with y after the step, cut off at the edge of the lane, and u the
    position of the steering wheel; the return is between 0 and ``max_steps``. An episode terminates when the car's centre
    leaves the lane and is truncated after ``max_steps``.

    The observation is y (m), ψ (0.1 rad), and the curvature (1/100 m) of the road at :data:`PREVIEW` metres ahead. With
    ``observe_actuator`` the last commands, newest first, and the yaw rate (0.1 rad/s) are appended: together they give away
    which way the car steers, so that a policy needs no memory to find out. With ``observe_task`` the four parameters, scaled
    to about ±1, are appended: that is what an oracle sees.

    Actions are the five positions of :data:`LEVELS`, since the book's policy network, MAML and RL² are written for a softmax.
    """

    distribution: str = "reversed"
    max_steps: int = 200
    observe_task: bool = False
    observe_actuator: bool = False
    dtype: torch.dtype = torch.float32

    actions = len(LEVELS)

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {self.distribution!r}; there are {', '.join(DISTRIBUTIONS)}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    @property
    def observation_size(self) -> int:
        return 2 + len(PREVIEW) + (MAX_DELAY + 2) * self.observe_actuator + len(Vehicle._fields) * self.observe_task

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Vehicle:
        """Draw ``n`` vehicles of a split: ``train``, ``validation``, ``test`` or ``ood``.

        The range of wheelbases is cut into slices with gaps between them, so that no held-out vehicle can equal a training
        vehicle (``nominal``, which is a single one, excepted). In ``ood`` *every* varied parameter lies outside its range: up to
        a quarter below or up to half above it, and the delay is 4 or 5 steps.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")

        def uniform() -> Tensor:
            return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)

        ranges = DISTRIBUTIONS[self.distribution]
        values = {}
        for name in ("wheelbase", "gain", "grip"):
            low, high = getattr(ranges, name)
            u = uniform()
            if split == "ood" and low < high:
                values[name] = torch.where(uniform() < 0.5, low * (3 + u) / 4, high * (1.5 - u / 2))
                continue
            if name == "wheelbase" and split != "ood":
                u = in_split(u, split, generator)
            values[name] = low + (high - low) * u
        if ranges.flip:
            values["gain"] = values["gain"] * signs(n, generator)
        low, high = ranges.delay
        if split == "ood" and low < high:
            low, high = high + 1, MAX_DELAY
        delay = torch.randint(low, high + 1, (n,), generator=generator, device=generator.device)
        return Vehicle(**{name: value.to(self.dtype) for name, value in values.items()}, delay=delay)

    def reset(self, task: Vehicle, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """Start ``n`` episodes of every task on new roads, y uniform in ±0.5 m and ψ in ±0.05 rad, the wheels straight."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        shape, device = (len(task.gain), n), generator.device
        u = torch.rand(*shape, 2 + 2 * WAVES, generator=generator, device=device, dtype=self.dtype)
        body = (2 * u[..., :3] - 1) * constant((0.0, 0.5, 0.05), self.dtype, device)
        shortest, longest = WAVELENGTH
        number = 2 * math.pi / (shortest + (longest - shortest) * u[..., 2 : 2 + WAVES])
        waves = torch.stack((number, 2 * math.pi * u[..., 2 + WAVES :]), -2)
        commands = torch.zeros(*shape, MAX_DELAY + 1, dtype=self.dtype, device=device)
        state = State(body, commands, waves, torch.zeros(shape, dtype=torch.int32, device=device))
        return state, self._observe(task, state)

    def step(self, task: Vehicle, state: State, action: Tensor, generator: torch.Generator | None = None) -> tuple[State, Step]:
        """One Euler step of 0.1 s. ``generator`` is unused: the dynamics are deterministic."""
        command = constant(LEVELS, self.dtype, state.body.device)[action]
        commands = torch.cat((command[..., None], state.commands[..., :-1]), -1)
        body = move(task, state.body, obeyed(task, commands), state.waves)
        state = State(body, commands, state.waves, state.steps + 1)
        offset = (body[..., 1] / HALF_LANE).abs()
        reward = 1 - 0.9 * offset.clamp(max=1).square() - 0.1 * command.square()
        return state, Step(self._observe(task, state), reward, offset > 1, state.steps >= self.max_steps)

    def _observe(self, task: Vehicle, state: State) -> Tensor:
        along = state.body[..., :1] + constant(PREVIEW, self.dtype, state.body.device)
        parts = [state.body[..., 1:2], 10 * state.body[..., 2:], 100 * curvature(state.waves, along)]
        if self.observe_actuator:
            yaw_rate = SPEED * turning(task, obeyed(task, state.commands)[..., None])
            parts += [state.commands, 10 * yaw_rate]
        if self.observe_task:
            centre = constant((3.0, 0.0, 6.0, 1.5), self.dtype, state.body.device)
            width = constant((0.6, 1.0, 2.0, 1.5), self.dtype, state.body.device)
            features = (torch.stack([leaf.to(self.dtype) for leaf in task], -1) - centre) / width
            parts.append(features[:, None].expand(*state.body.shape[:-1], -1))
        return torch.cat(parts, -1)


# --- the physics ------------------------------------------------------------------------------------------------------


def curvature(waves: Tensor, along: Tensor) -> Tensor:
    """κ (1/m, positive to the left) of the roads ``waves`` ``[..., 2, WAVES]`` at ``along`` (m) ``[..., place]``."""
    number, phase = (wave[..., None, :] for wave in waves.unbind(-2))
    return MAX_CURVATURE * torch.cos(number * along[..., None] + phase).mean(-1)


def obeyed(task: Vehicle, commands: Tensor) -> Tensor:
    """Which of the ``commands`` ``[task, env, age]`` the front wheels obey now, ``[task, env]``."""
    age = task.delay[:, None, None].expand(*commands.shape[:-1], 1)
    return commands.gather(-1, age)[..., 0]


def turning(task: Vehicle, command: Tensor) -> Tensor:
    """Curvature (1/m) of the path of a car whose wheels obey ``command`` ``[task, env, ...]``: tan δ / L, as far as grip goes."""
    wheelbase, gain, grip = (leaf.reshape(-1, *(1,) * (command.dim() - 1)) for leaf in task[:3])
    limit = grip / SPEED**2
    return (torch.tan(gain * MAX_STEER * command) / wheelbase).clamp(-limit, limit)


def move(task: Vehicle, body: Tensor, command: Tensor, waves: Tensor) -> Tensor:
    """``body`` ``[task, env, 3]`` one time step later, its wheels obeying ``command`` ``[task, env]``."""
    along, offset, heading = body.unbind(-1)
    kappa = curvature(waves, along[..., None])[..., 0]
    forward = SPEED * torch.cos(heading) / (1 - kappa * offset)
    rates = (forward, SPEED * torch.sin(heading), SPEED * turning(task, command) - kappa * forward)
    return torch.add(body, torch.stack(rates, -1), alpha=TIME_STEP)


# --- a driver who knows the car ---------------------------------------------------------------------------------------


def steer(believed: Vehicle, state: State) -> Tensor:
    """Actions ``[task, env]`` of a driver who takes the cars to be ``believed``; if they are, nothing remains to be learned.

    The driver foresees where the commands under way will take the car, and there aims at a heading of −atan(y / 8 m), as
    Stanley's steering law does :cite:p:`hoffmann2007autonomous`; of the five positions of the wheel the one is chosen whose path
    is nearest to the curvature that this takes.
    """
    body = state.body
    for i in range(MAX_DELAY):
        age = believed.delay[:, None, None] - 1 - i  # of the command that the wheels will obey i steps from now
        command = state.commands.gather(-1, age.clamp(min=0).expand(*body.shape[:-1], 1))[..., 0]
        body = torch.where(age >= 0, move(believed, body, command, state.waves), body)
    along, offset, heading = body.unbind(-1)
    wanted = curvature(state.waves, along[..., None])[..., 0] - 0.5 * (heading + torch.atan(offset / 8))
    levels = constant(LEVELS, body.dtype, body.device).expand(*body.shape[:-1], -1)
    return (turning(believed, levels) - wanted[..., None]).abs().argmin(-1)


class Drive(NamedTuple):
    """Episodes from start to end, for pictures and for scoring drivers that see the state."""

    bodies: Tensor  # [task, env, frame, 3], a frame a step; after the episode's end the last state is repeated
    frames: Tensor  # [task, env] int: frames until the end, the first and the last state included
    left: Tensor  # [task, env] bool: the car left its lane
    returns: Tensor  # [task, env]
    waves: Tensor  # [task, env, 2, WAVES]: the roads


def drive(
    world: LaneKeeping, task: Vehicle, act: Callable[[Tensor, State], Tensor], episodes: int, generator: torch.Generator
) -> Drive:
    """``episodes`` episodes of every task with the actions ``act(observation, state)`` ``[task, env]``.

    With generators of the same seed, different drivers meet the same roads and start alike.
    """
    state, observation = world.reset(task, episodes, generator)
    bodies, alive = [state.body], torch.ones_like(state.steps, dtype=torch.bool)
    frames, left, returns = torch.ones_like(state.steps), ~alive, torch.zeros_like(observation[..., 0])
    with torch.inference_mode():
        for _ in range(world.max_steps):
            state, step = world.step(task, state, act(observation, state))
            observation = step.observation
            bodies.append(torch.where(alive[..., None], state.body, bodies[-1]))
            frames, returns = frames + alive, returns + step.reward * alive
            left = left | alive & step.terminated
            alive = alive & ~(step.terminated | step.truncated)
    return Drive(torch.stack(bodies, 2), frames, left, returns, state.waves)
