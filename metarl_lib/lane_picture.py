"""Moving pictures of cars on their roads, seen from above, made as :mod:`metarl_lib.animation` makes those of cart-poles.

The picture follows the car. In print, and for readers who prefer less motion, it is a still of the end, with the path driven.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .animation import FADE, HOLD, LINE, MARGIN, STYLE, WIDTH, MovingPicture, clock, loop, number
from .lane_keeping import HALF_LANE, TIME_STEP, Drive, Vehicle, curvature
from .plots import look

SCALE = 6  # pixels to a metre
VIEW = 150  # pixels, the height of what is seen of the road
BEHIND, AHEAD = 20, 60  # m of road drawn before the first place and after the last
_GRID = 0.25  # m, along which the road's heading is summed up
_EVERY = 8  # grid points to a drawn one
_GREY = "#888888"
_CAR = '<rect x="-8" y="-5.5" width="27" height="11" rx="3"/><path d="M8-4.5v9" stroke="#fff" stroke-width="3" opacity=".8"/>'


class Panel(NamedTuple):
    """One car on one road."""

    caption: str
    bodies: Tensor  # [frame, 3]: s (m), y (m), ψ (rad), a frame every 0.1 s, its last state included
    waves: Tensor  # [2, WAVES]: the road
    left: bool  # the car left its lane
    note: str = ""  # small print under the caption; it may have several lines
    algorithm: str = "maml"  # whose colour the car has


def from_drive(
    drive: Drive, task: Vehicle, task_index: int = 0, episode: int = 0, caption: str = "", algorithm: str = "maml"
) -> Panel:
    """One episode of :func:`~metarl_lib.lane_keeping.drive` as a panel, whose note says its return and what the car is."""
    frames = int(drive.frames[task_index, episode])
    delay, reverse = int(task.delay[task_index]), bool(task.gain[task_index] < 0)
    note = f"return {drive.returns[task_index, episode]:.0f}\nwheels obey "
    note += f"after {delay * TIME_STEP:.1f} s" if delay else "at once"
    note += ", steering reversed" if reverse else ""
    left, bodies = bool(drive.left[task_index, episode]), drive.bodies[task_index, episode, :frames].cpu()
    return Panel(caption, bodies, drive.waves[task_index, episode].cpu(), left, note, algorithm)


def animate(panels: Sequence[Panel], label: str | None = None) -> MovingPicture:
    """Panels side by side (one under another on a narrow screen), as the last line of a notebook cell.

    ``label`` is what a screen reader says; by default the captions and notes.
    """
    scene = _scene(panels)
    pictures = [_svg(panel, scene) for panel in panels]
    return MovingPicture(pictures, "; ".join(map(_describe, panels)) if label is None else label)


# --- geometry ---------------------------------------------------------------------------------------------------------


class _Road:
    """A road in the plane, from ``-BEHIND`` metres on; it starts at the origin towards the right."""

    def __init__(self, waves: Tensor, end: float) -> None:
        self.along = np.arange(-BEHIND, end + AHEAD, _GRID)
        kappa = curvature(waves.double(), waves.new_tensor(self.along).double()).numpy()
        self.heading = _summed(kappa)
        self.heading -= np.interp(0, self.along, self.heading)
        self.middle = np.stack((_summed(np.cos(self.heading)), _summed(np.sin(self.heading))), -1)
        self.middle -= [np.interp(0, self.along, axis) for axis in self.middle.T]

    def place(self, along: np.ndarray, offset: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Points ``[place, 2]`` (m) at ``offset`` to the left of the centre line, and the road's heading (rad) there."""
        heading = np.interp(along, self.along, self.heading)
        middle = np.stack([np.interp(along, self.along, axis) for axis in self.middle.T], -1)
        return middle + np.stack((-np.sin(heading), np.cos(heading)), -1) * np.asarray(offset)[..., None], heading


def _summed(rate: np.ndarray) -> np.ndarray:
    """The integral along the grid, by the trapezoidal rule, 0 at its start."""
    return np.concatenate(([0.0], np.cumsum((rate[1:] + rate[:-1]) / 2) * _GRID))


def poses(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """Where the car is, ``[frame, 2]`` (m), and where it heads, ``[frame]`` (rad, anticlockwise), in the plane."""
    along, offset, heading = panel.bodies.double().numpy().T
    points, of_road = _Road(panel.waves, along.max()).place(along, offset)
    return points, of_road + heading


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Scene(NamedTuple):
    """What all panels of one picture share."""

    end: float  # s
    period: float  # s, until it starts again
    top: float  # pixels, where the view of the road begins


def _scene(panels: Sequence[Panel]) -> _Scene:
    if not panels:
        raise ValueError("panels must hold at least one panel")
    for panel in panels:
        if panel.bodies.dim() != 2 or panel.bodies.shape[1] != 3 or len(panel.bodies) < 2:
            raise ValueError(f"bodies must be [frame, 3] with at least two frames, got shape {tuple(panel.bodies.shape)}")
    end = (max(len(panel.bodies) for panel in panels) - 1) * TIME_STEP
    text = LINE * max(1 + len(panel.note.splitlines()) for panel in panels)
    return _Scene(round(end, 1), round(end + HOLD, 1), text + MARGIN)


def _describe(panel: Panel) -> str:
    return ": ".join((panel.caption, panel.note.replace("\n", ", "))).strip(": ")


def _svg(panel: Panel, scene: _Scene) -> str:
    text = f'<text x="{WIDTH / 2:g}" y="{LINE}" font-size="17" font-weight="600">{html.escape(panel.caption)}</text>'
    for i, line in enumerate(panel.note.splitlines()):
        text += f'<text x="{WIDTH / 2:g}" y="{LINE * (i + 2)}" font-size="14">{html.escape(line)}</text>'
    # The view is an svg of its own, which cuts off what lies outside; the page's rule for svg must not resize it.
    view = f'<svg y="{scene.top:g}" width="{WIDTH}" height="{VIEW}" style="width:{WIDTH}px;height:{VIEW}px;max-width:none">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {scene.top + VIEW + 30:g}" role="img" '
        f'aria-label="{html.escape(_describe(panel))}" font-family="system-ui,sans-serif" text-anchor="middle" '
        f'fill="currentColor"><style>{STYLE}</style>{text}{view}<g transform="translate({WIDTH / 4:g} {VIEW / 2:g})">'
        f"{_views(panel, scene)}</g></svg>"
        f'<g class="moving" transform="translate({WIDTH / 2:g} {scene.top + VIEW - 22:g})">{clock(scene)}</g></svg>'
    )


def _views(panel: Panel, scene: _Scene) -> str:
    """The moving view and the still one, the car at the origin of both."""
    points, heading = poses(panel)
    frames = np.minimum(np.arange(round(scene.period / TIME_STEP) + 1), len(points) - 1)
    camera = [f"{number(-SCALE * x)} {number(SCALE * y)}" for x, y in points[frames]]  # SVG's second axis points down
    turns = -np.degrees(heading)[frames]
    road = _road(panel)
    colour = look(panel.algorithm).colour
    shift, turn = loop("transform", camera, scene, kind="translate"), loop("transform", turns.tolist(), scene, kind="rotate")
    fade = ""
    if panel.left:
        left = (len(points) - 1) * TIME_STEP
        fade = loop("fill", [colour, colour, _GREY, _GREY], scene, [0, left, min(left + FADE, scene.period), scene.period])
    last, tilt = f'transform="translate({camera[-1]})"', f'transform="rotate({number(turns[-1])})"'
    path = f'<path d="{_line(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
    stopped = _GREY if panel.left else colour
    return (
        f'<g class="moving"><g {last}>{shift}{road}</g><g {tilt} fill="{stopped}">{turn}{fade}{_CAR}</g></g>'
        f'<g class="still"><g {last}>{road}{path}</g><g {tilt} fill="{stopped}">{_CAR}</g></g>'
    )


def _road(panel: Panel) -> str:
    road = _Road(panel.waves, float(panel.bodies[:, 0].max()))
    along = road.along[::_EVERY]
    left, middle, right = (road.place(along, offset)[0] for offset in (HALF_LANE, 0.0, -HALF_LANE))
    lane = f"{_line(left)}L{_line(right[::-1])[1:]}z"
    return (
        f'<path d="{lane}" fill-opacity=".08" stroke="currentColor" stroke-opacity=".6" stroke-width="1.5"/>'
        f'<path d="{_line(middle)}" fill="none" stroke="currentColor" stroke-opacity=".5" stroke-dasharray="12 12"/>'
    )


def _line(points: np.ndarray) -> str:
    return "M" + "L".join(f"{number(SCALE * x)} {number(-SCALE * y)}" for x, y in points)
