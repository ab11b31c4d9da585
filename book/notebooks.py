"""Run notebooks from top to bottom and store their outputs: ``python book/notebooks.py chapters/08-cartpole.ipynb``.

Unlike ``jupyter execute``, this writes neither the time of day nor this machine's Python version into the file, so that a
second run with equal outputs leaves it unchanged. Without arguments it runs every chapter and the page of results. Each
one's wall-clock is printed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    for path in map(Path, sys.argv[1:] or sorted([*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("book/*.ipynb")])):
        start = time.perf_counter()
        try:
            run(path)
        except CellExecutionError as error:
            print(f"{path} is unchanged, since a cell failed:\n{error}", file=sys.stderr)
            return 1
        print(f"{path}: {time.perf_counter() - start:.0f} s")
    return 0


def run(path: Path) -> None:
    """Run one notebook in its own folder and, once every cell has passed, write it back."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", record_timing=False, resources=resources, timeout=600).execute()
    notebook.metadata.language_info.pop("version", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    sys.exit(main())
