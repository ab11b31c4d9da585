"""Moving pictures of a curve that is being learned, made as :mod:`metarl_lib.animation` makes those of cart-poles."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .animation import HOLD, LINE, STYLE, WIDTH, MovingPicture, loop, number
from .plots import look
from .sinusoids import Examples

FRAME = 0.8  # s from one frame to the next
HEIGHT, TOP, EDGE = 170, 2 * LINE + 8, 8  # pixels: of the axes, above them, at their sides


class Panel(NamedTuple):
    """What one learner predicts of one task, frame after frame."""

    caption: str
    x: Tensor  # [point], rising
    frames: Tensor  # [frame, point]: its prediction
    truth: Tensor  # [point]
    support: Examples  # x and y, [example]
    notes: Sequence[str]  # small print, one for every frame
    algorithm: str = "maml"  # whose colour the prediction has
    arriving: bool = False  # example i is seen from frame i on, counted from 1; otherwise all are seen from the start


def animate(panels: Sequence[Panel], y: tuple[float, float] = (-6, 6), label: str | None = None) -> MovingPicture:
    """Panels side by side (one under another on a narrow screen), as the last line of a notebook cell.

    Predictions outside ``y`` are drawn at its edge. ``label`` is what a screen reader says; by default every caption and last
    note. Raises ``ValueError`` if a panel's parts do not fit together.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel")
    if not y[0] < y[1]:
        raise ValueError(f"y must be a range from low to high, got {y}")
    for panel in panels:
        _check(panel)
    film = _Film((max(len(panel.frames) for panel in panels) - 1) * FRAME + 2 * HOLD)
    pictures = [_svg(panel, film, y) for panel in panels]
    return MovingPicture(pictures, "; ".join(map(_describe, panels)) if label is None else label)


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Film(NamedTuple):
    period: float  # s, until it starts again


def _check(panel: Panel) -> None:
    points = len(panel.x)
    if panel.frames.dim() != 2 or len(panel.frames) < 1 or panel.frames.shape[1] != points or panel.truth.shape != (points,):
        raise ValueError(
            f"frames must be [frame, {points}] and truth [{points}], as x is; "
            f"got shapes {tuple(panel.frames.shape)} and {tuple(panel.truth.shape)}"
        )
    if len(panel.notes) != len(panel.frames):
        raise ValueError(f"notes must be {len(panel.frames)}, one for every frame, got {len(panel.notes)}")
    if panel.support.x.dim() != 1 or panel.support.x.shape != panel.support.y.shape:
        raise ValueError(f"support's x and y must be [example], got shapes {[tuple(leaf.shape) for leaf in panel.support]}")


def _describe(panel: Panel) -> str:
    return f"{panel.caption}: {panel.notes[-1]}"


def _svg(panel: Panel, film: _Film, y: tuple[float, float]) -> str:
    low, high = float(panel.x[0]), float(panel.x[-1])
    across = EDGE + (WIDTH - 2 * EDGE) * (panel.x.double() - low) / (high - low)

    def points(values: Tensor) -> str:
        return " ".join(f"{number(a)},{number(b)}" for a, b in zip(across, _down(values, y), strict=True))

    frames = [points(frame) for frame in panel.frames]
    times = [i * FRAME for i in range(len(frames))] + [film.period]
    colour = f'stroke="{look(panel.algorithm).colour}" stroke-width="3" fill="none" stroke-linejoin="round"'
    moving = f'<polyline points="{frames[-1]}" {colour}>{loop("points", [*frames, frames[-1]], film, times)}</polyline>'
    still = f'<polyline points="{frames[-1]}" {colour}/>{_note(panel.notes[-1])}{_dots(panel, y, None)}'
    for i, note in enumerate(panel.notes):
        moving += _note(note, _during((i - 0.5) * FRAME, (i + 0.5) * FRAME if i + 1 < len(frames) else film.period, film))
    truth = f'<polyline points="{points(panel.truth)}" fill="none" stroke="currentColor" stroke-dasharray="4 4" opacity=".7"/>'
    zero = f'<path d="M{EDGE} {number(_down(panel.truth.new_zeros(()), y))}H{WIDTH - EDGE}" stroke="currentColor" opacity=".25"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + HEIGHT + EDGE}" role="img" '
        f'aria-label="{html.escape(_describe(panel))}" font-family="system-ui,sans-serif" text-anchor="middle" '
        f'fill="currentColor"><style>{STYLE}</style>'
        f'<text x="{WIDTH / 2:g}" y="{LINE - 2}" font-size="17" font-weight="600">{html.escape(panel.caption)}</text>'
        f'{zero}{truth}<g class="moving">{moving}{_dots(panel, y, film)}</g><g class="still">{still}</g></svg>'
    )


def _down(values: Tensor, y: tuple[float, float]) -> Tensor:
    """Pixels from the top of the picture."""
    return TOP + HEIGHT * (y[1] - values.double().clamp(*y)) / (y[1] - y[0])


def _note(text: str, shown: str = "") -> str:
    hidden = ' opacity="0"' if shown else ""
    return f'<text x="{WIDTH / 2:g}" y="{2 * LINE - 4}" font-size="14"{hidden}>{html.escape(text)}{shown}</text>'


def _dots(panel: Panel, y: tuple[float, float], film: _Film | None) -> str:
    low, high = float(panel.x[0]), float(panel.x[-1])
    drawn = ""
    for i, (a, b) in enumerate(zip(*panel.support, strict=True)):
        shown = _during((i + 0.5) * FRAME, film.period, film) if film and panel.arriving else ""
        place = f'cx="{number(EDGE + (WIDTH - 2 * EDGE) * (float(a) - low) / (high - low))}" cy="{number(_down(b, y))}"'
        drawn += f'<circle {place} r="4.5">{shown}</circle>'
    return drawn


def _during(start: float, end: float, film: _Film) -> str:
    """Visible from ``start`` to ``end`` (s), and at no other time of the film."""
    steps = [(0, start <= 0), *((t, on) for t, on in ((start, True), (end, False)) if 0 < t < film.period)]
    times, values = [0.0], [int(steps[0][1])]
    for time, on in steps[1:]:
        times, values = [*times, time, time], [*values, values[-1], int(on)]
    return loop("opacity", [*values, values[-1]], film, [*times, film.period])
