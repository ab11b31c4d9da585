from xml.etree import ElementTree

import numpy as np
import pytest

from metarl_lib.explore import explore
from metarl_lib.sketch import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart, histogram

SVG = "{http://www.w3.org/2000/svg}"
FOOT, END = HEIGHT - BOTTOM, WIDTH - RIGHT


def draw(*lines, **changes):
    axes = dict(x=(0, 10), y=(0, 4), xlabel="time", ylabel="value", xticks=(0, 10), yticks=(0, 2, 4))
    return chart(lines, **axes | changes)


def points(svg, tag="polyline"):
    (shape,) = ElementTree.fromstring(svg).iter(SVG + tag)  # noqa: S314
    return [tuple(map(float, point.split(","))) for point in shape.get("points").split()]


def texts(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


def test_a_line_is_where_it_should_be():
    svg = draw(Line([0, 5, 10], [0, 2, 4], "#000"))
    assert points(svg) == [(LEFT, FOOT), ((LEFT + END) / 2, (TOP + FOOT) / 2), (END, TOP)]


def test_a_logarithmic_axis():
    svg = draw(Line([0, 10], [1e-2, 1e4], "#000"), y=(1e-2, 1e4), yticks=(1e-2, 10, 1e4), log_y=True)
    assert points(svg) == [(LEFT, FOOT), (END, TOP)]
    (_, middle) = points(draw(Line([0], [10], "#000"), y=(1e-2, 1e4), yticks=(), log_y=True))[0]
    assert middle == pytest.approx((TOP + FOOT) / 2, abs=0.051)
    assert [text for text in texts(svg) if text.startswith("10")] == ["10", "10⁻²", "10¹", "10⁴"]


def test_what_lies_outside_is_cut_off():
    svg = draw(Line([-5, 20, 3, 4], [-1, 9, np.inf, np.nan], "#000"))
    assert points(svg)[:2] == [(LEFT, FOOT), (END, TOP)]
    assert [y for _, y in points(svg)[2:]] == [TOP, TOP]


def test_a_histogram_holds_every_value_once():
    line = histogram([0.5, 0.5, 1.5, 7.0], [0, 1, 2], "#000", scale=4)
    assert line.x.tolist() == [0, 1, 1, 2]
    assert line.y.tolist() == [2, 2, 2, 2]  # the 7 is in the last bin
    assert points(draw(line), "polygon")[0] == (LEFT, FOOT)


def test_words_are_escaped_and_minus_signs_are_real():
    svg = draw(Line([0], [0], "#000", label="<a>"), xlabel="a & b", xticks=(-1,), x=(-1, 1), title="t")
    assert texts(svg) == ["−1", "0", "2", "4", "a & b", "value", "<a>", "t"]


def test_it_fits_into_an_explorer_and_the_theme():
    svg = draw(Line(np.arange(11), np.arange(11), "#000", "one", "6 3"), histogram([1], [0, 2], "#000", "two"))
    assert 'width="460"' in explore({(1,): svg}, {"n": [1]}, "label")._repr_html_()
    assert 'stroke="currentColor"' in svg
    assert len(svg) < 4000


@pytest.mark.parametrize("changes", [dict(x=(1, 1)), dict(y=(2, 1)), dict(y=(0, 1), log_y=True)])
def test_ranges_that_are_empty(changes):
    with pytest.raises(ValueError, match="x and y must be ranges from low to high, positive where logarithmic"):
        draw(**changes)
