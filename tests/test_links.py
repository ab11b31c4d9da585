import json
import re
import shutil
from pathlib import Path

import links
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

EVERY_KIND = """\
[![tests](https://github.com/{0}/{1}/actions/workflows/tests.yml/badge.svg)](https://github.com/{0}/{1}/actions)
[Colab](https://colab.research.google.com/github/{0}/{1}/blob/main/chapters/08-cartpole.ipynb)
[Binder](https://mybinder.org/v2/gh/{0}/{1}/main?urlpath=lab/tree/chapters/08-cartpole.ipynb)
[Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/{0}/{1}/blob/main/chapters/08-cartpole.ipynb)
pip install "metarl-lib @ git+https://github.com/{0}/{1}"
git clone https://github.com/{0}/{1}.git && cd {1}
git clone git@github.com:{0}/{1}.git
Read it at https://{0}.github.io/{1}/.
"""
OTHERS = "https://github.com/Farama-Foundation/Gymnasium https://github.com/someone/{1}-notes cd chapters\n"


def tree(folder: Path, owner: str = "old", name: str = "book-name") -> Path:
    """A small checkout that mentions its address in every way there is."""
    mentions = (EVERY_KIND + OTHERS).format(owner, name)
    url = f"https://github.com/{owner}/{name}"
    notebook = json.dumps({"cells": [{"cell_type": "markdown", "source": mentions.splitlines(True)}]}, indent=1)
    for path, text in {
        "_config.yml": f"title: A title\nrepository:\n  # the one setting\n  url: {url}\n  branch: main\n",
        "pyproject.toml": f'[project.urls]\nRepository = "{url}"\n',
        "README.md": mentions,
        "chapters/08-cartpole.ipynb": notebook,
    }.items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_bytes(text.replace("\n", "\r\n").encode() if path == "README.md" else text.encode())
    return folder


def set_url(folder: Path, url: str) -> None:
    config = folder / "_config.yml"
    config.write_text(re.sub(r"(?m)^  url: .*$", f"  url: {url}", config.read_text(encoding="utf-8")), encoding="utf-8")


def run(monkeypatch, folder: Path, *arguments: str) -> int:
    monkeypatch.setattr(links, "ROOT", folder)
    monkeypatch.setattr("sys.argv", ["links.py", *arguments])
    return links.main()


def test_every_mention_in_this_repository_agrees():
    assert [mention for mention in links.mentions(ROOT) if not mention.agrees] == []


@pytest.mark.parametrize("path", ["README.md", "CITATION.cff", "pyproject.toml", "_config.yml"])
def test_the_address_stands_where_it_is_needed(path):
    assert path in {mention.path.as_posix() for mention in links.mentions(ROOT)}


def test_every_chapter_can_be_opened_and_installed_from_its_address():
    repository, _ = links.settings(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for entry in yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["chapters"]:
        notebook = ROOT / f"{entry['file']}.ipynb"
        if notebook.exists() and notebook.parent.name == "chapters":
            path = notebook.relative_to(ROOT).as_posix()
            colab = f"https://colab.research.google.com/github/{repository.owner}/{repository.name}/blob/main/{path}"
            assert colab in readme, f"README.md has no Colab link for {path}"
            cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
            first = "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])
            assert f"git+https://github.com/{repository.owner}/{repository.name}" in first, f"{path} cannot install itself"


def test_changing_the_setting_changes_every_mention_and_nothing_else(tmp_path, monkeypatch):
    moved = tree(tmp_path / "moved")
    set_url(moved, "https://github.com/New-Owner/meta.rl")
    assert run(monkeypatch, moved) == 0
    expected = tree(tmp_path / "expected", "New-Owner", "meta.rl")
    for path in links.places(expected):
        relative = path.relative_to(expected)
        wanted = path.read_bytes().replace(b"someone/meta.rl-notes", b"someone/book-name-notes")
        assert (moved / relative).read_bytes() == wanted, relative
    assert run(monkeypatch, moved, "--check") == 0


def test_changing_the_setting_reaches_this_repository_s_own_files(tmp_path, monkeypatch):
    for path in links.places(ROOT):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    before = links.settings(ROOT)[0]
    count = len(list(links.mentions(tmp_path)))
    set_url(tmp_path, "https://github.com/somebody/another-name")
    assert run(monkeypatch, tmp_path) == 0
    after = list(links.mentions(tmp_path))
    assert len(after) == count
    assert all(mention.agrees for mention in after)
    for path in links.places(tmp_path):
        assert f"{before.owner}/{before.name}" not in path.read_text(encoding="utf-8"), path
        assert f"{before.owner}.github.io" not in path.read_text(encoding="utf-8"), path


def test_check_names_the_file_and_line_that_disagree_and_changes_nothing(tmp_path, monkeypatch, capsys):
    folder = tree(tmp_path)
    readme = folder / "README.md"
    readme.write_bytes(readme.read_bytes().replace(b"v2/gh/old/", b"v2/gh/stale/"))
    before = readme.read_bytes()
    assert run(monkeypatch, folder, "--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "README.md:3: /gh/stale/book-name is not the repository in _config.yml; `make links` mends it"
    ]
    assert readme.read_bytes() == before


@pytest.mark.parametrize("url", ["https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b.git", "''"])
def test_an_address_that_cannot_be_one_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, url):
    folder = tree(tmp_path)
    set_url(folder, url)
    assert run(monkeypatch, folder) == 1
    assert re.fullmatch(
        r"repository\.url in _config\.yml is '.*', expected https://github\.com/OWNER/NAME\n", capsys.readouterr().err
    )
