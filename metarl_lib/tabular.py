"""Q-learning, SARSA and expected SARSA :cite:p:`sutton2018reinforcement`, chapter 6.

All three move the value of the state and action just seen towards a target,

.. math::
    Q(s, a) \\leftarrow Q(s, a) + \\alpha \\, (y - Q(s, a)),

and differ in the target y alone. The policy that acts is ε-greedy in Q. Learners (seeds) run side by side, each in one
environment of its own.

Where this departs from the book: an episode may be truncated, and then its last target still counts on the state that
it reached; α and ε may fall over the episodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .tabular_worlds import TabularWorld, draw
from .types import Step, select

ALGORITHMS = ("q-learning", "sarsa", "expected-sarsa")


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    algorithm: str = "q-learning"  # or "sarsa", "expected-sarsa"
    learners: int = 10
    episodes: int = 500  # of each learner
    step_size: float = 0.5  # α
    final_step_size: float | None = None  # what α falls to, linearly over a learner's episodes; None: it does not fall
    epsilon: float = 0.1  # ε, the probability of a random action
    final_epsilon: float | None = None  # likewise
    discount: float = 1.0  # γ
    initial_value: float = 0.0  # of every state and action; above what can be earned, it makes learners explore
    iteration_steps: int = 1000  # steps of each learner between two logs
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; there are {', '.join(ALGORITHMS)}")
        for name in ("learners", "episodes", "iteration_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("step_size", "final_step_size", "epsilon", "final_epsilon", "discount"):
            value = getattr(self, name)
            if not (0 <= value <= 1 if value is not None else name.startswith("final")):
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if not math.isfinite(self.initial_value):
            raise ValueError(f"initial_value must be finite, got {self.initial_value}")


class Log(NamedTuple):
    """What :func:`train` has done so far. Nothing in it changes later."""

    iteration: int  # counted from 1
    q: Tensor  # [learner, state, action]
    returns: Tensor  # [learner, episode], undiscounted; NaN where the episode is not finished
    episodes: Tensor  # [learner] int64, finished
    env_steps: int  # of all learners
    seconds: float  # of this iteration


# --- the policy and the three targets ---------------------------------------------------------------------------------


def epsilon_greedy(q: Tensor, epsilon: Tensor | float) -> Tensor:
    """π(a | s) = ε/|A| + (1 − ε) [a is best] / (number of best actions), from Q(s, ·), both ``[..., action]``."""
    best = (q == q.amax(-1, keepdim=True)).to(q.dtype)
    return epsilon / q.shape[-1] + (1 - epsilon) * best / best.sum(-1, keepdim=True)


def q_learning_target(reward: Tensor, terminated: Tensor, discount: float, q_next: Tensor) -> Tensor:
    """y = r + γ max_a Q(s', a), and y = r where the episode terminated: off-policy."""
    return reward + discount * q_next.amax(-1) * ~terminated


def sarsa_target(reward: Tensor, terminated: Tensor, discount: float, q_next: Tensor, next_action: Tensor) -> Tensor:
    """y = r + γ Q(s', a') for the action a' that the policy takes next, and y = r where the episode terminated: on-policy."""
    return reward + discount * q_next.gather(-1, next_action[..., None])[..., 0] * ~terminated


def expected_sarsa_target(reward: Tensor, terminated: Tensor, discount: float, q_next: Tensor, policy_next: Tensor) -> Tensor:
    """y = r + γ Σ_a π(a | s') Q(s', a), and y = r where the episode terminated: SARSA without the noise of a'."""
    return reward + discount * (policy_next * q_next).sum(-1) * ~terminated


# --- training ---------------------------------------------------------------------------------------------------------


def train(world: TabularWorld, config: Config) -> Iterator[Log]:
    """Yield a :class:`Log` every ``config.iteration_steps`` steps until every learner has finished its episodes.

    A learner that has finished waits for the others: its Q stands still. All randomness comes from ``config.seed``, and
    no learner's affects another's.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    task = world.sample_tasks(config.learners, generator)
    learner = torch.arange(config.learners, device=config.device)[:, None]  # [learner, env], and so is what follows
    shape = (config.learners, world.observation_size, world.actions)
    q = torch.full(shape, config.initial_value, dtype=world.dtype, device=config.device)
    # By episode; the entry behind the last one is for learners that wait.
    returns = q.new_zeros(config.learners, config.episodes + 1)
    alphas = schedule(config.step_size, config.final_step_size, 0.0, config).to(q)
    epsilons = schedule(config.epsilon, config.final_epsilon, config.epsilon, config).to(q)
    episode, env_steps, iteration = torch.zeros_like(learner), torch.zeros_like(learner), 0
    state, _ = world.reset(task, 1, generator)
    action = draw(epsilon_greedy(q[learner, state.position], config.epsilon), generator)

    while (episode < config.episodes).any():
        started = time.perf_counter()
        for _ in range(config.iteration_steps):
            alpha, epsilon = alphas[episode], epsilons[episode][..., None]
            reached, step = world.step(task, state, action, generator)
            y, next_action = target(config, step, q[learner, reached.position], epsilon, generator)
            entry = (learner, state.position, action)
            q[entry] += alpha * (y - q[entry])

            returns[learner, episode] += step.reward
            env_steps += episode < config.episodes
            ended = step.terminated | step.truncated
            episode = (episode + ended).clamp(max=config.episodes)
            state = select(ended, world.reset(task, 1, generator)[0], reached)
            action = draw(epsilon_greedy(q[learner, state.position], epsilon), generator)
            if next_action is not None:
                action = torch.where(ended, action, next_action)
        iteration += 1
        unfinished = torch.arange(config.episodes, device=config.device) >= episode
        finished_returns = returns[:, :-1].masked_fill(unfinished, torch.nan)
        seconds = time.perf_counter() - started
        yield Log(iteration, q.clone(), finished_returns, episode[:, 0].clone(), int(env_steps.sum()), seconds)


def target(
    config: Config, step: Step, q_next: Tensor, epsilon: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """y by the algorithm's rule and, for SARSA, the action a' that it was made with and that has to be taken next."""
    seen = (step.reward, step.terminated, config.discount, q_next)
    if config.algorithm == "q-learning":
        return q_learning_target(*seen), None
    policy_next = epsilon_greedy(q_next, epsilon)
    if config.algorithm == "expected-sarsa":
        return expected_sarsa_target(*seen, policy_next), None
    next_action = draw(policy_next, generator)
    return sarsa_target(*seen, next_action), next_action


def schedule(first: float, last: float | None, waiting: float, config: Config) -> Tensor:
    """A value for every episode, from ``first`` to ``last`` in equal steps, and one for when all are done."""
    values = torch.linspace(first, first if last is None else last, config.episodes, dtype=torch.float64)
    return torch.cat((values, values.new_tensor([waiting])))
