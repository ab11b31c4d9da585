"""Pictures of an external memory: letters that are written into it, and where a query's attention goes when it is read.

A column is a class, a tile in it one stored picture. A line from the query to a tile is as wide as the attention that the tile
gets; the number over a column is the probability of its class, which is the sum of its tiles' attention.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from .animation import LINE, MARGIN, STYLE, WIDTH, MovingPicture, loop, number
from .plots import look

TILE, GAP = 46, 6  # pixels: the side of a tile, and what lies between two of a column
WRITING, READING = 0.7, 2.0  # s, that a letter takes to be written and a query to be read
LINE_WIDTH = 12  # pixels, of a line that has all of the attention


class Panel(NamedTuple):
    """A memory and what is asked of it."""

    caption: str
    stored: Tensor  # [slot, side, side], 0 for paper and 1 for ink, in the order in which they are written
    labels: Tensor  # [slot] int64, 0 … classes − 1
    queries: Tensor  # [query, side, side]
    answers: Tensor  # [query] int64, the right labels
    attention: Tensor  # [query, slot], each row sums to 1
    note: str = ""  # small print under the caption


def animate(panels: Sequence[Panel], label: str | None = None) -> MovingPicture:
    """Panels side by side: every letter is written, one after another, and then every query is read, one after another.

    ``label`` is what a screen reader says; by default the captions, and how many queries are answered rightly.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel")
    pictures = [_moving(panel) for panel in panels]
    return MovingPicture(pictures, "; ".join(map(describe, panels)) if label is None else label)


def still(panel: Panel, query: int = 0) -> str:
    """One query being read, as an SVG without ids: a picture for :func:`~metarl_lib.explore.explore`."""
    place = _layout(panel)
    return f"{_root(place)}{_title(panel)}{_memory(panel, place)}{_reading(panel, query, place)}</svg>"


def probabilities(panel: Panel) -> Tensor:
    """Of every class for every query, ``[query, class]``: attention, summed over the slots that hold the class."""
    classes = int(panel.labels.max()) + 1
    totals = panel.attention.new_zeros(len(panel.queries), classes)
    return totals.index_add(1, panel.labels, panel.attention)


def describe(panel: Panel) -> str:
    right = int((probabilities(panel).argmax(-1) == panel.answers).sum())
    n = len(panel.queries)
    return f"{panel.caption}: {len(panel.labels)} stored pictures, {right} of {n} quer{'y' if n == 1 else 'ies'} answered rightly"


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Scene(NamedTuple):
    period: float  # s, until it starts again


def _layout(panel: Panel) -> list[tuple[float, float]]:
    """Where the centre of every tile is; the last entry is that of the query."""
    slots, classes = len(panel.labels), int(panel.labels.max()) + 1
    if panel.attention.shape != (len(panel.queries), slots) or len(panel.stored) != slots:
        raise ValueError(
            f"attention must be [query, slot], here [{len(panel.queries)}, {slots}], with a stored picture for every slot; "
            f"got {list(panel.attention.shape)} and {len(panel.stored)} pictures"
        )
    top = (3 if panel.note else 2) * LINE + LINE + TILE / 2
    rows = [0] * classes
    places = []
    for label in panel.labels.tolist():
        places.append(((label + 0.5) * WIDTH / classes, top + rows[label] * (TILE + GAP)))
        rows[label] += 1
    return [*places, (WIDTH / 2, top + max(rows) * (TILE + GAP) + 1.6 * TILE)]


def _moving(panel: Panel) -> str:
    place, slots = _layout(panel), len(panel.labels)
    scene = _Scene(slots * WRITING + len(panel.queries) * READING)
    written = "".join(
        f"<g>{_tile(picture, place[i])}{_shown(i * WRITING, scene.period, scene)}</g>" for i, picture in enumerate(panel.stored)
    )
    read = ""
    for i in range(len(panel.queries)):
        start = slots * WRITING + i * READING
        read += f'<g opacity="0">{_reading(panel, i, place)}{_shown(start, start + READING, scene)}</g>'
    first = f'<g class="still">{_memory(panel, place)}{_reading(panel, 0, place)}</g>'
    root = _root(place, f' role="img" aria-label="{html.escape(describe(panel))}"')
    return f'{root}<style>{STYLE}</style>{_title(panel)}<g class="moving">{written}{read}</g>{first}</svg>'


def _shown(start: float, end: float, scene: _Scene) -> str:
    """Opaque from ``start`` to ``end`` (s), and not to be seen before and after."""
    fade = 0.1
    values, times = [0, 0, 1, 1], [0, start, start + fade, end]
    if end < scene.period:
        values, times = [*values, 0, 0], [*times[:-1], end - fade, end, scene.period]
    return loop("opacity", values, scene, times)


def _root(place: list[tuple[float, float]], more: str = "") -> str:
    height = number(place[-1][1] + TILE / 2 + MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"{more} '
        'font-family="system-ui,sans-serif" text-anchor="middle" fill="currentColor">'
    )


def _title(panel: Panel) -> str:
    note = f'<text x="{WIDTH / 2:g}" y="{2 * LINE}" font-size="14">{html.escape(panel.note)}</text>' if panel.note else ""
    return f'<text x="{WIDTH / 2:g}" y="{LINE}" font-size="17" font-weight="600">{html.escape(panel.caption)}</text>{note}'


def _memory(panel: Panel, place: list[tuple[float, float]]) -> str:
    return "".join(_tile(picture, at) for picture, at in zip(panel.stored, place, strict=False))


def _reading(panel: Panel, query: int, place: list[tuple[float, float]]) -> str:
    """A query, its lines, and the probability of every class; the right one is underlined."""
    colour, (x, y) = look("matching-networks").colour, place[-1]
    lines = ""
    for weight, (to_x, to_y) in zip(panel.attention[query].tolist(), place, strict=False):
        if weight * LINE_WIDTH >= 0.1:
            end = f"{number(to_x)} {number(to_y + TILE / 2)}"
            lines += f'<path d="M{number(x)} {number(y - TILE / 2)}L{end}" stroke-width="{number(weight * LINE_WIDTH)}"/>'
    classes = probabilities(panel)[query].tolist()
    guess, right = max(range(len(classes)), key=classes.__getitem__), int(panel.answers[query])
    above = place[0][1] - TILE / 2 - 6
    numbers = ""
    for label, p in enumerate(classes):
        bold = ' font-weight="700"' if label == guess else ""
        line = ' text-decoration="underline"' if label == right else ""
        numbers += f'<text x="{number((label + 0.5) * WIDTH / len(classes))}" y="{number(above)}"{bold}{line}>{p:.2f}</text>'
    verdict = "✓" if guess == right else "✗"
    return (
        f'<g stroke="{colour}" opacity=".75">{lines}</g>{_tile(panel.queries[query], place[-1])}<g font-size="14">{numbers}</g>'
        f'<text x="{number(x + TILE / 2 + 16)}" y="{number(y + 7)}" font-size="20">{verdict}</text>'
    )


def _tile(picture: Tensor, place: tuple[float, float]) -> str:
    """A picture, ink on white paper in either theme. Sixteen greys are enough, and pack well."""
    grey = np.round(15 * (1 - picture.detach().cpu().clamp(0, 1).numpy())).astype(np.uint8) * 17
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    at = f'x="{number(place[0] - TILE / 2)}" y="{number(place[1] - TILE / 2)}" width="{TILE}" height="{TILE}"'
    return f'<image {at} href="data:image/png;base64,{data}"/><rect {at} fill="none" stroke="currentColor" stroke-opacity=".4"/>'
