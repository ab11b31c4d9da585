"""REINFORCE against exact answers: an enumerated decision process, sums by hand, probes, one optimiser per learner."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from enumerable import Tiny, as_rollout
from probes import DISCOUNT, KINDS, Probe, best_values, first_observations
from torch import Tensor

from metarl_lib import reinforce, results
from metarl_lib.cartpole import CartPole
from metarl_lib.collect import collect, pack
from metarl_lib.experiments import actor_critic_cartpole as experiment
from metarl_lib.gymnasium_bridge import GymnasiumWorld
from metarl_lib.nets import PolicyNet, ValueNet
from metarl_lib.reinforce import Config, train
from metarl_lib.types import Batch, Params, Rollout, Step

POLICY, VALUE = PolicyNet(2, 2, hidden=(3,)), ValueNet(2, hidden=(3,))


def random_params(net: PolicyNet | ValueNet, learners: int, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    params = net.init(learners, generator, torch.float64)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}


def expand(params: Params, n: int) -> Params:
    return {name: p.expand(n, *p.shape[1:]) for name, p in params.items()}


def last(iterator):
    *_, log = iterator
    return log


# --- by hand ----------------------------------------------------------------------------------------------------------


def by_hand() -> Rollout:
    """One learner, three episodes: terminated after two steps, truncated after three, both at once after one."""
    f, t = False, True
    return Rollout(
        observations=torch.zeros(1, 3, 3, 2, dtype=torch.float64),
        actions=torch.tensor([[[0, 1, 0], [1, 1, 0], [0, 0, 0]]]),
        log_probs=torch.zeros(1, 3, 3, dtype=torch.float64),
        rewards=torch.tensor([[[1.0, 2.0, 99.0], [4.0, 8.0, 16.0], [32.0, 99.0, 99.0]]], dtype=torch.float64),
        next_observations=torch.zeros(1, 3, 3, 2, dtype=torch.float64),
        terminated=torch.tensor([[[f, t, t], [f, f, f], [t, t, t]]]),
        truncated=torch.tensor([[[f, f, f], [f, f, t], [t, t, t]]]),
        alive=torch.tensor([[[t, t, f], [t, t, t], [t, f, f]]]),
    )


def test_returns_by_hand():
    rollout = by_hand()
    returns = reinforce.returns_to_go(rollout, 0.5)[rollout.alive]
    assert returns.tolist() == [1 + 1, 2, 4 + 4 + 4, 8 + 8, 16, 32]
    values = torch.full((1, 3, 3), 10.0, dtype=torch.float64)
    bootstrapped = reinforce.returns_to_go(rollout, 0.5, values)[rollout.alive]
    # Only the second episode was cut: its last step earns 16 + .5 · 10. The third terminated as its time ran out.
    assert bootstrapped.tolist() == [2, 2, 4 + 0.5 * 18.5, 8 + 0.5 * 21, 21, 32]


def test_the_mean_of_the_others_by_hand():
    rollout = by_hand()
    returns = torch.tensor([[[2.0, 3.0, 55.0], [12.0, 16.0, 20.0], [32.0, 55.0, 55.0]]], dtype=torch.float64)
    b = reinforce.mean_of_the_others(returns, rollout.alive)[rollout.alive]
    assert b.tolist() == [(12 + 32) / 2, 16, (2 + 32) / 2, 3, 0, (2 + 12) / 2]


def test_the_policy_loss_sums_over_time_and_averages_over_episodes():
    rollout, params = by_hand(), random_params(POLICY, 1, 0)
    advantages = torch.tensor([[[1.0, -2.0, 9.0], [3.0, 4.0, -5.0], [6.0, 9.0, 9.0]]], dtype=torch.float64)
    loss, entropy = reinforce.policy_loss(POLICY, params, pack(rollout, advantages), 3)
    a, b = POLICY.logits(params, rollout.observations)[0, 0, 0].softmax(-1).log().tolist()
    # Actions 0, 1 | 1, 1, 0 | 0 with the advantages above; all observations are the same.
    expected = -((a * 1 + b * -2) + (b * 3 + b * 4 + a * -5) + a * 6) / 3
    assert loss.tolist() == pytest.approx([expected], abs=1e-12)
    two = torch.tensor([a, b], dtype=torch.float64)
    assert entropy.tolist() == pytest.approx([-float((two.exp() * two).sum())], abs=1e-12)


def test_the_value_loss_by_hand():
    params = random_params(VALUE, 1, 1)
    observations = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]], dtype=torch.float64)
    returns = torch.tensor([[2.0, -1.0, 100.0]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.2, 0.0]], dtype=torch.float64)
    first, second = VALUE.value(params, observations)[0, :2].tolist()
    expected = 0.5 * ((2 - first) ** 2 + (-1 - second) ** 2) / 2
    assert reinforce.value_loss(VALUE, params, observations, returns, weights).tolist() == pytest.approx([expected])


# --- expectations, enumerated -----------------------------------------------------------------------------------------


def expected_gradient(world: Tiny, params: Params, discount: float, after: Tensor) -> Tensor:
    """Σ_t Σ_s d_t(s) Σ_a ∇π(a|s) Q_t(s, a), by dynamic programming: no trajectories, no log-probabilities."""
    params = {name: p.clone().requires_grad_() for name, p in params.items()}
    pi = POLICY.logits(params, torch.eye(2, dtype=torch.float64)[None])[0].softmax(-1)
    _, q = world.values(pi.detach(), discount, after)
    objective = (world.visits(pi.detach())[..., None] * pi * q).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(params.values()))])


def true_gradient(world: Tiny, params: Params) -> Tensor:
    """∇ of the expected undiscounted return."""
    params = {name: p.clone().requires_grad_() for name, p in params.items()}
    pi = POLICY.logits(params, torch.eye(2, dtype=torch.float64)[None])[0].softmax(-1)
    v, _ = world.values(pi, 1.0, torch.zeros(2, dtype=torch.float64))
    return torch.cat([g.flatten() for g in torch.autograd.grad(world.initial @ v[0], list(params.values()))])


def estimates(world: Tiny, config: Config, params: Params, value_params: Params) -> tuple[Tensor, Tensor]:
    """All gradients that can come out, ``[case, parameter]``, and their probabilities. A case is ``config.episodes`` episodes."""
    trajectories = world.trajectories()
    n = len(trajectories.chance)
    rollout = as_rollout(trajectories)
    log_probs = (POLICY.log_prob(expand(params, n), rollout.observations, rollout.actions) * rollout.alive).sum((-2, -1))
    probability = trajectories.chance * log_probs.exp()
    cases = torch.cartesian_prod(*[torch.arange(n)] * config.episodes).reshape(-1, config.episodes)
    rollout = Rollout(*(column[cases, 0] for column in rollout))
    _, advantages = reinforce.judge(rollout, config, VALUE, expand(value_params, len(cases)))
    batch = pack(rollout, advantages)
    return reinforce.policy_gradient(POLICY, expand(params, len(cases)), batch, config.episodes), probability[cases].prod(-1)


def moments(gradients: Tensor, probability: Tensor) -> tuple[Tensor, float]:
    mean = probability @ gradients
    return mean, float(probability @ (gradients - mean).square().sum(-1))


CASES = [("none", 1, 3), ("none", 2, 2), ("mean", 2, 2), ("value", 1, 3), ("value", 2, 2)]


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize(("baseline", "episodes", "horizon"), CASES)
def test_the_expected_estimate_is_the_policy_gradient(baseline, episodes, horizon, discount):
    world, params, value_params = Tiny(horizon), random_params(POLICY, 1, 2), random_params(VALUE, 1, 3)
    config = Config(baseline, episodes=episodes, discount=discount)
    gradients, probability = estimates(world, config, params, value_params)
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    after = torch.zeros(2, dtype=torch.float64)
    if baseline == "value":  # what the clock cuts off is worth V there
        after = VALUE.value(value_params, torch.eye(2, dtype=torch.float64)[None])[0]
    expected = expected_gradient(world, params, discount, after)
    torch.testing.assert_close(probability @ gradients, expected, rtol=1e-10, atol=1e-10)
    if discount == 1 and baseline != "value":
        torch.testing.assert_close(expected, true_gradient(world, params), rtol=1e-10, atol=1e-10)
        assert float(expected.abs().max()) > 0.01


def test_a_baseline_leaves_the_expectation_and_lowers_the_variance():
    # All episodes terminate or are cut with nothing behind: the value network is 0 there, and right within.
    world, params = Tiny(2), random_params(POLICY, 1, 2)
    constant = {name: torch.zeros_like(p) for name, p in random_params(VALUE, 1, 3).items()}
    mean, variance = {}, {}
    for baseline in ("none", "mean"):
        mean[baseline], variance[baseline] = moments(*estimates(world, Config(baseline, episodes=2), params, constant))
    torch.testing.assert_close(mean["none"], mean["mean"], rtol=1e-10, atol=1e-10)
    assert variance["mean"] < 0.75 * variance["none"]
    # Without truncation a value network of any kind leaves it too. One step: V = 3.6 is near the mean reward.
    world = Tiny(1)
    constant["bias_1"] += 3.6
    rollout_ends = world.trajectories()._replace(terminated=torch.ones(len(world.trajectories().chance), 1, dtype=torch.bool))
    world = type("Ending", (Tiny,), {"trajectories": lambda self: rollout_ends})(1)
    for baseline in ("none", "value"):
        mean[baseline], variance[baseline] = moments(*estimates(world, Config(baseline, episodes=1), params, constant))
    torch.testing.assert_close(mean["none"], mean["value"], rtol=1e-10, atol=1e-10)
    assert variance["value"] < 0.5 * variance["none"]


@pytest.fixture(scope="module")
def on_cartpole() -> list[reinforce.Log]:
    return list(train(CartPole("default", max_steps=500), Config(learners=2, env_steps=12_000)))


def test_cartpole_improves(on_cartpole):
    returns = torch.stack([log.returns for log in on_cartpole])
    assert (returns[:2].mean(0) < 40).all()
    assert (returns[-2:].nanmean(0) > 100).all()


def test_baselines_lower_the_variance_on_cartpole(on_cartpole):
    """Of 40 estimates from ten episodes each, with a policy that has learned for a while and the value network of its own."""
    world, generator, config = CartPole("default", max_steps=500), torch.Generator().manual_seed(0), Config(learners=2)
    policy, value = reinforce.networks(world, config)
    params = {name: {k: p[:1].expand(40, *p.shape[1:]) for k, p in net.items()} for name, net in on_cartpole[-1].params.items()}
    rollout = collect(world, world.sample_tasks(40, generator), policy, params["policy"], 10, generator)
    variance = {}
    for baseline in reinforce.BASELINES:
        _, advantages = reinforce.judge(rollout, Config(baseline), value, params["value"])
        batch = pack(rollout, advantages)
        variance[baseline] = float(reinforce.policy_gradient(policy, params["policy"], batch, 10).var(0).sum())
    assert variance["mean"] < 0.6 * variance["none"]
    assert variance["value"] < 0.6 * variance["none"]


# --- side by side -----------------------------------------------------------------------------------------------------


def random_batch(learners: int, samples: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    actions = torch.randint(2, (learners, samples), generator=generator)
    weights = torch.full((learners, samples), 1 / samples, dtype=torch.float64)
    return Batch(draw(learners, samples, 2), actions, draw(learners, samples), draw(learners, samples), weights)


def test_every_learners_gradient_is_its_own():
    params, batch = random_params(POLICY, 3, 5), random_batch(3)
    together = reinforce.policy_gradient(POLICY, params, batch, 4)
    for i in range(3):
        alone = {name: p[i : i + 1] for name, p in params.items()}
        one = Batch(*(column[i : i + 1] for column in batch))
        torch.testing.assert_close(together[i : i + 1], reinforce.policy_gradient(POLICY, alone, one, 4))


def test_a_shortened_step_is_adam_with_that_step_size():
    """Three learners with step sizes of 1, 1/2 and 0 times the full one, against an optimiser for each."""
    params, batch = random_params(POLICY, 3, 6), random_batch(3)
    alone = [{name: p[i : i + 1].clone().requires_grad_() for name, p in params.items()} for i in range(3)]
    start = {name: p.clone() for name, p in params.items()}
    optimizer = torch.optim.Adam([p.requires_grad_() for p in params.values()], lr=0.1)
    share = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    single = [torch.optim.Adam(alone[i].values(), lr=0.1 * float(share[i])) for i in range(3)]
    for _ in range(4):
        reinforce.descend(reinforce.policy_loss(POLICY, params, batch, 4)[0], params, optimizer, share)
        for i in range(3):
            single[i].zero_grad()
            one = Batch(*(column[i : i + 1] for column in batch))
            reinforce.policy_loss(POLICY, alone[i], one, 4)[0].sum().backward()
            single[i].step()
    for name, p in params.items():
        for i in range(3):
            torch.testing.assert_close(p[i : i + 1], alone[i][name])
        assert torch.equal(p[2], start[name][2]) and not torch.equal(p[1], start[name][1])


class Scaled(Probe):
    """The rewards of learner i times ``factors[i]``; episodes end as before, and so all random numbers stay what they were."""

    factors = (1.0, 1.0)

    def step(self, task, state, action, generator=None):
        state, step = super().step(task, state, action, generator)
        return state, step._replace(reward=step.reward * torch.tensor(self.factors)[:, None])


class Loud(Scaled):
    factors = (1.0, -1000.0)


@pytest.mark.parametrize("baseline", reinforce.BASELINES)
def test_a_learner_is_untouched_by_the_others(baseline):
    config = Config(baseline, learners=2, env_steps=60, episodes=6, discount=DISCOUNT)
    one, two = (last(train(world, config)) for world in (Scaled("action"), Loud("action")))
    for network in one.params:
        for name, p in one.params[network].items():
            assert torch.equal(p[0], two.params[network][name][0])
    assert not torch.equal(one.params["policy"]["weight_0"][1], two.params["policy"]["weight_0"][1])


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_probes(kind):
    steps = 2 if kind == "two-step" else 1
    config = Config(learners=3, env_steps=4000 * steps, episodes=20, discount=DISCOUNT, step_size=2e-2, value_steps=5)
    log = last(train(Probe(kind), config))
    policy, value = reinforce.networks(Probe(kind), config)
    observations = first_observations().expand(3, 2, 2)
    seen = slice(1, 2) if kind == "truncation" else slice(0, 2)  # only the sign +1 occurs
    values = value.value(log.params["value"], observations)[:, seen]
    torch.testing.assert_close(values, best_values(kind).expand(3, 2)[:, seen], rtol=0, atol=0.1)
    if kind == "action":
        assert policy.act(log.params["policy"], observations, None)[0].tolist() == [[0, 1]] * 3
        assert (log.returns > 0.9).all()


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_the_right_action_is_learned_without_a_value_network(baseline):
    config = Config(baseline, learners=3, env_steps=2000, episodes=20, step_size=2e-2)
    log = last(train(Probe("action"), config))
    assert set(log.params) == {"policy"}
    assert (log.returns > 0.9).all()


def test_a_value_network_that_is_not_the_baseline_is_not_bootstrapped_from():
    _, advantages = reinforce.judge(by_hand(), Config("none", discount=0.5), VALUE, None)
    assert advantages[0, 1].tolist() == [12, 16, 16]


class Task(NamedTuple):
    length: Tensor  # [task]


class Clock(NamedTuple):
    time: Tensor  # [task, env]


class Lengths:
    """Every episode of learner i lasts ``lengths[i]`` steps and earns 1 at each."""

    observation_size, actions, max_steps = 1, 2, 4
    lengths = (1, 4)

    def sample_tasks(self, n, generator, split="train"):
        return Task(torch.tensor(self.lengths))

    def reset(self, task, n, generator):
        time = torch.zeros(len(task.length), n)
        return Clock(time), time[..., None]

    def step(self, task, state, action, generator=None):
        time = state.time + 1
        return Clock(time), Step(time[..., None], torch.ones_like(time), time >= task.length[:, None], time >= 9)


def test_a_learner_that_has_used_its_steps_waits():
    logs = list(train(Lengths(), Config(learners=2, env_steps=9, episodes=2)))
    assert [log.env_steps.tolist() for log in logs] == [[2, 8], [4, 16], [6, 16], [8, 16], [10, 16]]
    assert [log.iteration for log in logs] == [1, 2, 3, 4, 5]
    assert all(log.returns[0] == 1 for log in logs)
    assert [log.returns[1].isnan().item() for log in logs] == [False, False, True, True, True]
    assert [log.returns[1].item() for log in logs[:2]] == [4, 4]
    for network in ("policy", "value"):
        for name, p in logs[-1].params[network].items():
            assert torch.equal(p[1], logs[1].params[network][name][1]), "it stands still"
    assert not torch.equal(logs[-1].params["policy"]["bias_2"][0], logs[1].params["policy"]["bias_2"][0])


def test_the_seed_decides_everything():
    world, config = CartPole("default", max_steps=50), Config(learners=2, env_steps=500, episodes=3)
    first, again, other = (list(train(world, replace(config, seed=seed))) for seed in (0, 0, 1))
    for network in ("policy", "value"):
        assert all(torch.equal(p, again[-1].params[network][name]) for name, p in first[-1].params[network].items())
    assert [log.returns.tolist() for log in first[:2]] == [log.returns.tolist() for log in again[:2]]
    assert first[0].returns.tolist() != other[0].returns.tolist()
    assert not torch.equal(first[0].params["policy"]["weight_1"], first[-1].params["policy"]["weight_1"]), "logs are copies"


def test_acrobot_through_the_bridge():
    world = GymnasiumWorld(gymnasium.make_vec("Acrobot-v1", 4, vectorization_mode="sync"), max_steps=60, learners=2)
    logs = list(train(world, Config(learners=2, env_steps=240, episodes=2)))
    assert [log.env_steps.tolist() for log in logs] == [[120, 120], [240, 240]]
    assert (logs[-1].returns == -60).all()
    world.env.close()


# --- what stops it ----------------------------------------------------------------------------------------------------


def test_a_reward_that_is_not_a_number_stops_it():
    class Broken(Probe):
        calls = 0

        def step(self, task, state, action, generator=None):
            type(self).calls += 1
            state, step = super().step(task, state, action, generator)
            return state, step._replace(reward=step.reward * (torch.nan if self.calls > 2 else 1))

    with pytest.raises(FloatingPointError, match="^iteration 3: the environment returned rewards that are not finite"):
        list(train(Broken("one-step"), Config(learners=2, env_steps=100, episodes=2)))


@pytest.mark.parametrize("baseline", reinforce.BASELINES)
def test_a_gradient_that_overflows_names_its_learner(baseline):
    class Huge(Probe):  # each reward is a number, the sum of two is not
        def step(self, task, state, action, generator=None):
            state, step = super().step(task, state, action, generator)
            return state, step._replace(reward=torch.tensor([1.0, 3e38, 1.0])[:, None] + 0 * step.reward)

    config = Config(baseline, learners=3, env_steps=400, episodes=3)
    with pytest.raises(FloatingPointError, match=r"^iteration 1: the gradient of learner 1 is not finite \(NaN or infinity\)$"):
        list(train(Huge("two-step"), config))


def test_continuous_actions_are_refused():
    with pytest.raises(ValueError, match="^world must have discrete actions, got one with continuous actions$"):
        next(train(type("Continuous", (), {"observation_size": 2, "action_low": (-1.0,)})(), Config()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "median"}, "unknown baseline 'median'; there are none, mean, value"),
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"env_steps": 0}, "env_steps must be at least 1, got 0"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"value_steps": 0}, "value_steps must be at least 1, got 0"),
        ({"baseline": "mean", "episodes": 1}, "episodes must be at least 2 for the mean of the others, got 1"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"value_step_size": float("nan")}, "value_step_size must be positive and finite, got nan"),
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config(**change)


# --- the full-size run, made small ------------------------------------------------------------------------------------


def test_averaging_over_stretches(monkeypatch):
    monkeypatch.setattr(experiment, "POINTS", 5)
    env_steps = np.array([[20, 10], [40, 20], [60, 41], [80, 99], [101, 140]])
    returns = np.array([[np.nan, 1.0], [2.0, 3.0], [4.0, 5.0], [np.nan, 7.0], [6.0, np.nan]])
    # Stretches end at 20, 40, 60, 80, 100; what lies beyond belongs to the last one.
    assert experiment.averaged(env_steps, returns, 100).T.tolist() == [[2, 2, 4, 4, 6], [2, 2, 5, 5, 7]]


def test_the_experiment_gives_a_result_of_the_one_form(monkeypatch):
    monkeypatch.setattr(
        experiment, "run_pieces", lambda work, pieces, *_: [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]
    )
    result = experiment.run(2, 0.005, None)
    results.check(json.loads(json.dumps(result, allow_nan=False)))
    assert result["name"] == experiment.NAME and result["seeds"] == [0, 1]
    for method in experiment.CONFIGS:
        greedy = result["curves"][f"{method} · greedy return"]
        assert result["metrics"][f"{method} · greedy return"]["value"] == pytest.approx(sum(greedy) / 2, abs=0.01)
        assert result["metrics"][f"{method} · greedy return, worst seed"]["value"] == pytest.approx(min(greedy), abs=0.01)
        steps = result["curves"][f"{method} · environment steps"]
        assert len(steps) == len(result["curves"][f"{method} · return while learning"]) and steps[-1] == 2500
