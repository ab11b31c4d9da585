"""RL²: the memory sees what it should and nothing from the future, and trials learn what is known to be best."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl_lib import results, rl2
from metarl_lib.bandits import Bandits, Task, best_expected_reward
from metarl_lib.experiments import rl2_bandits, rl2_mdp
from metarl_lib.pendulum import Pendulum
from metarl_lib.random_mdps import RandomMDPs

SMALL = rl2.Config(iterations=2, trials=8, trial_steps=6, width=8, minibatches=2)
MEMORIES = list(rl2.MEMORIES)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def made(world, config, generator):
    policy = rl2.Policy(world, config, generator).double()
    with torch.no_grad():
        policy.logits.weight.mul_(100)  # a fresh policy is nearly uniform, which would hide what it depends on
    return policy


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_trial_unrolled_equals_one_step_after_another(memory, generator):
    policy = made(Bandits(3), replace(SMALL, memory=memory), generator)
    x = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    logits, values = policy.unroll(x)
    state = policy.memory.start(4)
    for t in range(6):
        one, value, state = policy.step(x[:, t], state)
        assert torch.allclose(one, logits[:, t], atol=1e-12) and torch.allclose(value, values[:, t], atol=1e-12)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_memory_reads_the_past_of_its_own_trial_alone(memory, generator):
    policy = made(Bandits(3), replace(SMALL, memory=memory), generator)
    x = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    logits, _ = policy.unroll(x)
    (gradient,) = torch.autograd.grad(logits[1, 3, 0], x)
    moved = gradient.abs().sum(-1)
    assert (moved[1, :4] > 0).all() and (moved[1, 4:] == 0).all() and (moved[[0, 2, 3]] == 0).all()


def test_the_input_by_hand(generator):
    policy = rl2.Policy(Bandits(3), SMALL, generator)
    x = policy.input(torch.ones(2, 1), torch.tensor([-1, 2]), torch.tensor([0.0, 0.5]), torch.tensor([False, True]))
    assert x.tolist() == [[1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0.5, 1]]


def test_a_trial_keeps_its_task_and_its_memory_over_episodes(generator):
    """Episodes of three steps in a trial of eight: the input tells where they end, and the state starts anew at 0."""
    world = RandomMDPs(states=4, actions=2, max_steps=3)
    policy = rl2.Policy(world, replace(SMALL, trial_steps=8), generator)
    trials = rl2.run_trials(world, policy, world.sample_tasks(5, generator), 8, generator)
    observation, last_action, last_reward, ended = trials.inputs.split([4, 2, 1, 1], -1)
    assert ended[0, :, 0].tolist() == [0, 0, 0, 1, 0, 0, 1, 0]
    assert (observation.argmax(-1)[:, [0, 3, 6]] == 0).all()
    assert (last_action[:, 0] == 0).all() and torch.equal(last_action[:, 1:].argmax(-1), trials.actions[:, :-1])
    assert torch.equal(last_reward[:, 1:, 0], trials.rewards[:, :-1])


def test_what_is_remembered_of_the_actor_is_what_it_did(generator):
    world = Bandits(3)
    policy = rl2.Policy(world, SMALL, generator)
    trials = rl2.run_trials(world, policy, world.sample_tasks(5, generator), 6, generator)
    logits, values = policy.unroll(trials.inputs)
    log_prob = logits.log_softmax(-1).gather(-1, trials.actions[..., None])[..., 0]
    assert torch.allclose(log_prob, trials.log_probs, atol=1e-6) and torch.allclose(values, trials.values, atol=1e-5)
    greedy = rl2.run_trials(world, policy, world.sample_tasks(5, generator), 6, generator, greedy=True)
    assert torch.equal(policy.unroll(greedy.inputs)[0].argmax(-1), greedy.actions)


def test_the_loss_by_an_independent_formula(generator):
    config = replace(SMALL, clip=0.1, value_coefficient=0.7)
    policy = made(Bandits(3), config, generator)
    trials = rl2.run_trials(Bandits(3, torch.float64), policy, Task(torch.rand(4, 3, generator=generator).double()), 6, generator)
    old = trials.log_probs + 0.2 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    trials = trials._replace(log_probs=old)
    advantages, targets = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64).unbind(0)
    got, entropy = rl2.loss(policy, trials, advantages, targets, 0.3, config)
    logits, values = (z.detach().numpy() for z in policy.unroll(trials.inputs))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total, h = 0.0, 0.0
    for i in range(4):
        for t in range(6):
            ratio, a = p[i, t, trials.actions[i, t]] / math.exp(old[i, t]), float(advantages[i, t])
            total -= min(ratio * a, min(max(ratio, 0.9), 1.1) * a) / 24
            total += 0.7 * ((values[i, t] - float(targets[i, t])) / policy.value_unit) ** 2 / 24
            h -= (p[i, t] * np.log(p[i, t])).sum() / 24
    assert float(got.detach()) == pytest.approx(total - 0.3 * h, abs=1e-12) and float(entropy) == pytest.approx(h, abs=1e-12)


def test_two_pulls_are_played_as_well_as_they_can_be(generator):
    """Win-stay, lose-shift is optimal: 1/2 + (2/3 + 1/2)/2 is 1.0833, and a policy without memory earns 1."""
    config = rl2.Config(iterations=40, trials=256, trial_steps=2, width=16, entropy=0.01, step_size=2e-2, gae_lambda=1.0)
    world = Bandits(3)
    *_, log = rl2.train(world, config)
    policy = rl2.Policy(world, config, generator)
    policy.load_state_dict(log.params)
    trials = rl2.run_trials(world, policy, world.sample_tasks(20_000, generator, "test"), 2, generator, greedy=True)
    stays = (trials.actions[:, 0] == trials.actions[:, 1]).float()
    won = trials.rewards[:, 0] == 1
    assert stays[won].mean() == 1 and stays[~won].mean() == 0
    assert float(trials.rewards.sum(-1).mean()) == pytest.approx(best_expected_reward(3, 2), abs=0.02)


@pytest.mark.parametrize("memory", MEMORIES)
def test_training_is_reproducible_and_leaves_the_global_generator_alone(memory):
    config = replace(SMALL, memory=memory)
    before = torch.random.get_rng_state()
    one, two = (list(rl2.train(Bandits(3), config)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one[-1].params.values(), two[-1].params.values(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one[0].env_steps == 48 and one[1].env_steps == 96
    assert not torch.equal(one[0].params["logits.weight"], one[1].params["logits.weight"])


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_world_in_double_precision(memory):
    *_, log = rl2.train(Bandits(3, dtype=torch.float64), replace(SMALL, memory=memory))
    assert log.iteration == 2
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in log.params.values())


def test_the_curriculum_sets_the_length_of_trials():
    config = replace(SMALL, iterations=10, curriculum=((0.2, 2), (0.5, 4)))
    assert [log.trial_steps for log in rl2.train(Bandits(3), config)] == [2, 2, 4, 4, 4, 6, 6, 6, 6, 6]


def test_nan_stops_it():
    class Broken(Bandits):
        def step(self, task, state, action, generator):
            state, step = super().step(task, state, action, generator)
            return state, step._replace(reward=step.reward / 0)

    with pytest.raises(
        FloatingPointError, match="^iteration 1: .*not finite.*; the last good parameters are those of iteration 0$"
    ):
        list(rl2.train(Broken(3), SMALL))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(memory="lstm"), "^unknown memory 'lstm'; there are gru, attention$"),
        (dict(minibatches=3), "^minibatches must divide trials, which is 8, got 3$"),
        (dict(trial_steps=0), "^trial_steps must be at least 1, got 0$"),
        (dict(discount=1.5), r"^discount must be in \[0, 1\], got 1.5$"),
        (dict(clip=0), "^clip must be positive and finite, got 0$"),
        (dict(entropy=-1), "^entropy must be at least 0 and finite, got -1$"),
        (dict(curriculum=((0.5, 4), (0.2, 2))), "^curriculum must hold rising shares"),
        (dict(iterations=-1), "^iterations must be at least 0, got -1$"),
        (dict(memory="attention", width=6), "^width must be a multiple of the 4 heads of attention, got 6$"),
        (dict(memory="attention", curriculum=((0.5, 7),)), "^curriculum must not exceed trial_steps, which is 6, got "),
    ],
)
def test_wrong_settings_are_one_clear_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_wrong_use_is_one_clear_sentence(generator):
    with pytest.raises(ValueError, match="^world must have discrete actions, got one with continuous actions$"):
        next(rl2.train(Pendulum(), SMALL))
    world, config = Bandits(3), replace(SMALL, memory="attention")
    policy = rl2.Policy(world, config, generator)
    assert rl2.run_trials(world, policy, world.sample_tasks(2, generator), 6, generator).rewards.shape == (2, 6)
    with pytest.raises(ValueError, match="^a trial must have at most trial_steps steps, which is 6, with this memory$"):
        rl2.run_trials(world, policy, world.sample_tasks(2, generator), 7, generator)


@pytest.mark.slow
@pytest.mark.parametrize("module", [rl2_bandits, rl2_mdp])
def test_the_experiments_run_small(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = dict(trials=8, minibatches=2)
    for name in ("SHORT", "LONG", "CONFIGS"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, {key: replace(c, **tiny) for key, c in getattr(module, name).items()})
    monkeypatch.setattr(
        module, "run_pieces", lambda work, pieces, folder, progress: [work(*p) | {"cpu_seconds": 1.0} for p in pieces]
    )
    result = module.run(2, 0.003, lambda *_: None)
    results.check(result)
    if module is rl2_bandits:
        best = result["metrics"]["10 pulls, 5 arms · best possible"]["value"]
        assert best == pytest.approx(6.660, abs=1e-3)
        assert result["metrics"]["100 pulls, 5 arms · RL², recurrent"]["published"] == 78.7
    else:
        assert result["metrics"]["10 episodes · posterior sampling"]["published"] == 138.1
