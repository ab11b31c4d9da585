import math
from dataclasses import replace

import gymnasium
import pytest
import torch
from probes import DISCOUNT, KINDS, Probe, best_values, first_observations

from metarl_lib import ppo
from metarl_lib.cartpole import CartPole
from metarl_lib.experiments import ppo_cartpole
from metarl_lib.gymnasium_bridge import GymnasiumWorld
from metarl_lib.pendulum import Pendulum
from metarl_lib.ppo import Config, Samples, Segment, clipped_objective, losses, train, value_loss
from metarl_lib.stream import Stream

TINY = Config(learners=3, env_steps=256, envs=4, rollout_steps=16, minibatch=16, hidden=(8,))


def nets(world, config, seed=0, dtype=torch.float32):
    policy, value = ppo.networks(world, config)
    generator = torch.Generator().manual_seed(seed)
    inits = {"policy": policy.init(config.learners, generator, dtype), "value": value.init(config.learners, generator, dtype)}
    return policy, value, inits


def noisy(params, seed=1, scale=0.3):
    """Other parameters: a policy that has moved, and is far from uniform."""
    g = torch.Generator().manual_seed(seed)
    moved = {}
    for net, leaves in params.items():
        moved[net] = {k: p + scale * torch.randn(p.shape, generator=g, dtype=p.dtype) for k, p in leaves.items()}
    return moved


def samples_for(config, n=16, seed=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(config.learners, n, *shape, generator=g, dtype=dtype)

    actions = torch.randint(2, (config.learners, n), generator=g)
    log_probs = -0.7 + 0.3 * normal()
    return Samples(normal(4), actions, log_probs, 2 * normal() + 1, normal(), normal())


# --- targets ----------------------------------------------------------------------------------------------------------


class Table:
    """A "network" whose value is the first entry of the observation."""

    def value(self, params, observations):
        return observations[..., 0]


def test_advantages_and_targets_by_hand():
    """γ = ½, λ = ½. Values 2, 4, 6 are of the states left, 8 is of the last one reached; the ends are told apart."""

    def samples(terminated=(), truncated=()):
        ends = [torch.tensor([[[t in when for t in range(3)]]]) for when in (terminated, truncated)]
        nothing = torch.zeros(1, 1, 3)
        observations = torch.tensor([2.0, 4.0, 6.0])[None, None, :, None]
        reached = torch.tensor([4.0, 6.0, 8.0])[None, None, :, None]
        segment = Segment(observations, nothing.long(), nothing, reached, torch.tensor([[[1.0, 1.0, 1.0]]]), *ends)
        result = ppo.to_samples(Table(), {}, segment, Config(discount=0.5, gae_lambda=0.5))
        torch.testing.assert_close(result.values, torch.tensor([[2.0, 4.0, 6.0]]))
        torch.testing.assert_close(result.targets, result.advantages + result.values)
        return result.advantages[0].tolist()

    # δ = (1 + 2 − 2, 1 + 3 − 4, 1 + 4 − 6) = (1, 0, −1); A = δ + ¼ A'
    assert samples() == [1 - 0.25 * 0.25, -0.25, -1.0]
    # The clock at step 1: V of the state reached still counts, what comes after does not.
    assert samples(truncated=[1]) == [1.0, 0.0, -1.0]
    # The end at step 1: δ_1 = 1 − 4
    assert samples(terminated=[1]) == [1 - 0.75, -3.0, -1.0]


def test_samples_keep_transitions_together():
    world, config = CartPole("default", 20), replace(TINY, learners=2)
    stream = Stream(world, 2, 4, torch.Generator().manual_seed(0))
    policy, value, params = nets(world, config)
    segment = ppo.act(stream, policy, params["policy"], 16)
    samples = ppo.to_samples(value, params["value"], segment, config)
    assert samples.observations.shape == (2, 64, 4)
    for env, t in ((0, 0), (3, 7)):
        k = 16 * env + t
        assert torch.equal(samples.observations[:, k], segment.observations[:, env, t])
        assert torch.equal(samples.actions[:, k], segment.actions[:, env, t])
        assert torch.equal(samples.log_probs[:, k], segment.log_probs[:, env, t])
    torch.testing.assert_close(samples.log_probs, policy.log_prob(params["policy"], samples.observations, samples.actions))
    for batch in ppo.minibatches(samples._replace(advantages=samples.observations[..., 0]), 16, torch.Generator()):
        assert torch.equal(batch.advantages, batch.observations[..., 0])


def test_minibatches_hold_every_transition_once_in_an_order_of_each_learners_own():
    n = torch.arange(64.0).expand(3, 64) + 100 * torch.arange(3.0)[:, None]
    samples = Samples(n[..., None], n, n, n, n, n)
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.cat([b.actions for b in ppo.minibatches(samples, 16, generator)], 1) for _ in range(2)]
    for order in epochs:
        assert torch.equal(order.sort(-1).values, n)
    orders = [order % 100 for epoch in epochs for order in epoch]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert not torch.equal(a, b)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio, advantage, value, slope",
    [
        (1.1, 2.0, 2.2, 2.2),  # inside: r Â, and d/d log π = r Â
        (1.5, 2.0, 2.4, 0.0),  # good and already much likelier: (1 + ε) Â, flat
        (0.5, 2.0, 1.0, 1.0),  # good and less likely: go back, r Â
        (1.5, -2.0, -3.0, -3.0),  # bad and likelier: go back, r Â
        (0.5, -2.0, -1.6, 0.0),  # bad and already much less likely: (1 − ε) Â, flat
        (1.0, 2.0, 2.0, 2.0),  # before the first step: the plain policy gradient, Â
    ],
)
def test_clipped_objective_by_hand(ratio, advantage, value, slope):
    log_prob = torch.tensor(math.log(ratio) - 0.3, dtype=torch.float64, requires_grad=True)
    old, a = torch.tensor(-0.3, dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64)
    objective = clipped_objective(log_prob, old, a, 0.2)
    (gradient,) = torch.autograd.grad(objective, log_prob)
    assert objective.item() == pytest.approx(value, rel=1e-12)
    assert float(gradient) == pytest.approx(slope, rel=1e-12, abs=0)
    assert clipped_objective(log_prob, old, a, math.inf).item() == pytest.approx(ratio * advantage, rel=1e-12)


@pytest.mark.parametrize(
    "value, old, target, loss, slope",
    [
        (3.0, 0.0, 4.0, 4.5, 0.0),  # has moved by 3 towards its target, held at 1: ½ · 3², flat
        (0.5, 0.0, 4.0, 6.125, -3.5),  # within the clip
        (-3.0, 0.0, 4.0, 24.5, -7.0),  # has moved away from it: the larger loss is the unclipped one
    ],
)
def test_clipped_value_loss_by_hand(value, old, target, loss, slope):
    v = torch.tensor(value, requires_grad=True)
    clipped = value_loss(v, torch.tensor(target), torch.tensor(old), 1.0)
    assert clipped.item() == loss
    assert float(torch.autograd.grad(clipped, v)[0]) == slope
    assert value_loss(v, torch.tensor(target), torch.tensor(old)).item() == 0.5 * (value - target) ** 2


def forward(leaves, learner, x):
    h = torch.tanh(x @ leaves["weight_0"][learner] + leaves["bias_0"][learner, 0])
    return h @ leaves["weight_1"][learner] + leaves["bias_1"][learner, 0]


def test_losses_equal_an_independent_formula_transition_by_transition():
    config = replace(TINY, entropy_coefficient=0.1, value_clip=0.5)
    policy, value, params = nets(CartPole("default"), config, dtype=torch.float64)
    params, batch = noisy(params), samples_for(config, dtype=torch.float64)
    actor, critic = losses(policy, value, params, batch, 0.2, config)
    for i in range(3):
        a = batch.advantages[i]
        a = (a - a.mean()) / (math.sqrt(float(((a - a.mean()) ** 2).sum()) / 15) + 1e-8)
        expected_actor = expected_critic = 0.0
        for k in range(16):
            p = torch.softmax(forward(params["policy"], i, batch.observations[i, k]), -1)
            ratio = float(p[batch.actions[i, k]]) / math.exp(float(batch.log_probs[i, k]))
            gain = min(ratio * float(a[k]), min(max(ratio, 0.8), 1.2) * float(a[k]))
            entropy = -sum(float(q) * math.log(float(q)) for q in p)
            expected_actor -= (gain + 0.1 * entropy) / 16
            v, old = float(forward(params["value"], i, batch.observations[i, k])), float(batch.values[i, k])
            held, y = old + min(max(v - old, -0.5), 0.5), float(batch.targets[i, k])
            expected_critic += 0.5 * max((v - y) ** 2, (held - y) ** 2) / 16
        assert float(actor[i]) == pytest.approx(expected_actor, rel=1e-10)
        assert float(critic[i]) == pytest.approx(expected_critic, rel=1e-10)


def test_no_gradient_where_the_clip_binds():
    """Every transition is beyond its clip: the policy stands still whatever the advantages, and without the clip it does not."""
    config = replace(TINY, normalise_advantages=False)
    policy, value, params = nets(CartPole("default"), config, dtype=torch.float64)
    leaves = list(params["policy"].values())
    for leaf in leaves:
        leaf.requires_grad_()
    batch = samples_for(config, dtype=torch.float64)
    now = policy.log_prob(params["policy"], batch.observations, batch.actions).detach()
    batch = batch._replace(log_probs=now - 0.4 * batch.advantages.sign())  # r = e^±0.4, on the advantage's side
    gradients = torch.autograd.grad(losses(policy, value, params, batch, 0.2, config)[0].sum(), leaves)
    assert all((g == 0).all() for g in gradients)
    gradients = torch.autograd.grad(losses(policy, value, params, batch, math.inf, config)[0].sum(), leaves)
    assert all((g.flatten(1).norm(dim=1) > 0).all() for g in gradients)


def test_the_first_gradient_is_the_plain_policy_gradient():
    config = TINY
    policy, value, params = nets(CartPole("default"), config, dtype=torch.float64)
    params = {net: {k: p.requires_grad_() for k, p in leaves.items()} for net, leaves in noisy(params).items()}
    leaves, batch = list(params["policy"].values()), samples_for(config, dtype=torch.float64)
    log_prob = policy.log_prob(params["policy"], batch.observations, batch.actions)
    batch = batch._replace(log_probs=log_prob.detach())
    gradients = torch.autograd.grad(-losses(policy, value, params, batch, 0.2, config)[0].sum(), leaves, retain_graph=True)
    a = batch.advantages
    a = (a - a.mean(-1, keepdim=True)) / a.std(-1, keepdim=True)
    plain = torch.autograd.grad((log_prob * a).mean(-1).sum(), leaves)
    for gradient, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
        assert expected.abs().max() > 1e-4


def test_advantages_are_normalised_in_each_learner_by_itself():
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    torch.testing.assert_close(ppo.normalise(x), torch.tensor([[-1.0, 0.0, 1.0]]).expand(2, 3))
    assert torch.equal(ppo.normalise(torch.full((1, 4), 7.0)), torch.zeros(1, 4))


# --- updates ----------------------------------------------------------------------------------------------------------


def test_gradient_norms_are_clipped_per_learner():
    params = {"weight_0": torch.zeros(3, 1, 2), "bias_0": torch.zeros(3, 1, 1)}
    for p in params.values():
        p.requires_grad_()
    # Norms 13, 0.13 and 0: the first is scaled to 1, and the others keep what they have.
    params["weight_0"].grad = torch.tensor([[[3.0, 4.0]], [[0.03, 0.04]], [[0.0, 0.0]]])
    params["bias_0"].grad = torch.tensor([[[12.0]], [[0.12]], [[0.0]]])
    ppo.clip_gradients(params, 1.0)
    torch.testing.assert_close(params["weight_0"].grad[:, 0], torch.tensor([[3 / 13, 4 / 13], [0.03, 0.04], [0.0, 0.0]]))
    torch.testing.assert_close(params["bias_0"].grad[:, 0, 0], torch.tensor([12 / 13, 0.12, 0.0]))
    ppo.clip_gradients(params, math.inf)
    torch.testing.assert_close(params["weight_0"].grad[1, 0], torch.tensor([0.03, 0.04]))


def test_an_update_is_what_each_learner_would_do_alone():
    """Against a loop over learners with PyTorch's own clipping of norms and Adam, two networks and three epochs."""
    config = replace(TINY, epochs=3, max_gradient_norm=0.3, value_clip=0.5)
    policy, value, params = nets(CartPole("default"), config, dtype=torch.float64)
    params, samples = noisy(params), samples_for(config, n=64, dtype=torch.float64)
    ours = updated(config, params, samples)
    for i in range(3):
        alone = {net: {k: p[i : i + 1].clone().requires_grad_() for k, p in leaves.items()} for net, leaves in params.items()}
        optimizers = [torch.optim.Adam(list(leaves.values()), lr=0.01, eps=1e-5) for leaves in alone.values()]
        generator, clipped = torch.Generator().manual_seed(5), {"policy": 0, "value": 0}
        for _ in range(3):
            for batch in ppo.minibatches(samples, config.minibatch, generator):
                batch = Samples(*(column[i : i + 1] for column in batch))
                for loss, optimizer, net in zip(losses(policy, value, alone, batch, 0.2, config), optimizers, alone, strict=True):
                    leaves = list(alone[net].values())
                    for leaf, gradient in zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True):
                        leaf.grad = gradient
                    clipped[net] += bool(torch.nn.utils.clip_grad_norm_(leaves, 0.3) > 0.3)
                    optimizer.step()
        assert min(clipped.values()) > 0
        for net, leaves in alone.items():
            for name, leaf in leaves.items():
                # PyTorch divides by the norm + 1e-6, which is 3e-6 of a step.
                torch.testing.assert_close(ours[f"{net}.{name}"][i], leaf[0].detach(), rtol=0, atol=2e-7)


def updated(config, params, samples):
    policy, value = ppo.networks(CartPole("default"), config)
    params = {net: {k: p.clone() for k, p in leaves.items()} for net, leaves in params.items()}
    optimizer = ppo.optimizer_for(params)
    ppo.set_step_sizes(optimizer, 0.01, 0.01)
    ppo.update(policy, value, params, samples, 0.2, config, optimizer, torch.Generator().manual_seed(5))
    state = {f"{net}.{k}": p for net, leaves in params.items() for k, p in leaves.items()}
    for name, p in list(state.items()):
        state |= {f"{name}.{average}": optimizer.state[p][average] for average in ("exp_avg", "exp_avg_sq")}
    return {name: leaf.detach() for name, leaf in state.items()}


@pytest.mark.parametrize("target_kl", [math.inf, 0.01])
def test_no_learner_affects_another(target_kl):
    """Learner 1 sees advantages and targets a million times as large; learners 0 and 2 do not notice, bit for bit."""
    config = replace(TINY, epochs=3, max_gradient_norm=0.05, target_kl=target_kl)
    _, _, params = nets(CartPole("default"), config)
    samples = samples_for(config, n=64)
    scale = torch.tensor([1.0, 1e6, 1.0])[:, None]
    other = samples._replace(
        advantages=-samples.advantages, targets=samples.targets * scale, observations=samples.observations * scale[..., None]
    )
    mixed = Samples(*(torch.stack((a[0], b[1], a[2])) for a, b in zip(samples, other, strict=True)))
    a, b = updated(config, params, samples), updated(config, params, mixed)
    for name in a:
        assert torch.equal(a[name][[0, 2]], b[name][[0, 2]])
        assert not torch.equal(a[name][1], b[name][1]) or target_kl < math.inf


def test_a_learner_whose_policy_has_gone_too_far_sits_out_the_remaining_epochs():
    """With old log-probabilities far from the policy's, learner 1 stops after one epoch; the others, near it, do not."""
    config = replace(TINY, epochs=1)
    policy, _, params = nets(CartPole("default"), config)
    samples = samples_for(config, n=64)
    now = policy.log_prob(params["policy"], samples.observations, samples.actions)
    samples = samples._replace(log_probs=now - torch.tensor([0.0, 1.0, 0.0])[:, None])  # approx_kl of e − 2
    one = updated(config, params, samples)
    three = updated(replace(config, epochs=3), params, samples)
    stopped = updated(replace(config, epochs=3, target_kl=0.5), params, samples)
    for name in one:
        assert torch.equal(stopped[name][1], one[name][1])
        assert torch.equal(stopped[name][[0, 2]], three[name][[0, 2]])
        assert not torch.equal(three[name][1], one[name][1])


def test_diagnostics_by_hand():
    """Four transitions with ratios ½, 1, 1.1 and 2; errors of the old values (the advantages) ±1, targets 0, 2, 4, 6."""
    config = replace(TINY, learners=1)
    policy, value, params = nets(CartPole("default"), config)
    observations, actions = torch.zeros(1, 4, 4), torch.tensor([[0, 1, 0, 1]])
    now = policy.log_prob(params["policy"], observations, actions)
    ratios = torch.tensor([[0.5, 1.0, 1.1, 2.0]])
    targets, errors = torch.tensor([[0.0, 2.0, 4.0, 6.0]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    samples = Samples(observations, actions, now - ratios.log(), errors, targets - errors, targets)
    seen = ppo.diagnose(policy, value, params, samples, 0.2)
    assert seen["clip_fraction"].tolist() == [0.5]
    kl = (-0.5 + math.log(2) + 0 + 0.1 - math.log(1.1) + 1 - math.log(2)) / 4
    assert float(seen["approx_kl"]) == pytest.approx(kl, abs=1e-6)
    # Variances 4/3 of the errors and 20/3 of the targets; observations of 0 and no biases give values of 0.
    assert float(seen["explained_variance"]) == pytest.approx(1 - 4 / 20, abs=1e-6)
    assert float(seen["value_loss"]) == pytest.approx((4 + 16 + 36) / 8, abs=1e-6)
    assert float(seen["entropy"]) == pytest.approx(math.log(2), abs=1e-6)
    quantiles = seen["ratio_quantiles"][0]
    assert quantiles[[0, 3, -1]].tolist() == pytest.approx([0.5, 1.05, 2.0], abs=1e-6)
    constant = ppo.diagnose(policy, value, params, samples._replace(targets=torch.ones(1, 4)), 0.2)
    assert constant["explained_variance"].isnan().all()


# --- training ---------------------------------------------------------------------------------------------------------

PROBING = Config(
    learners=2,
    env_steps=8192,
    envs=8,
    rollout_steps=8,
    epochs=4,
    minibatch=32,
    step_size=0.01,
    value_step_size=0.02,
    hidden=(16,),
)


@pytest.mark.parametrize("kind", KINDS)
def test_probes(kind):
    world, config = Probe(kind), replace(PROBING, discount=DISCOUNT)
    *_, log = train(world, config)
    policy, value = ppo.networks(world, config)
    observations = first_observations().expand(2, 2, 2)
    if kind == "truncation":
        observations = observations[:, [1, 1]]  # the sign −1 does not occur there
    expected = best_values(kind).expand(2, 2)
    torch.testing.assert_close(value.value(log.params["value"], observations), expected, atol=0.1, rtol=0)
    if kind == "action":
        assert policy.act(log.params["policy"], observations, None)[0].tolist() == [[0, 1], [0, 1]]


def test_a_log_says_what_an_iteration_did():
    config = replace(TINY, env_steps=300)  # four iterations of 64 and a rest that is not begun
    logs = list(train(CartPole("default", 20), config))
    assert [log.iteration for log in logs] == [1, 2, 3, 4]
    assert [log.env_steps for log in logs] == [64, 128, 192, 256]
    for log in logs:
        for name in ("returns", "entropy", "approx_kl", "clip_fraction", "value_loss", "explained_variance"):
            assert getattr(log, name).shape == (3,)
            assert not getattr(log, name).requires_grad
        assert log.ratio_quantiles.shape == (3, len(ppo.QUANTILES))
        assert (log.ratio_quantiles.diff() >= 0).all()
        assert 0 < log.entropy.min() <= log.entropy.max() <= math.log(2) + 1e-6
        assert ((log.returns <= 20) | log.returns.isnan()).all()
    assert not torch.equal(logs[0].params["policy"]["weight_0"], logs[1].params["policy"]["weight_0"])
    # The first rollout is of the policy before any update, in every environment only 16 steps long.
    assert next(train(CartPole("default", 500), replace(config, envs=64, rollout_steps=1))).returns.isnan().all()


def test_step_sizes_and_clip_fall_to_zero(monkeypatch):
    seen = []

    def spied(*args):
        seen.append((args[4], *(group["lr"] for group in args[6].param_groups)))

    monkeypatch.setattr(ppo, "update", spied)
    config = replace(TINY, step_size=0.1, value_step_size=0.2, clip=0.4)
    list(train(CartPole("default", 20), config))
    assert seen == [pytest.approx((0.4 * f, 0.1 * f, 0.2 * f)) for f in (1, 0.75, 0.5, 0.25)]
    seen.clear()
    list(train(CartPole("default", 20), replace(config, decay=False, clip=math.inf)))
    assert seen == [(math.inf, 0.1, 0.2)] * 4


def test_the_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    runs = [list(train(CartPole("default", 20), replace(TINY, seed=seed)))[-1] for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    for net, leaves in runs[0].params.items():
        for name, leaf in leaves.items():
            assert torch.equal(leaf, runs[1].params[net][name])
    weights = [run.params["policy"]["weight_0"] for run in runs]
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0][0], weights[0][1])  # learners are different seeds


def test_float64():
    *_, log = train(CartPole("default", 20, dtype=torch.float64), TINY)
    assert log.params["policy"]["weight_0"].dtype == log.value_loss.dtype == torch.float64


def test_it_learns_cartpole():
    """An untrained policy earns about 20. A margin of four over what tuning seeds earn after 12 iterations."""
    config = Config(learners=4, env_steps=12 * 1024, observation_scale=(1.0, 1.0, 10.0, 1.0))
    logs = list(train(CartPole("default", 500), config))
    assert (logs[0].returns < 40).all()
    assert (torch.stack([log.returns for log in logs[-3:]]).nanmean(0) > 60).all()


def test_gymnasium_through_the_bridge():
    envs = gymnasium.make_vec("Acrobot-v1", 6, vectorization_mode="sync")
    config = replace(TINY, envs=2, env_steps=1100, rollout_steps=110, minibatch=20)
    logs = list(train(GymnasiumWorld(envs, learners=3), config))
    envs.close()
    assert len(logs) == 5
    returns = torch.stack([log.returns for log in logs])
    assert ((returns >= -500) | returns.isnan()).all()
    assert (
        (~returns.isnan()).any(0).all()
    )  # 550 steps in every environment: each has ended at least once, by the clock if not before
    assert logs[-1].params["policy"]["weight_1"].shape == (3, 8, 3)


class Broken(CartPole):
    """A reward that is too large for the values of one learner, or not a number, from the third iteration on."""

    bad, learner, steps = math.nan, 1, 0

    def step(self, task, state, action, generator=None):
        state, step = super().step(task, state, action, generator)
        object.__setattr__(self, "steps", self.steps + 1)
        if self.steps > 2 * TINY.rollout_steps:
            step.reward[self.learner] = self.bad
        return state, step


def test_nan_stops_training_and_says_where():
    world = Broken("default", 20)
    logs = []
    with pytest.raises(FloatingPointError, match="^iteration 3: the environment returned a reward or an observation that is not"):
        logs.extend(log for log in train(world, TINY))
    world = Broken("default", 20)
    object.__setattr__(world, "bad", 1e25)  # finite, its square is not
    sentence = r"^iteration 3: the losses of learner 1 are not finite \(NaN or infinity\); .* those of iteration 2$"
    with pytest.raises(FloatingPointError, match=sentence):
        logs.extend(log for log in train(world, TINY))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"value_step_size": math.inf}, "value_step_size must be positive and finite, got inf"),
        ({"clip": 0.0}, "clip must be positive, infinity for none; got 0.0"),
        ({"clip": math.nan}, "clip must be positive, infinity for none; got nan"),
        ({"target_kl": -1.0}, "target_kl must be positive, infinity for none; got -1.0"),
        ({"discount": 1.1}, r"discount must be in \[0, 1\], got 1.1"),
        ({"gae_lambda": -0.1}, r"gae_lambda must be in \[0, 1\], got -0.1"),
        ({"entropy_coefficient": -1.0}, "entropy_coefficient must be at least 0 and finite, got -1.0"),
        ({"minibatch": 24}, "minibatch must divide envs · rollout_steps = 64, got 24"),
        ({"minibatch": 1}, "minibatch must be at least 2 to normalise advantages, got 1"),
        ({"env_steps": 63}, "env_steps must be at least envs · rollout_steps = 64, got 63"),
    ],
)
def test_bad_configurations(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(TINY, **changes)


def test_continuous_actions():
    with pytest.raises(ValueError, match="^world must have discrete actions, got one with continuous actions$"):
        next(train(Pendulum(), TINY))


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_the_forgetful_world_calls_the_clock_an_end():
    world, generator = ppo_cartpole.Forgetful("default", max_steps=1), torch.Generator().manual_seed(0)
    task = world.sample_tasks(1, generator)
    state, _ = world.reset(task, 2, generator)
    _, step = world.step(task, state, torch.zeros(1, 2, dtype=torch.int64))
    assert step.terminated.all()
    assert not step.truncated.any()


def test_the_experiments_summaries_by_hand():
    nan = math.nan
    column = torch.tensor([[1.0, nan], [3.0, nan], [5.0, 2.0]]).numpy()
    assert ppo_cartpole.thin(column) == [[2.0, None], [5.0, 2.0]]
    assert ppo_cartpole.first_at(torch.tensor([nan, 474.9, 475.0, 500.0]).numpy(), [10, 20, 30, 40]) == 30
    assert ppo_cartpole.first_at(torch.tensor([nan, 474.9]).numpy(), [10, 20]) is None


def test_the_experiment_measures_a_method(monkeypatch):
    monkeypatch.setattr(ppo_cartpole, "EPISODES", 2)
    piece = ppo_cartpole.measure("truncation as termination", 2, 0.02)
    assert len(piece["final"]) == 2
    assert all(8 <= final <= 500 for final in piece["final"])
    assert piece["env_steps"] == 1024
    done = dict.fromkeys(ppo_cartpole.METHODS, piece)
    peer = [{"returns": [500.0, 480.0], "training_seconds": 2.0}, {"returns": [400.0, 400.0], "training_seconds": 4.0}]
    metrics = ppo_cartpole.metrics_of(done, peer)
    assert metrics["Stable-Baselines3 · final return"]["value"] == 445
    assert metrics["Stable-Baselines3 · seeds of at least 475"]["value"] == 0.5
    assert metrics["Stable-Baselines3 · worst seed"]["value"] == 400
    costs = ppo_cartpole.cost_metrics([{"ours": 3.0, "theirs": 4.0}, {"ours": 3.0, "theirs": 12.0}])
    assert costs["PPO · all seeds over one seed of Stable-Baselines3"]["value"] == 0.5
    assert costs["Stable-Baselines3 · one seed"]["value"] == 8
    curves = ppo_cartpole.curves_of(done)
    assert curves["environment steps"] == [1024]
    assert len(curves["ten epochs · largest ratio"]) == 1
