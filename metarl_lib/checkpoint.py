"""Training state on disk: tensors and plain values in a ``torch.save`` file that is read without pickle's powers."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read as it is; the message is one sentence."""


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a nested dict of tensors and plain Python values, whole or not at all.

    Whatever ``path`` held before stays until the new file is complete on disk. Raises :class:`CheckpointError` if a
    tensor holds NaN or infinity or an entry is not plain, and ``OSError`` if the disk refuses; both leave the old file.
    """
    _check(state, "")
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what :func:`save` wrote. Floating-point tensors go to ``device``; others, a generator's state for one,
    stay on the CPU.

    Raises :class:`CheckpointError` if the file is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        raise CheckpointError(f"{path} is not a complete checkpoint: cut short, damaged, or of another kind") from error
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of metarl_lib")
    written = state.pop("format")
    if written != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {written!r}, this version of metarl_lib reads format {FORMAT}")
    _check(state, "")
    return _to(state, device)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at ``path`` in one step: a reader, or a crash, finds the old contents or the new, never a mixture.

    Missing folders are made. Raises ``OSError`` with one sentence, the old file untouched, if the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "what it held before is untouched" if path.exists() else "nothing was written"
        raise OSError(f"could not write {path}: {error.strerror or error}; {kept}") from error
    finally:
        with suppress(OSError):  # it is there only if writing failed
            temporary.unlink()


def _check(value: Any, where: str) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"the checkpoint's {where} is not finite (NaN or infinity)")
    elif type(value) in (dict, OrderedDict):  # and no other kind of dict or tuple: reading would refuse it
        for key, entry in value.items():
            _check(key, f"{where} key")
            _check(entry, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple):
        for i, entry in enumerate(value):
            _check(entry, f"{where}[{i}]")
    elif type(value) not in (bool, int, float, str, type(None), torch.dtype):
        raise CheckpointError(f"the checkpoint's {where} is a {type(value).__name__}, not a tensor or a plain value")


def _to(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _to(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to(entry, device) for entry in value)
    return value
