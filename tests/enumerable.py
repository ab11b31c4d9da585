"""A decision process so small that every expectation is a sum: all its trajectories, and its values by dynamic programming."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarl_lib.types import Rollout


class Trajectories(NamedTuple):
    """All of them, one row each, ``[trajectory, time]``; entries behind the end are junk, and not alive."""

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    terminated: Tensor
    truncated: Tensor
    alive: Tensor
    chance: Tensor  # [trajectory], of what is not the policy's: the product of the world's own probabilities


@dataclass(frozen=True)
class Tiny:
    """Two states, two actions, ``horizon`` steps; a step may terminate, and the clock truncates what is left."""

    horizon: int
    ending: float = 0.3  # the probability that action 1 terminates

    initial = torch.tensor([0.6, 0.4], dtype=torch.float64)
    # Far from 0 and from one another, so that a baseline has something to do.
    reward = torch.tensor([[3.0, 2.0], [4.5, 6.0]], dtype=torch.float64)  # [state, action]
    moves = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.9, 0.1]]], dtype=torch.float64)  # [state, action, next]

    def end(self, action: int) -> float:
        return self.ending * action

    def trajectories(self) -> Trajectories:
        rows, chances = [], []

        def grow(state: int, past: list[tuple], chance: float) -> None:
            for action in range(2):
                for reached in range(2):
                    p = chance * float(self.moves[state, action, reached])
                    for terminated in (False, True):
                        q = p * (self.end(action) if terminated else 1 - self.end(action))
                        last = len(past) + 1 == self.horizon
                        step = (state, action, float(self.reward[state, action]), reached, terminated, last, True)
                        if q == 0:
                            continue
                        if terminated or last:
                            junk = [(1, 1, -77.0, 0, False, False, False)] * (self.horizon - len(past) - 1)
                            rows.append([*past, step, *junk])
                            chances.append(q)
                        else:
                            grow(reached, [*past, step], q)

        for state in range(2):
            grow(state, [], float(self.initial[state]))
        columns = zip(*[tuple(zip(*row, strict=True)) for row in rows], strict=True)
        kinds = (torch.int64, torch.int64, torch.float64, torch.int64, torch.bool, torch.bool, torch.bool)
        tensors = [torch.tensor(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)]
        return Trajectories(*tensors, torch.tensor(chances, dtype=torch.float64))

    def values(self, pi: Tensor, discount: float, after: Tensor) -> tuple[Tensor, Tensor]:
        """V_t(s) ``[horizon + 1, state]`` and Q_t(s, a) ``[horizon, state, action]``; ``after`` is what the clock leaves, V_T."""
        v, q = [after], []
        for _ in range(self.horizon):
            go_on = torch.tensor([1 - self.end(0), 1 - self.end(1)], dtype=torch.float64)
            q.insert(0, self.reward + discount * go_on * (self.moves @ v[0]))
            v.insert(0, (pi * q[0]).sum(-1))
        return torch.stack(v), torch.stack(q)

    def visits(self, pi: Tensor) -> Tensor:
        """Probability of being in s at time t and not having ended, ``[horizon, state]``."""
        d = [self.initial]
        for _ in range(self.horizon - 1):
            go_on = torch.tensor([1 - self.end(0), 1 - self.end(1)], dtype=torch.float64)
            d.append(torch.einsum("s,sa,a,san->n", d[-1], pi, go_on, self.moves))
        return torch.stack(d)


def one_hot(state: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(state, 2).double()


def as_rollout(t: Trajectories) -> Rollout:
    """Every trajectory as the one episode of a learner of its own, ``[trajectory, 1, time]``."""
    columns = (one_hot(t.state), t.action, torch.zeros_like(t.reward), t.reward, one_hot(t.next_state))
    return Rollout(*(column[:, None] for column in (*columns, t.terminated, t.truncated, t.alive)))
