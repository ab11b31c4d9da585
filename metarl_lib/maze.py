"""A game of hide and seek in a maze, as a distribution over tasks, batched in torch; and how well it can be played.

The prize is in one of eight chests, and which one it is, is the task. Where the chests stand is part of the maze. Nothing
shows what a chest holds but walking there. An episode starts in the middle of the maze and terminates at the prize; over the
episodes of a trial the prize stays where it is. To play well is to search without detours once, and from then on to go
straight to the prize.

What the best possible player earns in a trial is computed exactly, by dynamic programming over what has been seen: a belief
is the set of chests that are still closed, since all of these are equally likely to hold the prize.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .types import Step, index_tasks

UP, RIGHT, DOWN, LEFT = range(4)
CHESTS = 8
STEP_COST = 0.01
LAYOUTS = {"train": 60, "validation": 20, "test": 20, "ood": 20}
_DOORS = 4  # opened beside those that join all cells, in mazes of ``ood``


# --- the world --------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    reached: Tensor  # [task, cell, action] int64: the cell that a move leads to, the same one at a wall
    goal: Tensor  # [task] int64: the cell with the prize


class State(NamedTuple):
    position: Tensor  # [task, env] int64: the cell; cells are numbered row by row from the top
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True)
class Maze:
    """Mazes of ``size`` × ``size`` cells. A step costs 0.01, the prize is worth 1. Actions are up, right, down and left.

    ``distribution`` is ``many``, in which each split has mazes of its own and those of ``ood`` have loops, or ``one``: the first
    training maze, with its eight tasks in every split. An episode is truncated after ``max_steps``.

    The observation is the cell as a one-hot vector, and for each of the four sides whether it is open.
    """

    distribution: str = "one"
    size: int = 5
    max_steps: int = 30
    dtype: torch.dtype = torch.float32

    actions = 4

    def __post_init__(self) -> None:
        if self.distribution not in ("one", "many"):
            raise ValueError(f"unknown distribution {self.distribution!r}; there are one, many")
        if not 4 <= self.size <= 9:
            raise ValueError(f"size must be in 4 … 9, got {self.size}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    @property
    def observation_size(self) -> int:
        return self.size**2 + 4

    @property
    def start(self) -> int:
        """The cell in the middle."""
        return (self.size + 1) * (self.size // 2)

    def all_tasks(self, split: str = "train") -> Task:
        """Every task of a split, maze by maze, a task for each of a maze's chests."""
        if split not in LAYOUTS:
            raise ValueError(f"unknown split {split!r}; there are {', '.join(LAYOUTS)}")
        if self.distribution == "one":
            reached, chests = (leaf[:1] for leaf in layouts(self.size)["train"])
        else:
            reached, chests = layouts(self.size)[split]
        return Task(reached.repeat_interleave(CHESTS, 0), chests.flatten())

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Task:
        """Draw ``n`` tasks of a split, with replacement."""
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        tasks = Task(*(leaf.to(generator.device) for leaf in self.all_tasks(split)))
        return index_tasks(tasks, torch.randint(len(tasks.goal), (n,), generator=generator, device=generator.device))

    def reset(self, task: Task, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """Start ``n`` episodes of every task."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        position = torch.full((len(task.goal), n), self.start, device=task.goal.device)
        return State(position, torch.zeros_like(position, dtype=torch.int32)), self._observe(task, position)

    def step(self, task: Task, state: State, action: Tensor, generator: torch.Generator | None = None) -> tuple[State, Step]:
        """One move. ``generator`` is unused: nothing but the task is random."""
        maze = torch.arange(len(task.goal), device=action.device)[:, None]
        position, steps = task.reached[maze, state.position, action], state.steps + 1
        found = position == task.goal[:, None]
        reward = found.to(self.dtype) - STEP_COST
        return State(position, steps), Step(self._observe(task, position), reward, found, steps >= self.max_steps)

    def _observe(self, task: Task, position: Tensor) -> Tensor:
        maze = torch.arange(len(task.goal), device=position.device)[:, None]
        is_open = task.reached[maze, position] != position[..., None]
        return torch.cat((torch.nn.functional.one_hot(position, self.size**2), is_open), -1).to(self.dtype)


@lru_cache(maxsize=8)
def layouts(size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The mazes of every split, no two of them alike: ``reached`` ``[maze, cell, action]`` and ``chests`` ``[maze, chest]``."""
    generator, seen, found = torch.Generator().manual_seed(size), set(), {}
    for split, number in LAYOUTS.items():
        mazes = []
        while len(mazes) < number:
            maze = draw_layout(size, _DOORS if split == "ood" else 0, generator)
            key = tuple(maze[0].flatten().tolist())
            if key not in seen:
                seen.add(key)
                mazes.append(maze)
        found[split] = tuple(map(torch.stack, zip(*mazes, strict=True)))
    return found


def draw_layout(size: int, doors: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A maze ``reached`` ``[cell, action]`` and its ``chests`` ``[chest]``.

    Walls are taken down in random order wherever they part two regions (Kruskal's spanning tree), and ``doors`` of the others.
    Dead ends get the first chests, cells with few openings the next; equal ones take their turns at random.
    """
    cells = torch.arange(size**2)
    reached = cells[:, None].repeat(1, 4)
    across = [(int(c), int(c) + 1, RIGHT, LEFT) for c in cells if c % size < size - 1]
    down = [(int(c), int(c) + size, DOWN, UP) for c in cells if c < size * (size - 1)]
    walls, region = across + down, cells.clone()
    for i in torch.randperm(len(walls), generator=generator).tolist():
        here, there, action, back = walls[i]
        joins = bool(region[here] != region[there])
        if joins or doors:
            doors -= not joins
            reached[here, action], reached[there, back] = there, here
            region[region == region[there]] = region[here].clone()
    openings = (reached != cells[:, None]).sum(-1) + torch.rand(size**2, generator=generator)
    openings[(size + 1) * (size // 2)] = torch.inf  # where episodes start
    return reached, openings.argsort()[:CHESTS]


# --- players that know the maze ---------------------------------------------------------------------------------------


def distances(reached: np.ndarray) -> np.ndarray:
    """Moves from every cell to every cell, ``[from, to]``, infinite where there is no way."""
    moves = np.where(np.eye(len(reached)), 0.0, np.inf)
    for _ in range(len(reached)):
        moves = np.minimum(moves, 1 + moves[reached].min(1))
    return moves


class Trial(NamedTuple):
    """One trial of one player."""

    episodes: list[list[int]]  # the cells of each episode, its first and last included; the trial's end may cut the last one
    found: list[bool]  # the prize, of each episode

    @property
    def prizes(self) -> int:
        return sum(self.found)


Player = Callable[[int, frozenset[int], int, int], int]
"""(steps left in the trial, cells that may hold the prize, cell, steps of this episode so far) to an action."""


def play(world: Maze, task: Task, player: Player, steps: int, index: int = 0) -> Trial:
    """A trial of ``steps`` steps on ``task[index]``; the player is told which cells may still hold the prize."""
    reached, goal = task.reached[index].tolist(), int(task.goal[index])
    may_hold = frozenset(_chests(task, index))
    episodes, found = [[world.start]], [False]
    for left in range(steps, 0, -1):
        cells = episodes[-1]
        cells.append(reached[cells[-1]][player(left, may_hold, cells[-1], len(cells) - 1)])
        found[-1] = cells[-1] == goal
        may_hold = frozenset((goal,)) if found[-1] else may_hold - ({cells[-1]} if len(may_hold) > 1 else set())
        if (found[-1] or len(cells) > world.max_steps) and left > 1:
            episodes.append([world.start])
            found.append(False)
    return Trial(episodes, found)


def _chests(task: Task, index: int) -> list[int]:
    """The cells that hold the prize in some task of the same maze, among the tasks given."""
    same = (task.reached == task.reached[index]).all(-1).all(-1)
    return sorted(set(task.goal[same].tolist()))


def systematic(reached: np.ndarray) -> Player:
    """To the nearest cell that may hold the prize, again and again: a search first, then straight to the prize."""
    moves = distances(reached)

    def act(left: int, may_hold: frozenset[int], cell: int, clock: int) -> int:
        target = min(sorted(may_hold), key=lambda chest: moves[cell, chest] if chest != cell else np.inf)
        return int(moves[reached[cell], target].argmin())

    return act


def best_player(world: Maze, reached: np.ndarray, chests: list[int], steps: int) -> tuple[float, Player]:
    """The best strategy there is for trials of ``steps`` steps, and the prizes that it finds on average, exactly.

    With n steps left, U the set of closed chests, x the cell and k the episode's clock,

    .. math::
        V_n(U, x, k) = \\max_a \\begin{cases}
            \\frac{1}{|U|} \\bigl(1 + W_{n-1}(x')\\bigr) + \\bigl(1 - \\frac{1}{|U|}\\bigr) V_{n-1}(U \\setminus x', x', k + 1)
                & x' \\in U \\\\
            V_{n-1}(U, x', k + 1) & \\text{otherwise}
        \\end{cases}

    where x' is the cell that a leads to, W the number of prizes that can be fetched in the time left by who knows the place, one
    every shortest walk, and the clock's end puts the player back at the start with k = 0.
    """
    cells, clock, moves = len(reached), world.max_steps, distances(reached)
    subset = np.arange(2 ** len(chests))
    size = np.array([bin(u).count("1") for u in subset])
    number = np.full(cells, -1)
    number[chests] = np.arange(len(chests))
    fetch = moves[world.start]  # steps to every cell
    value = np.zeros((len(subset), cells, clock))
    plan = np.zeros((steps + 1, len(subset), cells, clock), dtype=np.int8)
    for left in range(1, steps + 1):
        # What follows a step taken at clock k into a cell without news: the clock is k + 1, or it has run out.
        onward = np.concatenate((value[:, :, 1:], np.repeat(value[:, world.start, None, :1], cells, 1)), -1)
        entered = onward.copy()
        for i, chest in enumerate(chests):
            closed = subset[subset >> i & 1 == 1]
            after = (left - 1) // fetch[chest] if fetch[chest] <= clock else 0.0
            p = 1 / size[closed][:, None]
            entered[closed, chest] = p * (1 + after) + (1 - p) * onward[closed & ~(1 << i), chest]
        options = entered[:, reached]  # [U, cell, action, k]
        plan[left], value = options.argmax(2), options.max(2)
    everything = len(subset) - 1

    def act(left: int, may_hold: frozenset[int], cell: int, at: int) -> int:
        if len(may_hold) == 1:  # it is there, or has been found there
            (goal,) = may_hold
            return int(moves[reached[cell], goal].argmin())
        mask = sum(1 << int(number[chest]) for chest in may_hold)
        return int(plan[left, mask, cell, at])

    return float(value[everything, world.start, 0]), act


def prizes_if_known(world: Maze, task: Task, steps: int) -> np.ndarray:
    """Prizes in a trial of who knows the task, ``[task]``: one every shortest walk. No player finds more."""
    fetch = np.array([distances(r)[world.start, g] for r, g in zip(task.reached.numpy(), task.goal.numpy(), strict=True)])
    return np.where(fetch <= world.max_steps, steps // fetch, 0)


def walks_to_prize(rewards: Tensor) -> list[list[int]]:
    """For every trial of ``rewards`` ``[trial, time]``, the steps to its first prize, from there to the second, and so on."""
    walks = []
    for row in rewards.cpu():
        times = (row > 0).nonzero()[:, 0].tolist()
        walks.append([after - before for before, after in zip([-1, *times], times, strict=False)])
    return walks
