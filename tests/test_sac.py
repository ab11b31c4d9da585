"""The squashed Gaussian against integrals, losses by hand and by finite differences, probes whose values are known exactly."""

import json
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from probes import DISCOUNT, KINDS, ContinuousProbe, Probe, best_values, first_observations
from scipy import integrate

from metarl_lib import results, sac
from metarl_lib.experiments import sac_pendulum
from metarl_lib.gymnasium_bridge import GymnasiumWorld
from metarl_lib.pendulum import Pendulum
from metarl_lib.replay import Replay, Transitions
from metarl_lib.sac import Config, Critics, SquashedGaussian, follow, init, learn, losses, optimizer_for, squash, targets, train

SMALL = Config(learners=2, env_steps=120, envs=2, start_steps=20, batch=16, hidden=(8,), iteration_steps=40)
POLICY = SquashedGaussian(3, (-2.0, -1.0), (2.0, 5.0), (5, 4), (1.0, 0.5, 2.0))
CRITICS = Critics(3, 2, 2, (6, 4), (1.0, 0.5, 2.0))


def random_batch(learners=2, n=6, seed=0, size=3, actions=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return 2 * torch.randn(learners, n, *shape, generator=generator, dtype=torch.float64)

    terminated = torch.rand(learners, n, generator=generator) < 0.3
    return Transitions(normal(size), normal(actions).tanh(), normal(), normal(size), terminated)


def random_params(seed=1, temperature=(0.3, 2.0)):
    generator = torch.Generator().manual_seed(seed)
    params = init(POLICY, CRITICS, Config(learners=2), generator, torch.float64)
    for net in ("actor", "critics", "target"):  # not the small last layer of a fresh policy, nor zero biases
        shapes = {name: p.shape for name, p in params[net].items()}
        params[net] = {name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    params["temperature"]["log"] = torch.tensor(temperature, dtype=torch.float64).log()
    return params


def random_noise(n=6, seed=2):
    return torch.randn(2, 2, n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(params, *names):
    return [p for name in names for p in params[name].values()]


# --- the policy -------------------------------------------------------------------------------------------------------


def test_density_against_torchs_own():
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 5, 40, 3, generator=generator, dtype=torch.float64)
    action, log_prob = squash(mean, log_std, noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    tanh = torch.distributions.TanhTransform(cache_size=1)
    squashed = torch.distributions.TransformedDistribution(normal, tanh)
    before = mean + log_std.exp() * noise
    torch.testing.assert_close(action, before.tanh(), rtol=0, atol=1e-15)
    torch.testing.assert_close(log_prob, squashed.log_prob(tanh(before)).sum(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 1.0), (-1.5, 0.3), (0.2, 1.5)])
def test_density_integrates_to_one_and_gives_the_means_of_the_samples(mean, std):
    def log_density(a):
        tensors = (torch.tensor([x], dtype=torch.float64) for x in (mean, math.log(std), (math.atanh(a) - mean) / std))
        action, log_prob = squash(*tensors)
        assert action.item() == pytest.approx(a, abs=1e-12)
        return log_prob.item()

    def integral(f):
        return integrate.quad(lambda a: math.exp(log_density(a)) * f(a), -1 + 1e-12, 1 - 1e-12, limit=500)[0]

    assert integral(lambda a: 1.0) == pytest.approx(1, abs=1e-3)
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    action, log_prob = squash(*(torch.full_like(noise, x) for x in (mean, math.log(std))), noise)
    for sampled, exact in ((action, integral(lambda a: a)), (-log_prob, integral(lambda a: -log_density(a)))):
        assert sampled.mean().item() == pytest.approx(exact, abs=5 * sampled.std().item() / 200_000**0.5 + 2e-3)


@pytest.mark.parametrize("u", [0.3, -4.0, 9.0, 30.0, -300.0])
def test_density_where_the_tanh_saturates(u):
    mean = torch.tensor([u], requires_grad=True)  # float32, in which tanh 10 is 1
    _, log_prob = squash(mean, torch.zeros(1), torch.zeros(1))
    log_cosh = abs(u) + math.log1p(math.exp(-2 * abs(u))) - math.log(2)
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) + 2 * log_cosh, rel=1e-6)
    log_prob.backward()
    assert mean.grad.item() == pytest.approx(2 * math.tanh(u), rel=1e-5)


def test_the_box():
    box = POLICY.to_box(torch.tensor([[[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.5, -0.5]]]))
    assert box.tolist() == [[[-2, -1], [0, 2], [2, 5], [1, 0.5]]]
    params, observations = random_params()["actor"], random_batch().observation
    mean, log_std = POLICY.gaussian(params, observations)
    torch.testing.assert_close(POLICY.act(params, observations), POLICY.to_box(mean.tanh()), rtol=0, atol=0)
    assert not torch.equal(mean, log_std)


def test_a_fresh_policy_is_nearly_the_same_everywhere():
    mean, log_std = POLICY.gaussian(POLICY.init(2, torch.Generator().manual_seed(0)), random_batch().observation.float())
    assert mean.abs().max() < 0.2 and log_std.abs().max() < 0.2


def test_the_standard_deviation_is_bounded():
    params = {"weight_0": torch.zeros(1, 3, 4), "bias_0": torch.tensor([[[0.0, 0.0, 90.0, -90.0]]])}
    _, log_std = replace(POLICY, hidden=()).gaussian(params, torch.zeros(1, 1, 3))
    assert log_std.tolist() == [[[2, -20]]]


# --- the critics ------------------------------------------------------------------------------------------------------


def plain(params, index, x):
    """One network's output for one input in numpy, layer by layer."""
    layers = len(params) // 2
    for i in range(layers):
        x = x @ params[f"weight_{i}"][index].detach().numpy() + params[f"bias_{i}"][index, 0].detach().numpy()
        x = np.maximum(x, 0) if i < layers - 1 else x
    return x


def test_stacked_critics_are_separate_networks():
    params, batch = random_params()["critics"], random_batch()
    q = CRITICS.values(params, batch.observation, batch.action)
    assert q.shape == (2, 2, 6)
    for critic in range(2):
        for learner in range(2):
            for n in range(6):
                x = np.concatenate((batch.observation[learner, n].numpy() * (1, 0.5, 2), batch.action[learner, n].numpy()))
                assert q[critic, learner, n].item() == pytest.approx(plain(params, 2 * critic + learner, x).item(), rel=1e-12)


def test_fresh_critics_differ_and_so_do_learners():
    params = init(POLICY, CRITICS, Config(learners=3), torch.Generator().manual_seed(0), torch.float64)
    weights = params["critics"]["weight_0"]
    assert weights.shape == (6, 5, 6) and len({w.sum().item() for w in weights}) == 6
    assert torch.equal(params["target"]["weight_0"], weights) and params["target"]["weight_0"] is not weights


# --- the losses -------------------------------------------------------------------------------------------------------


def test_target_by_hand():
    # μ = s', log σ = 0; with the noise 0.5, u = s' + 0.5. Q₁ = 2 s + a, Q₂ = 3 s − a + 1. α = 0.2, γ = 0.5.
    policy, critics = SquashedGaussian(1, (-2.0,), (2.0,), ()), Critics(1, 1, 2, ())
    params = {
        "actor": {"weight_0": torch.tensor([[[1.0, 0.0]]]), "bias_0": torch.zeros(1, 1, 2)},
        "target": {
            "weight_0": torch.tensor([[[2.0], [1.0]], [[3.0], [-1.0]]]),
            "bias_0": torch.tensor([[[0.0]], [[1.0]]]),
        },
        "temperature": {"log": torch.tensor([0.2]).log()},
    }
    params["critics"] = {name: torch.full_like(p, torch.nan) for name, p in params["target"].items()}  # has no say in it
    reached = torch.tensor([[[1.0], [-2.0], [-2.0]]])
    batch = Transitions(
        reached * torch.nan, reached * torch.nan, torch.tensor([[1.0, 2.0, 3.0]]), reached, torch.tensor([[False, False, True]])
    )
    y = targets(policy, critics, params, batch, torch.full((1, 3, 1), 0.5), Config(discount=0.5))

    def log_pi(u):
        return -0.125 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(u) ** 2)

    first = min(2 + math.tanh(1.5), 3 - math.tanh(1.5) + 1)  # the second critic's is lower
    second = min(-4 + math.tanh(-1.5), -6 - math.tanh(-1.5) + 1)
    assert first == 3 - math.tanh(1.5) + 1 or first == 2 + math.tanh(1.5)
    expected = [1 + 0.5 * (first - 0.2 * log_pi(1.5)), 2 + 0.5 * (second - 0.2 * log_pi(-1.5)), 3.0]
    assert y[0].tolist() == pytest.approx(expected, rel=1e-5)
    without = targets(policy, critics, params, batch, torch.full((1, 3, 1), 0.5), Config(discount=0.5, entropy_in_target=False))
    assert without[0].tolist() == pytest.approx([1 + 0.5 * first, 2 + 0.5 * second, 3.0], rel=1e-5)


def test_losses_against_plain_arithmetic():
    params, batch, noise, config = random_params(), random_batch(), random_noise(), Config(discount=0.9, target_entropy=-1.5)
    found, scale = losses(POLICY, CRITICS, params, batch, noise, config), np.array([1, 0.5, 2])
    lower = set()
    for learner, alpha in enumerate((0.3, 2.0)):

        def act(s, eps, learner=learner):
            mean, log_std = np.split(plain(params["actor"], learner, s * scale), 2)
            log_std = np.clip(log_std, -20, 2)
            u = mean + np.exp(log_std) * eps
            log_normal = -0.5 * eps**2 - log_std - 0.5 * np.log(2 * np.pi)
            return np.tanh(u), float((log_normal + 2 * np.log(np.cosh(u))).sum())

        def q(net, s, a, learner=learner):
            return [plain(params[net], 2 * j + learner, np.concatenate((s * scale, a))).item() for j in range(2)]

        critic, actor, entropy = 0.0, 0.0, 0.0
        for n in range(6):
            s, a, r, reached, terminated = (leaf[learner, n].numpy() for leaf in batch[:5])
            following, log_prob = act(reached, noise[1, learner, n].numpy())
            y = r + (0 if terminated else 0.9 * (min(q("target", reached, following)) - alpha * log_prob))
            critic += sum(0.5 * (y - value) ** 2 for value in q("critics", s, a)) / 6
            fresh, log_prob = act(s, noise[0, learner, n].numpy())
            lower.add(int(np.argmin(q("critics", s, fresh))))
            actor += (alpha * log_prob - min(q("critics", s, fresh))) / 6
            entropy -= log_prob / 6
        assert found.critics[learner].item() == pytest.approx(critic, rel=1e-10)
        assert found.actor[learner].item() == pytest.approx(actor, rel=1e-10)
        assert found.entropy[learner].item() == pytest.approx(entropy, rel=1e-10)
        assert found.temperature[learner].item() == pytest.approx(math.log(alpha) * (entropy + 1.5), rel=1e-10)
        assert found.value[learner].item() == pytest.approx(alpha * -entropy - actor, rel=1e-9)
    assert lower == {0, 1}  # each critic was the lower one somewhere


@pytest.mark.parametrize(("loss", "net"), [("actor", "actor"), ("critics", "critics")])
def test_gradients_against_finite_differences(loss, net):
    params, batch, noise, config = random_params(), random_batch(), random_noise(), Config(discount=0.9)

    def value(params):
        return getattr(losses(POLICY, CRITICS, params, batch, noise, config), loss).sum()

    for p in params[net].values():
        p.requires_grad_()
    gradients = dict(zip(params[net], torch.autograd.grad(value(params), leaves(params, net)), strict=True))
    generator = torch.Generator().manual_seed(0)
    for name, p in params[net].items():
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        moved = [
            value(params | {net: params[net] | {name: p.detach() + h * direction}}).item() for h in (1e-6, -1e-6)
        ]  # in every entry at once
        assert (gradients[name] * direction).sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_each_loss_has_a_gradient_in_its_own_parameters_alone():
    params, nets = random_params(), ("actor", "critics", "target", "temperature")
    for p in leaves(params, *nets):
        p.requires_grad_()
    found = losses(POLICY, CRITICS, params, random_batch(), random_noise(), Config())
    for loss in ("actor", "critics", "temperature"):
        for net in nets:
            gradients = torch.autograd.grad(getattr(found, loss).sum(), leaves(params, net), retain_graph=True, allow_unused=True)
            assert [g is not None and bool(g.any()) for g in gradients] == [loss == net] * len(gradients), (loss, net)
    assert not found.entropy.requires_grad and not found.value.requires_grad


def test_gradient_of_the_temperature_by_hand():
    params = random_params()
    log_alpha = params["temperature"]["log"].requires_grad_()
    batch, noise = random_batch(), random_noise()
    entropy = losses(POLICY, CRITICS, params, batch, noise, Config()).entropy
    for wanted, grows in ((entropy.max().item() + 1, True), (entropy.min().item() - 1, False)):
        found = losses(POLICY, CRITICS, params, batch, noise, Config(target_entropy=wanted))
        (gradient,) = torch.autograd.grad(found.temperature.sum(), log_alpha)
        assert gradient.tolist() == pytest.approx((entropy - wanted).tolist(), rel=1e-12)
        assert ((-gradient > 0) == grows).all()  # descent goes against it: too little entropy raises α
    (gradient,) = torch.autograd.grad(losses(POLICY, CRITICS, params, batch, noise, Config()).temperature.sum(), log_alpha)
    assert gradient.tolist() == pytest.approx((entropy + 2).tolist(), rel=1e-12)  # two dimensions, −1 each


def test_a_fixed_temperature_may_be_zero():
    config = Config(learners=2, temperature=0.0)
    params = init(POLICY, CRITICS, config, torch.Generator().manual_seed(0), torch.float64)
    found = losses(POLICY, CRITICS, params, random_batch(), random_noise(), config)
    assert found.temperature.tolist() == [0, 0]
    assert found.actor.tolist() == pytest.approx((-found.value).tolist(), rel=1e-12)


# --- updates ----------------------------------------------------------------------------------------------------------


def test_target_update_by_hand():
    target, online = {"w": torch.tensor([1.0, 10.0])}, {"w": torch.tensor([3.0, 0.0], requires_grad=True)}
    follow(target, online, 0.25)
    assert target["w"].tolist() == [1.5, 7.5] and online["w"].tolist() == [3, 0]
    follow(target, online, 1.0)
    assert torch.equal(target["w"], online["w"]) and not target["w"].requires_grad


def learnt(batch, config, calls):
    params = init(POLICY, CRITICS, config, torch.Generator().manual_seed(1), torch.float64)
    memory = Replay(2, 100, 3, (2,), torch.float64, dtype=torch.float64)
    memory.add(*batch[:5])
    optimizer, generator = optimizer_for(params, config), torch.Generator().manual_seed(0)
    found = [learn(POLICY, CRITICS, params, memory, config, optimizer, generator) for _ in range(calls)]
    return params, found


def test_one_update_by_hand():
    config = Config(learners=2, batch=8, actor_step_size=1e-2, critic_step_size=2e-2, temperature_step_size=3e-2, target_step=0.1)
    (before, _), (after, _) = learnt(random_batch(n=20), config, 0), learnt(random_batch(n=20), config, 1)
    for net, step_size in (("actor", 1e-2), ("critics", 2e-2), ("temperature", 3e-2)):
        for name, p in after[net].items():  # Adam's first step is its step size, wherever the gradient is not tiny
            moved = (p - before[net][name]).abs()
            assert moved.max().item() == pytest.approx(step_size, rel=1e-4), (net, name)
    for name, p in after["target"].items():
        expected = 0.9 * before["target"][name] + 0.1 * after["critics"][name]
        torch.testing.assert_close(p, expected.detach(), rtol=0, atol=1e-15)


def test_an_update_forgets_the_gradient_before_it():
    config, batch = Config(learners=2, batch=8), random_batch(n=20)
    params = init(POLICY, CRITICS, config, torch.Generator().manual_seed(1), torch.float64)
    memory = Replay(2, 100, 3, (2,), torch.float64, dtype=torch.float64)
    memory.add(*batch[:5])
    optimizer = optimizer_for(params, config)
    for p in leaves(params, "actor", "critics", "temperature"):
        p.grad = torch.full_like(p, 1e6)
    learn(POLICY, CRITICS, params, memory, config, optimizer, torch.Generator().manual_seed(0))
    expected, _ = learnt(batch, config, 1)
    for net, of_net in expected.items():
        assert all(torch.equal(params[net][name], p) for name, p in of_net.items())


def test_a_learner_is_untouched_by_the_others():
    config = Config(learners=2, batch=8)
    one, other = random_batch(n=20, seed=0), random_batch(n=20, seed=1)
    mixed = Transitions(*(torch.stack((a[0], b[1])) for a, b in zip(one[:5], other[:5], strict=True)))
    (first, _), (second, _) = learnt(one, config, 5), learnt(mixed, config, 5)
    for net, copies in (("actor", 1), ("critics", 2), ("target", 2), ("temperature", 1)):
        for name, a in first[net].items():
            a, b = (p.unflatten(0, (copies, 2)) for p in (a, second[net][name]))
            assert torch.equal(a[:, 0], b[:, 0]) and not torch.equal(a[:, 1], b[:, 1])


# --- acting -----------------------------------------------------------------------------------------------------------


class Recorded:
    """A world that remembers its steps, and the actions that it was given."""

    def __init__(self, world):
        self.world, self.rows = world, []

    def __getattr__(self, name):
        return getattr(self.world, name)

    def step(self, task, state, action, generator):
        reached, step = self.world.step(task, state, action, generator)
        self.rows.append((self.world._observe(state.body), action, *step))
        return reached, step


def test_what_is_remembered_is_what_happened(monkeypatch):
    memories = []
    monkeypatch.setattr(sac, "Replay", lambda *args, **kw: memories.append(Replay(*args, **kw)) or memories[-1])
    world = Recorded(Pendulum(max_steps=15, dtype=torch.float64))
    list(train(world, replace(SMALL, env_steps=100)))
    assert len(memories[0]) == 100
    stored = memories[0].latest(100)
    columns = zip(*world.rows, strict=True)
    observation, action, reached, reward, terminated, truncated = (torch.stack(c, 1).flatten(1, 2) for c in columns)
    assert torch.equal(stored.observation, observation) and torch.equal(stored.next_observation, reached)
    assert torch.equal(stored.reward, reward) and torch.equal(stored.terminated, terminated)
    assert truncated.any() and not stored.terminated.any()
    assert stored.action.abs().max() < 1 and action.abs().max() < 2
    torch.testing.assert_close(action, 2 * stored.action, rtol=0, atol=1e-14)  # ±2 N m


def test_the_first_actions_are_uniform(monkeypatch):
    world = Recorded(Pendulum())
    (log,) = train(
        world, Config(learners=2, env_steps=4000, envs=4, start_steps=4000, memory=4000, iteration_steps=4000, updates=1)
    )
    first = torch.stack([row[1] for row in world.rows]).flatten()
    assert first.abs().max() <= 2
    assert first.mean().item() == pytest.approx(0, abs=4 * 2 / (3 * len(first)) ** 0.5)
    assert first.square().mean().item() == pytest.approx(4 / 3, abs=0.1)
    assert torch.isfinite(log.critic_loss).all()  # the one update, after the last step


# --- training ---------------------------------------------------------------------------------------------------------

PROBE = Config(
    learners=3, env_steps=4000, envs=8, start_steps=200, updates=2, batch=32, discount=DISCOUNT, temperature=1e-3,
    actor_step_size=1e-2, critic_step_size=1e-2, target_step=0.1, hidden=(16,), iteration_steps=4000,
)  # fmt: skip


def after_training(kind, config):
    world = ContinuousProbe(kind)
    (log,) = train(world, config)
    return (*sac.networks(world, config), log)


@pytest.mark.parametrize("kind", KINDS)
def test_probes(kind):
    policy, critics, log = after_training(kind, PROBE)
    observations = first_observations().expand(3, 2, 2)
    action = policy.act(log.params["actor"], observations)  # the box is [−1, 1]
    values = critics.values(log.params["critics"], observations, action)
    reachable = [1] if kind == "truncation" else [0, 1]
    # α times an entropy of at most log 2 at every step is less than 0.002.
    assert torch.allclose(values[..., reachable], best_values(kind)[reachable].expand(2, 3, -1), atol=0.08)
    if kind == "action":
        assert torch.allclose(action[..., 0], torch.tensor([[-1.0, 1.0]]).expand(3, -1), atol=0.1)


@pytest.mark.parametrize("entropy_in_target", [True, False])
def test_the_entropy_has_its_value(entropy_in_target):
    # Reward 1 for ever, whatever the action: with α fixed at 0.5, Q = 1 + γ (Q + α H), H the entropy of the policy learnt.
    config = replace(PROBE, temperature=0.5, entropy_in_target=entropy_in_target)
    policy, critics, log = after_training("truncation", config)
    observations = first_observations()[1:].expand(3, 2000, 2)
    noise = torch.randn(3, 2000, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        action, log_prob = policy.sample(log.params["actor"], observations, noise)
        q = critics.values(log.params["critics"], observations, action).mean((0, 2))
    entropy = -log_prob.mean(-1)
    # Nothing but the entropy is at stake. Of all the squashed Gaussians, tanh of N(0, 0.87²) has the most, 0.68 of log 2 = 0.69.
    assert torch.allclose(entropy, torch.tensor(0.68), atol=0.02)
    bonus = 0.5 * entropy if entropy_in_target else torch.zeros(3)
    assert torch.allclose(q, (1 + DISCOUNT * bonus) / (1 - DISCOUNT), atol=0.04)


@pytest.mark.parametrize("wanted", [-0.5, -1.5])
def test_a_learned_temperature_brings_the_entropy_to_its_target(wanted):
    config = replace(PROBE, temperature=None, target_entropy=wanted, temperature_step_size=1e-2, iteration_steps=1000, batch=64)
    *_, log = train(ContinuousProbe("action"), config)
    assert torch.allclose(log.entropy, torch.tensor(wanted), atol=0.25)
    assert (log.temperature < 1).all() and (log.temperature > 0).all()


def test_logs():
    logs = list(train(Pendulum(max_steps=10), replace(SMALL, env_steps=90, iteration_steps=20, start_steps=30, envs=3)))
    assert [(log.iteration, log.env_steps) for log in logs] == [(1, 21), (2, 42), (3, 60), (4, 81), (5, 90)]
    assert logs[0].critic_loss.isnan().all() and logs[0].entropy.isnan().all() and (logs[0].temperature == 1).all()
    for log in logs[1:]:
        assert (log.critic_loss > 0).all() and torch.isfinite(log.entropy).all() and torch.isfinite(log.value).all()
        assert log.returns.shape == log.critic_loss.shape == log.entropy.shape == log.temperature.shape == (2,)
    # An episode has ten steps: one ends at 30, 60 and 90 steps of three environments.
    assert [torch.isfinite(log.returns).all().item() for log in logs] == [False, True, True, False, True]
    assert not any(p.requires_grad for log in logs for net in log.params.values() for p in net.values())
    for net in logs[0].params:  # copies, which training has not moved
        assert not any(torch.equal(p, logs[1].params[net][name]) for name, p in logs[0].params[net].items() if "bias" not in name)


def test_the_seed_decides_everything():
    first, again, other = ([*train(Pendulum(), replace(SMALL, seed=seed))][-1] for seed in (3, 3, 4))
    assert all(torch.equal(first.params[net][name], p) for net, of_net in again.params.items() for name, p in of_net.items())
    assert torch.equal(first.critic_loss, again.critic_loss)
    assert not torch.equal(first.params["actor"]["weight_0"], other.params["actor"]["weight_0"])
    assert not torch.equal(first.params["actor"]["weight_0"][0], first.params["actor"]["weight_0"][1])


def test_the_worlds_dtype_is_kept():
    *_, log = train(Pendulum(dtype=torch.float64), SMALL)
    assert {p.dtype for net in log.params.values() for p in net.values()} == {log.entropy.dtype} == {torch.float64}


def test_a_few_iterations_on_the_mountain_car_in_gymnasium():
    envs = gymnasium.make_vec("MountainCarContinuous-v0", 4, vectorization_mode="sync", max_episode_steps=30)
    logs = list(train(GymnasiumWorld(envs, learners=2), replace(SMALL, critics=3)))
    envs.close()
    assert [log.env_steps for log in logs] == [40, 80, 120]
    assert torch.isfinite(logs[-1].critic_loss).all() and torch.isfinite(logs[1].returns).all()
    assert logs[-1].params["critics"]["weight_0"].shape == (6, 3, 8)
    assert logs[-1].params["actor"]["weight_1"].shape == (2, 8, 2)


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Poisoned(ContinuousProbe):
    """Pays learner 1 what it is told to, from its 30th step on."""

    def step(self, task, state, action, generator=None):
        state, step = super().step(task, state, action, generator)
        Poisoned.steps += 1
        if Poisoned.steps > 30:
            step.reward[1] = Poisoned.pay
        return state, step


@pytest.mark.parametrize(
    ("pay", "message"),
    [
        (math.nan, "iteration 2: the environment returned a reward or an observation that is not finite"),
        (1e30, r"iteration 2: the losses of learner 1 are not finite \(NaN or infinity\)"),
    ],
)
def test_training_stops_at_once(pay, message):
    Poisoned.steps, Poisoned.pay = 0, pay
    training = train(Poisoned("one-step"), SMALL)
    assert next(training).iteration == 1
    with pytest.raises(FloatingPointError, match=message):
        next(training)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"critics": 0}, "critics must be at least 1, got 0"),
        ({"critic_step_size": 0.0}, "critic_step_size must be positive and finite, got 0.0"),
        ({"initial_temperature": 0.0}, "initial_temperature must be positive and finite, got 0.0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, or None to learn it; got -1.0"),
        ({"target_entropy": math.nan}, "target_entropy must be finite, or None for −1 a dimension; got nan"),
        ({"target_step": 0.0}, r"target_step must be in \(0, 1\], got 0.0"),
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ({"memory": 50}, "start_steps must be at most memory, 50, got 100"),
        ({"envs": 30_000}, "env_steps must be at least envs, 30000, got 20000"),
        ({"memory": 100, "envs": 101}, "memory must be at least envs, 101, got 100"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_a_scale_of_the_wrong_length():
    with pytest.raises(ValueError, match="observation_scale has 1 entries, observations have 3"):
        next(train(Pendulum(), replace(SMALL, observation_scale=(1.0,))))


def test_a_world_that_does_not_fit():
    with pytest.raises(ValueError, match="world must have continuous actions, with bounds action_low and action_high; got Probe"):
        next(train(Probe("sign"), SMALL))
    with pytest.raises(ValueError, match=r"low must be below high, both finite; got \(-1.0,\) and \(inf,\)"):
        SquashedGaussian(3, (-1.0,), (math.inf,))


# --- the full-size run, made small ------------------------------------------------------------------------------------


def test_mean_action_returns_are_those_of_the_policy():
    class Limp:
        def act(self, params, observations):
            return torch.zeros(*observations.shape[:-1], 1)

    log = sac.Log(1, 1, torch.zeros(3), {"actor": {}}, *[torch.zeros(3)] * 3, 0.0)
    found = sac_pendulum.mean_action_returns(Pendulum(), Limp(), log, 30)
    generator = torch.Generator().manual_seed(1)
    task = Pendulum().sample_tasks(3, generator)
    state, _ = Pendulum().reset(task, 1000, generator)
    total = torch.zeros(3, 1000)
    for _ in range(200):
        state, step = Pendulum().step(task, state, torch.zeros(3, 1000, 1))
        total += step.reward
    assert found == pytest.approx([total.mean().item()] * 3, abs=5 * total.std().item() / 30**0.5)


def test_the_experiment_gives_a_result_of_the_one_form(monkeypatch):
    small = dict(batch=16, hidden=(8,), env_steps=80, start_steps=20)
    variants = {name: replace(config, **small) for name, config in sac_pendulum.VARIANTS.items()}
    monkeypatch.setattr(sac_pendulum, "CONFIG", variants["SAC"])
    monkeypatch.setattr(sac_pendulum, "VARIANTS", variants)
    monkeypatch.setattr(sac_pendulum, "CHECKPOINTS", 2)
    monkeypatch.setattr(sac_pendulum, "EPISODES", 4)

    def run_pieces(work, pieces, *_):
        if work is sac_pendulum.measure:
            return [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]
        return [{"returns": [-140.0 - piece[-2]], "training_seconds": 3.0, "cpu_seconds": 4.0} for piece in pieces]

    monkeypatch.setattr(sac_pendulum, "run_pieces", run_pieces)
    result = sac_pendulum.run(2, 0.5, None)
    results.check(json.loads(json.dumps(result, allow_nan=False)))
    assert result["name"] == sac_pendulum.NAME and result["cpu_seconds"] == 6 * 1 + 4 * 4
    assert result["config"]["SAC"]["env_steps"] == 40 and result["config"]["one critic"] == {"critics": 1}
    metrics = result["metrics"]
    assert metrics["Stable-Baselines3 · final return"]["value"] == -140.5
    assert metrics["Stable-Baselines3 · worst seed"]["value"] == -141
    assert metrics["Stable-Baselines3 · training, one seed"]["value"] == 3
    assert metrics["temperature fixed at 10 · temperature at the end"]["value"] == pytest.approx(10)
    for name in ("return", "temperature", "entropy"):
        assert np.shape(result["curves"][f"one critic · {name}"]) == (2, 2)
