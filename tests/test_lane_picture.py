import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from metarl_lib.lane_keeping import MAX_CURVATURE, LaneKeeping, drive, steer
from metarl_lib.lane_picture import Panel, animate, from_drive, poses

SVG = "{http://www.w3.org/2000/svg}"


def road(kappa):
    return torch.tensor([[0.0, 0.0], [math.acos(kappa / MAX_CURVATURE)] * 2], dtype=torch.float64)


def panel(frames=21, kappa=0.0, offset=0.5, heading=0.1, **changes):
    along = torch.arange(frames, dtype=torch.float64)
    bodies = torch.stack((along, torch.full_like(along, offset), torch.full_like(along, heading)), -1)
    return Panel("After", bodies, road(kappa), False, "one\ntwo")._replace(**changes)


def pictures(panels):
    page = animate(panels)._repr_html_()
    return [ElementTree.fromstring(svg) for svg in re.findall(r'<svg xmlns.*?</svg><g class="moving".*?</svg>', page)]  # noqa: S314


def group(svg, name):
    return next(g for g in svg.iter(f"{SVG}g") if g.get("class") == name)


def test_a_car_in_a_bend_is_on_its_circle():
    """Curvature 0.01 to the left: the centre of the circle is 100 m to the left of the start, and the car is 0.5 m inside."""
    points, heading = poses(panel(101, 0.01))
    assert np.hypot(points[:, 0], points[:, 1] - 100) == pytest.approx(99.5, abs=1e-2)
    assert heading == pytest.approx(0.1 + np.arange(101) / 100, abs=1e-6)
    points, heading = poses(panel(101, -0.01))
    assert np.hypot(points[:, 0], points[:, 1] + 100) == pytest.approx(100.5, abs=1e-2)


def test_the_path_in_the_plane_is_that_of_the_car_s_own_equations():
    """From frame to frame a car moves at its speed along its heading, whatever the road; to the error of Euler's steps."""
    world, generator = LaneKeeping(max_steps=100, dtype=torch.float64), torch.Generator().manual_seed(0)
    task = world.sample_tasks(3, generator)
    driven = drive(world, task, lambda _, state: steer(task, state), 1, generator)
    for i in range(3):
        points, heading = poses(from_drive(driven, task, i))
        steps = np.diff(points, axis=0)
        assert np.hypot(*steps.T) == pytest.approx(1.0, abs=0.02)
        assert np.arctan2(steps[:, 1], steps[:, 0]) == pytest.approx(heading[:-1], abs=0.03)


def test_the_camera_follows_and_the_car_turns():
    (svg,) = pictures([panel()])
    moving = group(svg, "moving")
    camera, turn = moving.iter(f"{SVG}animateTransform")
    assert (camera.get("type"), turn.get("type"), camera.get("dur")) == ("translate", "rotate", "3.2s")
    places = [tuple(map(float, place.split())) for place in camera.get("values").split(";")]
    assert len(places) == 21 + 12  # two seconds, and a pause of 1.2 s, ten a second
    assert places[:21] == [(-6.0 * i, 3.0) for i in range(21)]  # six pixels to a metre; the car is 0.5 m above the middle
    assert set(places[20:]) == {places[20]}
    assert [float(v) for v in turn.get("values").split(";")] == pytest.approx([-math.degrees(0.1)] * 33, abs=0.05)
    still = group(svg, "still")
    assert not list(still.iter(f"{SVG}animateTransform"))
    assert still.find(f"{SVG}g").get("transform") == "translate(-120 3)"
    *_, path = still.find(f"{SVG}g").findall(f"{SVG}path")
    assert path.get("stroke") == "#0072B2" and path.get("d").startswith("M0 -3L6 -3L") and path.get("d").count("L") == 20


def test_a_car_that_leaves_its_lane_turns_grey_when_it_does():
    kept, left = pictures([panel(), panel(left=True, frames=11)])
    assert not [a for a in group(kept, "moving").iter(f"{SVG}animate") if a.get("attributeName") == "fill"]
    (fade,) = [a for a in group(left, "moving").iter(f"{SVG}animate") if a.get("attributeName") == "fill"]
    assert fade.get("values") == "#0072B2;#0072B2;#888888;#888888"
    assert [float(t) * 3.2 for t in fade.get("keyTimes").split(";")] == pytest.approx([0, 1.0, 1.4, 3.2], abs=1e-3)
    assert fade.get("dur") == "3.2s"  # the panels share one clock


def test_a_panel_says_what_was_driven():
    world, generator = LaneKeeping(max_steps=30), torch.Generator().manual_seed(0)
    task = world.sample_tasks(4, generator)
    task = task._replace(gain=torch.tensor([-1.0, 1.0, 1.0, -1.0]), delay=torch.tensor([0, 3, 1, 2]))
    driven = drive(world, task, lambda x, _: torch.full(x.shape[:-1], 4), 2, generator)
    shown = from_drive(driven, task, 3, 1, "Held", "random")
    assert shown.left and len(shown.bodies) == driven.frames[3, 1] < 31
    assert abs(shown.bodies[-1, 1]) > 1.75 >= abs(shown.bodies[-2, 1])
    assert shown.note == f"return {driven.returns[3, 1]:.0f}\nwheels obey after 0.2 s, steering reversed"
    assert from_drive(driven, task, 1).note.endswith("\nwheels obey after 0.3 s")
    assert from_drive(driven, task, 0).note.endswith("\nwheels obey at once, steering reversed")


def test_it_is_small_self_contained_and_says_what_it_shows():
    panels = [panel(201, 0.01, caption='<A & "B">'), panel(201, note="")]
    animation = animate(panels)
    page = animation._repr_html_()
    assert len(page.encode()) < 40_000 and page == animate(panels)._repr_html_()
    assert not re.findall(r"<script|href|url\(|\bsrc=|\bid=|@import", page)
    assert repr(animation) == 'Animation: <A & "B">: one, two; After'
    first, _ = pictures(panels)
    assert first.get("aria-label") == '<A & "B">: one, two'
    assert [text.text for text in first.iter(f"{SVG}text")] == ['<A & "B">', "one", "two", "20.0 s"]
    assert 'aria-label="a &quot;b&quot;"' in animate([panel()], label='a "b"')._repr_html_()


def test_panels_of_the_wrong_form():
    with pytest.raises(ValueError, match="^panels must hold at least one panel$"):
        animate([])
    with pytest.raises(ValueError, match=r"^bodies must be \[frame, 3\] with at least two frames, got shape \(2, 4\)$"):
        animate([panel(bodies=torch.zeros(2, 4))])


@pytest.mark.browser
@pytest.mark.parametrize("quiet", [False, True])
def test_it_moves_in_a_browser_and_shows_no_more_than_its_view(browser, quiet):
    page = browser.new_page(reduced_motion="reduce" if quiet else "no-preference")
    page.set_content(animate([panel(101)])._repr_html_())
    where = "document.querySelector('.moving g').getCTM().e"
    before = page.evaluate(where)
    page.wait_for_timeout(400)
    assert page.evaluate(where) < before
    assert (page.locator(".still").is_visible(), page.locator("svg svg .moving").is_visible()) == (quiet, not quiet)
    shown = page.evaluate("(s => [s.width, s.height])(getComputedStyle(document.querySelector('svg svg')))")
    assert shown == ["400px", "150px"]  # the page's own rule for pictures would stretch it
    page.close()
