"""Intervals against textbook values, and evaluation that neither leaks nor tunes on what it reports."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.evaluate import adaptation_curve, best_step_size, interval, returns_in_gymnasium

WORLD = CartPole("flip", max_steps=40)
POLICY = policy_for(WORLD)


def start(seed: int = 0):
    return POLICY.init(1, torch.Generator().manual_seed(seed))


def tasks(n: int = 6):
    return WORLD.sample_tasks(n, torch.Generator().manual_seed(1), "test")


def test_interval_by_hand():
    mean, low, high = interval([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.302653, standard error 1/√3
    assert mean == 2.0
    assert high - 2.0 == pytest.approx(4.302653 / 3**0.5, abs=1e-6)
    assert 2.0 - low == pytest.approx(high - 2.0)


def test_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(10, 4000))
    _, low, high = interval(samples)
    assert stats.binomtest(int(((low < 3) & (high > 3)).sum()), 4000, 0.95).pvalue > 0.001


def test_interval_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        interval([3.0])
    with pytest.raises(ValueError, match=r"^level must be in \(0, 1\), got 95$"):
        interval([1.0, 2.0], level=95)


def test_a_curve_has_a_row_for_each_step_and_leaves_the_parameters_alone():
    params = start()
    before = {name: p.clone() for name, p in params.items()}
    curve = adaptation_curve(WORLD, POLICY, params, 0.5, tasks(), torch.Generator().manual_seed(2), steps=2, episodes=4)
    assert curve.shape == (3, 6)
    assert all(torch.equal(p, before[name]) for name, p in params.items())


def test_nothing_leaks_from_one_evaluation_to_the_next():
    params = start()
    curves = [adaptation_curve(WORLD, POLICY, params, 3.0, tasks(), torch.Generator().manual_seed(2), 2, 4) for _ in range(2)]
    assert torch.equal(*curves)


def test_the_step_size_matters_only_after_the_first_entry():
    small, large = (
        adaptation_curve(WORLD, POLICY, start(), alpha, tasks(), torch.Generator().manual_seed(2), 1, 4) for alpha in (0.1, 30.0)
    )
    assert torch.equal(small[0], large[0])
    assert not torch.equal(small[1], large[1])


def test_one_policy_gradient_step_helps_a_fresh_network():
    world = CartPole("flip", max_steps=200)
    task = world.sample_tasks(20, torch.Generator().manual_seed(3), "validation")
    curve = adaptation_curve(world, POLICY, start(), 10.0, task, torch.Generator().manual_seed(4)).mean(-1)
    assert curve[1] > 1.5 * curve[0]


def test_the_best_step_size_is_the_best_on_the_tasks_given():
    candidates = (0.001, 10.0)
    assert best_step_size(WORLD, POLICY, start(), candidates, tasks(20), seed=0) == 10.0


def test_bad_input():
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        adaptation_curve(WORLD, POLICY, start(), 0.5, tasks(), torch.Generator(), steps=-1)
    with pytest.raises(ValueError, match="candidates"):
        best_step_size(WORLD, POLICY, start(), (), tasks(), seed=0)


def test_returns_in_gymnasium_are_those_of_episodes_played_one_by_one():
    gains = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.05, 0.1, 1.0, 0.3]])  # learner 0 falls, learner 1 balances

    def act(observation):
        return ((observation * gains[:, None]).sum(-1) > 0).long()

    returns = returns_in_gymnasium("CartPole-v1", act, learners=2, episodes=3, seed=0)
    assert (returns[1] == 500).all()
    seed = int(torch.randint(2**31 - 1, (), generator=torch.Generator().manual_seed(0)))
    env = gymnasium.make("CartPole-v1")
    for episode in range(3):
        observation, _ = env.reset(seed=seed + episode)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(int(observation[2] > 0))
            total, ended = total + reward, terminated or truncated
        assert returns[0, episode] == total < 100
    with pytest.raises(ValueError, match="^episodes must be at least 1, got 0$"):
        returns_in_gymnasium("CartPole-v1", act, 2, 0, 0)
