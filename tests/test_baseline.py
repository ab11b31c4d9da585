import numpy as np
import pytest
import torch

from metarl_lib import baseline
from metarl_lib.baseline import cross_fitted_values, features, fit, to_batch
from metarl_lib.types import Rollout


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def random_rollout(generator, tasks=2, envs=6, horizon=12, size=3, ends=True):
    """Random data in float64; with ``ends``, episodes of many lengths, some terminated and some truncated."""

    def normal(*shape):
        return torch.randn(tasks, envs, horizon, *shape, generator=generator, dtype=torch.float64)

    observations = normal(size)
    last = torch.randint(2, horizon, (tasks, envs), generator=generator) if ends else torch.full((tasks, envs), horizon - 1)
    time = torch.arange(horizon)
    by_clock = torch.rand(tasks, envs, generator=generator)[..., None] < 0.5
    at_end = time == last[..., None]
    return Rollout(
        observations=observations,
        actions=torch.randint(2, (tasks, envs, horizon), generator=generator),
        log_probs=normal(),
        rewards=normal(),
        next_observations=torch.cat((observations[..., 1:, :], normal(size)[..., :1, :]), -2),
        terminated=at_end & ~by_clock,
        truncated=at_end & by_clock,
        alive=time <= last[..., None],
    )


def test_features_by_hand():
    x = features(torch.tensor([[2.0, -3.0], [0.0, 1.0]]), torch.tensor([0, 50]))
    assert x.tolist() == [[2, -3, 4, 9, 0, 0, 0, 1], [0, 1, 0, 1, 0.5, 0.25, 0.125, 1]]


def test_fit_equals_least_squares_when_the_ridge_is_negligible(monkeypatch, generator):
    monkeypatch.setattr(baseline, "RIDGE", 0.0)
    x = torch.randn(2, 3, 40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 40, generator=generator) < 0.7
    weights = fit(x, y, mask)
    assert weights.shape == (2, 3, 5)
    for i, j in np.ndindex(2, 3):
        expected = np.linalg.lstsq(x[i, j][mask[i, j]].numpy(), y[i, j][mask[i, j]].numpy())[0]
        np.testing.assert_allclose(weights[i, j].numpy(), expected, rtol=0, atol=1e-6)


def test_the_ridge_shrinks_by_a_thousandth_whatever_the_unit(generator):
    x = torch.linalg.qr(torch.randn(40, 4, generator=generator, dtype=torch.float64)).Q  # orthonormal features
    units = torch.tensor([0.1, 1.0, 10.0, 30.0], dtype=torch.float64)
    weights = fit(x * units, x.sum(-1), torch.ones(40, dtype=torch.bool))
    assert (weights * units).tolist() == pytest.approx([1 / 1.001] * 4, abs=2e-3)
    assert (weights * units)[1:].tolist() == pytest.approx([1 / 1.001] * 3, abs=2e-5)


def test_an_exactly_linear_value_is_recovered(monkeypatch, generator):
    monkeypatch.setattr(baseline, "RIDGE", 0.0)
    rollout, discount = random_rollout(generator, envs=40, ends=False), 0.9
    horizon = rollout.rewards.shape[-1]
    true_weights = torch.randn(2, 1, 10, 1, generator=generator, dtype=torch.float64)
    values = (features(rollout.observations, torch.arange(horizon)) @ true_weights).squeeze(-1)
    following = torch.cat((values[..., 1:], torch.zeros_like(values[..., :1])), -1)
    rollout = rollout._replace(rewards=values - discount * following)  # so that the returns are those values

    found, found_next = cross_fitted_values(rollout, discount)
    assert torch.allclose(found, values, rtol=0, atol=1e-3)
    assert torch.allclose(found_next[..., :-1], values[..., 1:], rtol=0, atol=1e-3)
    next_features = features(rollout.next_observations, torch.arange(1, horizon + 1))
    assert torch.allclose(found_next, (next_features @ true_weights).squeeze(-1), rtol=0, atol=1e-3)
    assert values.std() > 1


@pytest.mark.parametrize("changed", [0, 1])
def test_an_episode_is_never_scored_by_a_fit_on_itself(generator, changed):
    rollout = random_rollout(generator)
    rewards = rollout.rewards.clone()
    rewards[:, changed::2] += torch.randn(rewards[:, changed::2].shape, generator=generator, dtype=rewards.dtype)
    after_change = cross_fitted_values(rollout._replace(rewards=rewards), 0.9)
    for before, after in zip(cross_fitted_values(rollout, 0.9), after_change, strict=True):
        assert torch.equal(before[:, changed::2], after[:, changed::2])
        assert not torch.isclose(before[:, 1 - changed :: 2], after[:, 1 - changed :: 2]).any()


def test_a_task_is_untouched_by_another_tasks_data_and_by_padding(generator):
    rollout = random_rollout(generator)
    values, _ = cross_fitted_values(rollout, 0.9)
    observations, rewards = rollout.observations.clone(), rollout.rewards.clone()
    observations[1] += 1
    rewards[1] += 1
    observations[~rollout.alive] += 7
    rewards[~rollout.alive] += 7
    again, _ = cross_fitted_values(rollout._replace(observations=observations, rewards=rewards), 0.9)
    alive = rollout.alive[0]
    assert torch.allclose(values[0][alive], again[0][alive], rtol=0, atol=1e-12)
    assert not torch.isclose(values[1], again[1]).all()


def test_one_episode_has_no_baseline(generator):
    values, next_values = cross_fitted_values(random_rollout(generator, envs=1), 0.9)
    assert values.shape == next_values.shape == (2, 1, 12)
    assert (values == 0).all() and (next_values == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collinear_and_constant_features_do_not_blow_up(generator, dtype):
    rollout = random_rollout(generator, size=4)
    observations = rollout.observations.clone()
    observations[..., 1] = 2 * observations[..., 0]
    observations[..., 2] = 0
    observations[..., 3] = 1e4
    rollout = Rollout(*(x.to(dtype) if x.is_floating_point() else x for x in rollout._replace(observations=observations)))
    rollout = rollout._replace(next_observations=rollout.observations)
    values, _ = cross_fitted_values(rollout, 0.9)
    assert values.dtype == dtype and torch.isfinite(values).all()
    assert values[rollout.alive].abs().max() < 10 * rollout.rewards.abs().max()


def test_advantages_are_normalised_over_the_steps_of_a_task(generator):
    rollout = random_rollout(generator)
    batch, raw = to_batch(rollout, 0.9, 0.8), to_batch(rollout, 0.9, 0.8, normalise=False)
    for i in range(2):
        alive = batch.weights[i] > 0
        assert alive.sum() == rollout.alive[i].sum()
        advantages = batch.advantages[i, alive]
        assert advantages.mean().item() == pytest.approx(0, abs=1e-12)
        assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-6)
        plain = raw.advantages[i, alive]
        assert torch.allclose(advantages, (plain - plain.mean()) / plain.std(correction=0), rtol=0, atol=1e-6)


def test_every_step_of_a_task_weighs_the_same(generator):
    rollout = random_rollout(generator)
    lengths = rollout.alive.sum(-1)
    assert (lengths.amin(-1) < lengths.amax(-1)).all()
    # Let the action name the episode, to add up the weights by episode.
    episode = torch.arange(6)[:, None].expand(2, 6, 12)
    batch = to_batch(rollout._replace(actions=episode), 0.9, 0.8)
    for i in range(2):
        by_episode = torch.zeros(6, dtype=torch.float64).index_add(0, batch.actions[i], batch.weights[i])
        assert torch.allclose(by_episode, lengths[i].double() / lengths[i].sum(), rtol=0, atol=1e-12)
        assert batch.weights[i].unique().numel() <= 2


def test_advantages_come_from_the_episodes_own_transitions(generator):
    """End to end against a plain loop: GAE of every episode from its cross-fitted values."""
    rollout, discount, lam = random_rollout(generator), 0.9, 0.8
    values, next_values = cross_fitted_values(rollout, discount)
    batch = to_batch(rollout._replace(log_probs=torch.arange(144.0).reshape(2, 6, 12)), discount, lam, normalise=False)
    for i, j in np.ndindex(2, 6):
        running = 0.0
        for t in reversed(range(int(rollout.alive[i, j].sum()))):
            future = 0.0 if rollout.terminated[i, j, t] else next_values[i, j, t]
            running = rollout.rewards[i, j, t] + discount * future - values[i, j, t] + discount * lam * running
            (found,) = batch.advantages[i][(batch.log_probs[i] == 72 * i + 12 * j + t) & (batch.weights[i] > 0)]
            assert found.item() == pytest.approx(running.item(), abs=1e-12)
