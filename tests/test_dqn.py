import json
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from probes import DISCOUNT, KINDS, Probe, best_values, first_observations

from metarl_lib import dqn, results
from metarl_lib.cartpole import CartPole
from metarl_lib.dqn import Config, QNet, epsilon_at, epsilon_greedy, follow, learn, losses, several_steps, targets, train
from metarl_lib.experiments import dqn_cartpole
from metarl_lib.gymnasium_bridge import GymnasiumWorld
from metarl_lib.pendulum import Pendulum
from metarl_lib.replay import Replay, Transitions
from metarl_lib.types import Step

SMALL = Config(learners=2, env_steps=400, envs=4, start_steps=40, batch=16, updates=2, hidden=(8,), iteration_steps=100)
LINE = QNet(1, 2, hidden=())  # Q(s, a) = w_a s + b_a


def line(weights, biases):
    return {"weight_0": torch.tensor([[weights]]), "bias_0": torch.tensor([[biases]])}


def random_batch(learners=2, n=6, seed=0, dtype=torch.float64, size=3):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return 3 * torch.randn(learners, n, *shape, generator=generator, dtype=dtype)

    action = torch.randint(2, (learners, n), generator=generator)
    terminated = torch.rand(learners, n, generator=generator) < 0.3
    steps = torch.randint(1, 4, (learners, n), generator=generator)
    return Transitions(normal(size), action, normal(), normal(size), terminated, steps)


def random_params(net, learners=2, seed=1):
    return net.init(learners, torch.Generator().manual_seed(seed), torch.float64)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_by_hand():
    online, target = line([1.0, -1.0], [0.0, 0.5]), line([2.0, 3.0], [1.0, -2.0])
    # At s' = 2 the online network has (2, −1.5) and the target network (5, 4); at s' = −1, (−1, 1.5) and (−1, −5).
    reached = torch.tensor([[[2.0], [-1.0], [2.0], [-1.0]]])
    nothing = torch.zeros(1, 4, dtype=torch.int64)
    batch = Transitions(
        reached, nothing, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), reached, torch.tensor([[False, False, True, False]]),
        torch.tensor([[1, 1, 1, 2]]),
    )  # fmt: skip
    plain = targets(LINE, online, target, batch, Config(double=False, discount=0.5))
    assert plain.tolist() == [[1 + 0.5 * 5, 2 - 0.5 * 1, 3, 4 - 0.25 * 1]]
    double = targets(LINE, online, target, batch, Config(double=True, discount=0.5))
    assert double.tolist() == [[1 + 0.5 * 5, 2 - 0.5 * 5, 3, 4 - 0.25 * 5]]  # the online network's action, the target's value


def test_a_maximum_over_noise_is_too_high_and_double_dqn_removes_the_bias():
    learners, generator = 40_000, torch.Generator().manual_seed(0)
    zero = torch.zeros(learners, 1, 2, dtype=torch.float64)
    noise = [torch.randn(learners, 1, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    online, target = ({"weight_0": zero, "bias_0": bias} for bias in noise)
    nothing = torch.zeros(learners, 1, dtype=torch.float64)
    state = nothing[..., None]
    batch = Transitions(state, nothing.long(), nothing, state, nothing.bool(), nothing.long() + 1)
    plain, double = (targets(LINE, online, target, batch, Config(double=d, discount=1.0)).mean() for d in (False, True))
    assert plain.item() == pytest.approx(1 / math.sqrt(math.pi), abs=4 / 200)  # E max of two standard normals
    assert double.item() == pytest.approx(0.0, abs=4 / 200)


def ended(*flags):
    return torch.tensor([[bool(flag) for flag in flags]])


def test_several_steps_by_hand():
    # Environments: runs on · terminates at 2 · truncated at 1, its next episode terminates at 2 · truncated at 3 ·
    # truncated at 2, its next episode's first step terminates.
    steps = [
        Step(torch.full((1, 5, 1), 10.0), torch.full((1, 5), 1.0), ended(0, 0, 0, 0, 0), ended(0, 0, 1, 0, 0)),
        Step(torch.full((1, 5, 1), 20.0), torch.full((1, 5), 2.0), ended(0, 1, 1, 0, 0), ended(0, 0, 0, 0, 1)),
        Step(torch.full((1, 5, 1), 30.0), torch.full((1, 5), 4.0), ended(0, 0, 0, 0, 1), ended(0, 0, 0, 1, 0)),
    ]
    total, taken = several_steps(steps, 0.5)
    assert total.reward.tolist() == [[1 + 1 + 1, 1 + 1, 1, 1 + 1 + 1, 1 + 1]]
    assert total.observation[..., 0].tolist() == [[30, 20, 10, 30, 20]]
    assert taken.tolist() == [[3, 2, 1, 3, 2]]
    assert total.terminated.tolist() == [[False, True, False, False, False]]
    assert total.truncated.tolist() == [[False, False, True, True, True]]
    assert steps[0].reward.eq(1).all()  # what came in is as it was
    single, taken = several_steps(steps[1:2], 0.5)
    assert single is steps[1] and taken.eq(1).all()


# --- the loss ---------------------------------------------------------------------------------------------------------


def plain_q(params, learner, x):
    """One learner's values of one state in numpy, layer by layer."""
    layers = len(params) // 2
    for i in range(layers):
        x = x @ params[f"weight_{i}"][learner].detach().numpy() + params[f"bias_{i}"][learner, 0].detach().numpy()
        x = np.maximum(x, 0) if i < layers - 1 else x
    return x


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("double", [False, True])
def test_loss_against_plain_arithmetic(loss, double):
    net, scale = QNet(3, 2, (5, 4), (1.0, 0.5, 2.0)), np.array([1.0, 0.5, 2.0])
    params, target_params, batch = random_params(net), random_params(net, seed=2), random_batch()
    config = Config(loss=loss, double=double, discount=0.9)
    expected, sizes = np.zeros(2), set()
    for learner in range(2):
        rows = zip(*(leaf[learner].numpy() for leaf in batch), strict=True)
        for s, a, r, reached, terminated, steps in rows:
            following = plain_q(target_params, learner, reached * scale)
            best = np.argmax(plain_q(params, learner, reached * scale) if double else following)
            error = r + (0 if terminated else 0.9**steps * following[best]) - plain_q(params, learner, s * scale)[a]
            inside = loss == "squared" or abs(error) <= 1
            sizes.add(abs(error) <= 1)
            expected[learner] += (0.5 * error**2 if inside else abs(error) - 0.5) / 6
    assert sizes == {True, False}  # both branches of the Huber loss were met
    assert losses(net, params, target_params, batch, config).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("double", [False, True])
def test_the_gradient_is_in_the_online_network_alone(double):
    net, batch, config = QNet(3, 2, (5,)), random_batch(), Config(double=double, discount=0.9)
    params, target_params = random_params(net), random_params(net, seed=2)
    for p in (*params.values(), *target_params.values()):
        p.requires_grad_()
    losses(net, params, target_params, batch, config).sum().backward()
    assert all(p.grad is None for p in target_params.values())
    # Against finite differences of the loss with y held: the online network chooses double DQN's action, without a gradient.
    y = targets(net, params, target_params, batch, config)

    def held(params):
        q = net.values(params, batch.observation).gather(-1, batch.action[..., None])[..., 0]
        return float((0.5 * (y - q) ** 2).mean(-1).sum())

    for name, p in params.items():
        entry = (1, 0, 1)
        moved = []
        for h in (1e-6, -1e-6):
            shifted = {k: v.detach().clone() for k, v in params.items()}
            shifted[name][entry] += h
            moved.append(held(shifted))
        assert p.grad[entry].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6, abs=1e-9)


# --- updates ----------------------------------------------------------------------------------------------------------


def learnt(batches, config, seed=1, updates=0, calls=1):
    """Networks after ``calls`` calls of learn on a memory that holds ``batches``."""
    net = QNet(3, 2, (5,))
    params = {name: p.requires_grad_() for name, p in random_params(net, seed=seed).items()}
    target_params = {name: p.detach().clone() for name, p in params.items()}
    memory = Replay(2, 100, 3, dtype=torch.float64)
    memory.add(*batches)
    optimizer, generator = torch.optim.Adam(params.values(), config.step_size), torch.Generator().manual_seed(0)
    for call in range(calls):
        learn(net, params, target_params, memory, updates + call * config.updates, config, optimizer, generator)
    return params, target_params


def test_a_learner_is_untouched_by_the_others():
    config = Config(updates=5, batch=8, step_size=1e-2)
    one, other = random_batch(n=20, seed=0), random_batch(n=20, seed=1)
    mixed = Transitions(*(torch.stack((a[0], b[1])) for a, b in zip(one, other, strict=True)))
    first, second = learnt(one, config), learnt(mixed, config)
    for a, b in zip(first, second, strict=True):
        for name in a:
            assert torch.equal(a[name][0], b[name][0]) and not torch.equal(a[name][1], b[name][1])


def test_target_update_by_hand():
    target, online = {"w": torch.tensor([1.0, 10.0])}, {"w": torch.tensor([3.0, 0.0], requires_grad=True)}
    follow(target, online, 0.25)
    assert target["w"].tolist() == [1.5, 7.5] and online["w"].tolist() == [3, 0]
    follow(target, online, 1.0)
    assert torch.equal(target["w"], online["w"]) and not target["w"].requires_grad


def test_the_target_network_follows_in_every_nth_update():
    batch, config = random_batch(n=20), Config(updates=2, batch=8, target_step=1.0, target_every=3, step_size=1e-2)
    start, _ = learnt(batch, replace(config, updates=1), calls=0)
    _, target = learnt(batch, config, calls=1)  # two updates: not yet
    assert all(torch.equal(target[name], p) for name, p in start.items())
    after_three, _ = learnt(batch, replace(config, updates=3))
    for calls in (2, 3 - 1):  # after four updates it has the values of the third
        _, target = learnt(batch, config, calls=calls)
        assert all(torch.equal(target[name], p) for name, p in after_three.items())
    params, target = learnt(batch, config, calls=3)  # the sixth update is the last
    assert all(torch.equal(target[name], p) for name, p in params.items())


def test_without_replay_the_newest_transitions_are_learnt_from():
    config, old, new = Config(updates=3, batch=8, replay=False), random_batch(n=20), random_batch(n=8, seed=1)

    def joined(a, b):
        return Transitions(*(torch.cat(pair, 1) for pair in zip(a, b, strict=True)))

    first, _ = learnt(joined(old, new), config)
    second, _ = learnt(joined(random_batch(n=11, seed=5), new), config)
    third, _ = learnt(joined(new, old), config)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first)


# --- acting -----------------------------------------------------------------------------------------------------------


def test_epsilon_falls_in_a_straight_line_and_stays():
    config = Config(epsilon=0.9, final_epsilon=0.1, exploration_steps=1000)
    assert [epsilon_at(t, config) for t in (0, 250, 500, 1000, 5000)] == pytest.approx([0.9, 0.7, 0.5, 0.1, 0.1])
    logs = list(train(Probe("one-step"), replace(SMALL, exploration_steps=200, epsilon=1.0, final_epsilon=0.0)))
    assert [log.env_steps for log in logs] == [100, 200, 300, 400]
    assert [log.epsilon for log in logs] == pytest.approx([1 - 96 / 200, 1 - 196 / 200, 0, 0])


def test_epsilon_greedy():
    generator, greedy = torch.Generator().manual_seed(0), torch.full((2, 60_000), 2)
    shares = [epsilon_greedy(greedy, 4, 0.4, generator)[0].eq(a).double().mean().item() for a in range(4)]
    assert shares == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=4 * (0.21 / 60_000) ** 0.5)
    assert torch.equal(epsilon_greedy(greedy, 4, 0.0, generator), greedy)


class Recorded:
    """A world that remembers its steps, and the states that it was acted in."""

    def __init__(self, world):
        self.world, self.rows = world, []

    def __getattr__(self, name):
        return getattr(self.world, name)

    def step(self, task, state, action, generator):
        reached, step = self.world.step(task, state, action, generator)
        self.rows.append((state.body, action, *step))
        return reached, step


@pytest.mark.parametrize("n", [1, 3])
def test_memory_never_crosses_an_episodes_end(monkeypatch, n):
    memories = []
    monkeypatch.setattr(dqn, "Replay", lambda *args, **kw: memories.append(Replay(*args, **kw)) or memories[-1])
    world = Recorded(CartPole("default", max_steps=15, dtype=torch.float64))  # some episodes fall earlier
    config = replace(SMALL, envs=3, env_steps=300, return_steps=n, discount=0.9, iteration_steps=300)
    list(train(world, config))
    stored = memories[0].latest(len(memories[0]))
    assert len(memories[0]) == 300 - 3 * (n - 1)
    counted = {"terminated": 0, "truncated": 0}
    for learner in range(2):
        for i in range(len(memories[0])):
            t, env = divmod(i, 3)
            body, action, reward = world.rows[t][0][learner, env], world.rows[t][1][learner, env], 0.0
            for k in range(n):
                _, _, observation, r, terminated, truncated = (leaf[learner, env] for leaf in world.rows[t + k])
                reward += 0.9**k * r.item()
                if terminated or truncated:
                    break
            counted["terminated"] += int(terminated)
            counted["truncated"] += int(truncated and not terminated)
            assert torch.equal(stored.observation[learner, i], body) and stored.action[learner, i] == action
            assert stored.reward[learner, i].item() == pytest.approx(reward, rel=1e-12)
            assert torch.equal(stored.next_observation[learner, i], observation)
            assert stored.terminated[learner, i] == terminated and stored.steps[learner, i] == k + 1
    assert min(counted.values()) >= 8


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_probes(kind, n):
    config = Config(
        learners=3, env_steps=4000, envs=8, start_steps=200, updates=2, batch=32, return_steps=n, discount=DISCOUNT,
        step_size=1e-2, target_step=0.1, final_epsilon=0.2, exploration_steps=2000, hidden=(16,), iteration_steps=4000,
    )  # fmt: skip
    world = Probe(kind)
    (log,) = train(world, config)
    values, actions = dqn.network(world, config).values(log.params, first_observations().expand(3, 2, 2)).max(-1)
    reachable = [1] if kind == "truncation" else [0, 1]
    assert torch.allclose(values[:, reachable], best_values(kind)[reachable].expand(3, -1), atol=0.06)
    if kind == "action":
        assert actions.tolist() == [[0, 1]] * 3


def test_logs():
    logs = list(train(CartPole("default", max_steps=50), replace(SMALL, env_steps=250, iteration_steps=50, start_steps=60)))
    assert [(log.iteration, log.env_steps) for log in logs] == [(1, 52), (2, 100), (3, 152), (4, 200), (5, 248)]
    assert logs[0].loss.isnan().all() and all((log.loss > 0).all() for log in logs[1:])
    assert all(log.returns.shape == log.loss.shape == (2,) for log in logs)
    before = logs[0].params["weight_0"]
    assert not any(p.requires_grad for log in logs for p in (*log.params.values(), *log.target_params.values()))
    assert not torch.equal(before, logs[1].params["weight_0"])  # a copy, which training has not moved


def test_the_step_size_falls_to_zero():
    *_, before, last = train(CartPole("default", max_steps=50), replace(SMALL, iteration_steps=4))
    assert all(torch.equal(before.params[name], p) for name, p in last.params.items())


def test_no_target_network_is_a_target_network_that_copies_every_time():
    *_, log = train(CartPole("default", max_steps=50), replace(SMALL, target_step=1.0, target_every=1))
    assert all(torch.equal(log.target_params[name], p) for name, p in log.params.items())
    *_, log = train(CartPole("default", max_steps=50), SMALL)
    assert not any(torch.equal(log.target_params[name], p) for name, p in log.params.items())


def test_the_seed_decides_everything():
    world = CartPole("default", max_steps=50)
    first, again, other = ([*train(world, replace(SMALL, seed=seed))][-1] for seed in (3, 3, 4))
    assert all(torch.equal(first.params[name], again.params[name]) for name in first.params)
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.params["weight_0"], other.params["weight_0"])
    assert not torch.equal(first.params["weight_0"][0], first.params["weight_0"][1])


def test_the_worlds_dtype_is_kept():
    *_, log = train(CartPole("default", max_steps=50, dtype=torch.float64), SMALL)
    assert {p.dtype for p in log.params.values()} == {torch.float64} and log.loss.dtype == torch.float64


def test_a_few_iterations_on_acrobot_in_gymnasium():
    envs = gymnasium.make_vec("Acrobot-v1", 8, vectorization_mode="sync")
    world = GymnasiumWorld(envs, learners=2)
    logs = list(train(world, replace(SMALL, env_steps=200, iteration_steps=100)))
    envs.close()
    assert [log.env_steps for log in logs] == [100, 200] and torch.isfinite(logs[-1].loss).all()
    assert logs[-1].params["weight_1"].shape == (2, 8, 3)


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Poisoned(Probe):
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
        (1e30, r"iteration 2: the loss of learner 1 is not finite \(NaN or infinity\)"),
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
        ({"return_steps": 0}, "return_steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"step_size": float("inf")}, "step_size must be positive and finite, got inf"),
        ({"target_step": 0.0}, r"target_step must be in \(0, 1\], got 0.0"),
        ({"final_epsilon": -0.1}, r"final_epsilon must be in \[0, 1\], got -0.1"),
        ({"discount": float("nan")}, r"discount must be in \[0, 1\], got nan"),
        ({"loss": "l1"}, "unknown loss 'l1'; there are squared, huber"),
        ({"start_steps": 100}, r"start_steps must be at least batch \(128\) and at most memory \(100000\), got 100"),
        ({"memory": 500}, r"start_steps must be at least batch \(128\) and at most memory \(500\), got 1000"),
        ({"env_steps": 8}, "env_steps must be at least envs, 16, got 8"),
        ({"memory": 1000, "envs": 1001}, "memory must be at least envs, 1001, got 1000"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_continuous_actions():
    with pytest.raises(ValueError, match="^world must have discrete actions, got one with continuous actions$"):
        next(train(Pendulum(), SMALL))


def test_a_scale_of_the_wrong_length():
    with pytest.raises(ValueError, match="observation_scale has 3 entries, observations have 4"):
        next(train(CartPole("default"), replace(SMALL, observation_scale=(1.0, 1.0, 1.0))))


# --- the full-size run, made small ------------------------------------------------------------------------------------


class OneAction:
    """In place of a network: the same action, and the same value, in every state."""

    def values(self, params, observations):
        return torch.stack((torch.zeros_like(observations[..., 0]), torch.full_like(observations[..., 0], 7.0)), -1)


def test_values_and_returns_by_hand():
    params = {"weight_0": torch.zeros(2, 1, 1)}
    point = dqn_cartpole.values_and_returns(OneAction(), params, seed=0, episodes=400)
    # Pushed one way, a pole falls within 8 to 10 steps; of an episode of n steps, the mean of (1 − γ^k) / (1 − γ) for k = 1 … n.
    for length, estimate, earned in zip(*point.values(), strict=True):
        assert 8 <= length <= 10 and estimate == 7
        bounds = [np.mean([(1 - 0.99**k) / 0.01 for k in range(1, n + 1)]) for n in (8, 10)]
        assert bounds[0] < earned < bounds[1]


def test_the_experiment_gives_a_result_of_the_one_form(monkeypatch):
    small = dict(batch=32, hidden=(8,), env_steps=320, start_steps=64)
    variants = {name: replace(config, **small) for name, config in dqn_cartpole.VARIANTS.items()}
    monkeypatch.setattr(dqn_cartpole, "CONFIG", variants["double DQN"])
    monkeypatch.setattr(dqn_cartpole, "VARIANTS", variants)
    monkeypatch.setattr(dqn_cartpole, "CHECKPOINTS", 2)

    def run_pieces(work, pieces, *_):
        if work is dqn_cartpole.measure:
            return [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]
        if work is dqn_cartpole.cost:
            return [{"ours": 1.5, "peer": 3.0, "cpu_seconds": 5.0}]
        return [{"returns": [500.0 - seed], "training_seconds": 3.0, "cpu_seconds": 4.0} for _, seed, _ in pieces]

    monkeypatch.setattr(dqn_cartpole, "run_pieces", run_pieces)
    result = dqn_cartpole.run(2, 0.5, None)
    results.check(json.loads(json.dumps(result, allow_nan=False)))
    assert result["name"] == "dqn-cartpole" and result["cpu_seconds"] == 15 * 1 + 5 + 2 * 4
    assert result["config"]["double DQN"]["env_steps"] == 160
    assert result["config"]["without either"] == {"replay": False, "target_step": 1.0}
    metrics = result["metrics"]
    assert metrics["Stable-Baselines3 · final return"]["value"] == 499.5
    assert metrics["Stable-Baselines3 · final return"]["high"] == 500  # the interval stops where returns do
    assert metrics["Stable-Baselines3 · seeds at 475 or more"]["value"] == 1
    assert metrics["DQN · seeds at 475 or more"]["value"] == 0
    assert metrics["Stable-Baselines3 · training, one seed"]["value"] == 3
    assert metrics["all seeds of double DQN in one pass, against one of Stable-Baselines3"]["value"] == 0.5
    assert len(result["curves"]["DQN · return · mean"]) == 2 == len(result["curves"]["environment steps"])
