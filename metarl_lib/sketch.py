"""Small line charts as SVG: a few kilobytes each, without ids, drawn in the colours of the page that they stand in.

Made for :func:`~metarl_lib.explore.explore`, which needs many pictures at once. Other figures are matplotlib's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 460, 260  # pixels of the whole picture
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 26, 44  # pixels around the axes
_FOOT, _END = HEIGHT - BOTTOM, WIDTH - RIGHT


class Line(NamedTuple):
    """``y`` over ``x``, ``[point]`` each. ``dash`` as in SVG, ``"6 3"`` for one; ``fill`` fills down to the axis."""

    x: Any
    y: Any
    colour: str
    label: str = ""
    dash: str = ""
    fill: bool = False


def chart(
    lines: Iterable[Line],
    x: tuple[float, float],
    y: tuple[float, float],
    xlabel: str,
    ylabel: str,
    xticks: Sequence[float],
    yticks: Sequence[float],
    log_y: bool = False,
    title: str = "",
) -> str:
    """Lines in axes from ``x[0]`` to ``x[1]`` and ``y[0]`` to ``y[1]``; what lies outside is cut off.

    With ``log_y`` the vertical axis is logarithmic, and ticks read 10ⁿ. Raises ``ValueError`` if a range is empty or, on a
    logarithmic axis, not positive.
    """
    if not (x[0] < x[1] and y[0] < y[1]) or (log_y and y[0] <= 0):
        raise ValueError(f"x and y must be ranges from low to high, positive where logarithmic, got {x} and {y}")

    def height(value: Any) -> np.ndarray:
        value = np.clip(np.nan_to_num(np.asarray(value, dtype=np.float64), nan=y[1], posinf=y[1]), *y)
        low, high, value = (np.log10(v) if log_y else v for v in (y[0], y[1], value))
        return TOP + (_FOOT - TOP) * (1 - (value - low) / (high - low))

    def across(value: Any) -> np.ndarray:
        return LEFT + (_END - LEFT) * (np.clip(np.asarray(value, dtype=np.float64), *x) - x[0]) / (x[1] - x[0])

    drawn = ""
    for tick in xticks:
        drawn += f'<path d="M{_n(across(tick))} {_FOOT}v4"/>{_text(across(tick), _FOOT + 17, _label(tick))}'
    for tick in yticks:
        name = f"10{_superscript(round(math.log10(tick)))}" if log_y else _label(tick)
        drawn += f'<path d="M{LEFT} {_n(height(tick))}H{_END}" opacity=".2"/>{_text(LEFT - 5, height(tick) + 4, name, "end")}'
    drawn += f'<path d="M{LEFT} {TOP}V{_FOOT}H{_END}"/>{_text((LEFT + _END) / 2, HEIGHT - 8, xlabel)}'
    drawn += f'<g transform="translate(13 {(TOP + _FOOT) / 2}) rotate(-90)">{_text(0, 0, ylabel)}</g>'
    lines = list(lines)
    drawn += "".join(_draw(line, across(line.x), height(line.y)) for line in lines) + _legend(lines)
    heading = _text(_END, TOP + 14, title, "end", ' font-weight="600"') if title else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui,sans-serif" font-size="12" text-anchor="middle" fill="none" stroke="currentColor">'
        f"{drawn}{heading}</svg>"
    )


def histogram(values: Any, edges: Any, colour: str, label: str = "", scale: float = 1.0) -> Line:
    """The share of ``values`` between each two ``edges``, times ``scale``, as a filled line; the outermost bins are open."""
    edges = np.asarray(edges, dtype=np.float64)
    values = np.clip(np.asarray(values, dtype=np.float64), edges[0], edges[-1])
    share = np.histogram(values, edges)[0] / values.size * scale
    return Line(np.repeat(edges, 2)[1:-1], np.repeat(share, 2), colour, label, fill=True)


def _draw(line: Line, x: np.ndarray, y: np.ndarray) -> str:
    points = " ".join(f"{_n(a)},{_n(b)}" for a, b in zip(x, y, strict=True))
    if line.fill:
        points = f"{_n(x[0])},{_FOOT} {points} {_n(x[-1])},{_FOOT}"
        return f'<polygon points="{points}" fill="{line.colour}" fill-opacity=".35" stroke="none"/>'
    return f'<polyline points="{points}" stroke="{line.colour}" stroke-width="2.2"{_dash(line)}/>'


def _legend(lines: Sequence[Line]) -> str:
    named, drawn = [line for line in lines if line.label], ""
    for i, line in enumerate(named):
        at = LEFT + 8 + i * (_END - LEFT) / len(named)
        width = 8 if line.fill else 2.5
        drawn += f'<path d="M{_n(at)} 12h18" stroke="{line.colour}" stroke-width="{width}"{_dash(line)}/>'
        drawn += _text(at + 23, 16, line.label, "start")
    return drawn


def _dash(line: Line) -> str:
    return f' stroke-dasharray="{line.dash}"' if line.dash else ""


def _text(x: Any, y: Any, text: str, anchor: str = "", more: str = "") -> str:
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" fill="currentColor" stroke="none"{anchor}{more}>{html.escape(text)}</text>'


def _label(tick: float) -> str:
    return f"{tick:g}".replace("-", "−")


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _n(value: Any) -> str:
    return f"{round(float(value), 1) + 0.0:g}"
