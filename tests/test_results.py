import copy
import platform
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from metarl_lib import results

METRIC = {"value": -40.44, "low": -44.1, "high": -36.3, "n": 10, "unit": "return", "published": None, "source": None}
RESULT = {
    "name": "sample",
    "title": "A sample [of two]",
    "command": "python -m metarl_lib reproduce sample",
    "seeds": [0, 1],
    "config": {"tasks": 20, "note": "[ spaces, and\n a line break ]"},
    "versions": {"python": "3"},
    "hardware": "a processor, 2 cores",
    "cpu_seconds": 1.5,
    "metrics": {
        "after 0 steps": METRIC,
        "after 1 step": METRIC | {"published": -11.68, "source": "somebody 2017, table 4"},
    },
    "curves": {"MAML": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]},
}


@pytest.fixture
def result():
    return copy.deepcopy(RESULT)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    return tmp_path


def test_what_is_saved_is_loaded(result, folder):
    results.save(result, folder / "sample.json")
    assert results.load("sample") == RESULT


def test_the_file_reads_well_line_by_line(result, folder):
    results.save(result, folder / "sample.json")
    lines = [line.strip() for line in (folder / "sample.json").read_text(encoding="utf-8").splitlines()]
    assert '"seeds": [0, 1],' in lines
    assert "[1.0, 2.0, 3.0]," in lines
    assert '"title": "A sample [of two]",' in lines


def test_arrays_become_lists(result, folder):
    result["curves"] = {"a": np.eye(2), "b": torch.arange(3), "c": np.float32(0.5)}
    results.save(result, folder / "sample.json")
    assert results.load("sample")["curves"] == {"a": [[1, 0], [0, 1]], "b": [0, 1, 2], "c": 0.5}


def test_an_unknown_name_lists_the_names(result, folder):
    with pytest.raises(ValueError, match="no result is called 'sample'; there are none yet"):
        results.load("sample")
    for name in ("sample", "another"):
        results.save(result | {"name": name}, folder / f"{name}.json")
    with pytest.raises(ValueError, match=r"no result is called '\.\./sample'; there are another, sample"):
        results.load("../sample")


def test_results_are_found_in_a_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "metarl_lib"
    package.mkdir()
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    assert results.folder() == (package / "_results").resolve()
    (tmp_path / "book" / "results").mkdir(parents=True)
    assert results.folder() == (tmp_path / "book" / "results").resolve()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"extra": 1}, "a result has the fields name, title, .*; got .*extra"),
        ({"seeds": 3}, "a result's seeds must be of type list, got 3"),
        ({"cpu_seconds": "long"}, "a result's cpu_seconds must be of type Real, got 'long'"),
        ({"name": "other"}, "the result 'other' must be in a file of that name"),
        ({"curves": {"a": [float("nan")]}}, "the result 'sample' does not fit into JSON: Out of range"),
        ({"curves": {"a": object()}}, "the result 'sample' does not fit into JSON"),
    ],
)
def test_a_result_of_the_wrong_form_is_not_written(result, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        results.save(result | change, tmp_path / "sample.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"low": -30.0}, "needs finite low <= value <= high, or no interval; got -30.0, -40.44, -36.3"),
        ({"low": None}, "needs finite low <= value <= high"),
        ({"value": float("nan"), "low": None, "high": None}, "needs finite low"),
        ({"value": "-40"}, "needs finite low"),
        ({"n": 0}, "needs n of at least 1, got 0"),
        ({"unit": None}, "needs a unit, '' for none; got None"),
        ({"published": 3}, "needs published and source together, or neither"),
        ({"seed": 3}, "needs the fields value, low, high, n, unit, published, source; got"),
    ],
)
def test_a_metric_of_the_wrong_form(result, change, sentence):
    result["metrics"]["after 1 step"] = METRIC | change
    with pytest.raises(ValueError, match=f"metric 'after 1 step' {sentence}"):
        results.check(result)


def test_table_shows_intervals_and_published_figures(result):
    assert repr(results.table(result)) == (
        "               value [95% interval]  unit    n   published\n"
        "after 0 steps  −40.4 [−44.1, −36.3]  return  10\n"
        "after 1 step   −40.4 [−44.1, −36.3]  return  10  −11.68 (somebody 2017, table 4)"
    )


def test_table_of_some_rows_leaves_empty_columns_out(result):
    table = results.table(result, ["after 0 steps"])
    assert table._repr_markdown_() == (
        "|  | value [95% interval] | unit | n |\n| --- | --- | --- | --- |\n"
        "| after 0 steps | −40.4 [−44.1, −36.3] | return | 10 |"
    )
    with pytest.raises(ValueError, match="sample has no metric 'after 2'; there are after 0 steps, after 1 step"):
        results.table(result, ["after 2"])


def test_table_in_html_is_well_formed_and_escaped(result):
    result["metrics"] = {"<b>|</b>": METRIC}
    table = results.table(result)
    root = ElementTree.fromstring(table._repr_html_())  # noqa: S314
    assert [cell.text for cell in root.iter("th")][-1] == "<b>|</b>"
    assert [cell.text for cell in root.iter("td")] == ["−40.4 [−44.1, −36.3]", "return", "10"]
    assert "| <b>\\|</b> |" in table._repr_markdown_()


@pytest.mark.parametrize(
    "value, low, high, shown",
    [
        (198.73, 197.9, 199.3, "198.7 [197.9, 199.3]"),
        (0.6712, 0.6314, 0.7109, "0.671 [0.631, 0.711]"),
        (1234.5, 1180.0, 1290.0, "1234 [1180, 1290]"),
        (-0.00123, -0.00125, -0.00121, "−0.001230 [−0.001250, −0.001210]"),
        (200.0, 200.0, 200.0, "200"),
        (0.74444, None, None, "0.7444"),
    ],
)
def test_figures_have_the_digits_that_their_interval_supports(value, low, high, shown):
    assert results._with_interval({"value": value, "low": low, "high": high}) == shown


def test_hardware_and_versions():
    assert re.fullmatch(r".+, \d+ cores?", results.hardware())
    versions = results.versions()
    assert torch.__version__.startswith(versions["torch"])
    assert versions["python"] == platform.python_version()
