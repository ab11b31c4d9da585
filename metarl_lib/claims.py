"""A sentence of the book that is checked where it stands."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any


def claim(sentence: str, holds: Any) -> None:
    """Print ``✓ sentence`` if ``holds``; raise ``AssertionError`` with the sentence if it does not.

    ``holds`` is one truth value: a ``bool``, or an array or tensor that has a single boolean entry. Anything else
    raises ``TypeError``, a number included, since ``claim("x beats y", x - y)`` would hold for any difference.
    """
    value = holds
    if hasattr(holds, "item"):
        with suppress(RuntimeError, ValueError):  # torch's and numpy's, where there is not one entry
            value = holds.item()
    if not isinstance(value, bool):
        kind = f"{type(holds).__name__} of shape {tuple(holds.shape)}" if hasattr(holds, "shape") else repr(holds)
        raise TypeError(f"holds must be one truth value, got {kind}; reduce several with .all() or .any()")
    if not value:
        raise AssertionError(sentence)
    try:
        print(f"✓ {sentence}")
    except UnicodeEncodeError:  # a Windows console with an old code page
        encoding = sys.stdout.encoding
        print(f"[ok] {sentence}".encode(encoding, "replace").decode(encoding))
