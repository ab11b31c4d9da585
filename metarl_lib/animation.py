"""Moving pictures of cart-poles: self-contained SVG that moves without a script and loads nothing.

In print, and where the reader has asked for less motion, the picture is a still of every episode's last state.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .cartpole import TIME_STEP, X_LIMIT, Physics
from .checkpoint import write_atomically
from .plots import look
from .types import Rollout

SCALE = 70  # pixels to a metre
EVERY = 2  # one state in two is drawn: 25 a second
HOLD = 1.2  # s before the picture starts again
FADE = 0.4  # s in which a fallen cart turns grey
WIDTH, MARGIN, LINE = 400, 12, 20  # pixels: a panel, the space around what is in it, a line of text

# .still is shown in place of .moving in print, and for readers who prefer less motion until they press Play (.on).
STYLE = (
    ".mrl-anim .still{display:none}"
    "@media print{.mrl-anim .still{display:inline}.mrl-anim .moving{display:none}}"
    "@media (prefers-reduced-motion:reduce){.mrl-anim:not(.on,.off) .still{display:inline}"
    ".mrl-anim:not(.on,.off) .moving{display:none}}"
)
_FILE_STYLE = ":root{color:#24292f}@media (prefers-color-scheme:dark){:root{color:#e6edf3}}"
_PAGE_STYLE = (
    ".mrl-anim>div{display:flex;flex-wrap:wrap;gap:.5rem}"
    f".mrl-anim svg{{flex:1 1 280px;max-width:{WIDTH}px;height:auto}}"
    ".mrl-anim button{font:inherit;color:inherit;background:none;border:1px solid;border-radius:.3em;"
    "padding:.2em .8em;min-width:5em;cursor:pointer}"
    ".mrl-anim .play,.mrl-anim.off .pause{display:none}.mrl-anim.off .play{display:inline}"
    "@media print{.mrl-anim button{display:none}}"
    "@media (prefers-reduced-motion:reduce){.mrl-anim:not(.on) .pause{display:none}.mrl-anim:not(.on) .play{display:inline}}"
    # The book's dark theme puts what notebooks show on a light ground, which this picture does not need.
    ".text_html:has(>.mrl-anim){background:none!important;color:inherit!important}"
)
_TOGGLE = (
    "const box=this.closest('.mrl-anim'),c=box.classList,fresh=!c.contains('on')&&!c.contains('off'),"
    "quiet=matchMedia('(prefers-reduced-motion: reduce)').matches,playing=c.contains('on')||fresh&&!quiet;"
    "c.toggle('on',!playing);c.toggle('off',playing);"
    "box.querySelectorAll('svg').forEach(s=>{if(fresh&&quiet)s.setCurrentTime(0);"
    "playing?s.pauseAnimations():s.unpauseAnimations()})"
)
_CART = '<rect x="-19" y="-2" width="38" height="17" rx="3"/><circle cx="-11" cy="20" r="4.5"/><circle cx="11" cy="20" r="4.5"/>'
_AXLE = '<circle r="2" fill="#fff" stroke="none"/>'
_OPACITY = 0.8
_FALLEN = ("#888888", 0.5)  # colour and opacity


class Panel(NamedTuple):
    """Episodes of one task, drawn over one another."""

    caption: str
    bodies: Tensor  # [env, frame, 4]: x (m), ẋ, θ (rad), θ̇, a frame every 0.02 s; what follows an episode's end is ignored
    lengths: Tensor  # [env]: frames of each episode, its last state included
    fell: Tensor  # [env] bool: the episode terminated, and was not merely cut by the clock
    half_length: float  # m, half of the pole
    note: str = ""  # small print under the caption; it may have several lines
    algorithm: str = "maml"  # whose colour the carts have


def from_rollout(
    rollout: Rollout, task: Physics, task_index: int = 0, episodes: int = 5, caption: str = "", algorithm: str = "maml"
) -> Panel:
    """The first ``episodes`` episodes of one task of a CartPole rollout ``[task, env, time]``, as a panel.

    The note says how many episodes there are, their mean return, and what the task is.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    shown = Rollout(*(leaf[task_index, :episodes].cpu() for leaf in rollout))
    steps = shown.alive.sum(-1)
    last = steps[:, None, None] - 1
    bodies = torch.cat((shown.observations, shown.next_observations[:, -1:]), 1)[..., :4]
    after = shown.next_observations[..., :4].take_along_dim(last, 1)  # the state that ended the episode
    bodies = bodies.scatter(1, (last + 1).expand(-1, 1, 4), after)
    half_length = float(task.half_length[task_index])
    n = len(steps)
    note = f"{n} episode{'s' if n > 1 else ''}, mean return {shown.returns.mean():.0f}\npole of {2 * half_length:.1f} m"
    if task.force[task_index] < 0:
        note += ", motor reversed"
    return Panel(caption, bodies, steps + 1, (shown.terminated & shown.alive).any(-1), half_length, note, algorithm)


class Animation:
    """A moving picture that a notebook displays, with a button that pauses it; :meth:`save` makes a file of it."""

    def __init__(self, panels: Sequence[Panel], label: str) -> None:
        self.panels, self.label = list(panels), label
        self._scene = _Scene(self.panels)  # a panel of the wrong shape is refused here

    def __repr__(self) -> str:
        return f"Animation: {self.label}"

    def _repr_html_(self) -> str:
        return page([_svg([panel], self._scene, _describe([panel])) for panel in self.panels], self.label)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.svg``, for a README for one, or ``.html``, a page with the button, to open in a browser."""
        suffix = Path(path).suffix.lower()
        if suffix == ".svg":
            text = cartpole_svg(self.panels, self.label)
        elif suffix == ".html":
            text = (
                '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
                '<meta name="viewport" content="width=device-width"><style>body{font-family:system-ui,sans-serif}</style>'
                f"<title>{html.escape(self.label)}</title><main>{self._repr_html_()}</main></html>"
            )
        else:
            raise ValueError(f"path must end in .svg or .html, got {path}")
        write_atomically(path, text.encode())


def animate(panels: Sequence[Panel], label: str | None = None) -> Animation:
    """Panels side by side (one under another on a narrow screen), as the last line of a notebook cell.

    ``label`` is what a screen reader says; by default the captions and notes.
    """
    return Animation(panels, _describe(panels) if label is None else label)


class MovingPicture:
    """SVGs side by side that a notebook displays, with a button that pauses them."""

    def __init__(self, pictures: Sequence[str], label: str) -> None:
        self.label = label
        self._pictures = pictures

    def __repr__(self) -> str:
        return f"Animation: {self.label}"

    def _repr_html_(self) -> str:
        return page(self._pictures, self.label)


def page(pictures: Sequence[str], label: str) -> str:
    """SVGs side by side, with the button that pauses them, as a piece of a page."""
    return (
        f'<div class="mrl-anim" role="group" aria-label="{html.escape(label)}"><style>{_PAGE_STYLE}</style>'
        f'<div>{"".join(pictures)}</div><button type="button" onclick="{_TOGGLE}">'
        '<span class="pause">Pause</span><span class="play">Play</span></button></div>'
    )


def cartpole_svg(panels: Sequence[Panel], label: str | None = None) -> str:
    """Panels in a row as one SVG file, drawn to one scale, that starts again :data:`HOLD` seconds after its end."""
    return _svg(panels, _Scene(panels), _describe(panels) if label is None else label, as_file=True)


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Scene:
    """What all panels of one picture share: clock and height."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        if not panels:
            raise ValueError("panels must hold at least one panel")
        for panel in panels:
            _check(panel)
        frames = max(int(panel.lengths.max()) for panel in panels)
        moving = math.ceil((frames - 1) / EVERY)
        self.samples = torch.arange(moving + 1 + round(HOLD / (EVERY * TIME_STEP))) * EVERY
        self.end = (frames - 1) * TIME_STEP  # s
        self.period = (len(self.samples) - 1) * EVERY * TIME_STEP  # s
        text = LINE * max(1 + len(panel.note.splitlines()) for panel in panels)
        self.axle = MARGIN + text + 2 * SCALE * max(panel.half_length for panel in panels) + MARGIN
        self.height = self.axle + 52


def _check(panel: Panel) -> None:
    if panel.bodies.dim() != 3 or panel.bodies.shape[-1] != 4 or panel.bodies.shape[0] < 1:
        raise ValueError(f"bodies must be [env, frame, 4], got shape {tuple(panel.bodies.shape)}")
    envs, frames, _ = panel.bodies.shape
    for name in ("lengths", "fell"):
        if getattr(panel, name).shape != (envs,):
            raise ValueError(f"{name} must be [{envs}], one for each episode, got shape {tuple(getattr(panel, name).shape)}")
    if not (panel.lengths.min() >= 1 and panel.lengths.max() <= frames):
        raise ValueError(f"lengths must lie between 1 and the {frames} frames, got {panel.lengths.tolist()}")
    if not panel.half_length > 0:
        raise ValueError(f"half_length must be positive, got {panel.half_length}")


def _describe(panels: Sequence[Panel]) -> str:
    return "; ".join(": ".join((panel.caption, panel.note.replace("\n", ", "))).strip(": ") for panel in panels)


def _svg(panels: Sequence[Panel], scene: _Scene, label: str, as_file: bool = False) -> str:
    width, height = WIDTH * len(panels), number(scene.height)
    root = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}"'
    if as_file:
        root += f' width="{width}" height="{height}" class="mrl-anim"'
    style = f"<style>{STYLE}{_FILE_STYLE if as_file else ''}</style>"
    drawn = "".join(f'<g transform="translate({(i + 0.5) * WIDTH:g} 0)">{_panel(p, scene)}</g>' for i, p in enumerate(panels))
    return f'<svg {root} font-family="system-ui,sans-serif" text-anchor="middle" fill="currentColor">{style}{drawn}</svg>'


def _panel(panel: Panel, scene: _Scene) -> str:
    text = f'<text y="{LINE}" font-size="17" font-weight="600">{html.escape(panel.caption)}</text>'
    for i, line in enumerate(panel.note.splitlines()):
        text += f'<text y="{LINE * (i + 2)}" font-size="14">{html.escape(line)}</text>'
    stop = number(X_LIMIT * SCALE)
    ground = f'<path d="M-{stop} 15V25H{stop}V15" fill="none" stroke="currentColor" opacity=".6"/>'
    carts = "".join(_cart(panel, env, scene) for env in range(len(panel.lengths)))
    still = "".join(_cart(panel, env, None) for env in range(len(panel.lengths)))
    return (
        f'{text}<g transform="translate(0 {number(scene.axle)})">{ground}'
        f'<g class="moving">{carts}{clock(scene)}</g><g class="still">{still}</g></g>'
    )


def clock(scene: _Scene) -> str:
    length = 2 * X_LIMIT * SCALE - 40
    run = loop("width", [0, length, length], scene, [0, scene.end, scene.period])
    return (
        f'<rect x="{number(-length / 2 - 20)}" y="36" width="{number(length)}" height="3" opacity=".5">{run}</rect>'
        f'<text x="{number(length / 2 + 4)}" y="42" font-size="13">{scene.end:.1f} s</text>'
    )


def _cart(panel: Panel, env: int, scene: _Scene | None) -> str:
    """One episode's cart, drawn in its last state; with a scene, moving."""
    place, _, tilt, _ = panel.bodies[env, : int(panel.lengths[env])].double().unbind(-1)
    place, tilt = place * SCALE, tilt.rad2deg()
    colour, opacity = _FALLEN if panel.fell[env] else (look(panel.algorithm).colour, _OPACITY)
    shift, turn = ("", "") if scene is None else _motion(panel, env, place, tilt, scene)
    return (
        f'<g transform="translate({number(place[-1])})" fill="{colour}" stroke="{colour}" opacity="{opacity}">{shift}'
        f'<g stroke="none">{_CART}</g><path d="M0 0V-{number(2 * panel.half_length * SCALE)}" stroke-width="6" '
        f'stroke-linecap="round" transform="rotate({number(tilt[-1])})">{turn}</path>{_AXLE}</g>'
    )


def _motion(panel: Panel, env: int, place: Tensor, tilt: Tensor, scene: _Scene) -> tuple[str, str]:
    """What moves (and fades) a cart, and what turns its pole."""
    frames = scene.samples.clamp(max=len(place) - 1)
    shift = loop("transform", place[frames].tolist(), scene, kind="translate")
    turn = loop("transform", tilt[frames].tolist(), scene, kind="rotate")
    if panel.fell[env]:
        fall = (len(place) - 1) * TIME_STEP
        times = [0, fall, min(fall + FADE, scene.period), scene.period]
        colour, (grey, faint) = look(panel.algorithm).colour, _FALLEN
        for name, before, after in (("fill", colour, grey), ("stroke", colour, grey), ("opacity", _OPACITY, faint)):
            shift += loop(name, [before, before, after, after], scene, times)
    return shift, turn


def loop(
    attribute: str, values: Sequence[float | str], scene: _Scene, times: Sequence[float] | None = None, kind: str = ""
) -> str:
    """An endless SMIL animation through ``values``, at ``times`` (s) or evenly spread over the scene's period."""
    tag = f'animateTransform type="{kind}"' if kind else "animate"
    steps = ";".join(value if isinstance(value, str) else number(value) for value in values)
    keys = "" if times is None else ' keyTimes="' + ";".join(f"{t / scene.period:.4g}" for t in times) + '"'
    return f'<{tag} attributeName="{attribute}" values="{steps}"{keys} dur="{scene.period:g}s" repeatCount="indefinite"/>'


def number(value: float | Tensor) -> str:
    return f"{round(float(value), 1) + 0.0:g}"  # + 0.0 turns −0 into 0
