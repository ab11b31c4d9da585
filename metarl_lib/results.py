"""Full-size results on disk, in one form, and as the tables of the book.

A result is a dict of ``name``, ``title``, ``command``, ``seeds``, ``config``, ``versions``, ``hardware``, ``cpu_seconds``,
``metrics`` and ``curves``. A metric, by its label, is a dict of ``value``, ``low`` and ``high`` (the 95% interval, both None
where there is none), ``n`` (independent samples behind it), ``unit``, ``published`` (the figure in print, or None) and
``source`` (where it is printed, or None).
"""

from __future__ import annotations

import html
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .checkpoint import write_atomically

FIELDS = {
    "name": str,
    "title": str,
    "command": str,
    "seeds": list,
    "config": dict,
    "versions": dict,
    "hardware": str,
    "cpu_seconds": Real,
    "metrics": dict,
    "curves": dict,
}
METRIC_FIELDS = ("value", "low", "high", "n", "unit", "published", "source")


def folder() -> Path:
    """Where full-size results are kept: ``book/results`` in a checkout, inside the package when it is installed."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "book" / "results"
    return checkout if checkout.is_dir() else package / "_results"


def load(name: str) -> dict[str, Any]:
    """The full-size result called ``name``; ``ValueError`` lists the names if there is none."""
    files = {path.stem: path for path in sorted(folder().glob("*.json"))}
    if name not in files:
        raise ValueError(f"no result is called {name!r}; there are {', '.join(files) or 'none yet'}")
    result = json.loads(files[name].read_text(encoding="utf-8"))
    check(result)
    return result


def save(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result whole or not at all; ``ValueError`` says what is wrong with its form. Arrays become lists."""
    check(result)
    if Path(path).stem != result["name"]:
        raise ValueError(f"the result {result['name']!r} must be in a file of that name, got {path}")
    try:
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False, default=lambda array: array.tolist())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the result {result['name']!r} does not fit into JSON: {error}") from error
    text = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: _one_line(numbers[0]), text)
    write_atomically(path, (text + "\n").encode())


def _one_line(numbers: str) -> str:
    # Only line breaks go, and in JSON no string holds one.
    return re.sub(r"\n\s*", " ", re.sub(r"(?<=\[)\n\s*|\n\s*(?=\])", "", numbers))


def check(result: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a result departs from the form that this module's docstring gives."""
    if set(result) != set(FIELDS):
        raise ValueError(f"a result has the fields {', '.join(FIELDS)}; got {', '.join(result)}")
    for field, kind in FIELDS.items():
        if not isinstance(result[field], kind):
            raise ValueError(f"a result's {field} must be of type {kind.__name__}, got {result[field]!r}")
    for label, metric in result["metrics"].items():
        _check_metric(label, metric)


def _check_metric(label: str, metric: dict[str, Any]) -> None:
    if not isinstance(metric, dict) or set(metric) != set(METRIC_FIELDS):
        raise ValueError(f"metric {label!r} needs the fields {', '.join(METRIC_FIELDS)}; got {metric!r}")
    value, low, high = (metric[field] for field in ("value", "low", "high"))
    bounds = [bound for bound in (low, high) if bound is not None]
    numbers = all(isinstance(x, Real) and math.isfinite(x) for x in (value, *bounds))
    if not numbers or len(bounds) == 1 or (bounds and not low <= value <= high):
        raise ValueError(f"metric {label!r} needs finite low <= value <= high, or no interval; got {low}, {value}, {high}")
    if not isinstance(metric["n"], Integral) or metric["n"] < 1:
        raise ValueError(f"metric {label!r} needs n of at least 1, got {metric['n']!r}")
    if not isinstance(metric["unit"], str):
        raise ValueError(f"metric {label!r} needs a unit, '' for none; got {metric['unit']!r}")
    if (metric["published"] is None) != (metric["source"] is None):
        raise ValueError(f"metric {label!r} needs published and source together, or neither")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number can depend on."""
    found = {"python": platform.python_version()}
    for package in ("metarl-lib", "torch", "numpy", "scipy", "gymnasium"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # the library itself, where it runs from a checkout
            continue
    return found


def hardware() -> str:
    """The processor's model and the number of cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} core{'s' if cores > 1 else ''}"


def _processor() -> str:
    if sys.platform == "linux":
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if model:
            return model[1].strip()
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    return platform.processor() or platform.machine()


class Table:
    """Rows of text under a header, as HTML in a notebook and as markdown or plain text elsewhere."""

    def __init__(self, header: list[str], rows: list[list[str]]) -> None:
        self.header, self.rows = header, rows

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.header)
        body = ""
        for label, *cells in self.rows:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            body += f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>\n'
        # The class that pandas uses: notebooks and the book's themes have a style for it.
        return f'<table class="dataframe">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>'


def table(result: dict[str, Any], rows: Iterable[str] | None = None) -> Table:
    """The metrics of a result, all or those labelled in ``rows``, with their intervals and the published figures."""
    metrics = result["metrics"]
    labels = list(metrics) if rows is None else list(rows)
    unknown = [label for label in labels if label not in metrics]
    if unknown:
        raise ValueError(f"{result['name']} has no metric {unknown[0]!r}; there are {', '.join(metrics)}")
    columns = {
        "": labels,
        "value [95% interval]": [_with_interval(metrics[label]) for label in labels],
        "unit": [metrics[label]["unit"] for label in labels],
        "n": [str(metrics[label]["n"]) for label in labels],
        "published": [_published(metrics[label]) for label in labels],
    }
    shown = {name: cells for name, cells in columns.items() if name == "" or any(cells)}
    return Table(list(shown), [list(row) for row in zip(*shown.values(), strict=True)])


def _with_interval(metric: dict[str, Any]) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if low is None or high == low:
        return _minus(f"{value:.4g}")
    decimals = max(0, 1 - math.floor(math.log10(high - low)))  # two digits of the interval's width
    return _minus(f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]")


def _published(metric: dict[str, Any]) -> str:
    if metric["published"] is None:
        return ""
    figure = metric["published"]
    return f"{figure if isinstance(figure, str) else _minus(f'{figure:.4g}')} ({metric['source']})"


def _minus(number: str) -> str:
    return number.replace("-", "−")
