"""Moving pictures of trials in a maze, made as :mod:`metarl_lib.animation` makes those of cart-poles.

The player does not see the star; a chest that has been looked into turns pale, and each prize leaves a star under the maze. In
print, and for readers who prefer less motion, the picture is a still of the first walk and of the last one that found the prize.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .animation import HOLD, LINE, MARGIN, STYLE, WIDTH, MovingPicture, loop, number
from .maze import DOWN, LEFT, RIGHT, UP, Trial
from .plots import look

CELL = 40  # pixels, the side of a cell
STEP = 0.2  # s, in which the player takes a step
_JUMP = 0.02  # s, in which it is back at the start
_STAR = "M" + "L".join(
    f"{number(r * math.sin(i * math.pi / 5))} {number(-r * math.cos(i * math.pi / 5))}" for i, r in enumerate([9, 4] * 5)
)
_GOLD = 'fill="#E69F00" stroke="#7a5200" stroke-width=".8"'


class Panel(NamedTuple):
    """A trial of one player."""

    caption: str
    trial: Trial
    reached: Tensor  # [cell, action] int: the maze
    chests: Sequence[int]  # cells
    goal: int  # cell
    note: str = ""  # small print under the caption; by default the number of prizes
    algorithm: str = "rl2"  # whose colour the player has


def animate(panels: Sequence[Panel], label: str | None = None) -> MovingPicture:
    """Panels side by side (one under another on a narrow screen), as the last line of a notebook cell.

    ``label`` is what a screen reader says; by default the captions and notes.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel")
    for panel in panels:
        cells, side = len(panel.reached), math.isqrt(len(panel.reached))
        if panel.reached.shape != (side**2, 4):
            raise ValueError(f"reached must be [cell, 4] of a square maze, got shape {tuple(panel.reached.shape)}")
        if outside := [c for c in (*panel.chests, panel.goal) if not 0 <= c < cells]:
            raise ValueError(f"chests and goal must be cells of the maze, 0 … {cells - 1}, got {outside[0]}")
    end = max(_steps(panel.trial) for panel in panels) * STEP
    scene = _Scene(round(end + HOLD, 2))
    pictures = [_svg(panel, scene) for panel in panels]
    return MovingPicture(pictures, "; ".join(map(_describe, panels)) if label is None else label)


class _Scene(NamedTuple):
    period: float  # s, until it starts again


def _steps(trial: Trial) -> int:
    return sum(len(cells) - 1 for cells in trial.episodes)


def _note(panel: Panel) -> str:
    n = panel.trial.prizes
    return panel.note or f"{n} prize{'s' if n != 1 else ''} in {_steps(panel.trial)} steps"


def _describe(panel: Panel) -> str:
    return ": ".join((panel.caption, _note(panel).replace("\n", ", "))).strip(": ")


# --- drawing ----------------------------------------------------------------------------------------------------------


def timeline(trial: Trial) -> list[tuple[float, int]]:
    """When (s) the player is in which cell; after a walk it is back at the start at once, and is off again."""
    moments, now = [], 0.0
    for i, cells in enumerate(trial.episodes):
        moments += [(now + (_JUMP if i else 0.0), cells[0])]
        moments += [(now + STEP * k, cell) for k, cell in enumerate(cells[1:], 1)]
        now += STEP * (len(cells) - 1)
    return moments


def _svg(panel: Panel, scene: _Scene) -> str:
    size = math.isqrt(len(panel.reached))
    lines = [panel.caption, *_note(panel).splitlines()]
    text = "".join(
        f'<text x="{WIDTH / 2:g}" y="{LINE * (i + 1)}" font-size="{14 if i else 17}" font-weight="{400 if i else 600}">'
        f"{html.escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    top = LINE * len(lines) + MARGIN
    moving, still = _moving(panel, scene, size), _still(panel, size)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + size * CELL + 40}" role="img" '
        f'aria-label="{html.escape(_describe(panel))}" font-family="system-ui,sans-serif" text-anchor="middle" '
        f'fill="currentColor"><style>{STYLE}</style>{text}'
        f'<g transform="translate({(WIDTH - size * CELL) / 2:g} {top})">{_walls(panel.reached, size)}'
        f'<g class="moving">{moving}</g><g class="still">{still}</g></g></svg>'
    )


def _middle(cell: int, size: int) -> str:
    return f"{(cell % size + 0.5) * CELL:g} {(cell // size + 0.5) * CELL:g}"


def _walls(reached: Tensor, size: int) -> str:
    """Every wall once: a cell's upper and left one, and the maze's lower and right edge."""
    lines = ""
    for cell, row in enumerate(reached.tolist()):
        x, y = cell % size * CELL, cell // size * CELL
        lines += f"M{x} {y}h{CELL}" * (row[UP] == cell) + f"M{x} {y}v{CELL}" * (row[LEFT] == cell)
        lines += f"M{x} {y + CELL}h{CELL}" * (row[DOWN] == cell and cell >= size * (size - 1))
        lines += f"M{x + CELL} {y}v{CELL}" * (row[RIGHT] == cell and cell % size == size - 1)
    return f'<path d="{lines}" fill="none" stroke="currentColor" stroke-width="3" stroke-linecap="round"/>'


def _chest(cell: int, size: int, inside: str = "") -> str:
    box = '<rect x="-11" y="-9" width="22" height="18" rx="3" fill-opacity=".12" stroke="currentColor" stroke-width="1.5"/>'
    return f'<g transform="translate({_middle(cell, size)})">{box}{inside}</g>'


def _prizes(panel: Panel, size: int, scene: _Scene | None) -> str:
    """A star under the maze for each prize; with a scene, from the moment when it was found."""
    stars, now, n = "", 0.0, panel.trial.prizes
    gap = min(20.0, (WIDTH - 40) / max(n, 1))
    left, y = (size * CELL - gap * (n - 1)) / 2, size * CELL + 22
    for cells, found in zip(panel.trial.episodes, panel.trial.found, strict=True):
        now += STEP * (len(cells) - 1)
        if found:
            appears = "" if scene is None else loop("opacity", [0, 0, 1, 1], scene, [0, now, now + _JUMP, scene.period])
            stars += f'<path d="{_STAR}z" {_GOLD} transform="translate({number(left)} {y})">{appears}</path>'
            left += gap
    return stars


def _moving(panel: Panel, scene: _Scene, size: int) -> str:
    moments = timeline(panel.trial)
    chests = ""
    for chest in panel.chests:
        seen = next((at for at, cell in moments if cell == chest), None)
        star = f'<path d="{_STAR}z" {_GOLD}/>' if chest == panel.goal else ""
        pale = loop("opacity", [1, 1, 0.35, 0.35], scene, [0, seen, seen + _JUMP, scene.period]) if seen and not star else ""
        chests += _chest(chest, size, pale + star)
    places = [_middle(cell, size) for _, cell in moments]
    times = [at for at, _ in moments]
    run = loop("transform", [*places, places[-1]], scene, [*times, scene.period], kind="translate")
    colour = look(panel.algorithm).colour
    player = f'<circle r="9" fill="{colour}" stroke="#fff" transform="translate({places[-1]})">{run}</circle>'
    return chests + player + _prizes(panel, size, scene)


def _still(panel: Panel, size: int) -> str:
    colour, episodes = look(panel.algorithm).colour, panel.trial.episodes
    lines = [(episodes[0], "6", ".3")]
    if fetched := [cells for cells, found in zip(episodes, panel.trial.found, strict=True) if found]:
        lines.append((fetched[-1], "3", "1"))
    drawn = "".join(
        f'<path d="M{"L".join(_middle(cell, size) for cell in cells)}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"/>'
        for cells, width, opacity in lines
    )
    chests = "".join(_chest(c, size, f'<path d="{_STAR}z" {_GOLD}/>' * (c == panel.goal)) for c in panel.chests)
    return chests + drawn + _prizes(panel, size, None)
