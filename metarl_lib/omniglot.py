"""Omniglot :cite:p:`lake2015human`: 1,623 characters of 50 alphabets, each drawn by 20 people, as few-shot tasks.

The interface is that of :mod:`metarl_lib.glyphs`, so that one takes the other's place. Nothing here is downloaded unless you
call :func:`download`, which also takes the archives from a folder on disk, for machines without a network.
"""

from __future__ import annotations

import hashlib
import tempfile
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from .sinusoids import Examples

SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
ARCHIVES = {  # MD5 checksums, as torchvision's datasets/omniglot.py lists them
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
DRAWINGS = 20  # of each character, by 20 people
SPLITS = ("train", "validation", "test")
DIVISIONS = ("alphabets", "characters")


class Task(NamedTuple):
    """Characters to tell apart; the position along the last axis is the label."""

    characters: Tensor  # [task, way] int64, indices into the characters in order of alphabet
    quarter_turns: Tensor  # [task, way] int64, 0 … 3: by how much every drawing of the character is rotated


# --- getting the data -------------------------------------------------------------------------------------------------


def download(
    folder: str | Path, source: str | Path = SOURCE, checksums: dict[str, str] | None = None, progress: bool = True
) -> None:
    """Fetch the two archives (about 15 MB), check them, and unpack them in ``folder``; what is there already stays.

    ``source`` is the address of the folder that holds ``images_background.zip`` and ``images_evaluation.zip``, or its path on
    disk. An archive is unpacked beside its destination and moved there in one step: ``folder`` never holds a part of it. Raises
    ``OSError`` in one sentence if an archive cannot be had, and ``ValueError`` if it is damaged, incomplete, or not what its
    MD5 checksum in ``checksums`` says.
    """
    folder = Path(folder)
    address = Path(source).resolve().as_uri() if Path(source).is_dir() else str(source).rstrip("/")
    if not address.startswith(("https://", "http://", "file://")):
        raise ValueError(f"source must be a web address or an existing folder, got {source}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksum in (ARCHIVES if checksums is None else checksums).items():
        if (folder / name).is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            archive = Path(scratch) / f"{name}.zip"
            _fetch(f"{address}/{name}.zip", archive, progress)
            _verify(archive, checksum)
            _unpack(archive, Path(scratch), name)
            (Path(scratch) / name).replace(folder / name)


def _fetch(address: str, path: Path, progress: bool) -> None:
    try:
        with urllib.request.urlopen(address, timeout=60) as response, path.open("wb") as file:  # noqa: S310
            total = int(response.headers.get("Content-Length") or 0) or None
            bar = tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=not progress)
            with bar:
                while block := response.read(2**16):
                    file.write(block)
                    bar.update(len(block))
    except (OSError, HTTPException) as error:
        raise OSError(
            f"{address} cannot be had ({error}); without a network, put the archives in a folder and give it as source"
        ) from error


def _verify(archive: Path, checksum: str) -> None:
    found = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    if found != checksum:
        raise ValueError(f"{archive.name} is damaged or incomplete: its MD5 checksum is {found}, expected {checksum}")


def _unpack(archive: Path, folder: Path, name: str) -> None:
    """Unpack an archive of one folder called ``name``; nothing is written outside of it."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.namelist():
                parts = PurePosixPath(member.replace("\\", "/")).parts
                if not parts or parts[0] != name or ".." in parts:
                    raise ValueError(f"{archive.name} holds {member!r}, which is outside of its folder {name}")
            opened.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive.name} is damaged or incomplete: {error}") from error
    if not (folder / name).is_dir():
        raise ValueError(f"{archive.name} holds no folder {name}")


# --- reading it -------------------------------------------------------------------------------------------------------


class Drawings(NamedTuple):
    """All characters, those of the background alphabets first."""

    images: Tensor  # [character, drawing, size, size] uint8, 0 for paper and 255 for ink
    alphabets: tuple[str, ...]  # [character]
    background: tuple[bool, ...]  # [character]


@lru_cache(maxsize=2)
def load(folder: str, size: int) -> Drawings:
    """Read all drawings, shrunk to ``size`` × ``size`` pixels. Raises ``ValueError`` if some are missing or damaged."""
    images, alphabets, background = [], [], []
    for archive in ARCHIVES:
        characters = sorted((Path(folder) / archive).glob("*/character*"))
        if not characters:
            raise ValueError(
                f"there is no Omniglot in {folder}: {archive} is missing or empty; metarl_lib.omniglot.download gets it"
            )
        for character in characters:
            paths = sorted(character.glob("*.png"))
            if len(paths) != DRAWINGS:
                raise ValueError(
                    f"{character} must hold {DRAWINGS} drawings, got {len(paths)}: delete {archive} and fetch it again"
                )
            images.append(_shrink(torch.stack([_read(path) for path in paths]), size))
            alphabets.append(character.parent.name)
            background.append(archive == "images_background")
    return Drawings(torch.stack(images), tuple(alphabets), tuple(background))


def _read(path: Path) -> Tensor:
    """A drawing, 1 for ink."""
    try:
        with Image.open(path) as image:
            return 1 - torch.from_numpy(np.asarray(image.convert("L")).astype(np.float32)) / 255
    except OSError as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error


def _shrink(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-1] != size:
        pictures = functional.interpolate(pictures[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]
    return (255 * pictures).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=4)
def _on_device(folder: str, size: int, device: torch.device) -> Tensor:
    return load(folder, size).images.to(device)


# --- the task distribution --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Omniglot:
    """Tasks of telling ``way`` characters apart, in pictures of ``size`` × ``size`` pixels from ``folder``.

    ``division`` says what is held out:

    - ``alphabets`` as in :cite:t:`lake2015human`: the evaluation alphabets are for testing. Of the background alphabets the last
      sixth in alphabetical order is for validation.
    - ``characters`` as in :cite:t:`vinyals2016matching`: 1,200 characters drawn from all alphabets for training, 100 of which
      are set aside for validation, and the other 423 for testing. The paper does not list them: these are drawn with seed 0.

    With ``rotations`` a character turned by 90°, 180° or 270° is another class of the same split, as in
    :cite:t:`santoro2016meta` and :cite:t:`finn2017model`.
    """

    folder: str
    way: int = 5
    size: int = 28
    division: str = "characters"
    rotations: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name, low in (("way", 2), ("size", 4)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.division not in DIVISIONS:
            raise ValueError(f"unknown division {self.division!r}; there are {', '.join(DIVISIONS)}")

    @property
    def input_size(self) -> int:
        return self.size**2

    def characters(self, split: str) -> list[int]:
        """The characters of a split, as indices into :class:`Drawings`: no two splits have one in common."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
        drawings = load(str(self.folder), self.size)
        n = len(drawings.alphabets)
        if self.division == "characters":
            order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
            first, second = round(n * 1100 / 1623), round(n * 1200 / 1623)
            return sorted({"train": order[:first], "validation": order[first:second], "test": order[second:]}[split])
        background = sorted({a for a, known in zip(drawings.alphabets, drawings.background, strict=True) if known})
        held_out = set(background[-max(1, len(background) // 6) :])
        kinds = (
            "test" if not known else "validation" if alphabet in held_out else "train"
            for alphabet, known in zip(drawings.alphabets, drawings.background, strict=True)
        )
        return [i for i, kind in enumerate(kinds) if kind == split]

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Task:
        """Draw ``n`` tasks of a split, each of ``way`` different classes in random order."""
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        turns = 4 if self.rotations else 1
        members = torch.tensor(self.characters(split), device=generator.device)
        classes = turns * len(members)
        if self.way > classes:
            raise ValueError(f"way must be at most {classes}, the classes of the split {split!r}; got {self.way}")
        chosen = torch.rand(n, classes, generator=generator, device=generator.device).argsort(-1)[:, : self.way]
        return Task(members[chosen // turns], chosen % turns)

    def sample(self, task: Task, shots: int, generator: torch.Generator) -> Examples:
        """``shots`` different drawings of every character: x ``[task, shots · way, size²]``, y ``[task, shots · way]`` int64.

        Labels run 0 … way − 1 and again from 0, so that the first k · way examples hold k drawings of each character.
        """
        if not 1 <= shots <= DRAWINGS:
            raise ValueError(f"shots and queries must be at least 1 and together at most {DRAWINGS}, got {shots}")
        tasks, way = task.characters.shape
        device = generator.device
        order = torch.rand(tasks, way, DRAWINGS, generator=generator, device=device).argsort(-1)[..., :shots]
        images = _on_device(str(self.folder), self.size, device)[task.characters[..., None], order].to(self.dtype) / 255
        for turns in (1, 2, 3) if self.rotations else ():
            turned = (task.quarter_turns == turns)[..., None, None, None]
            images = torch.where(turned, torch.rot90(images, turns, (-2, -1)), images)
        labels = torch.arange(way, device=device).expand(tasks, shots, way)
        x = images.transpose(1, 2).reshape(tasks, shots * way, self.input_size)
        return Examples(x, labels.reshape(tasks, shots * way))

    def support_and_query(self, task: Task, shots: int, queries: int, generator: torch.Generator) -> tuple[Examples, Examples]:
        """``shots`` and ``queries`` drawings of every character; no drawing is in both."""
        if shots < 1 or queries < 1:
            raise ValueError(f"shots and queries must be at least 1, got {shots} and {queries}")
        together, cut = self.sample(task, shots + queries, generator), shots * task.characters.shape[-1]
        return Examples(*(leaf[:, :cut] for leaf in together)), Examples(*(leaf[:, cut:] for leaf in together))
