import nbformat
import notebooks


def write(path, *sources, tags=()):
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_outputs_are_stored_without_anything_that_differs_from_run_to_run(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.ipynb", "import pathlib\nprint(pathlib.Path('a.ipynb').exists())", "1 + 1")
    monkeypatch.setattr("sys.argv", ["notebooks.py", str(path)])
    assert notebooks.main() == 0
    assert str(path) in capsys.readouterr().out
    first = path.read_bytes()
    printed, two = nbformat.read(path, as_version=4).cells
    assert printed.outputs[0].text == "True\n", "a notebook runs in its own folder"
    assert two.outputs[0].data == {"text/plain": "2"}
    assert notebooks.main() == 0
    assert path.read_bytes() == first


def test_a_failing_cell_leaves_the_file_as_it_was(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.ipynb", "1 + 1", "1 / 0")
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["notebooks.py", str(path)])
    assert notebooks.main() == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before
