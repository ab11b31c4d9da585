import math
import re
from xml.etree import ElementTree

import gymnasium
import pytest
import torch

from metarl_lib.pendulum import Pendulum, Physics
from metarl_lib.pendulum_picture import Panel, animate, play, unwrapped_angles

SVG = "{http://www.w3.org/2000/svg}"


def panel(envs=3, frames=41, **changes):
    angles = torch.linspace(0, 10, envs * frames).reshape(envs, frames)
    return Panel("After", angles, "one\ntwo")._replace(**changes)


def pictures(panels):
    page = animate(panels)._repr_html_()
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]  # noqa: S314


def pendulums(svg, kind):
    (group,) = (g for g in svg.iter(f"{SVG}g") if g.get("class") == kind)
    return [g for g in group.findall(f"{SVG}g") if "rotate" in g.get("transform")]


def turn(transform):
    return float(re.fullmatch(r"rotate\((.*)\)", transform)[1])


def test_every_state_is_drawn_clockwise_and_the_last_one_held():
    p = panel()
    (svg,) = pictures([p])
    drawn = pendulums(svg, "moving")
    assert len(drawn) == 3
    for env, pendulum in enumerate(drawn):
        (animation,) = pendulum.iter(f"{SVG}animateTransform")
        turns = [float(v) for v in animation.get("values").split(";")]
        assert len(turns) == 41 + 24  # 2 s and a pause of 1.2 s, 20 a second
        assert turns[:41] == pytest.approx((-p.angles[env].rad2deg()).tolist(), abs=0.051)
        assert set(turns[40:]) == {turns[40]}
        assert animation.get("dur") == "3.2s"


def test_the_still_is_the_end():
    p = panel()
    (svg,) = pictures([p])
    for kind in ("moving", "still"):
        for env, pendulum in enumerate(pendulums(svg, kind)):
            shown = math.radians(turn(pendulum.get("transform")))
            assert math.cos(shown + float(p.angles[env, -1])) == pytest.approx(1, abs=1e-5)
    assert not [a for still in pendulums(svg, "still") for a in still.iter(f"{SVG}animateTransform")]


def test_panels_share_one_clock():
    svgs = pictures([panel(), panel(frames=11)])
    assert {a.get("dur") for svg in svgs for a in svg.iter(f"{SVG}animateTransform")} == {"3.2s"}


def test_angles_from_observations_of_gymnasium_do_not_jump():
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
    env.unwrapped.state[:] = math.pi - 0.1, 8.0  # over the bottom at once, where atan2 jumps
    angles, observations = [], []
    for _ in range(60):
        observation, *_ = env.step([2.0])
        observations.append(torch.from_numpy(observation))
        angles.append(env.unwrapped.state[0])
    found = unwrapped_angles(torch.stack(observations))
    assert (found - torch.tensor(angles)).sub((found - torch.tensor(angles))[0]).abs().max() < 1e-5
    assert found.diff().abs().max() < 8 * 0.05 + 1e-5
    assert max(angles) - min(angles) > 2 * math.pi
    with pytest.raises(ValueError, match=r"observations must be \[\.\.\., frame, 3\], got shape \(2, 4\)"):
        unwrapped_angles(torch.zeros(2, 4))


def test_an_episode_is_gymnasium_s():
    world, generator = Pendulum(), torch.Generator()
    task = world.sample_tasks(2, generator)
    (body, _), _ = world.reset(task, 1, torch.Generator().manual_seed(7))
    angles, earned = play(lambda x: 2 * x[..., 2:].sign(), task, seed=7)
    assert angles.shape == (2, 201)
    for learner in range(2):
        env = gymnasium.make("Pendulum-v1")
        env.reset(seed=0)
        env.unwrapped.state = body[learner, 0].numpy().astype(float)
        total, seen, speed = 0.0, [env.unwrapped.state[0]], env.unwrapped.state[1]
        for _ in range(20):
            observation, reward, *_ = env.step([2.0 * float(torch.tensor(speed).sign())])
            total, speed = total + reward, float(observation[2])
            seen.append(env.unwrapped.state[0])
        drawn = angles[learner, :21] - angles[learner, 0]
        assert drawn.tolist() == pytest.approx([angle - seen[0] for angle in seen], abs=1e-3)
    short = play(lambda x: 2 * x[..., 2:].sign(), task, seed=7, steps=20)[1]
    assert float(short[1]) == pytest.approx(total, rel=1e-4)
    heavy = Physics(task.gravity, 2 * task.mass, task.length)
    assert not torch.equal(play(lambda x: 2 * x[..., 2:].sign(), heavy, seed=7)[1], earned)


def test_it_is_small_repeatable_and_self_contained():
    panels = [panel(5, 201), panel(5, 201, caption="Before")]
    page = animate(panels)._repr_html_()
    assert len(page.encode()) < 40_000
    assert page == animate(panels)._repr_html_()
    assert not re.findall(r"<script|href|url\(|\bsrc=|\bid=|@import", page)


def test_it_says_what_it_shows():
    animation = animate([panel(caption='<A & "B">'), panel(note="")])
    assert repr(animation) == 'Animation: <A & "B">: one, two; After'
    first, second = pictures([panel(caption='<A & "B">'), panel(note="")])
    assert (first.get("aria-label"), second.get("aria-label")) == ('<A & "B">: one, two', "After")
    assert [text.text for text in first.iter(f"{SVG}text")] == ['<A & "B">', "one", "two", "2.0 s"]
    assert 'role="group" aria-label="a &quot;b&quot;"' in animate([panel()], label='a "b"')._repr_html_()


def test_panels_of_the_wrong_form():
    with pytest.raises(ValueError, match="panels must hold at least one panel"):
        animate([])
    with pytest.raises(ValueError, match=r"angles must be \[env, frame\], got shape \(5, 4, 1\)"):
        animate([panel(angles=torch.zeros(5, 4, 1))])
    with pytest.raises(ValueError, match="unknown algorithm 'unknown'"):
        animate([panel(algorithm="unknown")])
