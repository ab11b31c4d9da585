"""Transition tables against Gymnasium's, episodes against Gymnasium's own, and exact solutions against hand-solved ones."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from metarl_lib.collect import collect
from metarl_lib.nets import PolicyNet
from metarl_lib.tabular_worlds import (
    MDP,
    UNLIMITED,
    State,
    TabularWorld,
    draw,
    expected,
    expected_return,
    from_gymnasium,
    optimal_values,
    optimal_values_in_time,
    play_in_gymnasium,
    policy_values,
)
from metarl_lib.types import index_tasks

NAMES = ("CliffWalking-v1", "CliffWalkingSlippery-v1", "FrozenLake-v1", "FrozenLake8x8-v1", "Taxi-v4")


def mdp(outcomes, initial):
    """Tables from ``outcomes[state][action]``, lists of (probability, next state, reward, terminated) of one length."""
    probability, next_state, reward, terminated = torch.tensor(outcomes, dtype=torch.float64).unbind(-1)
    return MDP(probability, next_state.long(), reward, terminated.bool(), torch.tensor(initial, dtype=torch.float64))


def two_states(reward=1.0):
    """In state 0, action 0 stays and earns 0, action 1 goes to state 1; there every action earns ``reward`` and terminates."""
    return mdp([[[(1, 0, 0, 0)], [(1, 1, 0, 0)]], [[(1, 1, reward, 1)], [(1, 1, reward, 1)]]], [1, 0])


def one_hot(actions, n):
    return torch.nn.functional.one_hot(actions, n).double()


# --- against Gymnasium ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_gymnasiums(name):
    env, world = gymnasium.make(name), from_gymnasium(name)
    assert (world.observation_size, world.actions) == (env.observation_space.n, env.action_space.n)
    assert world.max_steps == (env.spec.max_episode_steps or UNLIMITED)
    assert world.mdp.initial.tolist() == list(env.unwrapped.initial_state_distrib)
    tables = torch.stack([table.double() for table in world.mdp[:4]], -1).tolist()
    for state, actions in env.unwrapped.P.items():
        for action, outcomes in actions.items():
            ours = [tuple(outcome) for outcome in tables[state][action] if outcome[0] > 0]
            assert ours == [tuple(map(float, outcome)) for outcome in outcomes if outcome[0] > 0]


def next_uniform(generator):
    """The number that ``generator`` will give next; it is still there afterwards."""
    before = generator.get_state()
    u = torch.rand((), generator=generator, dtype=torch.float64).item()
    generator.set_state(before)
    return u


@pytest.mark.parametrize("name", NAMES)
def test_episodes_are_gymnasiums_step_for_step(name):
    env, world, random = gymnasium.make(name, max_episode_steps=20), from_gymnasium(name, 20), np.random.default_rng(0)
    generator, endings = torch.Generator().manual_seed(3), set()
    task = world.sample_tasks(1, generator)
    for episode in range(50):
        position, _ = env.reset(seed=episode)
        state, ended = State(torch.tensor([[position]]), torch.zeros(1, 1, dtype=torch.int32)), False
        while not ended:
            u, action = next_uniform(generator), int(random.integers(world.actions))
            env.unwrapped.np_random = SimpleNamespace(random=lambda u=u: u)  # Gymnasium's outcome and ours by one number
            position, reward, terminated, truncated, _ = env.step(action)
            state, step = world.step(task, state, torch.tensor([[action]]), generator)
            assert state.position.item() == position == step.observation.argmax().item()
            assert (step.reward.item(), step.terminated.item(), step.truncated.item()) == (reward, terminated, truncated)
            ended = terminated or truncated
            endings.add((terminated, truncated))
    assert (False, True) in endings
    assert (True, False) in endings or "FrozenLake" not in name


@pytest.mark.parametrize("name", ["Taxi-v4", "FrozenLake-v1"])
def test_episodes_begin_as_often_in_a_state_as_gymnasiums(name):
    world, generator = from_gymnasium(name), torch.Generator().manual_seed(0)
    state, observation = world.reset(world.sample_tasks(2, generator), 15_000, generator)
    assert state.position.shape == (2, 15_000) and state.steps.eq(0).all()
    assert torch.equal(observation.argmax(-1), state.position) and torch.equal(observation.sum(-1), torch.ones(2, 15_000))
    counts = state.position.flatten().bincount(minlength=world.observation_size).numpy()
    possible = gymnasium.make(name).unwrapped.initial_state_distrib > 0
    assert not counts[~possible].any()
    assert possible.sum() == 1 or stats.chisquare(counts[possible]).pvalue > 1e-3


def test_outcomes_as_often_as_they_should():
    probability = torch.tensor([[0.1, 0.2, 0.7, 0.0], [0.25, 0.0, 0.5, 0.25], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    drawn = draw(probability.expand(20_000, 3, 4), torch.Generator().manual_seed(0))
    for column, p in zip(drawn.T, probability.numpy(), strict=True):
        counts = column.bincount(minlength=4).numpy()
        assert not counts[p == 0].any()
        assert (p > 0).sum() == 1 or stats.chisquare(counts[p > 0], 20_000 * p[p > 0]).pvalue > 1e-3


def test_a_policy_earns_in_gymnasium_what_it_should():
    world, env = from_gymnasium("FrozenLake-v1"), gymnasium.make("FrozenLake-v1")
    actions = optimal_values(world.mdp, 0.99).argmax(-1)
    returns, truncated = play_in_gymnasium(env, actions, 1000, seed=0)
    p = float(expected_return(world.mdp, one_hot(actions, 4), world.max_steps))
    assert stats.binomtest(int(returns.sum()), 1000, p).pvalue > 1e-3
    assert 0 < truncated.sum() < 200 and not returns[truncated].any()
    assert np.array_equal(returns, play_in_gymnasium(env, actions, 1000, seed=0)[0])


def test_walking_in_circles_is_truncated_in_gymnasium():
    env = gymnasium.make("CliffWalking-v1", max_episode_steps=30)
    returns, truncated = play_in_gymnasium(env, torch.zeros(48, dtype=torch.int64), 2, seed=0)  # always up
    assert returns.tolist() == [-30, -30] and truncated.all()
    safe = torch.full((48,), 1)  # right, but up at the start and down in the last column
    safe[36], safe[11::12] = 0, 2
    returns, truncated = play_in_gymnasium(env, safe, 2, seed=0)
    assert returns.tolist() == [-13, -13] and not truncated.any()
    with pytest.raises(ValueError, match="env must truncate"):
        play_in_gymnasium(gymnasium.make("CliffWalking-v1"), safe, 1, seed=0)


# --- as a world -------------------------------------------------------------------------------------------------------


def test_every_learner_lives_in_its_own_mdp():
    world, generator = TabularWorld(two_states()), torch.Generator()
    other = two_states(reward=5.0)
    task = MDP(*(torch.stack(pair) for pair in zip(world.mdp, other, strict=True)))
    state = State(torch.tensor([[1, 0], [1, 0]]), torch.zeros(2, 2, dtype=torch.int32))
    state, step = world.step(task, state, torch.tensor([[0, 1], [0, 1]]), generator)
    assert step.reward.tolist() == [[1, 0], [5, 0]]
    assert step.terminated.tolist() == [[True, False], [True, False]]
    assert state.position.tolist() == [[1, 1], [1, 1]] and state.steps.eq(1).all()
    assert index_tasks(task, slice(1, 2)).reward[0, 1, 0].item() == 5


def test_terminated_and_truncated_are_told_apart():
    world = TabularWorld(two_states(), max_steps=2)
    task = world.sample_tasks(1, torch.Generator())
    state, _ = world.reset(task, 2, torch.Generator())
    state, step = world.step(task, state, torch.tensor([[0, 1]]))
    assert not step.terminated.any() and not step.truncated.any()
    _, step = world.step(task, state, torch.tensor([[0, 1]]))
    assert step.terminated.tolist() == [[False, True]] and step.truncated.tolist() == [[True, True]]


def test_a_policy_network_plays_in_it():
    world, generator = from_gymnasium("FrozenLake-v1"), torch.Generator().manual_seed(0)
    policy = PolicyNet(world.observation_size, world.actions)
    rollout = collect(world, world.sample_tasks(2, generator), policy, policy.init(2, generator), 200, generator)
    assert set(rollout.returns.flatten().tolist()) <= {0.0, 1.0}
    uniform = expected_return(world.mdp, torch.full((16, 4), 0.25), 100)  # .0139; the network begins near it
    assert abs(float(rollout.returns.mean()) - float(uniform)) < 0.03


# --- exact solutions --------------------------------------------------------------------------------------------------


def test_values_by_hand():
    q = optimal_values(two_states(), discount=0.9)
    assert q.flatten().tolist() == pytest.approx([0.81, 0.9, 1, 1], abs=1e-11)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)  # V(0) = .9 (V(0) + V(1)) / 2 = .45 / .55
    assert policy_values(two_states(), half, 0.9).tolist() == pytest.approx([0.45 / 0.55, 1])
    assert policy_values(two_states(), half).tolist() == pytest.approx([1, 1])
    assert [float(expected_return(two_states(), half, k)) for k in range(4)] == [0, 0, 0.5, 0.75]
    assert optimal_values_in_time(two_states(), 3)[:, 0].tolist() == [[1, 1], [0, 1], [0, 0]]


def test_expected_by_hand():
    reward, transition = expected(mdp([[[(0.5, 0, 2, 0), (0.25, 0, 4, 0), (0.25, 0, 8, 1)]]], [1]))
    assert reward.tolist() == [[4]] and transition.tolist() == [[[0.75]]]


@pytest.mark.parametrize(
    ("name", "time_aware", "stationary"), [("FrozenLake-v1", 0.744, 0.740), ("FrozenLake8x8-v1", 0.913, 0.886)]
)
def test_success_on_the_frozen_lake(name, time_aware, stationary):
    world = from_gymnasium(name)
    in_time = world.mdp.initial @ optimal_values_in_time(world.mdp, world.max_steps)[0].amax(-1)
    assert float(in_time) == pytest.approx(time_aware, abs=5e-4)
    greedy = one_hot(optimal_values(world.mdp, 0.999).argmax(-1), 4)
    assert float(expected_return(world.mdp, greedy, world.max_steps)) == pytest.approx(stationary, abs=5e-4)


def test_the_cliff_and_the_taxi():
    cliff = from_gymnasium("CliffWalking-v1").mdp
    assert optimal_values(cliff)[36].tolist() == [-13, -113, -14, -14]  # along the edge; off it; into the wall
    taxi = from_gymnasium("Taxi-v4").mdp
    unlimited = taxi.initial @ optimal_values(taxi).amax(-1)
    assert float(unlimited) == pytest.approx(float(taxi.initial @ optimal_values_in_time(taxi, 200)[0].amax(-1)))
    assert float(unlimited) == pytest.approx(7.93)


def test_a_policys_values_agree_with_its_return():
    world = from_gymnasium("FrozenLake-v1")
    policies = torch.rand(3, 16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    policies /= policies.sum(-1, keepdim=True)
    values = policy_values(world.mdp, policies)
    assert values.shape == (3, 16)
    assert torch.allclose(values @ world.mdp.initial, expected_return(world.mdp, policies, 1000))
    reward, transition = expected(world.mdp)
    bellman = (policies * (reward + 0.9 * torch.einsum("sat,lt->lsa", transition, policy_values(world.mdp, policies, 0.9)))).sum(
        -1
    )
    assert torch.allclose(bellman, policy_values(world.mdp, policies, 0.9))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_values_that_do_not_exist():
    for_ever = mdp([[[(1, 0, 1, 0)]]], [1])
    with pytest.raises(ValueError, match="discount must be lower than 1.0"):
        optimal_values(for_ever, sweeps=100)
    with pytest.raises(ValueError, match="discount must be below 1"):
        policy_values(for_ever, torch.ones(1, 1))
    assert policy_values(for_ever, torch.ones(1, 1), 0.9).item() == pytest.approx(10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": torch.zeros(2, 2)}, r"mdp.reward must have shape \(2, 2, 1\), got \(2, 2\)"),
        ({"initial": torch.ones(3) / 3}, r"mdp.initial must have shape \(2,\)"),
        ({"initial": torch.tensor([0.5, 0.4])}, "mdp.initial must be non-negative and sum to 1"),
        ({"probability": torch.full((2, 2, 1), 0.9)}, "mdp.probability must be non-negative and sum to 1"),
        ({"next_state": torch.full((2, 2, 1), 2)}, "mdp.next_state must be in 0 … 1"),
        ({"reward": torch.full((2, 2, 1), torch.nan)}, "mdp.reward must be finite"),
    ],
)
def test_tables_that_describe_no_mdp(change, message):
    with pytest.raises(ValueError, match=message):
        TabularWorld(two_states()._replace(**change))


def test_bad_input():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        TabularWorld(two_states(), max_steps=0)
    with pytest.raises(ValueError, match="transition tables, such as FrozenLake-v1; got 'CartPole-v1'"):
        from_gymnasium("CartPole-v1")
    with pytest.raises(ValueError, match="fickle_passenger must be False"):
        from_gymnasium("Taxi-v4", fickle_passenger=True)
    world, generator = from_gymnasium("FrozenLake-v1"), torch.Generator()
    with pytest.raises(ValueError, match="n must be at least 1 task, got 0"):
        world.sample_tasks(0, generator)
    task = world.sample_tasks(1, generator)
    with pytest.raises(ValueError, match="n must be at least 1 episode, got 0"):
        world.reset(task, 0, generator)
    state, _ = world.reset(task, 1, generator)
    with pytest.raises(ValueError, match="generator must be given"):
        world.step(task, state, torch.tensor([[0]]))
