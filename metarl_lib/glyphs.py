"""Letters to tell apart after a few examples: real alphabets, drawn from the fonts that come with matplotlib.

A task is a handful of letters that have not been seen before, and the question which of them each new picture shows. It needs
no download: the DejaVu fonts hold, besides Latin, the letters of Armenian, Georgian, Tifinagh, Canadian syllabics and more.
As with Omniglot :cite:p:`lake2015human`, whole alphabets are held out. Every picture of a letter is drawn anew: turned,
stretched, sheared and shifted a little, with a thicker or a thinner stroke and an unsteady hand.

Different alphabets share letterforms: Latin A, Greek Alpha and Cyrillic А are one outline. A letter whose drawing resembles
that of one already taken (:data:`RESEMBLANCE`) is left out, within a split and between splits, training letters first. So no
held-out letter has a double among those trained on, and no two classes differ in name alone.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import ft2font
from matplotlib.ft2font import FT2Font
from torch import Tensor
from torch.nn import functional

from .sinusoids import Examples

ALPHABETS = {  # by the beginning of their letters' names in Unicode
    "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "ARABIC", "CANADIAN SYLLABICS", "LISU", "OLD ITALIC"),
    "validation": ("HEBREW", "LAO", "NKO"),
    "test": ("GEORGIAN", "ARMENIAN", "TIFINAGH"),
    "ood": ("GEORGIAN", "ARMENIAN"),
}
FONTS = {"train": "DejaVuSans", "validation": "DejaVuSans", "test": "DejaVuSans", "ood": "DejaVuSerif"}
RESEMBLANCE = 0.93  # cosine of two drawings, blurred a little, from which one of the letters is left out
_NO_HINTING = ft2font.LoadFlags.NO_HINTING if hasattr(ft2font, "LoadFlags") else ft2font.LOAD_NO_HINTING  # before matplotlib 3.10
CANVAS, LETTER = 32, 22  # pixels: the side of a stored drawing, and the longer side of the letter in its middle


class Letter(NamedTuple):
    """A class of pictures."""

    character: str
    alphabet: str
    split: str


class Task(NamedTuple):
    """Letters to tell apart; the position along the last axis is the label."""

    letters: Tensor  # [task, way] int64, indices into :func:`letters`


# --- the letters ------------------------------------------------------------------------------------------------------


def letters() -> tuple[Letter, ...]:
    """All classes, training letters first."""
    return _collect()[0]


@lru_cache(maxsize=1)
def _collect() -> tuple[tuple[Letter, ...], Tensor]:
    """The letters that are left when look-alikes are dropped, and their drawings ``[letter, canvas, canvas]``."""
    kept: list[Letter] = []
    drawings, directions = torch.empty(0, CANVAS, CANVAS), torch.empty(0, CANVAS**2)
    for split, alphabets in ALPHABETS.items():
        font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FONTS[split]}.ttf"))
        font.set_size(256, 72)  # so large that matplotlib's versions agree on what resembles what
        found = [(alphabet, code) for alphabet in alphabets for code in sorted(font.get_charmap()) if _is_letter(code, alphabet)]
        candidates = torch.stack([_rasterise(font, code) for _, code in found])
        blurred = functional.avg_pool2d(candidates[:, None], 3, stride=1, padding=1).flatten(1)
        blurred = blurred / blurred.norm(dim=1, keepdim=True)
        # An ood letter is a test letter in another typeface: it may resemble its own double there, and nothing else.
        rivals = torch.tensor([not (split == "ood" and letter.split == "test") for letter in kept], dtype=torch.bool)
        directions = directions[rivals] if len(kept) else directions
        chosen = []
        for i, direction in enumerate(blurred):
            if not len(directions) or float((directions @ direction).max()) < RESEMBLANCE:
                chosen.append(i)
                directions = torch.cat((directions, direction[None]))
        kept += [Letter(chr(found[i][1]), found[i][0], split) for i in chosen]
        drawings = torch.cat((drawings, candidates[chosen]))
    return tuple(kept), drawings


def _is_letter(code: int, alphabet: str) -> bool:
    """Whether a character is a letter of ``alphabet`` by itself: not an accented one, a ligature or a mere mark."""
    character = chr(code)
    named = unicodedata.name(character, "").startswith(alphabet + " ")
    return named and unicodedata.category(character) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(character)


def _rasterise(font: FT2Font, code: int) -> Tensor:
    """A letter, 0 for paper and 1 for ink, in the middle of its canvas, its longer side :data:`LETTER` pixels."""
    font.clear()
    font.set_text(chr(code), flags=_NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.from_numpy(np.asarray(font.get_image()).astype(np.float32) / 255)
    rows, columns = ((ink > 0.5).any(axis).nonzero() for axis in (1, 0))
    ink = ink[rows[0, 0] : rows[-1, 0] + 1, columns[0, 0] : columns[-1, 0] + 1]
    height, width = (max(1, round(side * LETTER / max(ink.shape))) for side in ink.shape)
    ink = functional.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    return functional.pad(ink, (left, CANVAS - width - left, top, CANVAS - height - top))


@lru_cache(maxsize=8)
def _strokes(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Every letter with a thin, a regular and a thick stroke, ``[letter, 3, canvas, canvas]``."""
    regular = _collect()[1]
    thick = functional.max_pool2d(regular, 3, stride=1, padding=1)
    thin = -functional.max_pool2d(-regular, 3, stride=1, padding=1)
    return torch.stack((thin, regular, thick), 1).to(device, dtype)


@lru_cache(maxsize=8)
def _bend(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix ``[size, 4]`` that lays a smooth curve, bicubic, through four values."""
    return functional.interpolate(torch.eye(4, device=device, dtype=dtype)[None, None], (size, 4), mode="bicubic")[0, 0]


# --- the task distribution --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glyphs:
    """Tasks of telling ``way`` letters apart, in pictures of ``size`` × ``size`` grey pixels.

    The other settings say how much two pictures of one letter differ. Each is the half-width of a uniform distribution, of
    ``wobble`` the standard deviation of a normal one. Lengths are fractions of half the picture's side.
    """

    way: int = 5
    size: int = 20
    rotation: float = 20.0  # degrees
    stretch: float = 0.25  # of either axis, in log space
    shear: float = 0.25
    shift: float = 0.15
    wobble: float = 0.05  # displacement of 4 × 4 points, with a smooth field between them
    stroke: float = 0.8  # 0: every stroke regular; 1: up to one pixel of the canvas thicker or thinner on both sides
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name, low in (("way", 2), ("size", 4)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("rotation", "stretch", "shear", "shift", "wobble", "stroke"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.stroke > 1:
            raise ValueError(f"stroke must be at most 1, got {self.stroke}")

    @property
    def input_size(self) -> int:
        return self.size**2

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Task:
        """Draw ``n`` tasks of a split, each of ``way`` different letters in random order.

        ``train``, ``validation`` and ``test`` have no alphabet in common (:data:`ALPHABETS`). ``ood`` is the test
        alphabets in a typeface with serifs, which training has not seen either.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        if split not in ALPHABETS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(ALPHABETS)}")
        members = torch.tensor([i for i, letter in enumerate(letters()) if letter.split == split], device=generator.device)
        if self.way > len(members):
            raise ValueError(f"way must be at most {len(members)}, the letters of the split {split!r}; got {self.way}")
        order = torch.rand(n, len(members), generator=generator, device=generator.device).argsort(-1)
        return Task(members[order[:, : self.way]])

    def draw(self, letters: Tensor, generator: torch.Generator) -> Tensor:
        """A new picture of every letter of ``letters [...]``: ``[..., size, size]``, 0 is paper and 1 ink."""
        index = letters.flatten()
        n, options = len(index), dict(generator=generator, device=generator.device, dtype=self.dtype)
        strokes = _strokes(generator.device, self.dtype)
        stroke = self.stroke * (2 * torch.rand(n, **options) - 1)
        thin_or_thick = strokes[index, 1 + stroke.sign().long()]
        canvas = torch.lerp(strokes[index, 1], thin_or_thick, stroke.abs()[:, None, None])[:, None]
        grid = functional.affine_grid(self._affine(n, options), [n, 1, self.size, self.size], align_corners=False)
        if self.wobble:
            coarse, bend = self.wobble * torch.randn(n, 2, 4, 4, **options), _bend(self.size, generator.device, self.dtype)
            grid = grid + (bend @ coarse @ bend.T).permute(0, 2, 3, 1)
        pictures = functional.grid_sample(canvas, grid, mode="bilinear", align_corners=False)
        return pictures.reshape(*letters.shape, self.size, self.size)

    def _affine(self, n: int, options: dict) -> Tensor:
        """Random maps from the picture to the canvas, ``[n, 2, 3]``: both span [−1, 1] along either axis."""
        u = 2 * torch.rand(6, n, **options) - 1
        angle, shear = math.radians(self.rotation) * u[0], self.shear * u[1]
        stretch = (self.stretch * u[2:4]).exp()
        cos, sin = angle.cos(), angle.sin()
        rows = (cos * stretch[0], (shear * cos - sin) * stretch[1], sin * stretch[0], (shear * sin + cos) * stretch[1])
        linear = torch.stack(rows, -1).reshape(n, 2, 2)
        return torch.cat((linear, self.shift * u[4:, :].T[:, :, None]), -1)

    def sample(self, task: Task, shots: int, generator: torch.Generator) -> Examples:
        """``shots`` new pictures of every letter: x ``[task, shots · way, size²]``, y ``[task, shots · way]`` int64.

        Labels run 0 … way − 1 and again from 0, so that the first k · way examples hold k pictures of each letter.
        """
        if shots < 1:
            raise ValueError(f"shots and queries must be at least 1, got {shots}")
        tasks, way = task.letters.shape
        pictures = self.draw(task.letters[:, None, :].expand(tasks, shots, way), generator)
        labels = torch.arange(way, device=pictures.device).expand(tasks, shots, way)
        return Examples(pictures.reshape(tasks, shots * way, self.input_size), labels.reshape(tasks, shots * way))

    def support_and_query(self, task: Task, shots: int, queries: int, generator: torch.Generator) -> tuple[Examples, Examples]:
        """``shots`` and ``queries`` pictures of every letter, each drawn anew: no picture is in both."""
        return self.sample(task, shots, generator), self.sample(task, queries, generator)
