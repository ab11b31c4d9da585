"""Something to play with in a page that has no kernel: sliders that choose among pictures made beforehand."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

_STYLE = (
    ".mrl-explore{margin:0}.mrl-explore [hidden]{display:none}"
    ".mrl-explore .controls{display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;margin-bottom:.5rem}"
    ".mrl-explore label{display:flex;flex-wrap:wrap;align-items:center;gap:.5rem;margin:0}"
    ".mrl-explore output{min-width:3.5em;font-variant-numeric:tabular-nums}"
    ".mrl-explore input{width:11rem;max-width:60vw;min-height:24px;accent-color:#0072B2}"
    ".mrl-explore select{font:inherit;color:inherit;background:none;border:1px solid;border-radius:.3em;min-height:24px}"
    ".mrl-explore select option{color:#000;background:#fff}"
    ".mrl-explore :is(svg,img){max-width:100%;height:auto}"
    "@media print{.mrl-explore .controls input,.mrl-explore .controls select{display:none}}"
    # The book's dark theme puts what notebooks show on a light ground; a drawing is made for either.
    ".text_html:has(>.mrl-explore){background:none!important;color:inherit!important}"
)
# The picture to show is found by its place in the product of the axes, the last one running fastest.
_SHOW = (
    "const box=this.closest('.mrl-explore');let place=0;"
    "for(const c of box.querySelectorAll('.controls [data-n]')){const i=+(c.selectedIndex??c.value);"
    "place=place*+c.dataset.n+i;const o=c.parentElement.querySelector('output');"
    "if(o){o.value=c.dataset.values.split('|')[i];c.setAttribute('aria-valuetext',o.value)}}"
    "[...box.querySelector('.pictures').children].forEach((p,k)=>p.hidden=k!==place)"
)


class Explorer:
    """What :func:`explore` returns; a notebook displays it as HTML."""

    def __init__(self, body: str, label: str) -> None:
        self._body, self.label = body, label

    def __repr__(self) -> str:
        return f"Explorer: {self.label}"

    def _repr_html_(self) -> str:
        return self._body


def explore(
    pictures: Mapping[tuple, str | Figure],
    axes: Mapping[str, Sequence[Any]],
    label: str,
    start: tuple | None = None,
    descriptions: Mapping[tuple, str] | None = None,
) -> Explorer:
    """One of ``pictures`` at a time, chosen by a slider for every numeric axis and a menu for every axis of words.

    ``axes`` maps a name to its values; ``pictures`` has one entry for every combination of them, keyed by the tuple of values
    in the order of ``axes``. A picture is an SVG (``"<svg …"``, without ids, since several would clash) or a matplotlib figure,
    which is turned into a PNG and closed. ``start`` is the combination shown first, by default the first one; it is also what
    print shows. ``label`` says what is to be explored, and ``descriptions`` what a combination's picture shows, both for
    readers who do not see it; without the latter the values are read out.

    ``ValueError`` names a combination without a picture, a picture without a combination, and an SVG that is not one.
    """
    keys = list(itertools.product(*axes.values()))
    if not keys or not axes:
        raise ValueError("axes must hold at least one axis, each with at least one value")
    if missing := [key for key in keys if key not in pictures]:
        raise ValueError(f"pictures has no entry for {missing[0]}, {len(missing)} of {len(keys)} are missing")
    if unknown := [key for key in pictures if key not in set(keys)]:
        raise ValueError(f"pictures has an entry for {unknown[0]}, which is no combination of the axes {', '.join(axes)}")
    start = keys[0] if start is None else start
    if start not in keys:
        raise ValueError(f"start must be a combination of the axes, got {start}")
    controls = "".join(_control(name, list(values), start[i]) for i, (name, values) in enumerate(axes.items()))
    shown = []
    for key in keys:
        text = (descriptions or {}).get(key) or f"{label}: " + ", ".join(f"{n} {v}" for n, v in zip(axes, key, strict=True))
        shown.append(f"<div{'' if key == start else ' hidden'}>{_picture(pictures[key], text)}</div>")
    body = (
        f'<div class="mrl-explore" role="group" aria-label="{html.escape(label)}"><style>{_STYLE}</style>'
        f'<div class="controls">{controls}</div><div class="pictures" aria-live="polite">{"".join(shown)}</div></div>'
    )
    return Explorer(body, label)


def _control(name: str, values: list[Any], start: Any) -> str:
    place, words = values.index(start), [html.escape(str(value)) for value in values]
    if all(isinstance(value, str) for value in values):
        options = "".join(f"<option{' selected' if i == place else ''}>{word}</option>" for i, word in enumerate(words))
        control = f'<select data-n="{len(values)}" onchange="{_SHOW}" autocomplete="off">{options}</select>'
        return f"<label>{html.escape(name)} {control}</label>"
    control = (
        f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{place}" autocomplete="off" '
        f'data-n="{len(values)}" data-values="{"|".join(words)}" aria-valuetext="{words[place]}" oninput="{_SHOW}">'
    )
    return f"<label>{html.escape(name)} {control}<output>{words[place]}</output></label>"


def _picture(picture: str | Figure, description: str) -> str:
    description = html.escape(description)
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png")
        width, height = (round(size * 96) for size in picture.get_size_inches())
        plt.close(picture)
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{description}" decoding="async">'
    if not picture.startswith("<svg"):
        raise ValueError(f"a picture must be a matplotlib figure or start with <svg, got {picture[:40]!r}")
    if ' id="' in picture:
        raise ValueError("a picture's SVG must have no ids, since those of several pictures in one page would clash")
    return f'<svg role="img" aria-label="{description}"' + picture[len("<svg") :]
