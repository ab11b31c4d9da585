"""Worlds with finitely many states, built from Gymnasium's own transition tables, and their exact solutions.

A task is a whole Markov decision process, its tables. What is learned in such a world can be compared with what is
true of it: the best values, the value of any policy, and the return that it will earn within a time limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from .types import Step

UNLIMITED = 2**31 - 1  # steps: an episode that the clock never ends


class MDP(NamedTuple):
    """A task: for every state and action the possible outcomes, and where episodes begin. Tasks lead: ``[task, ...]``."""

    probability: Tensor  # [..., state, action, outcome], float64
    next_state: Tensor  # [..., state, action, outcome] int64
    reward: Tensor  # [..., state, action, outcome], float64
    terminated: Tensor  # [..., state, action, outcome] bool
    initial: Tensor  # [..., state], float64: the probability that an episode begins there


class State(NamedTuple):
    position: Tensor  # [task, env] int64: the number of the state
    steps: Tensor  # [task, env] int: steps since the episode began


@dataclass(frozen=True, eq=False)
class TabularWorld:
    """The world of one MDP, tables without a task axis. Its observation is the state as a one-hot vector.

    An episode terminates as the tables say and is truncated after ``max_steps``. ``ValueError`` says what is wrong
    with tables that describe no MDP.
    """

    mdp: MDP
    max_steps: int = UNLIMITED
    dtype: torch.dtype = torch.float32  # of observations and rewards

    def __post_init__(self) -> None:
        states, actions, outcomes = shape = self.mdp.probability.shape
        wanted = dict.fromkeys(("next_state", "reward", "terminated"), shape) | {"initial": shape[:1]}
        for name, size in wanted.items():
            if getattr(self.mdp, name).shape != size:
                raise ValueError(f"mdp.{name} must have shape {tuple(size)}, got {tuple(getattr(self.mdp, name).shape)}")
        for name in ("probability", "initial"):
            p = getattr(self.mdp, name)
            if not ((p >= 0).all() and torch.allclose(p.sum(-1), p.new_ones(()))):
                raise ValueError(f"mdp.{name} must be non-negative and sum to 1 along its last axis")
        if not ((self.mdp.next_state >= 0) & (self.mdp.next_state < states)).all():
            raise ValueError(f"mdp.next_state must be in 0 … {states - 1}")
        if not torch.isfinite(self.mdp.reward).all():
            raise ValueError("mdp.reward must be finite")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")

    @property
    def observation_size(self) -> int:
        return self.mdp.probability.shape[0]

    @property
    def actions(self) -> int:
        return self.mdp.probability.shape[1]

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> MDP:
        """The only task there is, ``n`` times over, whatever the split."""
        if n < 1:
            raise ValueError(f"n must be at least 1 task, got {n}")
        return MDP(*(table.to(generator.device).expand(n, *table.shape) for table in self.mdp))

    def reset(self, task: MDP, n: int, generator: torch.Generator) -> tuple[State, Tensor]:
        """Start ``n`` episodes of every task, each in a state drawn from ``task.initial``."""
        if n < 1:
            raise ValueError(f"n must be at least 1 episode, got {n}")
        position = draw(task.initial[:, None].expand(-1, n, -1), generator)
        return State(position, torch.zeros_like(position, dtype=torch.int32)), self._observe(position)

    def step(self, task: MDP, state: State, action: Tensor, generator: torch.Generator | None = None) -> tuple[State, Step]:
        """One transition of every environment, its outcome drawn from ``generator`` unless the tables leave no choice."""
        learner = torch.arange(len(task.initial), device=action.device)[:, None]
        entry = (learner, state.position, action)
        if task.probability.shape[-1] == 1:
            outcome: Any = 0
        elif generator is None:
            raise ValueError("generator must be given, since this world's outcomes are random")
        else:
            outcome = draw(task.probability[entry], generator)
        entry = (*entry, outcome)
        position, steps = task.next_state[entry], state.steps + 1
        reward = task.reward[entry].to(self.dtype)
        step = Step(self._observe(position), reward, task.terminated[entry], steps >= self.max_steps)
        return State(position, steps), step

    def _observe(self, position: Tensor) -> Tensor:
        observation = torch.zeros(*position.shape, self.observation_size, dtype=self.dtype, device=position.device)
        return observation.scatter_(-1, position[..., None], 1.0)


def draw(probability: Tensor, generator: torch.Generator) -> Tensor:
    """An index drawn from every distribution along the last axis of ``probability``."""
    u = torch.rand(probability.shape[:-1], generator=generator, device=generator.device, dtype=torch.float64)
    return (u[..., None] >= probability.cumsum(-1)[..., :-1]).sum(-1)


# --- Gymnasium's tables -----------------------------------------------------------------------------------------------


def from_gymnasium(name: str, max_steps: int | None = None, dtype: torch.dtype = torch.float32, **options: Any) -> TabularWorld:
    """The world of a Gymnasium environment that has its transition tables in ``P``, such as ``"FrozenLake8x8-v1"``.

    ``max_steps`` is by default Gymnasium's own limit, which ``CliffWalking-v1`` has not; ``options`` go to ``gymnasium.make``.
    """
    env = gymnasium.make(name, **options)
    spec, env = env.spec, env.unwrapped
    if not hasattr(env, "P") or not hasattr(env, "initial_state_distrib"):
        raise ValueError(f"name must be that of an environment with transition tables, such as FrozenLake-v1; got {name!r}")
    if getattr(env, "fickle_passenger", False):
        raise ValueError("fickle_passenger must be False, since a passenger's change of mind is not in Gymnasium's tables")
    if max_steps is None:
        max_steps = spec.max_episode_steps or UNLIMITED
    rows = [[env.P[s][a] for a in range(env.action_space.n)] for s in range(env.observation_space.n)]
    most = max(len(outcomes) for row in rows for outcomes in row)

    def padded(outcomes: list[tuple]) -> list[tuple]:  # by outcomes that never happen
        return outcomes + [(0.0, *outcomes[-1][1:])] * (most - len(outcomes))

    table = np.array([[padded(outcomes) for outcomes in row] for row in rows], dtype=np.float64)
    probability, next_state, reward, terminated = torch.from_numpy(table).unbind(-1)
    initial = torch.from_numpy(np.array(env.initial_state_distrib, dtype=np.float64))
    return TabularWorld(MDP(probability, next_state.long(), reward, terminated.bool(), initial), max_steps, dtype)


def play_in_gymnasium(env: gymnasium.Env, actions: Tensor, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Play ``actions[state]`` in Gymnasium's own environment: the episodes' undiscounted returns, and which were truncated."""
    if env.spec is None or env.spec.max_episode_steps is None:
        raise ValueError("env must truncate, as gymnasium.make(name, max_episode_steps=…) does: a policy may walk in circles")
    table, returns, cut_off = actions.tolist(), np.zeros(episodes), np.zeros(episodes, dtype=bool)
    for episode in range(episodes):
        state, _ = env.reset(seed=seed if episode == 0 else None)
        terminated = False
        while not (terminated or cut_off[episode]):
            state, reward, terminated, cut_off[episode], _ = env.step(table[state])
            returns[episode] += reward
        cut_off[episode] &= not terminated
    return returns, cut_off


# --- exact solutions --------------------------------------------------------------------------------------------------


def expected(mdp: MDP) -> tuple[Tensor, Tensor]:
    """Mean reward r(s, a), ``[state, action]``, and P(s' | s, a) of going on from s', ``[state, action, state]``.

    What is missing from a row of P is the probability that the episode terminates.
    """
    goes_on = mdp.probability * ~mdp.terminated
    transition = goes_on.new_zeros(*goes_on.shape[:-1], goes_on.shape[0])
    return (mdp.probability * mdp.reward).sum(-1), transition.scatter_add(-1, mdp.next_state, goes_on)


def optimal_values(mdp: MDP, discount: float = 1.0, tolerance: float = 1e-12, sweeps: int = 100_000) -> Tensor:
    """Q* of an unlimited episode, ``[state, action]``, by value iteration: Q ← r + γ P max_a Q, from 0.

    Stops when no value moves by more than ``tolerance``; ``ValueError`` if that takes more than ``sweeps``.
    """
    reward, transition = expected(mdp)
    q = torch.zeros_like(reward)
    for _ in range(sweeps):
        last, q = q, reward + discount * (transition @ q.amax(-1))
        if (q - last).abs().max() <= tolerance:
            return q
    raise ValueError(f"discount must be lower than {discount}: the values have no limit that {sweeps} sweeps could reach")


def optimal_values_in_time(mdp: MDP, steps: int) -> Tensor:
    """Undiscounted Q* of an agent that knows the clock, ``[steps, state, action]``; entry t is for ``steps - t`` steps to go."""
    reward, transition = expected(mdp)
    q = [reward]
    for _ in range(steps - 1):
        q.append(reward + transition @ q[-1].amax(-1))
    return torch.stack(q[::-1])


def policy_values(mdp: MDP, policy: Tensor, discount: float = 1.0) -> Tensor:
    """V of unlimited episodes under ``policy``, ``[..., state, action]``, from (I − γ P_π) V = r_π, ``[..., state]``."""
    reward, transition = _under(mdp, policy)
    if discount == 1:  # then V exists only if every state can reach an end
        can_end = transition.sum(-1) < 1 - 1e-9
        for _ in range(transition.shape[-1]):
            can_end = can_end | ((transition > 0) & can_end[..., None, :]).any(-1)
        if not can_end.all():
            raise ValueError("discount must be below 1 for a policy under which some episodes never end, got 1")
    return torch.linalg.solve(torch.eye(transition.shape[-1], dtype=reward.dtype) - discount * transition, reward)


def expected_return(mdp: MDP, policy: Tensor, steps: int) -> Tensor:
    """Mean undiscounted return within ``steps`` under ``policy``, ``[..., state, action]``, probabilities: ``[...]``.

    Where the only reward is 1 for reaching the goal, as on FrozenLake, it is the probability of success.
    """
    reward, transition = _under(mdp, policy)
    value = torch.zeros_like(reward)
    for _ in range(steps):
        value = reward + (transition @ value[..., None])[..., 0]
    return value @ mdp.initial


def _under(mdp: MDP, policy: Tensor) -> tuple[Tensor, Tensor]:
    reward, transition = expected(mdp)
    policy = policy.to(reward.dtype)
    return (policy * reward).sum(-1), torch.einsum("...sa,sat->...st", policy, transition)
