"""Bandits whose best play is known: by hand for two pulls, by brute force for three, by dynamic programming for ten."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from metarl_lib import bandits
from metarl_lib.bandits import Bandits, best_expected_reward, gittins, gittins_indices, play


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_the_best_play_of_one_and_two_pulls_by_hand():
    """One pull earns 1/2. After a reward the arm's mean is 2/3; after none, a fresh arm's is 1/2: 1/2 + (2/3 + 1/2)/2."""
    assert best_expected_reward(3, 1) == pytest.approx(1 / 2)
    assert best_expected_reward(3, 2) == pytest.approx(1 / 2 + (2 / 3 + 1 / 2) / 2)
    assert best_expected_reward(1, 2) == pytest.approx(1)  # with a single arm there is nothing to choose


def test_the_best_play_is_that_of_an_exhaustive_search():
    def search(counts: tuple, left: int) -> float:  # over the arms as they are numbered, without any symmetry
        if left == 0:
            return 0.0
        values = []
        for arm, (s, f) in enumerate(counts):
            p = (s + 1) / (s + f + 2)
            won, lost = (counts[:arm] + (new,) + counts[arm + 1 :] for new in ((s + 1, f), (s, f + 1)))
            values.append(p * (1 + search(won, left - 1)) + (1 - p) * search(lost, left - 1))
        return max(values)

    for arms, pulls in ((2, 5), (3, 4)):
        assert best_expected_reward(arms, pulls) == pytest.approx(search(((0, 0),) * arms, pulls), abs=1e-12)


def test_the_optimum_of_ten_pulls_is_above_every_strategy_and_gittins_comes_close():
    optimum, probability = best_expected_reward(5, 10), np.random.default_rng(0).random((40_000, 5))
    strategies = dict(
        random=bandits.random,
        greedy=bandits.greedy,
        thompson=bandits.thompson,
        optimistic=bandits.optimistic_thompson,
        ucb1=bandits.ucb1,
        gittins=gittins(10),
    )
    totals = {name: play(strategy, probability, 10, np.random.default_rng(1)) for name, strategy in strategies.items()}
    for name, total in totals.items():
        assert total.mean() < optimum + 4 * stats.sem(total), name
    assert totals["gittins"].mean() > 0.995 * optimum
    assert totals["random"].mean() == pytest.approx(5, abs=4 * stats.sem(totals["random"]))
    assert totals["thompson"].mean() < totals["optimistic"].mean() < totals["greedy"].mean()


def test_gittins_explores_where_greed_does_not():
    probability = np.random.default_rng(0).random((4000, 5))
    far, near = (play(s, probability, 100, np.random.default_rng(1)) for s in (gittins(100), bandits.greedy))
    assert stats.ttest_rel(far, near).pvalue < 1e-6 and far.mean() > near.mean() + 2


def test_gittins_indices_by_hand():
    """With one pull left the index is the posterior mean. With two and nothing seen, λ solves
    2λ = 1/2 (1 + 2/3) + 1/2 λ, which is 5/9: after a failure the sure reward is better."""
    table = gittins_indices(6, resolution=2000)
    assert table[1, 2, 3] == pytest.approx(3 / 7, abs=1e-3)
    assert table[2, 0, 0] == pytest.approx(5 / 9, abs=1e-3)
    assert np.isnan(table[4, 2, 1])  # three pulls made and four left are seven
    assert (
        np.diff([table[left, 0, 0] for left in range(1, 7)]) > 0
    ).all()  # what is learned is worth more with more pulls to come


def test_thompson_pulls_an_arm_as_often_as_it_is_best():
    rewards, failures = np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]])
    scores = bandits.thompson(rewards.repeat(40_000, 0), failures.repeat(40_000, 0), 1, np.random.default_rng(0))
    first, second = stats.beta(4, 2), stats.beta(2, 2)
    p, _ = integrate.quad(lambda x: first.pdf(x) * second.cdf(x), 0, 1)
    assert stats.binomtest(int((scores[:, 0] > scores[:, 1]).sum()), 40_000, p).pvalue > 1e-3


def test_ucb1_by_hand():
    score = bandits.ucb1(np.array([[2.0, 0.0, 0.0]]), np.array([[1.0, 1.0, 0.0]]), 1, np.random.default_rng(0))
    assert score[0].tolist() == pytest.approx([2 / 3 + (2 * np.log(4) / 3) ** 0.5, (2 * np.log(4)) ** 0.5, np.inf])


def test_ties_are_broken_evenly():
    certain = np.zeros((30_000, 3))
    certain[:, 1] = 1.0
    first = play(bandits.greedy, certain, 1, np.random.default_rng(0))
    assert stats.binomtest(int(first.sum()), 30_000, 1 / 3).pvalue > 1e-3


def test_the_world_pays_as_its_task_says(generator):
    world = Bandits(4)
    task = world.sample_tasks(3, generator)
    state, observation = world.reset(task, 20_000, generator)
    assert observation.shape == (3, 20_000, 1) and (observation == 1).all()
    for arm in range(4):
        _, step = world.step(task, state, torch.full((3, 20_000), arm), generator)
        assert step.terminated.all() and not step.truncated.any()
        for i in range(3):
            wins, p = int(step.reward[i].sum()), float(task.probability[i, arm])
            assert stats.binomtest(wins, 20_000, p).pvalue > 1e-4


def test_the_splits_have_the_distributions_they_say(generator):
    world = Bandits(5)
    for split, law in (("train", stats.uniform()), ("test", stats.uniform()), ("ood", stats.beta(2, 2))):
        p = world.sample_tasks(2000, generator, split).probability.flatten().numpy()
        assert stats.kstest(p, law.cdf).pvalue > 1e-3, split


def test_wrong_use_is_one_clear_sentence(generator):
    with pytest.raises(ValueError, match="^arms must be at least 2, got 1$"):
        Bandits(1)
    with pytest.raises(ValueError, match="^unknown split 'valid'; there are train, validation, test, ood$"):
        Bandits().sample_tasks(1, generator, "valid")
    with pytest.raises(ValueError, match=r"^pulls must be at least 1 and probability \[trial, arm\], got 0 and shape \(2, 2\)$"):
        play(bandits.greedy, np.ones((2, 2)), 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="^arms and pulls must be at least 1, got 0 and 3$"):
        best_expected_reward(0, 3)
    with pytest.raises(ValueError, match="^pulls must be at least 1, got 0$"):
        gittins_indices(0)
    with pytest.raises(ValueError, match="^pulls must be at most 2, for which these indices were made, got 3$"):
        play(gittins(2), np.ones((1, 2)), 3, np.random.default_rng(0))
