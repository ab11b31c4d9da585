import re
from xml.etree import ElementTree

import pytest
import torch

from metarl_lib.curve_picture import FRAME, Panel, _during, _Film, animate
from metarl_lib.sinusoids import Examples

X = torch.tensor([-5.0, 0.0, 5.0])
FRAMES = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, -6.0], [100.0, 3.0, -100.0]])
SUPPORT = Examples(torch.tensor([-5.0, 5.0]), torch.tensor([6.0, 0.0]))
PANEL = Panel("a < b", X, FRAMES, torch.tensor([6.0, 3.0, 0.0]), SUPPORT, ["zero", "one", "two"], "maml")


def svg(panel):
    text = animate([panel])._repr_html_()
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.S)[0])  # noqa: S314 - our own picture


def of(root, tag, **attributes):
    found = root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [e for e in found if all(e.get(k) == v for k, v in attributes.items())]


def test_frames_are_drawn_in_order_and_what_is_outside_at_the_edge():
    (moving,) = of(svg(PANEL), "animate", attributeName="points")
    frames = moving.get("values").split(";")
    # Axes run from 8 to 392 pixels across and from 48 (y = 6) to 218 (y = -6) down.
    assert frames[0] == "8,133 200,133 392,133"
    assert frames[1] == "8,48 200,133 392,218"
    assert frames[2] == frames[3] == "8,48 200,90.5 392,218", "the last frame stays until the film starts again"
    times = [float(t) * float(moving.get("dur")[:-1]) for t in moving.get("keyTimes").split(";")]
    assert times[:3] == pytest.approx([0, FRAME, 2 * FRAME], abs=0.01)


def test_examples_are_there_from_the_start_or_arrive_one_by_one():
    dots = of(svg(PANEL), "circle")
    assert [(d.get("cx"), d.get("cy")) for d in dots] == 2 * [("8", "48"), ("392", "133")], "moving and still"
    assert not of(svg(PANEL), "circle/*")
    arriving = [d for d in of(svg(PANEL._replace(arriving=True)), "circle") if len(d)]
    first, second = (d[0].get("keyTimes").split(";") for d in arriving)
    assert float(first[1]) * 3 == pytest.approx(float(second[1]), rel=0.01), "at 1/2 and 3/2 frames"
    assert all(d[0].get("values") == "0;0;1;1" for d in arriving)


def test_one_note_is_seen_at_a_time():
    film = _Film(4.0)
    assert 'values="1;1;0;0" keyTimes="0;0.25;0.25;1"' in _during(-1, 1, film)
    assert 'values="0;0;1;1;0;0" keyTimes="0;0.25;0.25;0.5;0.5;1"' in _during(1, 2, film)
    assert 'values="0;0;1;1" keyTimes="0;0.5;0.5;1"' in _during(2, 4, film)
    notes = [t.text for t in of(svg(PANEL), "text") if t.get("font-size") == "14"]
    assert notes == ["zero", "one", "two", "two"], "the last is in the still, too"


def test_captions_are_escaped_and_read_out():
    assert svg(PANEL).get("aria-label") == "a < b: two"
    assert repr(animate([PANEL])) == "Animation: a < b: two"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": FRAMES[:, :2]}, r"frames must be \[frame, 3\]"),
        ({"truth": X[:2]}, r"truth \[3\]"),
        ({"notes": ["one"]}, "notes must be 3"),
        ({"support": Examples(X, X[:2])}, "support's x and y"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        animate([PANEL._replace(**change)])


def test_no_panel_and_no_range_are_refused():
    with pytest.raises(ValueError, match="at least one panel"):
        animate([])
    with pytest.raises(ValueError, match="y must be a range"):
        animate([PANEL], y=(1, 1))
