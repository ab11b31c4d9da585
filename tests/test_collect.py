import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch

from metarl_lib.cartpole import CartPole
from metarl_lib.collect import collect, pack
from metarl_lib.nets import PolicyNet
from metarl_lib.types import Step, index_tasks

TASKS, EPISODES = 4, 3


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def setting(generator):
    """A world with tasks, one policy a task, first states and noise: everything that a rollout is a function of."""
    world, policy = CartPole("flipwide", max_steps=30, dtype=torch.float64), PolicyNet(4, 2, hidden=(8,))
    task = world.sample_tasks(TASKS, generator)
    params = policy.init(TASKS, generator, torch.float64)
    params = {name: p + 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}
    initial = world.reset(task, EPISODES, generator)
    noise = policy.noise((world.max_steps, TASKS, EPISODES), generator, torch.float64)
    return world, task, policy, params, initial, noise


def run(setting, generator=None, **changes):
    world, task, policy, params, initial, noise = setting
    given = {"initial": initial, "noise": noise, **changes}
    return collect(world, task, policy, params, EPISODES, generator or torch.Generator(), **given)


class Ticks(NamedTuple):
    length: torch.Tensor  # [task], steps until the episode terminates
    reward: torch.Tensor  # [task], at every step


class Clock(NamedTuple):
    time: torch.Tensor  # [task, env]


@dataclass(frozen=True)
class Countdown:
    """A world to read at sight: the observation is the time, the reward the task's, an episode lasts as long as the task says."""

    max_steps: int = 6
    cut: int = 6  # where it truncates
    observation_size: int = 1
    actions: int = 2

    def reset(self, task, n, generator):
        time = torch.zeros(len(task.length), n)
        return Clock(time), time[..., None]

    def step(self, task, state, action, generator=None):
        time = state.time + 1
        reward = task.reward[:, None].expand_as(time)
        step = Step(time[..., None], reward, time >= task.length[:, None], time >= self.cut)
        return Clock(time), step


def count_down(lengths, rewards, generator, **settings):
    policy, task = PolicyNet(1, 2, hidden=()), Ticks(torch.tensor(lengths), torch.tensor(rewards))
    return collect(Countdown(**settings), task, policy, policy.init(1, generator), 2, generator)


def test_a_rollout_by_hand(generator):
    rollout = count_down([1, 3, 9], [1.0, 2.0, 3.0], generator)
    assert rollout.alive.int().tolist() == [[[1, 0, 0, 0, 0, 0]] * 2, [[1, 1, 1, 0, 0, 0]] * 2, [[1, 1, 1, 1, 1, 1]] * 2]
    assert rollout.returns.tolist() == [[1, 1], [6, 6], [18, 18]]
    assert rollout.observations[2, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert rollout.next_observations[2, 0, :, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert (rollout.terminated & rollout.alive).nonzero().tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 2], [1, 1, 2]]
    assert (rollout.truncated & rollout.alive).nonzero().tolist() == [[2, 0, 5], [2, 1, 5]]


def test_the_time_axis_is_as_long_as_the_longest_episode(generator):
    assert count_down([1, 3], [1.0, 1.0], generator).rewards.shape == (2, 2, 3)
    assert count_down([1, 1], [1.0, 1.0], generator).rewards.shape == (2, 2, 1)


def test_truncation_ends_an_episode_as_termination_does(generator):
    rollout = count_down([1, 9], [1.0, 1.0], generator, cut=2)
    assert rollout.alive.int().tolist() == [[[1, 0]] * 2, [[1, 1]] * 2]
    assert rollout.truncated[1, 0].tolist() == [False, True] and not rollout.terminated[1].any()


def test_after_its_end_an_environment_is_frozen(generator):
    rollout = count_down([2, 6], [1.0, 1.0], generator)
    # It is not started anew: the state stays where it ended, and every further step is the same one again.
    assert rollout.observations[0, 0, :, 0].tolist() == [0, 1, 2, 2, 2, 2]
    assert rollout.next_observations[0, 0, :, 0].tolist() == [1, 2, 3, 3, 3, 3]


def test_equal_to_a_plain_loop_over_tasks_and_environments(setting):
    world, task, policy, params, (states, observations), noise = setting
    rollout = run(setting)
    lengths = torch.zeros(TASKS, EPISODES)
    for i, j in np.ndindex(TASKS, EPISODES):
        own = {name: p[i : i + 1] for name, p in params.items()}
        state = type(states)(*(leaf[i : i + 1, j : j + 1] for leaf in states))
        observation, total, t, ended = observations[i : i + 1, j : j + 1], 0.0, 0, False
        while not ended:
            action, log_prob = policy.act(own, observation, noise[t, i : i + 1, j : j + 1])
            state, step = world.step(index_tasks(task, slice(i, i + 1)), state, action)
            row = (observation, action, log_prob, step.reward, step.observation, step.terminated, step.truncated)
            for name, column, value in zip(rollout._fields, rollout, row, strict=False):
                assert torch.allclose(column[i, j, t], value[0, 0], rtol=0, atol=1e-11), name
            assert rollout.alive[i, j, t]
            total, observation, t = total + step.reward.item(), step.observation, t + 1
            ended = bool(step.terminated | step.truncated)
        assert not rollout.alive[i, j, t:].any()
        assert rollout.returns[i, j].item() == total
        lengths[i, j] = t
    assert len(lengths.unique()) > 3 and rollout.rewards.shape[-1] == lengths.max()


def test_a_rollout_is_a_function_of_its_first_states_and_noise(setting):
    first, again = run(setting, torch.Generator().manual_seed(1)), run(setting, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = run(setting, noise=setting[-1].roll(1, 0))
    assert other.rewards.shape != first.rewards.shape or not torch.equal(other.actions, first.actions)


def test_a_rollout_is_reproducible_by_its_generator(setting):
    world, task, policy, params, *_ = setting

    def draw(seed):
        return collect(world, task, policy, params, EPISODES, torch.Generator().manual_seed(seed))

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not torch.isclose(draw(1).observations[:, :, 0], draw(2).observations[:, :, 0]).all()


def test_drawing_inside_is_the_same_as_drawing_beforehand(setting):
    world, task, policy, params, *_ = setting
    inside = collect(world, task, policy, params, EPISODES, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    initial = world.reset(task, EPISODES, generator)
    noise = policy.noise((world.max_steps, TASKS, EPISODES), generator, torch.float64)
    before = run(setting, initial=initial, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(inside, before, strict=True))


def test_greedy_takes_the_most_probable_action(setting):
    _, _, policy, params, *_ = setting
    rollout = run(setting, noise=None, greedy=True)
    best = policy.logits(params, rollout.observations).argmax(-1)
    assert torch.equal(rollout.actions[rollout.alive], best[rollout.alive])
    sampled = run(setting)
    assert not torch.equal(sampled.actions[sampled.alive], policy.logits(params, sampled.observations).argmax(-1)[sampled.alive])


def test_log_probs_are_those_of_the_policy_that_acted(setting):
    _, _, policy, params, *_ = setting
    rollout = run(setting)
    log_probs = policy.log_prob(params, rollout.observations, rollout.actions)
    assert torch.allclose(rollout.log_probs[rollout.alive], log_probs[rollout.alive], rtol=0, atol=1e-12)


def test_a_task_is_untouched_by_another(setting):
    world, task, policy, params, (state, observation), noise = setting
    rollout = run(setting)
    changed = type(task)(*(torch.cat((leaf[:1], 1.2 * leaf[1:])) for leaf in task))
    params = {name: torch.cat((p[:1], -p[1:])) for name, p in params.items()}
    noise = torch.cat((noise[:, :1], noise[:, 1:].flip(-1)), 1)
    other = collect(world, changed, policy, params, EPISODES, torch.Generator(), initial=(state, observation), noise=noise)
    for mine, theirs in zip(rollout, other, strict=True):
        assert torch.equal(mine[0][rollout.alive[0]], theirs[0][other.alive[0]])
    assert not torch.equal(rollout.returns[1:], other.returns[1:])


def test_what_is_collected_can_be_differentiated_through_afterwards(setting):
    _, _, policy, params, *_ = setting
    rollout = run(setting)
    assert not any(x.requires_grad or x.is_inference() for x in rollout)
    params = {name: p.requires_grad_() for name, p in params.items()}
    policy.log_prob(params, rollout.observations, rollout.actions).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in params.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_at_once(generator, bad):
    with pytest.raises(FloatingPointError, match=r"^the environment returned rewards that are not finite \(NaN or infinity\)$"):
        count_down([2, 2], [1.0, bad], generator)


def test_an_observation_that_is_not_finite_stops_at_once(setting, generator):
    world, task, policy, params, *_ = setting
    task = task._replace(gravity=task.gravity * math.nan)
    with pytest.raises(FloatingPointError, match=r"^the environment returned next observations that are not finite"):
        collect(world, task, policy, params, EPISODES, generator)


def test_pack_keeps_exactly_the_alive_transitions(setting):
    rollout = run(setting)
    advantages = torch.arange(rollout.rewards.numel(), dtype=torch.float64).reshape(rollout.rewards.shape)
    batch = pack(rollout, advantages)
    counts = rollout.alive.flatten(1).sum(-1)
    assert batch.weights.shape == (TASKS, counts.max()) and len(counts.unique()) > 1
    for i in range(TASKS):
        alive, kept = rollout.alive[i], batch.weights[i] > 0
        assert torch.equal(batch.advantages[i, kept].sort().values, advantages[i][alive])
        source = batch.advantages[i, kept].long() - i * alive.numel()  # where each transition came from
        assert torch.equal(batch.observations[i, kept], rollout.observations[i].flatten(0, 1)[source])
        assert torch.equal(batch.actions[i, kept], rollout.actions[i].flatten()[source])
        assert torch.equal(batch.log_probs[i, kept], rollout.log_probs[i].flatten()[source])
        assert torch.allclose(batch.weights[i, kept], torch.ones((), dtype=torch.float64) / counts[i], rtol=0, atol=1e-15)
        assert batch.weights[i].sum().item() == pytest.approx(1, abs=1e-13)
    assert batch.weights.dtype == torch.float64
