"""A chapter started the way Colab starts it: a host with packages of its own, and the first cell to install the book's."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.ipynb"))  # these have a launch button too
REPORT = "import metarl_lib, torch; print(metarl_lib.__file__); print(metarl_lib.results.folder())"


def code_cells(chapter: Path) -> list:
    return [cell for cell in nbformat.read(chapter, as_version=4).cells if cell.cell_type == "code"]


def packages(python: Path) -> dict[str, str]:
    """What an import in the host finds, by distribution: name and version."""
    program = "import json; from importlib.metadata import distributions, version; "
    program += "print(json.dumps({d.name: version(d.name) for d in distributions()}))"
    listed = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout
    return {name.lower().replace("_", "-"): found for name, found in json.loads(listed).items()}


@pytest.mark.parametrize("chapter", [*CHAPTERS, *PAGES], ids=lambda path: path.stem)
def test_the_first_cell_installs_on_colab_and_kaggle_and_nowhere_else(chapter):
    source = code_cells(chapter)[0].source
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    assert f'"metarl-lib @ git+{address}"' in source, "quoted, and from the book's own address"
    assert "COLAB_RELEASE_TAG" in source
    assert "KAGGLE_KERNEL_RUN_TYPE" in source
    assert "upgrade" not in source


@pytest.mark.slow
def test_a_bare_host_gets_the_library_and_keeps_what_it_has(tmp_path, monkeypatch):
    host = tmp_path / "host"
    venv.create(host, with_pip=True)
    python = host / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # What venv brings may be older than what the host's packages ask for, which no real host is.
    subprocess.run([python, "-m", "pip", "uninstall", "--yes", "--quiet", "setuptools"], check=True)
    library = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                                  check=True, capture_output=True, text=True).stdout.strip())  # fmt: skip
    # The host's own packages are these; a plain path, so that this checkout's editable install is not among them.
    (library / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before = packages(python)
    assert "torch" in before

    kernel = tmp_path / "jupyter" / "kernels" / "host"
    kernel.mkdir(parents=True)
    spec = {
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "host",
        "language": "python",
    }
    (kernel / "kernel.json").write_text(json.dumps(spec))
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    environment = {
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "COLAB_RELEASE_TAG": "test",
        "GIT_CONFIG_COUNT": "1",  # the book's address is this checkout, for git alone
        "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    chapter = nbformat.read(CHAPTERS[-1], as_version=4)
    install, imports = [cell for cell in chapter.cells if cell.cell_type == "code"][:2]
    report = nbformat.v4.new_code_cell(REPORT)
    notebook = nbformat.v4.new_notebook(cells=[install, imports, report])
    NotebookClient(notebook, timeout=300, kernel_name="host", resources={"metadata": {"path": str(tmp_path)}}).execute()

    where = notebook.cells[-1].outputs[0].text.splitlines()
    assert all(Path(line).is_relative_to(library) for line in where), where
    after = packages(python)
    assert "metarl-lib" in after
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    assert not changed, "what the host had stays as it was"
