"""Actor-critic against exact answers: losses by hand, an enumerated decision process, probes, one optimiser per learner."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gymnasium
import pytest
import torch
from enumerable import Tiny, one_hot
from probes import DISCOUNT, KINDS, Probe, best_values, first_observations
from torch import Tensor

from metarl_lib import actor_critic
from metarl_lib.actor_critic import Config, Segment, train
from metarl_lib.cartpole import CartPole
from metarl_lib.gymnasium_bridge import GymnasiumWorld
from metarl_lib.nets import PolicyNet, ValueNet
from metarl_lib.stream import Stream
from metarl_lib.types import Params


def random_params(net: PolicyNet | ValueNet, learners: int, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    params = net.init(learners, generator, torch.float64)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}


def last(iterator):
    *_, log = iterator
    return log


# --- losses -----------------------------------------------------------------------------------------------------------


class Table:
    """A policy and a value function read off tables of parameters by the observation, a number."""

    def logits(self, params: Params, observations: Tensor) -> Tensor:
        return params["logits"][0][observations[..., 0].long()]

    def value(self, params: Params, observations: Tensor) -> Tensor:
        return params["values"][0][observations[..., 0].long()]


def test_losses_by_hand():
    """Observations 0, 1, 2, 3 worth 1, 2, 4, 8. Three steps: 0 → 1, 1 → 2 truncated, then a new episode's 3 → 0 terminated."""
    f, t = False, True
    double = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    segment = Segment(
        observations=double(0, 1, 3).view(1, 1, 3, 1),
        actions=torch.tensor([[[0, 1, 0]]]),
        next_observations=double(1, 2, 0).view(1, 1, 3, 1),
        rewards=double(10, 20, 30).view(1, 1, 3),
        terminated=torch.tensor([[[f, f, t]]]),
        truncated=torch.tensor([[[f, t, f]]]),
    )
    quarter = math.log(3)  # probabilities 3/4 and 1/4
    params = {
        "policy": {"logits": double([quarter, 0], [0, 0], [0, 0], [0, quarter])[None]},
        "value": {"values": double(1, 2, 4, 8)[None]},
    }
    config = Config(discount=0.5, gae_lambda=0.5, entropy_coefficient=0.1)
    actor, critic, entropy = actor_critic.losses(Table(), Table(), params, segment, config)
    third = 30 - 8  # nothing follows
    second = 20 + 0.5 * 4 - 2  # the clock cut it: observation 2 still counts, and the third step does not
    first = 10 + 0.5 * 2 - 1 + 0.5 * 0.5 * second
    h = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)]
    assert entropy.tolist() == pytest.approx([(2 * h[0] + h[1]) / 3], abs=1e-12)
    gain = first * math.log(0.75) + second * math.log(0.5) + third * math.log(0.25)
    assert actor.tolist() == pytest.approx([-gain / 3 - 0.1 * (2 * h[0] + h[1]) / 3], abs=1e-12)
    # Targets are Â + V, so that the error is Â.
    assert critic.tolist() == pytest.approx([0.5 * (first**2 + second**2 + third**2) / 3], abs=1e-12)


def random_segment(learners: int, envs: int = 2, steps: int = 5) -> Segment:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    flags = lambda: torch.rand(learners, envs, steps, generator=generator) < 0.2  # noqa: E731
    shape = (learners, envs, steps)
    actions = torch.randint(2, shape, generator=generator)
    return Segment(draw(*shape, 2), actions, draw(*shape, 2), draw(*shape), flags(), flags())


POLICY, VALUE = PolicyNet(2, 2, hidden=(3,)), ValueNet(2, hidden=(3,))


def both(learners: int, seed: int = 2) -> dict[str, Params]:
    return {"policy": random_params(POLICY, learners, seed), "value": random_params(VALUE, learners, seed + 1)}


def gradients(params: dict[str, Params], segment: Segment, config: Config, which: int) -> list[Tensor | None]:
    params = {name: {k: p.clone().requires_grad_() for k, p in net.items()} for name, net in params.items()}
    loss = actor_critic.losses(POLICY, VALUE, params, segment, config)[which]
    leaves = [p for net in params.values() for p in net.values()]
    return list(torch.autograd.grad(loss.sum(), leaves, allow_unused=True))


def test_every_learners_gradient_is_its_own_and_every_networks_too():
    params, segment, config = both(3), random_segment(3), Config(entropy_coefficient=0.1)
    for which in (0, 1):
        together = gradients(params, segment, config, which)
        assert [g is None for g in together] == [which == 1] * 4 + [which == 0] * 4
        for i in range(3):
            alone = {name: {k: p[i : i + 1] for k, p in net.items()} for name, net in params.items()}
            for g, one in zip(together, gradients(alone, Segment(*(x[i : i + 1] for x in segment)), config, which), strict=True):
                assert (g is None) == (one is None)
                if g is not None:
                    torch.testing.assert_close(g[i : i + 1], one)


def test_the_critic_is_drawn_towards_its_target_and_not_its_target_towards_it():
    """The gradient is that of a regression on fixed targets: −(target − V) ∇V, mean over the steps."""
    params, segment, config = both(1), random_segment(1), Config(discount=0.9, gae_lambda=0.7)
    found = gradients(params, segment, config, 1)[4:]
    leaves = {k: p.clone().requires_grad_() for k, p in params["value"].items()}
    values = VALUE.value(leaves, segment.observations)
    reached = VALUE.value(params["value"], segment.next_observations)
    v, n, r = values.detach()[0].tolist(), reached[0].tolist(), segment.rewards[0].tolist()
    expected = torch.zeros((), dtype=torch.float64)
    for env in range(2):
        advantage = 0.0
        for t in reversed(range(5)):
            terminated, truncated = bool(segment.terminated[0, env, t]), bool(segment.truncated[0, env, t])
            delta = r[env][t] + 0.9 * n[env][t] * (not terminated) - v[env][t]
            advantage = delta + 0.9 * 0.7 * advantage * (not (terminated or truncated))
            expected = expected - advantage * values[0, env, t] / 10
    for g, e in zip(found, torch.autograd.grad(expected, list(leaves.values())), strict=True):
        torch.testing.assert_close(g, e)


def test_the_entropy_bonus_is_climbed():
    """d(−c H)/d logits = c π (log π + H), and an advantage of 0 leaves only that."""
    logits = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64).requires_grad_()
    actions, nothing = torch.tensor([[[1]]]), torch.zeros(1, 1, 1, dtype=torch.float64)
    params = {"logits": logits[None]}
    loss, entropy = actor_critic.policy_loss(Table(), params, nothing[..., None], actions, nothing, 0.5)
    pi = logits.detach()[0].softmax(-1)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0][0], 0.5 * pi * (pi.log() + entropy))
    torch.testing.assert_close(entropy[0], -(pi * pi.log()).sum())


# --- the policy gradient, enumerated ----------------------------------------------------------------------------------

HORIZON = 3


@dataclass(frozen=True)
class TimedValues:
    """V by state and time: an observation is (state one-hot, time one-hot)."""

    def value(self, params: Params, observations: Tensor) -> Tensor:
        state, time = observations[..., :2], observations[..., 2:]
        return torch.einsum("...t,ts,...s->...", time, params["values"], state)


@dataclass(frozen=True)
class StatePolicy:
    """A network's policy that sees the state and not the time."""

    def logits(self, params: Params, observations: Tensor) -> Tensor:
        return POLICY.logits(params, observations[..., :2])


def expected_actor_gradient(values: Tensor, config: Config, params: Params) -> Tensor:
    """E of the actor's gradient times the steps, where the last step terminates every trajectory; ``values [time, state]``."""
    trajectories = Tiny(HORIZON, ending=0).trajectories()
    n = len(trajectories.chance)
    time = torch.eye(HORIZON + 1, dtype=torch.float64)
    observe = lambda state, clock: torch.cat((one_hot(state), clock.expand(n, -1, -1)), -1)[:, None]  # noqa: E731
    segment = Segment(
        observations=observe(trajectories.state, time[:-1]),
        actions=trajectories.action[:, None],
        next_observations=observe(trajectories.next_state, time[1:]),
        rewards=trajectories.reward[:, None],
        terminated=trajectories.truncated[:, None],  # here the last step is the task's own end
        truncated=torch.zeros_like(trajectories.truncated)[:, None],
    )
    policy = {k: p.expand(n, *p.shape[1:]).clone().requires_grad_() for k, p in params.items()}
    actor, *_ = actor_critic.losses(
        StatePolicy(), TimedValues(), {"policy": policy, "value": {"values": values}}, segment, config
    )
    found = torch.cat([g.flatten(1) for g in torch.autograd.grad(actor.sum(), list(policy.values()))], 1)
    log_prob = POLICY.log_prob(policy, segment.observations[..., :2], segment.actions).sum((-2, -1)).detach()
    probability = trajectories.chance * log_prob.exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    return -HORIZON * (probability @ found)


def exact(params: Params) -> tuple[Tensor, Tensor]:
    """∇ of the expected return, and V by time and state."""
    world, leaves = Tiny(HORIZON, ending=0), {k: p.clone().requires_grad_() for k, p in params.items()}
    pi = POLICY.logits(leaves, torch.eye(2, dtype=torch.float64)[None])[0].softmax(-1)
    v, _ = world.values(pi, 1.0, torch.zeros(2, dtype=torch.float64))
    gradient = torch.autograd.grad(world.initial @ v[0], list(leaves.values()))
    return torch.cat([g.flatten() for g in gradient]), v.detach()


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_the_right_values_the_expected_step_is_the_policy_gradient_for_any_lambda(lam):
    params = random_params(POLICY, 1, 5)
    gradient, values = exact(params)
    found = expected_actor_gradient(values, Config(discount=1.0, gae_lambda=lam), params)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10)
    assert float(gradient.abs().max()) > 0.01


def test_with_wrong_values_it_is_only_for_lambda_one():
    params = random_params(POLICY, 1, 5)
    gradient, values = exact(params)
    wrong = values + torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=values.dtype)
    found = {lam: expected_actor_gradient(wrong, Config(discount=1.0, gae_lambda=lam), params) for lam in (0.0, 1.0)}
    torch.testing.assert_close(found[1.0], gradient, rtol=1e-10, atol=1e-10)
    assert float((found[0.0] - gradient).norm()) > 0.1 * float(gradient.norm())


# --- acting and updating ----------------------------------------------------------------------------------------------


def test_a_segment_lines_up_with_the_stream():
    """Two steps of the probe "two-step" are an episode: its time runs from 0 to 2, and reaching 2 earns 1."""
    stream = Stream(Probe("two-step"), 2, 3, torch.Generator().manual_seed(0))
    policy = PolicyNet(2, 2, hidden=(4,))
    params = policy.init(2, torch.Generator().manual_seed(1))
    segment = actor_critic.act(stream, policy, params, 5)
    clock = torch.tensor([0.0, 1, 0, 1, 0]).expand(2, 3, 5)
    assert torch.equal(segment.observations[..., 1], clock)
    assert torch.equal(segment.next_observations[..., 1], clock + 1)
    assert torch.equal(segment.observations[..., 0], segment.next_observations[..., 0])
    assert torch.equal(segment.rewards, clock) and torch.equal(segment.terminated, clock == 1)
    assert not segment.truncated.any() and segment.actions.shape == (2, 3, 5)
    assert torch.equal(actor_critic.act(stream, policy, params, 1).observations[..., 0, 1], torch.ones(2, 3)), "it goes on"


def test_actions_are_drawn_from_the_policy():
    stream = Stream(Probe("sign"), 1, 50, torch.Generator().manual_seed(0))
    policy = PolicyNet(2, 2, hidden=(4,))
    params = {name: torch.zeros_like(p) for name, p in policy.init(1, torch.Generator()).items()}
    params["bias_1"][..., 1] = math.log(4)
    actions = actor_critic.act(stream, policy, params, 80).actions
    assert actions.float().mean().item() == pytest.approx(0.8, abs=4 * 0.4 / 4000**0.5)


def test_clipping_takes_each_learners_own_norm():
    params = random_params(POLICY, 3, 8)
    for i, p in enumerate(params.values()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype)
        p.grad[0] *= 1e-3  # shorter than the limit
        p.grad[2] *= 1e6
    before = [p.grad.clone() for p in params.values()]
    norms = actor_critic.clip_gradients(params, 0.7)
    for i in range(3):
        alone = [torch.nn.Parameter(g[i].clone()) for g in before]
        for p, g in zip(alone, before, strict=True):
            p.grad = g[i].clone()
        norm = torch.nn.utils.clip_grad_norm_(alone, 0.7)
        assert norms[i].item() == pytest.approx(norm.item())
        for p, one in zip(params.values(), alone, strict=True):
            torch.testing.assert_close(p.grad[i], one.grad, rtol=1e-5, atol=1e-9)
    assert all(torch.equal(p.grad[0], g[0]) for p, g in zip(params.values(), before, strict=True))


def test_an_update_is_adam_on_each_learner_alone():
    params, segment, config = both(2), random_segment(2), Config(entropy_coefficient=0.01, max_gradient_norm=0.05)
    alone = [
        {name: {k: p[i : i + 1].clone().requires_grad_() for k, p in net.items()} for name, net in params.items()}
        for i in range(2)
    ]
    optimizer = torch.optim.Adam([p.requires_grad_() for net in params.values() for p in net.values()], lr=0.1)
    for i in range(2):
        single = torch.optim.Adam([p for net in alone[i].values() for p in net.values()], lr=0.1)
        one = Segment(*(x[i : i + 1] for x in segment))
        for _ in range(3):
            actor_critic.update(POLICY, VALUE, alone[i], one, config, single)
    for _ in range(3):
        actor_critic.update(POLICY, VALUE, params, segment, config, optimizer)
    for name, net in params.items():
        for k, p in net.items():
            torch.testing.assert_close(p, torch.cat([a[name][k] for a in alone]))


class Scaled(Probe):
    """The rewards of learner i times ``factors[i]``; episodes end as before, and so all random numbers stay what they were."""

    factors = (1.0, 1.0)

    def step(self, task, state, action, generator=None):
        state, step = super().step(task, state, action, generator)
        return state, step._replace(reward=step.reward * torch.tensor(self.factors)[:, None])


class Loud(Scaled):
    factors = (1.0, -1000.0)


def test_a_learner_is_untouched_by_the_others():
    config = Config(learners=2, env_steps=80, envs=4, rollout_steps=2, entropy_coefficient=0.01)
    one, two = (last(train(world, config)) for world in (Scaled("action"), Loud("action")))
    for network in ("policy", "value"):
        for name, p in one.params[network].items():
            assert torch.equal(p[0], two.params[network][name][0])
    assert not torch.equal(one.params["policy"]["weight_0"][1], two.params["policy"]["weight_0"][1])


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_probes(kind):
    config = Config(learners=3, env_steps=16 * 4 * 300, envs=16, rollout_steps=4, discount=DISCOUNT, step_size=1e-2)
    log = last(train(Probe(kind), config))
    policy, value = actor_critic.networks(Probe(kind), config)
    observations = first_observations().expand(3, 2, 2)
    seen = slice(1, 2) if kind == "truncation" else slice(0, 2)  # only the sign +1 occurs
    values = value.value(log.params["value"], observations)[:, seen]
    torch.testing.assert_close(values, best_values(kind).expand(3, 2)[:, seen], rtol=0, atol=0.1)
    if kind == "action":
        assert policy.act(log.params["policy"], observations, None)[0].tolist() == [[0, 1]] * 3
        assert (log.returns > 0.9).all() and (log.entropy < 0.3).all()
    if kind == "one-step":
        assert (log.value_loss < 0.01).all() and (log.returns == 1).all()


def test_cartpole_improves():
    config = Config(learners=2, env_steps=20_000, envs=16)
    returns = torch.stack([log.returns for log in train(CartPole("default", max_steps=500), config)])
    assert (returns[0] < 40).all()
    assert (returns[-2:].nanmean(0) > 80).all()


def test_logs_count_and_step_sizes_fall_to_zero(monkeypatch):
    seen, update = [], actor_critic.update

    def spy(*args):
        seen.append([group["lr"] for group in args[-1].param_groups])
        return update(*args)

    monkeypatch.setattr(actor_critic, "update", spy)
    config = Config(learners=2, env_steps=67, envs=2, rollout_steps=3, iteration_updates=4, step_size=0.1, value_step_size=0.2)
    logs = list(train(Probe("two-step"), config))
    assert [log.iteration for log in logs] == [1, 2, 3]
    assert [log.env_steps for log in logs] == [24, 48, 66]  # eleven updates of six steps fit into 67
    assert torch.tensor(seen).tolist() == pytest.approx(
        torch.tensor([[0.1 * (1 - i / 11), 0.2 * (1 - i / 11)] for i in range(11)])
    )


def test_returns_are_those_of_the_episodes_that_ended():
    config = Config(learners=2, env_steps=40, envs=2, rollout_steps=1, iteration_updates=1)
    returns = torch.stack([log.returns for log in train(Probe("two-step"), config)])
    assert returns[::2].isnan().all() and (returns[1::2] == 1).all()


def test_the_seed_decides_everything():
    world, config = CartPole("default", max_steps=50), Config(learners=2, env_steps=600, envs=2, rollout_steps=10)
    config = replace(config, iteration_updates=5)
    first, again, other = (list(train(world, replace(config, seed=seed))) for seed in (0, 0, 1))
    for network in ("policy", "value"):
        assert all(torch.equal(p, again[-1].params[network][name]) for name, p in first[-1].params[network].items())
    assert torch.equal(first[0].value_loss, again[0].value_loss)
    assert not torch.equal(first[0].value_loss, other[0].value_loss)
    assert not torch.equal(first[0].params["policy"]["weight_1"], first[-1].params["policy"]["weight_1"]), "logs are copies"


def test_acrobot_through_the_bridge():
    world = GymnasiumWorld(gymnasium.make_vec("Acrobot-v1", 4, vectorization_mode="sync"), max_steps=25, learners=2)
    config = Config(learners=2, env_steps=200, envs=2, rollout_steps=10, iteration_updates=5)
    logs = list(train(world, config))
    assert [log.env_steps for log in logs] == [100, 200]
    assert (logs[-1].returns == -25).all()
    world.env.close()


# --- what stops it ----------------------------------------------------------------------------------------------------


def test_a_reward_that_is_not_a_number_stops_it():
    class Broken(Probe):
        calls = 0

        def step(self, task, state, action, generator=None):
            type(self).calls += 1
            state, step = super().step(task, state, action, generator)
            return state, step._replace(reward=step.reward * (torch.nan if self.calls > 8 else 1))

    config = Config(learners=2, env_steps=100, envs=2, rollout_steps=2, iteration_updates=2)
    with pytest.raises(FloatingPointError, match="^iteration 3: the environment returned a reward or an observation that is not"):
        list(train(Broken("one-step"), config))


def test_a_gradient_that_overflows_names_its_learner():
    class Huge(Scaled):
        factors = (1.0, 3e38, 1.0)

    config = Config(learners=3, env_steps=100, envs=2, rollout_steps=2)
    with pytest.raises(FloatingPointError, match=r"^iteration 1: the gradient of learner 1 is not finite \(NaN or infinity\)$"):
        list(train(Huge("one-step"), config))


def test_continuous_actions_are_refused():
    with pytest.raises(ValueError, match="^world must have discrete actions, got one with continuous actions$"):
        next(train(type("Continuous", (), {"observation_size": 2, "action_low": (-1.0,)})(), Config()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"envs": 0}, "envs must be at least 1, got 0"),
        ({"rollout_steps": 0}, "rollout_steps must be at least 1, got 0"),
        ({"iteration_updates": 0}, "iteration_updates must be at least 1, got 0"),
        ({"env_steps": 500}, "env_steps must be at least envs · rollout_steps = 512, the steps of one update, got 500"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"value_step_size": math.inf}, "value_step_size must be positive and finite, got inf"),
        ({"max_gradient_norm": math.nan}, "max_gradient_norm must be positive and finite, got nan"),
        ({"discount": -0.1}, r"discount must be in \[0, 1\], got -0.1"),
        ({"gae_lambda": 1.5}, r"gae_lambda must be in \[0, 1\], got 1.5"),
        ({"entropy_coefficient": -1.0}, "entropy_coefficient must be at least 0 and finite, got -1.0"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config(**change)


# --- the value network ------------------------------------------------------------------------------------------------


def test_the_value_network_scales_its_observations():
    net = ValueNet(2, hidden=(3,), observation_scale=(1.0, 10.0))
    params, x = random_params(net, 2, 9), torch.tensor([[[0.3, 0.05]], [[1.0, -0.2]]], dtype=torch.float64)
    plain = ValueNet(2, hidden=(3,))
    assert net.value(params, x).shape == (2, 1)
    assert torch.equal(net.value(params, x), plain.value(params, x * torch.tensor([1.0, 10.0], dtype=torch.float64)))
