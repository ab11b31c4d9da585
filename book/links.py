"""Write the book's address wherever it is mentioned, from one setting: ``repository.url`` in ``_config.yml``.

``python book/links.py`` rewrites every badge, launch link, install line and citation; with ``--check`` it changes nothing,
names each file and line that disagrees, and fails if there is one. An address counts as the book's own when its repository
has the name in the setting, or the name that was written last time, which ``pyproject.toml`` remembers.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "_config.yml",
    "pyproject.toml",
    "*.md",
    "CITATION.cff",
    "book/**/*.md",
    "book/**/*.bib",
    "chapters/**/*.ipynb",
    "metarl_lib/**/*.py",
)
ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")


class Repository(NamedTuple):
    owner: str
    name: str


class Mention(NamedTuple):
    """A place where the book's address stands, and whether it is the one in the setting."""

    path: Path
    line: int
    text: str
    agrees: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a mention disagrees")
    check = parser.parse_args().check
    try:
        wrong = [mention for mention in mentions(ROOT) if not mention.agrees]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not check:
        rewrite(ROOT)
        print(f"{len(wrong)} mentions rewritten")
        return 0
    for mention in wrong:
        print(f"{mention.path}:{mention.line}: {mention.text} is not the repository in _config.yml; `make links` mends it")
    return 1 if wrong else 0


def mentions(root: Path) -> Iterator[Mention]:
    """Every mention of the book's address below ``root``."""
    wanted, pattern = settings(root)
    for path in places(root):
        text = read(path)
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield Mention(path.relative_to(root), line, found[0], found[0] == corrected(found, wanted))


def rewrite(root: Path) -> None:
    """Make every mention below ``root`` agree with the setting, and touch nothing else in the files."""
    wanted, pattern = settings(root)
    for path in places(root):
        before = read(path)
        after = pattern.sub(lambda found: corrected(found, wanted), before)
        if after != before:
            path.write_bytes(after.encode())


def settings(root: Path) -> tuple[Repository, re.Pattern[str]]:
    """The repository that is set, and the pattern that finds its mentions."""
    url = (yaml.safe_load(read(root / "_config.yml")).get("repository") or {}).get("url")
    address = ADDRESS.fullmatch(str(url))
    if not address or address[2].endswith(".git"):
        raise ValueError(f"repository.url in _config.yml is {url!r}, expected https://github.com/OWNER/NAME")
    written = re.search(rf'^Repository = "{ADDRESS.pattern}"', read(root / "pyproject.toml"), re.MULTILINE)
    names = "|".join(re.escape(name) for name in sorted({address[2], (written or address)[2]}, reverse=True))
    end = r"(?![\w-])"
    return Repository(*address.groups()), re.compile(
        rf"(?P<host>github\.com[/:]|/github/|/gh/)[\w.-]+/(?:{names}){end}"
        rf"|(?P<pages>[\w-]+\.github\.io/)(?:{names}){end}"
        rf"|(?P<enter>\bcd )(?:{names}){end}"
    )


def corrected(found: re.Match[str], wanted: Repository) -> str:
    """What a mention says when it agrees with the setting."""
    if found["host"]:
        return f"{found['host']}{wanted.owner}/{wanted.name}"
    if found["pages"]:
        return f"{wanted.owner}.github.io/{wanted.name}"
    return f"{found['enter']}{wanted.name}"


def places(root: Path) -> list[Path]:
    """The files that may mention the address; ``pyproject.toml``, which remembers the last one, comes last."""
    found = {path for place in PLACES for path in root.glob(place) if ".ipynb_checkpoints" not in path.parts}
    return sorted(found, key=lambda path: (path.name == "pyproject.toml", path))


def read(path: Path) -> str:
    return path.read_bytes().decode()  # as it is: line endings are kept


if __name__ == "__main__":
    sys.exit(main())
