import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from metarl_lib.maze import Maze, Trial, play, systematic
from metarl_lib.maze_picture import Panel, animate, timeline

SVG = "{http://www.w3.org/2000/svg}"
WORLD = Maze()
TASKS = WORLD.all_tasks()
REACHED, CHESTS = TASKS.reached[0], TASKS.goal.tolist()


def panel(i=0, steps=40, **changes):
    trial = play(WORLD, TASKS, systematic(REACHED.numpy()), steps, i)
    return Panel("Search", trial, REACHED, CHESTS, CHESTS[i])._replace(**changes)


def pictures(panels):
    page = animate(panels)._repr_html_()
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]  # noqa: S314


def group(svg, name):
    return next(g for g in svg.iter(f"{SVG}g") if g.get("class") == name)


def places(transform):
    return tuple(map(float, re.fullmatch(r"(?:translate\()?([-\d.]+) ([-\d.]+)\)?", transform).groups()))


def test_when_the_player_is_where():
    trial = Trial([[12, 13, 14], [12, 7]], [True, False])
    assert timeline(trial) == [(0.0, 12), (0.2, 13), (0.4, 14), (pytest.approx(0.42), 12), (pytest.approx(0.6), 7)]


def test_the_player_walks_the_trial():
    shown = panel(3)
    (svg,) = pictures([shown])
    (circle,) = group(svg, "moving").findall(f"{SVG}circle")
    assert circle.get("fill") == "#A0522D"
    (run,) = circle.findall(f"{SVG}animateTransform")
    walked = [places(place) for place in run.get("values").split(";")]
    times = [float(t) * float(run.get("dur")[:-1]) for t in run.get("keyTimes").split(";")]
    expected = timeline(shown.trial)
    assert walked[:-1] == [(20.0 + 40 * (cell % 5), 20.0 + 40 * (cell // 5)) for _, cell in expected] and walked[-1] == walked[-2]
    assert times == pytest.approx([*(at for at, _ in expected), 9.2], abs=2e-3)
    assert times == sorted(times) and times[0] == 0


def test_every_wall_is_drawn_once():
    (svg,) = pictures([panel()])
    (walls,) = [p for p in svg.iter(f"{SVG}path") if p.get("stroke-linecap") == "round"]
    pieces = re.findall(r"M(\d+) (\d+)([hv])40", walls.get("d"))
    assert len(set(pieces)) == len(pieces) == 20 + 40 - 24  # the border, and the inner sides that the tree leaves shut
    drawn = {(int(x) // 40, int(y) // 40, kind) for x, y, kind in pieces}
    for cell in range(25):
        x, y = cell % 5, cell // 5
        sides = [(x, y, "h"), (x + 1, y, "v"), (x, y + 1, "h"), (x, y, "v")]  # up, right, down, left
        assert [side in drawn for side in sides] == (REACHED[cell] == cell).tolist()


def test_prizes_and_chests_appear_when_it_happens():
    shown = panel(5, 100)
    (svg,) = pictures([shown])
    found = np.cumsum([0.2 * (len(cells) - 1) for cells in shown.trial.episodes])[np.array(shown.trial.found)]
    moving = group(svg, "moving")
    appears = [a for path in moving.findall(f"{SVG}path") for a in path.findall(f"{SVG}animate")]
    assert len(appears) == shown.trial.prizes == len(found) > 1
    for animation, at in zip(appears, found, strict=True):
        assert float(animation.get("keyTimes").split(";")[1]) * 21.2 == pytest.approx(at, abs=0.01)
        assert animation.get("values") == "0;0;1;1"
    first = {}
    for at, cell in timeline(shown.trial):
        first.setdefault(cell, at)
    for g in moving.findall(f"{SVG}g"):
        x, y = places(g.get("transform"))
        cell = round((x - 20) / 40 + 5 * (y - 20) / 40)
        pale = g.findall(f"{SVG}animate")
        assert (len(g.findall(f"{SVG}path")) == 1) == (cell == shown.goal)
        assert len(pale) == (cell in first and cell != shown.goal)
        if pale:
            assert float(pale[0].get("keyTimes").split(";")[1]) * 21.2 == pytest.approx(first[cell], abs=0.01)
    assert len(moving.findall(f"{SVG}g")) == 8


def test_the_still_shows_the_first_walk_and_the_last_that_found_it():
    shown = panel(3, 60)
    svg, lost = pictures([shown, panel(3, 5)])
    still = group(svg, "still")
    lines = [p for p in still.findall(f"{SVG}path") if p.get("stroke-linejoin")]
    last = [cells for cells, found in zip(shown.trial.episodes, shown.trial.found, strict=True) if found][-1]
    assert [line.get("d").count("L") for line in lines] == [len(shown.trial.episodes[0]) - 1, len(last) - 1]
    assert not list(still.iter(f"{SVG}animate")) and not list(still.iter(f"{SVG}animateTransform"))
    assert len([p for p in group(lost, "still").findall(f"{SVG}path") if p.get("stroke-linejoin")]) == 1


def test_it_is_small_self_contained_and_says_what_it_shows():
    panels = [panel(0, 100), panel(1, 3, caption='<A & "B">'), panel(note="x\ny")]
    animation = animate(panels)
    page = animation._repr_html_()
    assert len(page.encode()) < 40_000 and page == animate(panels)._repr_html_()
    assert not re.findall(r"<script|href|url\(|\bsrc=|\bid=|@import", page)
    prizes = panels[0].trial.prizes
    assert repr(animation) == f'Animation: Search: {prizes} prizes in 100 steps; <A & "B">: 0 prizes in 3 steps; Search: x, y'
    assert {a.get("dur") for svg in pictures(panels) for a in svg.iter() if a.get("dur")} == {"21.2s"}
    assert 'aria-label="a &quot;b&quot;"' in animate([panel()], label='a "b"')._repr_html_()


def test_panels_of_the_wrong_form():
    with pytest.raises(ValueError, match="^panels must hold at least one panel$"):
        animate([])
    with pytest.raises(ValueError, match=r"^reached must be \[cell, 4\] of a square maze, got shape \(6, 4\)$"):
        animate([panel(reached=torch.zeros(6, 4))])
    with pytest.raises(ValueError, match="^chests and goal must be cells of the maze, 0 … 24, got 25$"):
        animate([panel(goal=25)])


@pytest.mark.browser
@pytest.mark.parametrize("quiet", [False, True])
def test_it_moves_in_a_browser_unless_the_reader_would_rather_not(browser, quiet):
    page = browser.new_page(reduced_motion="reduce" if quiet else "no-preference")
    page.set_content(animate([panel()])._repr_html_())
    where = "(m => m.e + m.f)(document.querySelector('.moving circle').getCTM())"
    before = page.evaluate(where)
    page.wait_for_timeout(300)
    assert page.evaluate(where) != before
    assert (page.locator(".still").is_visible(), page.locator(".moving").is_visible()) == (quiet, not quiet)
    page.close()
