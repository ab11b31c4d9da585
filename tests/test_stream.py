"""A stream of episodes: nothing made up between them, nothing lost at their ends."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from metarl_lib.cartpole import CartPole
from metarl_lib.gymnasium_bridge import GymnasiumWorld
from metarl_lib.pendulum import Pendulum
from metarl_lib.stream import Stream
from metarl_lib.types import Step


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Task(NamedTuple):
    length: torch.Tensor  # [task]


class Clock(NamedTuple):
    time: torch.Tensor  # [task, env]


class Counter:
    """An episode of task i terminates after length[i] steps; the observation is the time, the reward what the action says."""

    observation_size, actions, max_steps = 1, 2, 4

    def sample_tasks(self, n, generator, split="train"):
        return Task(torch.arange(2, 2 + n))

    def reset(self, task, n, generator):
        time = torch.zeros(len(task.length), n)
        return Clock(time), time[..., None]

    def step(self, task, state, action, generator=None):
        time = state.time + 1
        step = Step(time[..., None], action.float(), time >= task.length[:, None], time >= self.max_steps)
        return Clock(time), step


def test_by_hand(generator):
    """Three learners whose episodes last 2, 3 and 4 steps; the last one's end is a termination and the clock's too."""
    stream = Stream(Counter(), 3, 1, generator)
    reached, acted_on = [], []
    for t in range(5):
        acted_on.append(stream.observation[:, 0, 0].tolist())
        reached.append(stream.step(torch.full((3, 1), t)).observation[:, 0, 0].tolist())
    assert acted_on == [[0, 0, 0], [1, 1, 1], [0, 2, 2], [1, 0, 3], [0, 1, 0]]
    assert reached == [[1, 1, 1], [2, 2, 2], [1, 3, 3], [2, 1, 4], [1, 2, 1]]
    assert stream.finished_returns().tolist() == [(1 + 5) / 2, 3, 6]
    assert stream.finished_returns().isnan().all()


def worlds():
    yield "ours", lambda: CartPole("default", max_steps=40), 3
    for mode in AutoresetMode:
        kwargs = dict(vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, max_episode_steps=40)
        yield (
            f"gymnasium, {mode.value}",
            lambda kwargs=kwargs: GymnasiumWorld(gymnasium.make_vec("CartPole-v1", 6, **kwargs), learners=3),
            3,
        )


@pytest.mark.parametrize("make, learners", [pytest.param(m, n, id=i) for i, m, n in worlds()])
def test_transitions_follow_one_another_within_an_episode_and_never_across(make, learners, generator):
    """Each transition of CartPole is checked against the equations of motion; a made-up one would break them."""
    world, physics = make(), CartPole("default", max_steps=500)
    stream, steps, ends = Stream(world, learners, 2, generator), torch.zeros(learners, 2), 0
    for _ in range(300):
        before = stream.observation
        action = torch.randint(2, (learners, 2), generator=generator) if _ % 150 < 100 else (before[..., 2] > 0).long()
        step = stream.step(action)
        state = (before, torch.zeros(learners, 2, dtype=torch.int32))
        _, expected = physics.step(physics.sample_tasks(learners, generator), type(physics_state())(*state), action)
        assert torch.allclose(step.observation, expected.observation, rtol=0, atol=1e-5)
        assert torch.equal(step.terminated, expected.terminated) and (step.reward == 1).all()
        steps += 1
        assert torch.equal(step.truncated, steps >= 40)
        ended = step.terminated | step.truncated
        steps[ended], ends = 0, ends + int(ended.sum())
        assert torch.equal(stream.observation[~ended], step.observation[~ended])
        assert (stream.observation[ended].abs() <= 0.05).all()
    assert ends > 20


def physics_state():
    world = CartPole("default")
    return world.reset(world.sample_tasks(1, torch.Generator()), 1, torch.Generator())[0]


def test_continuous_actions_come_through_the_bridge(generator):
    theirs = GymnasiumWorld(gymnasium.make_vec("Pendulum-v1", 4, vectorization_mode="sync"), learners=2)
    assert (theirs.action_low, theirs.action_high) == (Pendulum.action_low, Pendulum.action_high)
    stream = Stream(theirs, 2, 2, generator)
    theta = torch.from_numpy(np.stack([env.unwrapped.state for env in theirs.env.envs])).float().view(2, 2, 2)
    ours = Pendulum()
    state, _ = ours.reset(ours.sample_tasks(2, generator), 2, generator)
    state = state._replace(body=theta)
    for _ in range(10):
        torque = 4 * torch.rand(2, 2, 1, generator=generator) - 2
        state, expected = ours.step(ours.sample_tasks(2, generator), state, torque)
        step = stream.step(torque)
        assert torch.allclose(step.observation, expected.observation, rtol=0, atol=1e-4)
        assert torch.allclose(step.reward, expected.reward, rtol=0, atol=1e-3)


def test_gymnasiums_own_vector_environments_cannot_be_streamed_and_say_so(generator):
    world = GymnasiumWorld(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"))
    stream = Stream(world, 1, 2, generator)
    with pytest.raises(
        ValueError, match=r'^env must be made with vectorization_mode="sync" or "async", since .*; got CartPoleVectorEnv'
    ):
        for _ in range(100):
            stream.step(torch.zeros(1, 2, dtype=torch.int64))


def test_every_learner_needs_a_task(generator):
    world = CartPole()
    with pytest.raises(ValueError, match="^task must hold 3 tasks, one for each of the learners, got 5$"):
        Stream(world, 3, 2, generator, world.sample_tasks(5, generator))


def test_what_is_not_finite_stops_it(generator):
    stream = Stream(CartPole("default"), 1, 1, generator)
    stream.state = stream.state._replace(body=stream.state.body * torch.nan)
    with pytest.raises(FloatingPointError, match="^the environment returned a reward or an observation that is not finite"):
        stream.step(torch.zeros(1, 1, dtype=torch.int64))
