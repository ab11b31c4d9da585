import re
import shutil
from xml.etree import ElementTree

import pytest
import torch

from metarl_lib.animation import Panel, animate, cartpole_svg, from_rollout
from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.collect import collect

SVG = "{http://www.w3.org/2000/svg}"


def panel(envs=5, frames=201, **changes):
    generator = torch.Generator().manual_seed(0)
    bodies = torch.randn(envs, frames, 4, generator=generator).cumsum(1) * torch.tensor([0.02, 1, 0.01, 1])
    standing = Panel("Before", bodies, torch.full((envs,), frames), torch.zeros(envs, dtype=torch.bool), 0.75, "one\ntwo")
    return standing._replace(**changes)


def falling(at, frames=201):
    """Two episodes, of which the first falls at frame ``at``."""
    return panel(2, frames, lengths=torch.tensor([at + 1, frames]), fell=torch.tensor([True, False]))


def parse(svg):
    return ElementTree.fromstring(svg)  # noqa: S314


def carts(svg, kind="moving"):
    (group,) = (g for g in parse(svg).iter(f"{SVG}g") if g.get("class") == kind)
    return group.findall(f"{SVG}g")


def values(cart, kind):
    (animation,) = (a for a in cart.iter(f"{SVG}animateTransform") if a.get("type") == kind)
    assert animation.get("repeatCount") == "indefinite"
    return [float(v) for v in animation.get("values").split(";")]


def test_every_second_state_is_drawn_and_the_last_one_held():
    p = panel()
    drawn = carts(cartpole_svg([p]))
    assert len(drawn) == 5
    for env, cart in enumerate(drawn):
        x, angle = values(cart, "translate"), values(cart, "rotate")
        assert len(x) == len(angle) == 101 + 30  # 4 s and a pause of 1.2 s, 25 a second
        assert x[:101] == pytest.approx((p.bodies[env, ::2, 0] * 70).tolist(), abs=0.051)
        assert angle[:101] == pytest.approx(p.bodies[env, ::2, 2].rad2deg().tolist(), abs=0.051)
        assert set(x[100:]) == {x[100]}
    assert 'dur="5.2s"' in cartpole_svg([p])


def test_the_pole_is_drawn_to_scale():
    for half_length in (0.25, 1.5):
        (cart,) = carts(cartpole_svg([panel(1, half_length=half_length)]))
        assert f"M0 0V-{2 * half_length * 70:g}" in [path.get("d") for path in cart.iter(f"{SVG}path")]


def test_a_fallen_cart_stays_and_turns_grey():
    p = falling(at=51)
    fallen, standing = carts(cartpole_svg([p]))
    x = values(fallen, "translate")
    assert x[25] != x[26]
    assert x[26:] == pytest.approx([float(p.bodies[0, 51, 0]) * 70] * (131 - 26), abs=0.051)
    fades = {a.get("attributeName"): a for a in fallen.findall(f"{SVG}animate")}
    assert set(fades) == {"fill", "stroke", "opacity"}
    times = [5.2 * float(t) for t in fades["fill"].get("keyTimes").split(";")]
    assert times == pytest.approx([0, 51 * 0.02, 51 * 0.02 + 0.4, 5.2], abs=0.002)
    assert fades["fill"].get("values").split(";")[::3] == ["#0072B2", "#888888"]
    assert not standing.findall(f"{SVG}animate")


def test_the_still_is_the_end():
    p = falling(at=51)
    for kind in ("moving", "still"):  # what is drawn where nothing moves, too
        fallen, standing = carts(cartpole_svg([p]), kind)
        for cart, x, colour in ((fallen, p.bodies[0, 51, 0], "#888888"), (standing, p.bodies[1, -1, 0], "#0072B2")):
            assert cart.get("fill") == colour
            assert float(re.fullmatch(r"translate\((.*)\)", cart.get("transform"))[1]) == pytest.approx(float(x) * 70, abs=0.051)


def test_panels_share_clock_and_height():
    svg = cartpole_svg([panel(), panel(frames=31, half_length=0.3, caption="After")])
    assert set(re.findall(r'dur="(.*?)"', svg)) == {"5.2s"}
    assert (
        len({g.get("transform") for g in parse(svg).iter(f"{SVG}g") if re.match(r"translate\(0 ", g.get("transform") or "")}) == 1
    )


def test_it_is_small_repeatable_and_self_contained():
    panels = [panel(), panel(caption="After")]
    svg, page = cartpole_svg(panels), animate(panels)._repr_html_()
    assert len(svg.encode()) < 60_000
    assert len(page.encode()) < 60_000
    assert (svg, page) == (cartpole_svg(panels), animate(panels)._repr_html_())
    assert "<script" not in page
    for text in (svg, page):
        assert not re.findall(r"href|url\(|\bsrc=|\bid=|@import", text)
        assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}


def test_it_says_what_it_shows():
    root = parse(cartpole_svg([panel(caption='<A & "B">')]))
    assert root.get("role") == "img"
    assert root.get("aria-label") == '<A & "B">: one, two'
    assert [text.text for text in root.iter(f"{SVG}text")] == ['<A & "B">', "one", "two", "4.0 s"]
    animation = animate([panel()], label='a "b"')
    assert repr(animation) == 'Animation: a "b"'
    assert 'role="group" aria-label="a &quot;b&quot;"' in animation._repr_html_()


def test_files(tmp_path):
    animation = animate([panel(2)])
    animation.save(tmp_path / "a.svg")
    animation.save(tmp_path / "a.html")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == cartpole_svg([panel(2)])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert animation._repr_html_() in page
    with pytest.raises(ValueError, match=r"path must end in \.svg or \.html, got .*a\.gif"):
        animation.save(tmp_path / "a.gif")


@pytest.mark.parametrize(
    "panels, sentence",
    [
        ([], "panels must hold at least one panel"),
        ([panel()._replace(bodies=torch.zeros(5, 4))], r"bodies must be \[env, frame, 4\], got shape \(5, 4\)"),
        ([panel()._replace(lengths=torch.ones(4))], r"lengths must be \[5\], one for each episode, got shape \(4,\)"),
        ([panel(2, 10, lengths=torch.tensor([11, 10]))], r"lengths must lie between 1 and the 10 frames, got \[11, 10\]"),
        ([panel(half_length=0.0)], r"half_length must be positive, got 0\.0"),
        ([panel(algorithm="unknown")], "unknown algorithm 'unknown'"),
    ],
)
def test_panels_of_the_wrong_form(panels, sentence):
    with pytest.raises(ValueError, match=sentence):
        cartpole_svg(panels)


@pytest.mark.parametrize("observe_task", [False, True])
def test_a_panel_from_a_rollout(observe_task):
    world = CartPole("flip", max_steps=30, observe_task=observe_task)
    generator = torch.Generator().manual_seed(0)
    policy = policy_for(world)
    task = world.sample_tasks(4, generator)
    rollout = collect(world, task, policy, policy.init(4, generator), 20, generator)
    i = int(task.force.argmin())
    p = from_rollout(rollout, task, i, 20, "Before")
    assert p.lengths.tolist() == (rollout.returns[i].int() + 1).tolist()
    assert 0 < p.fell.sum() < 20
    assert p.fell.tolist() == rollout.terminated[i].any(-1).tolist()
    for env, length in enumerate(p.lengths.tolist()):
        steps = length - 1
        torch.testing.assert_close(p.bodies[env, :steps], rollout.observations[i, env, :steps, :4])
        torch.testing.assert_close(p.bodies[env, steps], rollout.next_observations[i, env, steps - 1, :4])
    assert p.note == (
        f"20 episodes, mean return {rollout.returns[i].mean():.0f}\npole of {2 * task.half_length[i]:.1f} m, motor reversed"
    )
    assert "reversed" not in from_rollout(rollout, task, int(task.force.argmax())).note
    assert len(from_rollout(rollout, task, episodes=1).lengths) == 1
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        from_rollout(rollout, task, episodes=0)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("there is no Chromium here")
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.parametrize("quiet", [False, True])
def test_it_plays_and_pauses_in_a_browser(browser, tmp_path, quiet):
    animate([panel(2), panel(2)]).save(tmp_path / "a.html")
    page = browser.new_page(reduced_motion="reduce" if quiet else "no-preference")
    page.goto((tmp_path / "a.html").as_uri())
    button = page.get_by_role("button")

    def moves():
        where = "[...document.querySelectorAll('.moving > g')].map(cart => cart.getCTM().e)"
        before = page.evaluate(where)
        page.wait_for_timeout(300)
        return page.evaluate(where) != before

    if quiet:  # a still until the reader asks for more
        assert page.locator(".still").first.is_visible()
        assert not page.locator(".moving").first.is_visible()
        assert button.inner_text() == "Play"
        button.press("Enter")
    assert page.locator(".moving").first.is_visible()
    assert not page.locator(".still").first.is_visible()
    assert button.inner_text() == "Pause"
    assert moves()
    button.press("Enter")
    assert button.inner_text() == "Play"
    assert page.locator(".moving").first.is_visible()
    assert not moves()
    button.press("Enter")
    assert button.inner_text() == "Pause"
    assert moves()
    page.emulate_media(media="print")
    assert page.locator(".still").first.is_visible()
    assert not button.is_visible()
    page.close()
