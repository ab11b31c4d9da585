"""Random MDPs: the distribution is the one in print, and the references are what they are said to be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from metarl_lib.random_mdps import RandomMDPs, best_policy, best_return, psrl


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_tasks_have_the_distribution_in_print(generator):
    task = RandomMDPs().sample_tasks(400, generator)
    assert stats.kstest(task.reward.flatten().numpy(), stats.norm(1, 1).cdf).pvalue > 1e-3
    assert torch.allclose(task.transition.sum(-1), torch.ones(400, 10, 5))
    one = task.transition[..., 3].flatten().numpy()  # a coordinate of a flat Dirichlet of ten is Beta(1, 9)
    assert stats.kstest(one, stats.beta(1, 9).cdf).pvalue > 1e-3
    ood = RandomMDPs().sample_tasks(400, generator, "ood").transition[..., 3].flatten().numpy()
    assert stats.kstest(ood, stats.beta(0.2, 1.8).cdf).pvalue > 1e-3


def test_steps_follow_the_task(generator):
    world = RandomMDPs(states=3, actions=2)
    task = world.sample_tasks(2, generator)
    state, observation = world.reset(task, 30_000, generator)
    assert (observation.argmax(-1) == 0).all()
    action = torch.ones(2, 30_000, dtype=torch.int64)
    state, step = world.step(task, state, action, generator)
    for i in range(2):
        expected = task.transition[i, 0, 1].double().numpy()
        counts = np.bincount(state.position[i], minlength=3)
        assert stats.chisquare(counts, expected / expected.sum() * 30_000).pvalue > 1e-4
        assert stats.kstest(step.reward[i].numpy(), stats.norm(float(task.reward[i, 0, 1]), 1).cdf).pvalue > 1e-4
    assert torch.equal(step.observation.argmax(-1), state.position)
    for t in range(2, 11):
        state, step = world.step(task, state, action, generator)
        assert not step.terminated.any() and step.truncated.all() == (t == 10) == step.truncated.any()


def test_the_best_policy_beats_every_other_one():
    """Two states, two actions, three steps: all 64 policies are tried."""
    rng = np.random.default_rng(0)
    reward, transition = rng.normal(1, 1, (1, 2, 2)), rng.dirichlet(np.ones(2), (1, 2, 2))

    def earned(policy) -> float:  # policy[t][s]
        value = np.zeros(2)
        for t in reversed(range(3)):
            value = np.array([reward[0, s, policy[t][s]] + transition[0, s, policy[t][s]] @ value for s in range(2)])
        return value[0]

    rows = list(itertools.product((0, 1), repeat=2))
    best, value = best_policy(reward, transition, 3)
    assert earned(best[:, 0]) == pytest.approx(value[0, 0], abs=1e-12)
    assert value[0, 0] == pytest.approx(max(map(earned, itertools.product(rows, repeat=3))), abs=1e-12)


def test_posterior_sampling_comes_near_the_figures_in_print(generator):
    """Duan et al. (2016), table 2. Their prior is not given, and it matters most where there is least data."""
    world = RandomMDPs()
    task = world.sample_tasks(1000, generator)
    for episodes, published, within in ((10, 138.1, 0.04), (25, 408.8, 0.02), (50, 904.4, 0.01)):
        total = psrl(world, task, episodes, np.random.default_rng(0))
        assert total.mean() == pytest.approx(published, rel=within)
        assert 10 * episodes < total.mean() < episodes * best_return(world, task).mean()


def test_posterior_sampling_learns_the_task(generator):
    world = RandomMDPs(states=2, actions=2, max_steps=5)
    task = world.sample_tasks(300, generator)
    early = psrl(world, task, 5, np.random.default_rng(0)) / 5
    late = (psrl(world, task, 200, np.random.default_rng(0)) - psrl(world, task, 100, np.random.default_rng(0))) / 100
    regret = best_return(world, task).mean() - late.mean()
    assert regret < 0.1 and late.mean() > early.mean() + 0.2


def test_wrong_use_is_one_clear_sentence(generator):
    with pytest.raises(ValueError, match="^states must be at least 1, got 0$"):
        RandomMDPs(states=0)
    with pytest.raises(ValueError, match="^unknown split 'tset'"):
        RandomMDPs().sample_tasks(1, generator, "tset")
