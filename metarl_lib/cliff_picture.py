"""Pictures of the cliff walk: what agents have learned of it, and moving pictures of how they walk.

The cliff is Gymnasium's ``CliffWalking-v1``: four rows of twelve cells, numbered row by row from the top. A step costs 1;
one over the edge costs 100 and leads back to the start.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .animation import HOLD, LINE, MARGIN, STYLE, WIDTH, MovingPicture, loop
from .plots import look
from .tabular import epsilon_greedy
from .tabular_worlds import draw, from_gymnasium

ROWS, COLUMNS = 4, 12
START, GOAL = 36, 47
CLIFF = range(37, 47)
CELL = 32  # pixels, the side of a cell
STEP = 0.16  # s, in which a walker takes a step
_LEFT = (WIDTH - COLUMNS * CELL) / 2
_CROSS = "M-4-4L4 4M-4 4L4-4"
_WHITE = 'fill="none" stroke="#fff" stroke-width="2"'


class Walk(NamedTuple):
    """One episode."""

    cells: tuple[int, ...]  # where the walker was, the cells that it fell through included
    earned: float  # undiscounted return
    arrived: bool  # at the goal, before the clock ran out


class Panel(NamedTuple):
    """Walks drawn over one another."""

    caption: str
    walks: Sequence[Walk]
    algorithm: str  # whose colour the walkers have


def walk(q: Tensor, epsilon: float, generator: torch.Generator, max_steps: int = 100) -> list[Walk]:
    """One ε-greedy episode for every entry of ``q`` ``[walker, state, action]``, cut after ``max_steps``."""
    if q.shape[1:] != (ROWS * COLUMNS, 4):
        raise ValueError(f"q must be [walker, {ROWS * COLUMNS}, 4], got shape {tuple(q.shape)}")
    world = from_gymnasium("CliffWalking-v1", max_steps)
    task = world.sample_tasks(len(q), generator)
    state, _ = world.reset(task, 1, generator)
    walker = torch.arange(len(q))[:, None]
    cells, earned = [[START] for _ in q], torch.zeros(len(q))
    alive, arrived = torch.ones(len(q), 1, dtype=torch.bool), torch.zeros(len(q), 1, dtype=torch.bool)
    while alive.any():
        action = draw(epsilon_greedy(q[walker, state.position], epsilon), generator)
        came_from = state.position
        state, step = world.step(task, state, action, generator)
        fell = step.reward == -100
        # Only the start has the cliff beside it; every other edge lies below.
        edge = torch.where(came_from == START, START + 1, came_from + COLUMNS)
        for i in alive[:, 0].nonzero()[:, 0].tolist():
            cells[i] += [int(edge[i])] * bool(fell[i]) + [int(state.position[i])]
        earned += (step.reward * alive)[:, 0]
        arrived |= alive & step.terminated
        alive &= ~(step.terminated | step.truncated)
    return [Walk(tuple(c), float(r), bool(a)) for c, r, a in zip(cells, earned, arrived, strict=True)]


def animate(panels: Sequence[Panel], label: str | None = None) -> MovingPicture:
    """Panels side by side (one under another on a narrow screen), as the last line of a notebook cell.

    ``label`` is what a screen reader says; by default the captions and what was earned.
    """
    if not panels or not all(panel.walks for panel in panels):
        raise ValueError("panels must hold at least one panel, and each of them at least one walk")
    frames = max(len(w.cells) for panel in panels for w in panel.walks) + round(HOLD / STEP)
    pictures = [_moving(panel, _Scene(frames, round((frames - 1) * STEP, 2))) for panel in panels]
    return MovingPicture(pictures, "; ".join(map(_describe, panels)) if label is None else label)


def values_picture(values: Tensor, walks: Sequence[Walk], algorithm: str, note: str = "", worst: float = -40.0) -> str:
    """An SVG of ``values`` ``[state]``, the darker the lower down to ``worst``, and of walks in the algorithm's colour."""
    if values.shape != (ROWS * COLUMNS,):
        raise ValueError(f"values must be [{ROWS * COLUMNS}], got shape {tuple(values.shape)}")
    shades = ""
    for cell in sorted(set(range(GOAL)) - set(CLIFF)):
        (x, y), value = _corner(cell), float(values[cell])
        dark = round(0.02 + 0.38 * min(max(value / worst, 0), 1), 2)
        shades += f'<path d="M{x:g} {y}h{CELL}v{CELL}h-{CELL}z" opacity="{dark:g}"/>'
        shades += f'<text x="{x + CELL / 2:g}" y="{y + 12}">{_minus(round(value))}</text>'
    stuck = [_shift(i, len(walks), w.cells[-1]) for i, w in enumerate(walks) if not w.arrived]
    colour = look(algorithm).colour
    crosses = "".join(f'<path d="{_CROSS}" transform="translate({place})"/>' for place in stuck)
    lines = f'<g fill="none" stroke="{colour}" stroke-width="2" opacity=".8">{_lines(walks)}{crosses}</g>'
    text = "".join(_text(line, LINE * (i + 1) - 6, 12) for i, line in enumerate(note.splitlines()))
    top = LINE * len(note.splitlines())
    drawn = f'{text}<g transform="translate(0 {top})">{_ground()}<g font-size="11">{shades}</g>{lines}</g>'
    size = f'viewBox="0 0 {WIDTH} {top + ROWS * CELL + MARGIN}" width="{1.3 * WIDTH:g}" style="max-width:100%;height:auto"'
    return f"<svg {_ROOT} {size}>{drawn}</svg>"


# --- drawing ----------------------------------------------------------------------------------------------------------

_ROOT = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui,sans-serif" text-anchor="middle" fill="currentColor"'


class _Scene(NamedTuple):
    frames: int
    period: float  # s


def _corner(cell: int) -> tuple[float, int]:
    return _LEFT + cell % COLUMNS * CELL, cell // COLUMNS * CELL


def _shift(i: int, walkers: int, cell: int) -> str:
    """The middle of a cell, a little below, and a little to the side so that walkers can be told apart."""
    x, y = _corner(cell)
    aside = 0 if walkers == 1 else 7 * (2 * i / (walkers - 1) - 1)
    return f"{x + CELL / 2 + aside:.3g} {y + CELL / 2 + 4 + aside / 2:.3g}"


def _lines(walks: Sequence[Walk]) -> str:
    return "".join(
        f'<path d="M{"L".join(_shift(i, len(walks), cell) for cell in w.cells)}" stroke-linejoin="round"/>'
        for i, w in enumerate(walks)
    )


def _ground() -> str:
    lines = "".join(f"M{_LEFT:g} {CELL * row}h{CELL * COLUMNS}" for row in range(ROWS + 1))
    lines += "".join(f"M{_LEFT + CELL * column:g} 0v{CELL * ROWS}" for column in range(COLUMNS + 1))
    (x, y), (goal, _) = _corner(CLIFF[0]), _corner(GOAL)
    return (
        f'<path d="M{x:g} {y}h{CELL * len(CLIFF)}v{CELL}H{x:g}z" fill="#6b6b6b"/>'
        f'<path d="{lines}" fill="none" stroke="currentColor" stroke-width=".5" opacity=".5"/>'
        f'<g font-size="11" font-weight="600"><text x="{x - CELL + 6:g}" y="{y + 28}">S</text>'
        f'<text x="{goal + 7:g}" y="{y + 28}">G</text></g>'
    )


def _text(line: str, y: float, size: int, weight: int = 400) -> str:
    return f'<text x="{WIDTH / 2:g}" y="{y:g}" font-size="{size}" font-weight="{weight}">{html.escape(line)}</text>'


def _minus(value: int) -> str:
    return str(value).replace("-", "−")


def _describe(panel: Panel) -> str:
    return f"{panel.caption}: {_note(panel)}"


def _note(panel: Panel) -> str:
    n, falls = len(panel.walks), sum(cell in CLIFF for w in panel.walks for cell in w.cells)
    mean = sum(w.earned for w in panel.walks) / n
    return f"{n} walker{'s' if n > 1 else ''}, {falls} fall{'s' if falls != 1 else ''}, mean return {_minus(round(mean))}"


def _moving(panel: Panel, scene: _Scene) -> str:
    colour, n = look(panel.algorithm).colour, len(panel.walks)
    moving, crosses, marks = "", "", ""
    for i, w in enumerate(panel.walks):
        places = [_shift(i, n, cell) for cell in w.cells]
        run = loop("transform", places + places[-1:] * (scene.frames - len(places)), scene, kind="translate")
        moving += f'<circle r="5" fill="{colour}" opacity=".8">{run}</circle>'
        for frame, cell in enumerate(w.cells):
            if cell in CLIFF:
                times = [0, frame * STEP, frame * STEP + 0.05, scene.period]
                cross = f'<path d="{_CROSS}" transform="translate({places[frame]})"'
                crosses += f"{cross}>{loop('opacity', [0, 0, 1, 1], scene, times)}</path>"
                marks += f"{cross}/>"
    top = 2 * LINE + MARGIN
    label = html.escape(_describe(panel))
    return (
        f'<svg {_ROOT} viewBox="0 0 {WIDTH} {top + ROWS * CELL + 2}" role="img" aria-label="{label}"><style>{STYLE}</style>'
        f'{_text(panel.caption, LINE, 17, 600)}{_text(_note(panel), 2 * LINE, 14)}<g transform="translate(0 {top})">{_ground()}'
        f'<g class="moving"><g {_WHITE}>{crosses}</g>{moving}</g>'
        f'<g class="still"><g fill="none" stroke="{colour}" stroke-width="2">{_lines(panel.walks)}</g><g {_WHITE}>{marks}</g></g>'
        "</g></svg>"
    )
