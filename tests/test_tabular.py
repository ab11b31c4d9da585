"""Targets by hand, fixed points, a plain-Python reference, and learners that leave one another alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from metarl_lib import results
from metarl_lib.experiments import cliff_walking, frozen_lake
from metarl_lib.tabular import (
    ALGORITHMS,
    Config,
    epsilon_greedy,
    expected_sarsa_target,
    q_learning_target,
    sarsa_target,
    schedule,
    train,
)
from metarl_lib.tabular_worlds import MDP, TabularWorld, from_gymnasium, optimal_values, policy_values


def tables(outcomes, initial=(1, 0)):
    """An MDP from ``outcomes[state][action]``, each a (probability, next state, reward, terminated) that is certain."""
    probability, next_state, reward, terminated = torch.tensor(outcomes, dtype=torch.float64)[:, :, None].unbind(-1)
    return MDP(probability, next_state.long(), reward, terminated.bool(), torch.tensor(initial, dtype=torch.float64))


def world(mdp, max_steps=2**31 - 1):
    return TabularWorld(mdp, max_steps, dtype=torch.float64)


def last(iterator):
    *_, log = iterator
    return log


# In state 0, action 0 stays for −1 and action 1 leads to state 1 for −2; there, action 0 ends it for 4 and action 1 leads
# back to 0 for 0.
TWO_STATES = tables([[(1, 0, -1, 0), (1, 1, -2, 0)], [(1, 1, 4, 1), (1, 0, 0, 0)]])


# --- one step, by hand ------------------------------------------------------------------------------------------------

REWARD = torch.tensor([[-1.0], [3.0]], dtype=torch.float64)
TERMINATED = torch.tensor([[False], [True]])
Q_NEXT = torch.tensor([[[2.0, 10.0, -4.0]], [[50.0, 60.0, 70.0]]], dtype=torch.float64)


def test_q_learning_target_by_hand():
    assert q_learning_target(REWARD, TERMINATED, 0.9, Q_NEXT).tolist() == [[-1 + 0.9 * 10], [3]]


def test_sarsa_target_by_hand():
    action = torch.tensor([[2], [1]])
    assert sarsa_target(REWARD, TERMINATED, 0.9, Q_NEXT, action).tolist() == [[-1 + 0.9 * -4], [3]]


def test_expected_sarsa_target_by_hand():
    policy = torch.tensor([[[0.5, 0.25, 0.25]], [[1.0, 0.0, 0.0]]], dtype=torch.float64)
    assert expected_sarsa_target(REWARD, TERMINATED, 0.9, Q_NEXT, policy).tolist() == [[-1 + 0.9 * 2.5], [3]]


def test_epsilon_greedy_splits_ties_evenly():
    q = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [[0.05, 0.85, 0.05, 0.05], [0.05 + 0.8 / 3] * 2 + [0.05, 0.05 + 0.8 / 3], [0.25] * 4]
    assert torch.allclose(epsilon_greedy(q, 0.2), torch.tensor(expected, dtype=torch.float64))
    assert epsilon_greedy(q, 0.0)[0].tolist() == [0, 1, 0, 0]
    assert torch.equal(epsilon_greedy(q, 1.0), torch.full_like(q, 0.25))
    each_its_own = epsilon_greedy(q, torch.tensor([[0.0], [0.2], [1.0]], dtype=torch.float64))
    assert torch.allclose(each_its_own[1], torch.tensor(expected[1], dtype=torch.float64))
    assert each_its_own[0].tolist() == [0, 1, 0, 0]


def test_schedule():
    config = Config(episodes=5)
    assert schedule(0.5, 0.1, 0.0, config).tolist() == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0])
    assert schedule(0.5, None, 0.25, config).tolist() == [0.5] * 5 + [0.25]


# --- where it leads ---------------------------------------------------------------------------------------------------


def test_q_learning_finds_the_optimum():
    # Q*(1, ·) = 4 and .9 Q*(0, 1); Q*(0, ·) = −1 + .9 · 1.6 and −2 + .9 · 4.
    log = last(train(world(TWO_STATES), Config(discount=0.9, epsilon=0.5, learners=5, episodes=200)))
    assert torch.allclose(log.q, torch.tensor([[0.44, 1.6], [4, 1.44]], dtype=torch.float64), atol=1e-9)


def epsilon_greedy_values(epsilon):
    """Q of the policy that is ε-greedy towards action 1 in state 0 and action 0 in state 1, the optimum, by a linear solve."""
    policy = torch.tensor([[epsilon / 2, 1 - epsilon / 2], [1 - epsilon / 2, epsilon / 2]], dtype=torch.float64)
    v0, v1 = policy_values(TWO_STATES, policy, 0.9).tolist()
    return torch.tensor([[-1 + 0.9 * v0, -2 + 0.9 * v1], [4, 0.9 * v0]], dtype=torch.float64)


def test_expected_sarsa_finds_the_value_of_the_policy_that_acts():
    log = last(train(world(TWO_STATES), Config("expected-sarsa", discount=0.9, epsilon=0.5, learners=5, episodes=300)))
    assert torch.allclose(log.q, epsilon_greedy_values(0.5).expand(5, 2, 2), atol=1e-9)
    assert not torch.allclose(log.q[0], optimal_values(TWO_STATES, 0.9), atol=0.1)


def test_sarsa_finds_it_on_average():
    # Both actions lead from state 0 to state 1 and both end it there, for 4 or 0: a' is independent of all that Q has seen.
    ladder = tables([[(1, 1, -1, 0), (1, 1, -2, 0)], [(1, 1, 4, 1), (1, 1, 0, 1)]])
    q = last(train(world(ladder), Config("sarsa", discount=0.9, epsilon=0.5, learners=300, episodes=400, step_size=0.1))).q
    assert torch.allclose(q[:, 1], torch.tensor([4.0, 0.0], dtype=torch.float64))
    standard_error = q[:, 0].std(0) / 300**0.5
    assert ((q[:, 0].mean(0) - torch.tensor([1.7, 0.7])).abs() < 4 * standard_error).all()  # −1 + .9 · 3 and −2 + .9 · 3
    assert (0.01 < standard_error).all() and (standard_error < 0.05).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_truncation_is_not_termination(algorithm):
    config = Config(algorithm, learners=2, episodes=200, discount=0.9, iteration_steps=200)
    truncated = last(train(world(tables([[(1, 0, 1, 0)]], [1]), max_steps=1), config))
    assert truncated.q.flatten().tolist() == pytest.approx([10, 10], rel=1e-3)  # 1 + .9 + .9² + …
    terminated = last(train(world(tables([[(1, 0, 1, 1)]], [1]), max_steps=1), config))
    assert terminated.q.flatten().tolist() == pytest.approx([1, 1])
    assert truncated.returns.eq(1).all() and terminated.returns.eq(1).all()


def test_the_edge_of_the_cliff():
    log = last(train(from_gymnasium("CliffWalking-v1"), Config(learners=20, episodes=150)))
    assert log.returns.shape == (20, 150) and not log.returns.isnan().any()
    best, position = log.q.argmax(-1), torch.full((20, 1), 36)
    for _ in range(13):
        row, column = position // 12, position % 12
        action = best.gather(1, position)
        row, column = row + (action == 2).long() - (action == 0).long(), column + (action == 1).long() - (action == 3).long()
        position = row * 12 + column
    assert position.eq(47).all()  # the goal, in as few steps as there are


# --- against plain Python ---------------------------------------------------------------------------------------------


class Recorded:
    """A world that remembers its transitions."""

    def __init__(self, world):
        self.world, self.rows = world, []

    def __getattr__(self, name):
        return getattr(self.world, name)

    def step(self, task, state, action, generator):
        reached, step = self.world.step(task, state, action, generator)
        row = (state.position, action, step.reward, reached.position, step.terminated, step.terminated | step.truncated)
        self.rows.append(torch.stack([column[:, 0].double() for column in row], -1))
        return reached, step


def plain(rows, config, q):
    """One learner's Q, episode returns and steps from its transitions, with nothing but Python's own arithmetic."""
    episode, steps, returns = 0, 0, [0.0] * config.episodes
    for i, (s, a, r, s2, terminated, ended) in enumerate(rows):
        if episode == config.episodes:
            break
        s, a, s2 = int(s), int(a), int(s2)
        progress = episode / (config.episodes - 1)
        alpha = config.step_size + (config.final_step_size - config.step_size) * progress
        epsilon = config.epsilon + (config.final_epsilon - config.epsilon) * progress
        if terminated:
            following = 0.0
        elif config.algorithm == "q-learning":
            following = max(q[s2])
        elif config.algorithm == "sarsa":
            following = q[s2][int(rows[i + 1][1])]
        else:
            ties = q[s2].count(max(q[s2]))
            following = sum(v * (epsilon / len(q[s2]) + (1 - epsilon) * (v == max(q[s2])) / ties) for v in q[s2])
        q[s][a] += alpha * (r + config.discount * following - q[s][a])
        returns[episode] += r
        steps += 1
        episode += int(ended)
    return q, returns, steps


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equal_to_a_loop_in_plain_python(algorithm):
    # SARSA's a' at a truncation is not an action that was taken, so that its episodes are left to terminate.
    lake = from_gymnasium("FrozenLake-v1", 2**31 - 1 if algorithm == "sarsa" else 12, torch.float64)
    config = Config(algorithm, 4, 60, 0.5, 0.1, 0.3, 0.1, discount=0.97, initial_value=0.5, iteration_steps=50)
    recorded = Recorded(lake)
    log = last(train(recorded, config))
    steps = 0
    for learner in range(4):
        rows = torch.stack(recorded.rows)[:, learner].tolist()
        q, returns, taken = plain(rows, config, [[0.5] * 4 for _ in range(16)])
        assert torch.allclose(log.q[learner], torch.tensor(q, dtype=torch.float64), rtol=0, atol=1e-12)
        assert log.returns[learner].tolist() == returns
        steps += taken
    assert log.env_steps == steps


def test_actions_are_drawn_from_the_policy():
    recorded = Recorded(world(TWO_STATES, max_steps=50))
    last(
        train(
            recorded, Config("q-learning", learners=50, episodes=40, epsilon=0.4, step_size=0.0, discount=0.9, iteration_steps=50)
        )
    )
    rows = torch.cat(recorded.rows)  # Q never moves from 0, so that the two actions are always equally good
    assert rows[:, 1].mean().item() == pytest.approx(0.5, abs=4 * 0.5 / len(rows) ** 0.5)
    greedy = Recorded(world(TWO_STATES, max_steps=50))
    config = Config("sarsa", learners=50, episodes=60, epsilon=0.2, discount=0.9, iteration_steps=50)
    last(train(greedy, config))
    late = torch.cat(greedy.rows[60:])  # by now each prefers action 1 in state 0, and action 0 in state 1
    preferred = (late[:, 0] != late[:, 1]).double()
    assert preferred.mean().item() == pytest.approx(0.9, abs=0.03)


# --- side by side -----------------------------------------------------------------------------------------------------


class SideBySide:
    """A world in which every learner has an MDP of its own."""

    def __init__(self, mdps, max_steps=100):
        self.world, self.task = world(mdps[0], max_steps), MDP(*map(torch.stack, zip(*mdps, strict=True)))

    def __getattr__(self, name):
        return getattr(self.world, name)

    def sample_tasks(self, n, generator):
        return self.task


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_learner_is_untouched_by_the_others(algorithm):
    config = Config(algorithm, learners=3, episodes=30, iteration_steps=40, discount=0.9)
    other = tables([[(1, 0, 70, 0), (1, 1, -50, 1)], [(1, 1, 90, 0), (1, 0, 30, 1)]])
    one = last(train(SideBySide([TWO_STATES, TWO_STATES, TWO_STATES], 9), config))
    two = last(train(SideBySide([TWO_STATES, other, other], 9), config))
    assert torch.equal(one.q[0], two.q[0]) and torch.equal(one.returns[0], two.returns[0])
    assert not torch.equal(one.q[1], two.q[1])


def test_a_learner_that_has_finished_waits():
    short = tables([[(1, 0, 1, 1)]] * 4, [1, 0, 0, 0])  # episodes of one step
    long = tables([[(1, 1, 1, 0)], [(1, 2, 1, 0)], [(1, 3, 1, 0)], [(1, 0, 1, 1)]], [1, 0, 0, 0])  # of four
    logs = list(train(SideBySide([short, long]), Config(learners=2, episodes=3, iteration_steps=1)))
    assert [log.iteration for log in logs] == list(range(1, 13))
    assert [log.episodes.tolist() for log in logs[:4]] == [[1, 0], [2, 0], [3, 0], [3, 1]]
    assert [log.q[0, 0, 0].item() for log in logs] == [0.5, 0.75] + [0.875] * 10
    assert [log.env_steps for log in logs] == [2, 4, 6, *range(7, 16)]
    assert logs[-1].returns.tolist() == [[1, 1, 1], [4, 4, 4]]
    assert logs[4].returns.isnan().tolist() == [[False] * 3, [False, True, True]]


def test_the_seed_decides_everything():
    lake, config = from_gymnasium("FrozenLake-v1"), Config("sarsa", learners=3, episodes=20, iteration_steps=100)
    first, again, other = (last(train(lake, replace(config, seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(first.q, again.q) and torch.equal(first.returns, again.returns)
    assert first.env_steps == again.env_steps != other.env_steps
    assert not torch.equal(first.returns[0], first.returns[1])


# --- the full-size runs, made small -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "scale"), [(cliff_walking, 0.02), (frozen_lake, 0.004)])
def test_an_experiment_gives_a_result_of_the_one_form(module, scale, monkeypatch):
    monkeypatch.setattr(module, "run_pieces", lambda work, pieces, *_: [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces])
    monkeypatch.setattr(cliff_walking, "CONFIG", replace(cliff_walking.CONFIG, iteration_steps=100))
    monkeypatch.setattr(frozen_lake, "CONFIGS", {k: replace(c, iteration_steps=100) for k, c in frozen_lake.CONFIGS.items()})
    result = module.run(2, scale, None)
    results.check(json.loads(json.dumps(result, allow_nan=False)))
    assert result["name"] == module.NAME and result["seeds"] == [0, 1]
    shares = [metric["value"] for label, metric in result["metrics"].items() if "greedy policy" in label]
    assert sum(shares) == pytest.approx(3 if module is cliff_walking else 0)  # of three algorithms, every seed once
    for lake in ("4x4", "8x8") if module is frozen_lake else ():
        last_curve = result["curves"][f"{lake} · success through training"][-1]
        value = result["metrics"][f"{lake} · greedy Q-learning"]["value"]
        assert sum(last_curve) / 2 == pytest.approx(value, abs=1e-4)
        assert value <= result["metrics"][f"{lake} · time-aware optimum"]["value"]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "dqn"}, "unknown algorithm 'dqn'; there are q-learning, sarsa, expected-sarsa"),
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"iteration_steps": 0}, "iteration_steps must be at least 1, got 0"),
        ({"step_size": 1.5}, r"step_size must be in \[0, 1\], got 1.5"),
        ({"epsilon": None}, r"epsilon must be in \[0, 1\], got None"),
        ({"final_epsilon": -0.1}, r"final_epsilon must be in \[0, 1\], got -0.1"),
        ({"discount": float("nan")}, r"discount must be in \[0, 1\], got nan"),
        ({"initial_value": float("inf")}, "initial_value must be finite, got inf"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)
