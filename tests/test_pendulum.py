"""The batched pendulum against Gymnasium's, step for step."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch

from metarl_lib.pendulum import MAX_TORQUE, Pendulum, State


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_it_is_gymnasiums_step_for_step(dtype, tolerance, generator):
    """Three thousand steps under torques within and beyond the limit, each from Gymnasium's own exact state."""
    world, theirs = Pendulum(dtype=dtype), gymnasium.make("Pendulum-v1")
    task, rng = world.sample_tasks(1, generator), np.random.default_rng(0)
    for episode in range(15):
        theirs.reset(seed=episode)
        truncated, steps = False, 0
        while not truncated:
            body = torch.from_numpy(theirs.unwrapped.state).to(dtype)[None, None]
            torque = rng.uniform(-3, 3, 1)
            observation, reward, terminated, truncated, _ = theirs.step(torque)
            state = State(body, torch.full((1, 1), steps, dtype=torch.int32))
            state, step = world.step(task, state, torch.from_numpy(torque).to(dtype)[None, None])
            steps += 1
            assert np.allclose(state.body[0, 0].double(), theirs.unwrapped.state, rtol=0, atol=tolerance)
            assert np.allclose(step.observation[0, 0].double(), observation, rtol=0, atol=max(tolerance, 1e-6))
            assert float(step.reward) == pytest.approx(float(reward), abs=tolerance)
            assert (bool(step.terminated), bool(step.truncated)) == (terminated, truncated)
        assert steps == world.max_steps


def test_a_step_by_hand(generator):
    """Level, at rest, full torque: θ̈ = 1.5 · 10 · sin(π/2) + 3 · 2 = 21, so θ̇ = 1.05 after 0.05 s."""
    world = Pendulum(dtype=torch.float64)
    state = State(torch.tensor([[[math.pi / 2, 0.0]]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.int32))
    state, step = world.step(world.sample_tasks(1, generator), state, torch.full((1, 1, 1), 5.0, dtype=torch.float64))
    assert state.body[0, 0].tolist() == pytest.approx([math.pi / 2 + 0.0525, 1.05])
    assert float(step.reward) == pytest.approx(-(math.pi**2) / 4 - 0.001 * MAX_TORQUE**2)


def test_resets_cover_gymnasiums_range(generator):
    world = Pendulum()
    state, observation = world.reset(world.sample_tasks(2, generator), 5000, generator)
    low, high = state.body.amin((0, 1)), state.body.amax((0, 1))
    assert torch.allclose(high, torch.tensor([math.pi, 1.0]), rtol=1e-2) and torch.allclose(low, -high, rtol=1e-2)
    assert torch.allclose(observation[..., :2].norm(dim=-1), torch.ones(2, 5000))


def test_wrong_use_is_one_clear_sentence(generator):
    world = Pendulum()
    task = world.sample_tasks(2, generator)
    state, _ = world.reset(task, 3, generator)
    with pytest.raises(ValueError, match=r"^action must be \[task, env, 1\], here \[2, 3, 1\], got \[2, 3\]$"):
        world.step(task, state, torch.zeros(2, 3))
    for name, make in (("n", lambda: world.sample_tasks(0, generator)), ("n", lambda: world.reset(task, 0, generator))):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1"):
            make()
    with pytest.raises(ValueError, match="^max_steps must be at least 1, got 0$"):
        Pendulum(max_steps=0)
