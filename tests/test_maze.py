"""The maze: its layouts, its rules, and the exact values of its players against brute force and against playing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.sparse.csgraph import shortest_path

from metarl_lib import maml, results, rl2
from metarl_lib.experiments import maze as experiment
from metarl_lib.gymnasium_bridge import WorldEnv
from metarl_lib.maze import (
    CHESTS,
    DOWN,
    LAYOUTS,
    LEFT,
    RIGHT,
    UP,
    Maze,
    State,
    Task,
    best_player,
    distances,
    draw_layout,
    layouts,
    play,
    prizes_if_known,
    systematic,
    walks_to_prize,
)
from metarl_lib.nets import PolicyNet
from metarl_lib.stream import Stream
from metarl_lib.types import index_tasks


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def corridor(cells):
    """Cells in a row: ``reached`` ``[cell, action]``."""
    reached = np.arange(cells)[:, None].repeat(4, 1)
    reached[:-1, RIGHT], reached[1:, LEFT] = np.arange(1, cells), np.arange(cells - 1)
    return reached


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 5, 7])
def test_mazes_of_all_splits_are_different_and_hang_together(size):
    found = layouts(size)
    together = torch.cat([reached for reached, _ in found.values()])
    assert len(together.flatten(1).unique(dim=0)) == sum(LAYOUTS.values()) == len(together)
    for split, (reached, chests) in found.items():
        assert reached.shape == (LAYOUTS[split], size**2, 4) and chests.shape == (LAYOUTS[split], CHESTS)
        for maze, cells in zip(reached, chests.tolist(), strict=True):
            doors = (maze != torch.arange(size**2)[:, None]).sum()
            assert doors == 2 * (size**2 - 1 + 4 * (split == "ood"))  # a tree of all cells, or four doors more
            assert np.isfinite(distances(maze.numpy())).all()
            openings = (maze != torch.arange(size**2)[:, None]).sum(-1)
            openings[Maze(size=size).start] = 9
            assert len(set(cells)) == CHESTS and Maze(size=size).start not in cells
            others = [n for cell, n in enumerate(openings.tolist()) if cell not in cells]
            assert max(openings[cells]) <= min(others)  # dead ends first


def test_a_door_leads_both_ways_to_a_neighbour(generator):
    reached, _ = draw_layout(6, 5, generator)
    for cell in range(36):
        for action, step, back in ((UP, -6, DOWN), (RIGHT, 1, LEFT), (DOWN, 6, UP), (LEFT, -1, RIGHT)):
            there = int(reached[cell, action])
            assert there in (cell, cell + step)
            if there != cell:
                assert reached[there, back] == cell
                assert step not in (1, -1) or there // 6 == cell // 6


def test_tasks_of_a_split():
    world = Maze("many")
    for split, number in LAYOUTS.items():
        tasks = world.all_tasks(split)
        assert len(tasks.goal) == 8 * number
        assert all(len(set(tasks.goal[8 * i : 8 * i + 8].tolist())) == 8 for i in range(number))
        assert all((tasks.reached[8 * i] == tasks.reached[8 * i + 7]).all() for i in range(number))
    first = index_tasks(world.all_tasks("train"), slice(0, 8))
    for split in LAYOUTS:
        assert all(torch.equal(a, b) for a, b in zip(Maze("one").all_tasks(split), first, strict=True))


def test_sampled_tasks_are_uniform_and_reproducible(generator):
    world = Maze("many")
    everything, before = world.all_tasks("test"), torch.random.get_rng_state()
    tasks = world.sample_tasks(16_000, generator, "test")
    again = world.sample_tasks(16_000, torch.Generator().manual_seed(0), "test")
    assert all(torch.equal(a, b) for a, b in zip(tasks, again, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())
    drawn = torch.cat((tasks.reached.flatten(1), tasks.goal[:, None]), 1).unique(dim=0, return_counts=True)
    known = torch.cat((everything.reached.flatten(1), everything.goal[:, None]), 1).unique(dim=0)
    assert torch.equal(drawn[0], known)
    assert ((drawn[1] - 100).abs() < 5 * 10).all()  # a hundred of each, give or take five standard deviations


# --- rules ------------------------------------------------------------------------------------------------------------


def test_the_rules_by_a_second_implementation(generator):
    world = Maze("many", max_steps=9, dtype=torch.float64)
    task = world.sample_tasks(40, generator)
    state, _ = world.reset(task, 3, generator)
    cells = [[world.start] * 3 for _ in range(40)]
    found = 0
    for t in range(1, 12):
        actions = torch.randint(4, (40, 3), generator=generator)
        state, step = world.step(task, state, actions)
        for i in range(40):
            for j in range(3):
                cell = cells[i][j] = int(task.reached[i, cells[i][j], actions[i, j]])
                arrived = cell == int(task.goal[i])
                found += arrived
                assert step.reward[i, j].item() == pytest.approx(arrived - 0.01)
                assert (step.terminated[i, j].item(), step.truncated[i, j].item()) == (arrived, t >= 9)
                around = [float(task.reached[i, cell, a] != cell) for a in range(4)]
                assert step.observation[i, j].tolist() == [float(c == cell) for c in range(25)] + around
    assert found > 5


def test_the_prize_on_the_last_step_both_terminates_and_truncates():
    reached = torch.from_numpy(corridor(25))[None]
    world, task = Maze(max_steps=1), Task(reached, torch.tensor([13]))
    state, observation = world.reset(task, 2, torch.Generator())
    assert observation[0, 0].nonzero()[:, 0].tolist() == [12, 25 + RIGHT, 25 + LEFT]
    _, step = world.step(task, state, torch.tensor([[RIGHT, UP]]))
    assert step.terminated.tolist() == [[True, False]] and step.truncated.tolist() == [[True, True]]
    assert step.reward[0].tolist() == pytest.approx([0.99, -0.01])
    _, later = Maze(max_steps=9).step(task, State(*state), torch.tensor([[RIGHT, UP]]))
    assert later.truncated.tolist() == [[False, False]]


# --- players ----------------------------------------------------------------------------------------------------------


def test_distances_are_those_of_scipy():
    for reached in (*layouts(5)["train"][0][:5].numpy(), *layouts(6)["ood"][0][:5].numpy(), corridor(7)):
        graph = np.zeros((len(reached), len(reached)))
        for cell, row in enumerate(reached):
            graph[cell, row] = cell != row
        assert np.array_equal(distances(reached), shortest_path(graph, unweighted=True))
    assert distances(np.arange(2)[:, None].repeat(4, 1)).tolist() == [[0, np.inf], [np.inf, 0]]


@pytest.mark.parametrize("steps", [3, 4, 10])
@pytest.mark.parametrize("clock, lost", [(5, 1.0), (1, 0.5)])
def test_two_chests_in_a_corridor(steps, clock, lost):
    """Start between them. A wrong guess costs two steps to come back; or one, where the clock carries the player home at once."""
    value, _ = best_player(SimpleNamespace(start=1, max_steps=clock), corridor(3), [0, 2], steps)
    assert value == pytest.approx(steps - lost)


def brute_force(reached, start, chests, max_steps, steps):
    """Expected prizes of the best player by trying everything, one step after another, the search and the fetching alike."""

    @cache
    def value(left, closed, known, cell, clock):
        if left == 0:
            return 0.0
        best = -math.inf
        for there in set(reached[cell].tolist()):

            def onward(closed, known, prize, at=there):
                ended = prize or clock + 1 == max_steps
                return prize + value(left - 1, closed, known, start if ended else at, 0 if ended else clock + 1)

            if known is not None:
                worth = onward(closed, known, there == known)
            elif there in closed:
                p = 1 / len(closed)
                worth = p * onward(closed, there, True)
                if p < 1:
                    worth += (1 - p) * onward(closed - {there}, None, False)
            else:
                worth = onward(closed, None, False)
            best = max(best, worth)
        return best

    return value(steps, frozenset(chests), None, start, 0)


@pytest.mark.parametrize("max_steps, steps", [(4, 9), (7, 12), (20, 16)])
def test_the_best_player_is_the_best_by_brute_force(max_steps, steps):
    for reached, chests in zip(*(leaf[:3] for leaf in layouts(4)["ood"]), strict=True):
        chosen, world = chests[-4:].tolist(), SimpleNamespace(start=10, max_steps=max_steps)
        value, _ = best_player(world, reached.numpy(), chosen, steps)
        assert value == pytest.approx(brute_force(reached.numpy(), 10, chosen, max_steps, steps))
        assert value > 0


@pytest.mark.parametrize("distribution, split", [("one", "train"), ("many", "test"), ("many", "ood")])
def test_what_players_earn(distribution, split):
    """Playing all eight tasks of a maze finds as many prizes as the dynamic programme says, and no player finds more."""
    world = Maze(distribution)
    tasks = index_tasks(world.all_tasks(split), slice(0, 8))
    reached = tasks.reached[0].numpy()
    value, best = best_player(world, reached, tasks.goal.tolist(), 60)
    earned = {
        name: np.mean([play(world, tasks, player, 60, i).prizes for i in range(8)])
        for name, player in {"best": best, "systematic": systematic(reached)}.items()
    }
    assert earned["best"] == pytest.approx(value)
    assert 5 < earned["systematic"] <= value < prizes_if_known(world, tasks, 60).mean()
    rng = np.random.default_rng(0)
    wandering = np.mean([play(world, tasks, lambda *_: int(rng.integers(4)), 60, i).prizes for i in range(8)])
    assert wandering < 0.5 * earned["systematic"]


def test_the_prizes_of_who_knows():
    task = Task(torch.from_numpy(corridor(25)).expand(3, -1, -1), torch.tensor([13, 9, 24]))
    assert prizes_if_known(Maze(max_steps=10), task, 10).tolist() == [10, 3, 0]


def test_a_search_then_straight_walks():
    """From the middle of a corridor with chests at 10 and 15: two steps to the one, and from there five to the other."""
    task = Task(torch.from_numpy(corridor(25)).expand(2, -1, -1), torch.tensor([15, 10]))
    trial = play(Maze(), task, systematic(corridor(25)), 14)
    assert trial.episodes == [[12, 11, 10, 11, 12, 13, 14, 15], [12, 13, 14, 15], [12, 13, 14, 15], [12, 13]]
    assert trial.found == [True, True, True, False] and trial.prizes == 3
    cut = play(Maze(max_steps=4), task, systematic(corridor(25)), 8)
    assert cut.episodes == [[12, 11, 10, 11, 12], [12, 13, 14, 15], [12, 13]] and cut.found == [False, True, False]


def test_a_trial_is_the_world_s(generator):
    """The cells of a trial, walked in the torch world: the same rewards and the same ends."""
    world = Maze("many", max_steps=20)
    tasks = index_tasks(world.all_tasks("test"), slice(8, 16))
    for i in range(8):
        trial = play(world, tasks, systematic(tasks.reached[0].numpy()), 60, i)
        stream = Stream(world, 1, 1, generator, index_tasks(tasks, slice(i, i + 1)))
        prizes, steps = 0, 0
        for cells, found in zip(trial.episodes, trial.found, strict=True):
            assert stream.state.position.item() == cells[0] == world.start
            for here, there in zip(cells, cells[1:], strict=False):
                step = stream.step(torch.tensor([[tasks.reached[i, here].tolist().index(there)]]))
                steps += 1
            assert step.terminated.item() == found and step.truncated.item() == (len(cells) == 21)
            prizes += step.reward.item() > 0
        assert steps == 60 and prizes == trial.prizes > 1


def test_walks_between_prizes():
    rewards = torch.tensor([[-0.01, 0.99, -0.01, -0.01, 0.99, 0.99, -0.01], [-0.01] * 7])
    assert walks_to_prize(rewards) == [[2, 3, 1], []]


def test_the_algorithms_of_the_book_take_it(generator):
    world = Maze("many", max_steps=10)
    policy = PolicyNet(world.observation_size, world.actions)
    (log,) = maml.train(world, policy, maml.Config(iterations=1, tasks=2, episodes=4))
    assert len(log.returns) == 2 and all(-0.1 <= r < 1 for r in log.returns)
    config = rl2.Config(iterations=1, trials=4, trial_steps=25, width=8, minibatches=2)
    (log,) = rl2.train(world, config)
    assert log.env_steps == 100
    trials = rl2.run_trials(world, rl2.Policy(world, config, generator), world.sample_tasks(50, generator), 25, generator)
    at_start, ended = trials.inputs[..., world.start] == 1, trials.inputs[..., -1] == 1
    assert at_start[:, 0].all() and at_start[ended].all()
    assert torch.equal(ended[:, 1:][trials.rewards[:, :-1] > 0], torch.ones(int((trials.rewards[:, :-1] > 0).sum())).bool())
    check_env(WorldEnv(world), skip_render_check=True)


def test_bad_input_is_one_clear_sentence(generator):
    world = Maze()
    with pytest.raises(ValueError, match="^unknown distribution 'two'; there are one, many$"):
        Maze("two")
    with pytest.raises(ValueError, match="^size must be in 4 … 9, got 3$"):
        Maze(size=3)
    with pytest.raises(ValueError, match="^max_steps must be at least 1, got 0$"):
        Maze(max_steps=0)
    with pytest.raises(ValueError, match="^unknown split 'eval'; there are train, validation, test, ood$"):
        world.sample_tasks(1, generator, "eval")
    with pytest.raises(ValueError, match="^n must be at least 1 task, got 0$"):
        world.sample_tasks(0, generator)
    with pytest.raises(ValueError, match="^n must be at least 1 episode, got 0$"):
        world.reset(world.sample_tasks(1, generator), 0, generator)


# --- the experiment ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_experiment_runs_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "RL2", replace(experiment.RL2, trials=8, minibatches=2))
    small = {name: replace(config, tasks=4, episodes=4) for name, config in experiment.GRADIENTS.items()}
    monkeypatch.setattr(experiment, "GRADIENTS", small)
    monkeypatch.setattr(
        experiment, "run_pieces", lambda work, pieces, folder, progress: [work(*p) | {"cpu_seconds": 1.0} for p in pieces]
    )
    monkeypatch.setattr(experiment, "STEP_SIZES", (0.1, 10.0))
    result = experiment.run(2, 0.02, lambda *_: None)
    results.check(result)
    prizes = {name: result["metrics"][f"{name} · prizes"]["value"] for name in experiment.references()}
    assert prizes["random walk"] < prizes["systematic search"] <= prizes["best player"] < prizes["knows the goal"]
    assert prizes["best player"] == pytest.approx(18.375) and prizes["knows the goal"] == pytest.approx(21.25)
    assert result["metrics"]["RL² · prizes"]["value"] < prizes["best player"]
    assert {k for k in result["metrics"] if k.startswith("MAML · after")} == {f"MAML · after {k}" for k in range(4)}
