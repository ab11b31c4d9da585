"""The explorable figure: every combination has its picture, and in a real browser the controls choose it."""

from __future__ import annotations

import itertools
import re

import matplotlib.pyplot as plt
import pytest

from metarl_lib.explore import explore

AXES = {"ε": (0.0, 0.1, 0.5), "algorithm": ("SARSA", "Q-learning")}


def drawing(key) -> str:
    return f'<svg viewBox="0 0 40 10"><text>{key[0]} {key[1]}</text></svg>'


def pictures() -> dict:
    return {key: drawing(key) for key in itertools.product(*AXES.values())}


def test_every_picture_is_there_and_one_is_shown():
    html = explore(pictures(), AXES, "values & paths", start=(0.1, "SARSA"))._repr_html_()
    assert html.count("<svg") == 6 and html.count("<div hidden>") == 5
    shown = re.search(r"<div><svg role=\"img\" aria-label=\"([^\"]*)\".*?<text>(.*?)</text>", html)
    assert shown.groups() == ("values &amp; paths: ε 0.1, algorithm SARSA", "0.1 SARSA")
    assert "http" not in html and "<script" not in html and " id=" not in html


def test_a_figure_becomes_a_picture_with_its_size_and_is_closed():
    figures = {(n,): plt.figure(figsize=(2, 1), dpi=50) for n in (1, 2)}
    html = explore(figures, {"n": (1, 2)}, "figures", descriptions={(1,): "one", (2,): "two"})._repr_html_()
    assert re.findall(r'width="(\d+)" height="(\d+)" alt="(\w+)"', html) == [("192", "96", "one"), ("192", "96", "two")]
    assert not plt.get_fignums()


def test_wrong_use_is_one_clear_sentence():
    some = pictures()
    del some[0.5, "SARSA"]
    with pytest.raises(ValueError, match=r"^pictures has no entry for \(0.5, 'SARSA'\), 1 of 6 are missing$"):
        explore(some, AXES, "x")
    with pytest.raises(ValueError, match=r"^pictures has an entry for \(9, 'SARSA'\), which is no combination of the axes ε, "):
        explore(pictures() | {(9, "SARSA"): ""}, AXES, "x")
    with pytest.raises(ValueError, match=r"^start must be a combination of the axes, got \(9,\)$"):
        explore(pictures(), AXES, "x", start=(9,))
    with pytest.raises(ValueError, match="^axes must hold at least one axis"):
        explore({}, {}, "x")
    with pytest.raises(ValueError, match="^a picture must be a matplotlib figure or start with <svg, got 'hello'"):
        explore({(1,): "hello"}, {"n": (1,)}, "x")
    with pytest.raises(ValueError, match="^a picture's SVG must have no ids"):
        explore({(1,): '<svg id="a"></svg>'}, {"n": (1,)}, "x")


@pytest.mark.browser
def test_the_controls_choose_the_picture(browser):
    page = browser.new_page()
    two = explore(pictures(), AXES, "first")._repr_html_() + explore(pictures(), AXES, "second")._repr_html_()
    page.set_content(f"<!doctype html><html lang='en'><body>{two}</body></html>")
    first, second = page.locator(".mrl-explore").nth(0), page.locator(".mrl-explore").nth(1)

    def visible(box):
        return [text for text in box.locator("text").all_text_contents() if box.locator(f"text:text-is('{text}')").is_visible()]

    assert visible(first) == ["0.0 SARSA"]
    first.get_by_role("slider", name="ε").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert visible(first) == ["0.5 SARSA"] and first.locator("output").text_content() == "0.5"
    first.get_by_role("combobox", name="algorithm").select_option("Q-learning")
    assert visible(first) == ["0.5 Q-learning"]
    assert visible(second) == ["0.0 SARSA"]
    page.close()
