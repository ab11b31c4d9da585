import re
from xml.etree import ElementTree

import gymnasium
import pytest
import torch

from metarl_lib.cliff_picture import CLIFF, GOAL, START, Panel, Walk, animate, values_picture, walk

SVG = "{http://www.w3.org/2000/svg}"
UP, RIGHT, DOWN, LEFT = range(4)  # Gymnasium's order
FALLEN = Walk((36, 24, 36, 37, 36, 24), -103.0, False)
ARRIVED = Walk((36, 24, *range(25, 36), 47), -13.0, True)


def values_of(policy: dict[int, int]) -> torch.Tensor:
    """Values whose greedy policy takes these actions, and goes up elsewhere."""
    q = torch.zeros(48, 4)
    q[:, UP] = 1
    for cell, action in policy.items():
        q[cell] = torch.nn.functional.one_hot(torch.tensor(action), 4)
    return q


def pictures(panels):
    page = animate(panels)._repr_html_()
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]  # noqa: S314


def group(svg, name):
    (found,) = (g for g in svg.iter(f"{SVG}g") if g.get("class") == name)
    return found


def test_greedy_walkers_walk_as_they_do_in_gymnasium():
    edge = values_of(dict.fromkeys(range(24, 35), RIGHT) | {35: DOWN})
    into_the_cliff = values_of({START: RIGHT})
    over_the_edge = values_of({24: RIGHT, 25: DOWN})
    walks = walk(torch.stack((edge, into_the_cliff, over_the_edge)), 0.0, torch.Generator().manual_seed(0), max_steps=13)
    assert walks[0] == Walk((36, 24, *range(25, 36), 47), -13.0, True)
    assert walks[1] == Walk((36, *(37, 36) * 13), -1300.0, False)
    assert walks[2] == Walk((36, *(24, 25, 37, 36) * 4, 24), -4 * 102.0 - 1, False)
    env = gymnasium.make("CliffWalking-v1")
    position, _ = env.reset(seed=0)
    for cell in walks[0].cells[1:]:
        position, reward, terminated, _, _ = env.step(int(edge[position].argmax()))
        assert (position, reward) == (cell, -1)
    assert terminated
    with pytest.raises(ValueError, match=r"q must be \[walker, 48, 4\], got shape \(48, 4\)"):
        walk(edge, 0.0, torch.Generator())


def test_random_walkers_fall_only_where_there_is_an_edge():
    walks = walk(torch.zeros(20, 48, 4), 1.0, torch.Generator().manual_seed(0))
    assert sum(cell in CLIFF for w in walks for cell in w.cells) > 20
    for w in walks:
        falls = [(w.cells[i - 1], cell, w.cells[i + 1]) for i, cell in enumerate(w.cells) if cell in CLIFF]
        assert all(after == START and (before, cell) in {(36, 37), (cell - 12, cell)} for before, cell, after in falls)
        steps = len(w.cells) - 1 - len(falls)
        assert w.earned == -(steps - len(falls)) - 100 * len(falls)
        assert steps <= 100
        assert w.arrived == (w.cells[-1] == GOAL)


def test_walkers_move_from_cell_to_cell_and_stay_where_they_end():
    (svg,) = pictures([Panel("a", [FALLEN, ARRIVED], "sarsa")])
    fallen, arrived = group(svg, "moving").findall(f"{SVG}circle")
    for circle, w, aside in ((fallen, FALLEN, -7), (arrived, ARRIVED, 7)):
        assert circle.get("fill") == "#D55E00"
        (animation,) = circle.findall(f"{SVG}animateTransform")
        places = [tuple(map(float, place.split())) for place in animation.get("values").split(";")]
        assert len(places) == 14 + 8  # thirteen steps, and a pause
        for (x, y), cell in zip(places, w.cells, strict=False):
            assert x == pytest.approx(8 + 32 * (cell % 12) + 16 + aside, abs=0.51)
            assert y == pytest.approx(32 * (cell // 12) + 20 + aside / 2, abs=0.51)
        assert set(places[len(w.cells) - 1 :]) == {places[-1]}
        assert float(animation.get("dur")[:-1]) == pytest.approx(21 * 0.16)


def test_a_fall_leaves_a_cross_from_the_moment_it_happens():
    (svg,) = pictures([Panel("a", [FALLEN, ARRIVED], "sarsa")])
    (cross,) = [p for p in group(svg, "moving").iter(f"{SVG}path") if p.get("transform")]
    assert cross.get("transform") == "translate(49 112)"  # cell 37, the first walker's side of it
    (appears,) = cross.findall(f"{SVG}animate")
    assert appears.get("values") == "0;0;1;1"
    assert [float(t) * 3.36 for t in appears.get("keyTimes").split(";")] == pytest.approx([0, 0.48, 0.53, 3.36], abs=0.001)
    still = group(svg, "still")
    assert [p.get("transform") for p in still.iter(f"{SVG}path") if p.get("transform")] == ["translate(49 112)"]
    assert not list(still.iter(f"{SVG}animate"))
    lines = [p.get("d") for p in still.iter(f"{SVG}path") if p.get("stroke-linejoin")]
    assert [line.count("L") for line in lines] == [5, 13]


def test_panels_share_one_clock_and_say_what_they_show():
    panels = [Panel("A & B", [ARRIVED], "q-learning"), Panel("b", [FALLEN, FALLEN], "sarsa")]
    svgs = pictures(panels)
    assert {a.get("dur") for svg in svgs for a in svg.iter() if a.get("dur")} == {"3.36s"}
    assert svgs[0].get("aria-label") == "A & B: 1 walker, 0 falls, mean return −13"
    assert repr(animate(panels)) == (
        "Animation: A & B: 1 walker, 0 falls, mean return −13; b: 2 walkers, 2 falls, mean return −103"
    )
    page = animate(panels, label='the "cliff"')._repr_html_()
    assert 'aria-label="the &quot;cliff&quot;"' in page
    assert not re.findall(r"href|url\(|\bsrc=|\bid=|@import|<script", page)
    with pytest.raises(ValueError, match="panels must hold at least one panel, and each of them at least one walk"):
        animate([Panel("a", [], "sarsa")])


def test_values_and_walks():
    values = -torch.arange(48.0)
    svg = values_picture(values, [ARRIVED, FALLEN], "q-learning", "one\ntwo < three")
    assert svg == values_picture(values, [ARRIVED, FALLEN], "q-learning", "one\ntwo < three")
    root = ElementTree.fromstring(svg)  # noqa: S314
    text = [t.text for t in root.iter(f"{SVG}text")]
    assert text[:4] == ["one", "two < three", "S", "G"]
    assert text[4:] == ["0", *(f"−{cell}" for cell in range(1, 37))]
    shades = [float(p.get("opacity")) for p in root.iter(f"{SVG}path") if p.get("opacity") and "h32v32" in p.get("d")]
    assert len(shades) == 37
    assert shades == sorted(shades)
    assert shades[-1] == pytest.approx(0.02 + 0.38 * 36 / 40, abs=0.006)
    assert [p.get("transform") for p in root.iter(f"{SVG}path") if p.get("transform")] == ["translate(31 87.5)"]
    assert "<style" not in svg and " id=" not in svg and len(svg) < 6000
    with pytest.raises(ValueError, match=r"values must be \[48\], got shape \(3,\)"):
        values_picture(torch.zeros(3), [], "sarsa")


@pytest.mark.browser
@pytest.mark.parametrize("quiet", [False, True])
def test_it_moves_in_a_browser_unless_the_reader_would_rather_not(browser, quiet):
    page = browser.new_page(reduced_motion="reduce" if quiet else "no-preference")
    page.set_content(animate([Panel("a", [ARRIVED], "sarsa")])._repr_html_())
    where = "document.querySelector('.moving circle').getCTM().e"
    before = page.evaluate(where)
    page.wait_for_timeout(400)
    assert page.evaluate(where) > before
    assert (page.locator(".still").is_visible(), page.locator(".moving").is_visible()) == (quiet, not quiet)
    page.close()
