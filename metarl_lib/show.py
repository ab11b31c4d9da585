"""The library's own source, shown in a notebook."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any


class Source:
    """Python source that displays as a highlighted block.

    It is handed over as a fenced block of markdown, which the book, Jupyter, Colab and GitHub each highlight in
    their own theme, light or dark; inline colours would fit one of them.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        longest = max(map(len, re.findall("`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        return f"{fence}python\n{self.text}\n{fence}"


def show(obj: Any, docstring: bool = True) -> Source:
    """The source of a function, class, method or module, as the last line of a notebook cell.

    ``docstring=False`` leaves its docstrings out. Raises ``TypeError`` for what has no Python source.
    """
    try:
        text = textwrap.dedent(inspect.getsource(inspect.unwrap(obj) if callable(obj) else obj)).strip()
    except (TypeError, OSError):
        raise TypeError(f"show needs a function, class or module written in Python, got {obj!r}") from None
    return Source(text if docstring else _without_docstrings(text))


def _without_docstrings(text: str) -> str:
    lines, dropped = text.splitlines(), set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node) is None or len(node.body) == 1:  # where it is all there is, it has to stay
            continue
        start, end = node.body[0].lineno - 1, node.body[0].end_lineno
        while not lines[end].strip():
            end += 1
        dropped.update(range(start, end))
    return "\n".join(line for i, line in enumerate(lines) if i not in dropped)
