"""Pictures of memories: what is drawn is the attention that was given."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from metarl_lib import memory_picture
from metarl_lib.explore import explore

SVG = "{http://www.w3.org/2000/svg}"


def drawn(panel, query=0):
    return ElementTree.fromstring(memory_picture.still(panel, query))  # noqa: S314


@pytest.fixture
def panel():
    """Two classes, three slots: 0.25 and 0.35 for class 0 together outvote 0.4 for class 1; the second query is read wrongly."""
    pictures = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    attention = torch.tensor([[0.25, 0.4, 0.35], [1.0, 0.0, 0.0]])
    return memory_picture.Panel("before", pictures[:3], torch.tensor([0, 1, 0]), pictures[3:], torch.tensor([0, 1]), attention)


def test_a_class_is_as_probable_as_its_slots_together(panel):
    assert torch.allclose(memory_picture.probabilities(panel), torch.tensor([[0.6, 0.4], [1.0, 0.0]]))
    assert memory_picture.describe(panel) == "before: 3 stored pictures, 1 of 2 queries answered rightly"


def test_lines_are_as_wide_as_the_attention_and_end_at_their_tile(panel):
    root = drawn(panel)
    lines = [(float(p.get("stroke-width")), p.get("d").split("L")[1]) for p in root.iter(f"{SVG}path")]
    tiles = [tuple(float(i.get(k)) for k in ("x", "y", "width")) for i in root.iter(f"{SVG}image")]
    assert [width for width, _ in lines] == [3.0, 4.8, 4.2]
    for (_, end), (x, y, side) in zip(lines, tiles, strict=False):
        assert [float(v) for v in end.split()] == [x + side / 2, y + side]
    assert len(tiles) == 4 and tiles[0][0] == tiles[2][0] != tiles[1][0] and tiles[2][1] > tiles[0][1]
    one = drawn(panel, 1)
    assert [float(p.get("stroke-width")) for p in one.iter(f"{SVG}path")] == [12.0], "nothing is drawn where nothing goes"


def test_the_guess_is_bold_and_the_right_answer_underlined(panel):
    for query, verdict in ((0, "✓"), (1, "✗")):
        texts = list(drawn(panel, query).iter(f"{SVG}text"))
        assert verdict in [t.text for t in texts]
        bold = [t.text for t in texts if t.get("font-weight") == "700"]
        right = [t.text for t in texts if t.get("text-decoration")]
        assert (bold, right) == ((["0.60"], ["0.60"]) if query == 0 else (["1.00"], ["0.00"]))


def test_a_tile_holds_its_picture(panel):
    image = next(drawn(panel).iter(f"{SVG}image"))
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.get("href").split(",")[1]))))
    assert np.abs(grey / 255 - (1 - panel.stored[0].numpy())).max() <= 0.5 / 15 + 1e-6


def test_letters_are_written_in_order_and_queries_read_one_after_another(panel):
    markup = memory_picture.animate([panel])._repr_html_()
    times = [
        [float(t) for t in m.split(";")] for m in re.findall(r'attributeName="opacity" values="[^"]*" keyTimes="([^"]*)"', markup)
    ]
    period = 3 * memory_picture.WRITING + 2 * memory_picture.READING
    assert all(t == sorted(t) and t[0] == 0 and t[-1] == 1 for t in times)
    starts = [t[1] * period for t in times]
    assert starts == pytest.approx([0, 0.7, 1.4, 2.1, 4.1], abs=1e-3)
    assert ' id="' not in markup and 'class="still"' in markup


def test_it_can_be_explored(panel):
    pictures = {(q,): memory_picture.still(panel, q) for q in (0, 1)}
    page = explore(pictures, {"query": (0, 1)}, "a memory", descriptions={(0,): "read rightly"})._repr_html_()
    assert [svg.count("aria-label=") for svg in re.findall("<svg[^>]*>", page)] == [1, 1]


def test_wrong_shapes_are_refused(panel):
    with pytest.raises(ValueError, match=r"attention must be \[query, slot\], here \[2, 3\]"):
        memory_picture.still(panel._replace(attention=panel.attention[:, :2]))
    with pytest.raises(ValueError, match="panels must hold at least one panel"):
        memory_picture.animate([])
