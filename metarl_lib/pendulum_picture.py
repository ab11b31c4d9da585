"""Moving pictures of pendulums, made as :mod:`metarl_lib.animation` makes those of cart-poles."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .animation import HOLD, LINE, MARGIN, STYLE, WIDTH, MovingPicture, clock, loop, number
from .pendulum import TIME_STEP, Pendulum, Physics
from .plots import look

ROD = 90  # pixels
_OPACITY = 0.7


class Panel(NamedTuple):
    """Episodes drawn over one another, all hung from one pivot."""

    caption: str
    angles: Tensor  # [env, frame]: θ (rad, 0 is upright, positive is anticlockwise), not wrapped, a frame every 0.05 s
    note: str = ""  # small print under the caption; it may have several lines
    algorithm: str = "sac"  # whose colour the pendulums have


def unwrapped_angles(observations: Tensor) -> Tensor:
    """θ from observations (cos θ, sin θ, θ̇) ``[..., frame, 3]``, as a curve without jumps ``[..., frame]``."""
    if observations.shape[-1] != 3:
        raise ValueError(f"observations must be [..., frame, 3], got shape {tuple(observations.shape)}")
    cos, sin, _ = observations.cpu().double().unbind(-1)
    return torch.from_numpy(np.unwrap(torch.atan2(sin, cos).numpy(), axis=-1))


def play(act: Callable[[Tensor], Tensor], task: Physics, seed: int, steps: int = 200) -> tuple[Tensor, Tensor]:
    """One episode of every learner, each in a pendulum of its own: angles ``[learner, frame]`` and returns ``[learner]``.

    ``act`` maps observations ``[learner, 1, 3]`` to torques ``[learner, 1, 1]``. Every learner's pendulum begins in a state
    of its own, the same for every ``act`` and ``task``.
    """
    world = Pendulum(steps)
    state, observation = world.reset(task, 1, torch.Generator(task.gravity.device).manual_seed(seed))
    frames, earned = [observation], torch.zeros_like(observation[:, 0, 0])
    with torch.inference_mode():
        for _ in range(steps):
            state, step = world.step(task, state, act(frames[-1]))
            frames.append(step.observation)
            earned = earned + step.reward[:, 0]
    return unwrapped_angles(torch.stack(frames, 2)[:, 0]), earned


def animate(panels: Sequence[Panel], label: str | None = None) -> MovingPicture:
    """Panels side by side (one under another on a narrow screen), as the last line of a notebook cell.

    ``label`` is what a screen reader says; by default the captions and notes.
    """
    scene = _scene(panels)
    pictures = [_svg(panel, scene) for panel in panels]
    return MovingPicture(pictures, "; ".join(map(_describe, panels)) if label is None else label)


class _Scene(NamedTuple):
    """What all panels of one picture share."""

    end: float  # s
    period: float  # s, until it starts again
    pivot: float  # pixels from the top


def _scene(panels: Sequence[Panel]) -> _Scene:
    if not panels:
        raise ValueError("panels must hold at least one panel")
    for panel in panels:
        if panel.angles.dim() != 2 or 0 in panel.angles.shape:
            raise ValueError(f"angles must be [env, frame], got shape {tuple(panel.angles.shape)}")
    frames = max(panel.angles.shape[1] for panel in panels)
    end = (frames - 1) * TIME_STEP
    text = LINE * max(1 + len(panel.note.splitlines()) for panel in panels)
    return _Scene(end, end + round(HOLD / TIME_STEP) * TIME_STEP, MARGIN + text + ROD + MARGIN)


def _describe(panel: Panel) -> str:
    return ": ".join((panel.caption, panel.note.replace("\n", ", "))).strip(": ")


def _svg(panel: Panel, scene: _Scene) -> str:
    height = number(scene.pivot + ROD + 24)
    text = f'<text y="{LINE}" font-size="17" font-weight="600">{html.escape(panel.caption)}</text>'
    for i, line in enumerate(panel.note.splitlines()):
        text += f'<text y="{LINE * (i + 2)}" font-size="14">{html.escape(line)}</text>'
    goal = f'<path d="M0 0V-{ROD + 8}" stroke="currentColor" stroke-dasharray="3 4" opacity=".5"/>'
    pivot = '<circle r="4" fill="currentColor"/>'
    moving = "".join(_pendulum(panel, env, scene) for env in range(len(panel.angles)))
    still = "".join(_pendulum(panel, env, None) for env in range(len(panel.angles)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(_describe(panel))}" font-family="system-ui,sans-serif" text-anchor="middle" '
        f'fill="currentColor"><style>{STYLE}</style><g transform="translate({WIDTH / 2:g} 0)">{text}'
        f'<g transform="translate(0 {number(scene.pivot)})">{goal}<g class="moving">{moving}'
        f'<g transform="translate(0 {ROD - 26})">{clock(scene)}</g></g><g class="still">{still}</g>{pivot}</g></g></svg>'
    )


def _pendulum(panel: Panel, env: int, scene: _Scene | None) -> str:
    """One episode's pendulum, drawn in its last state; with a scene, moving."""
    turns = (-panel.angles[env].double()).rad2deg()  # SVG turns clockwise
    turn = ""
    if scene is not None:
        frames = torch.arange(round(scene.period / TIME_STEP) + 1).clamp(max=len(turns) - 1)
        turn = loop("transform", turns[frames].tolist(), scene, kind="rotate")
    colour = look(panel.algorithm).colour
    last = math.remainder(float(turns[-1]), 360)
    return (
        f'<g transform="rotate({number(last)})" stroke="{colour}" fill="{colour}" opacity="{_OPACITY}">{turn}'
        f'<path d="M0 0V-{ROD - 8}" stroke-width="6" stroke-linecap="round"/><circle cy="-{ROD - 8}" r="8" stroke="none"/></g>'
    )
