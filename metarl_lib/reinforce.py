"""REINFORCE, the Monte-Carlo policy gradient :cite:p:`williams1992simple`; :cite:t:`sutton2018reinforcement`, chapter 13.

Raise the probability of what was done by how well the rest of the episode went:

.. math::
    \\nabla_\\theta J(\\theta) = \\mathbb{E} \\sum_{t=0}^{T-1} \\nabla_\\theta \\log \\pi_\\theta(a_t | s_t) \\, (G_t - b_t),
    \\qquad G_t = \\sum_{k \\ge t} \\gamma^{k-t} r_k

A baseline :math:`b_t` that does not depend on the action leaves the expectation as it is and can lower the variance a great
deal. Three are here: ``none``; ``mean``, what the *other* episodes of the batch still earned from the same time step on; and
``value``, a network V(s) learned from the returns of earlier batches. Neither is ever fitted on the episode that it judges.

The sum runs over time and is averaged over episodes only: divided by each episode's length as well, it would let long
episodes, which on CartPole are the good ones, count less.

Where this departs from the sources: each update is the mean over several whole episodes; the optimiser is Adam, its
step size falling linearly to zero; the factor :math:`\\gamma^t` that a discounted objective puts in front of step t is left out,
as nearly everywhere, since it would silence all but the first 1/(1 − γ) steps.

What a clock does to it: a Monte-Carlo return knows nothing of what would have come after a truncation and counts it as 0. On an
environment with a time limit the return then falls towards the limit for a reason that the observation does not show
:cite:p:`pardo2018time`. ``value`` adds the value of the state that the clock cut off, :math:`\\gamma^{T-t} V(s_T)`, which is as
right as V is; ``none`` and ``mean`` have nothing to add.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .collect import collect, pack
from .nets import PolicyNet, ValueNet
from .returns import discounted_returns
from .types import Batch, Params, Rollout, World

BASELINES = ("none", "mean", "value")


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    baseline: str = "value"  # or "none", "mean"
    learners: int = 10
    env_steps: int = 500_000  # of each learner; the iteration in which it runs out is still finished
    episodes: int = 10  # of each learner in an iteration
    step_size: float = 1e-2  # of Adam on the policy, falling linearly to zero over a learner's env_steps
    value_step_size: float = 1e-2  # of Adam on the value network, likewise
    value_steps: int = 10  # minibatches that one pass over the iteration's samples is cut into, for the value network
    discount: float = 0.99  # γ
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None  # see PolicyNet
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}; there are {', '.join(BASELINES)}")
        for name in ("learners", "env_steps", "episodes", "value_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.baseline == "mean" and self.episodes < 2:
            raise ValueError(f"episodes must be at least 2 for the mean of the others, got {self.episodes}")
        for name in ("step_size", "value_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {self.discount}")


class Log(NamedTuple):
    """What one iteration of :func:`train` did. A learner that has used up its steps waits for the others."""

    iteration: int  # counted from 1
    env_steps: Tensor  # [learner] int64, so far
    returns: Tensor  # [learner], mean undiscounted return of the iteration's episodes; NaN where the learner waits
    params: dict[str, Params]  # "policy", and "value" if that is the baseline; copies, leaves [learner, ...]
    entropy: Tensor  # [learner], of the policy that acted, in nats
    seconds: float  # of this iteration


def networks(world: World, config: Config) -> tuple[PolicyNet, ValueNet]:
    """The policy, and the value network that ``baseline="value"`` learns."""
    if not hasattr(world, "actions"):
        raise ValueError("world must have discrete actions, got one with continuous actions")
    policy = PolicyNet(world.observation_size, world.actions, config.hidden, config.observation_scale)
    return policy, ValueNet(world.observation_size, config.hidden, config.observation_scale)


# --- returns and baselines --------------------------------------------------------------------------------------------


def returns_to_go(rollout: Rollout, discount: float, next_values: Tensor | None = None) -> Tensor:
    """G ``[learner, env, time]``; with ``next_values``, of the states reached, truncated episodes are bootstrapped."""
    cut = rollout.truncated & ~rollout.terminated
    bootstrap = None if next_values is None else next_values * cut
    return discounted_returns(rollout.rewards, rollout.terminated | rollout.truncated, discount, bootstrap)


def mean_of_the_others(returns: Tensor, alive: Tensor) -> Tensor:
    """For every episode and time step, the mean of G over the learner's other episodes that got that far, 0 if none did.

    All ``[learner, env, time]``. The others are independent of the episode's actions, which is all that a baseline needs.
    """
    returns = returns * alive
    others = alive.sum(-2, keepdim=True) - alive.to(returns.dtype)
    return (returns.sum(-2, keepdim=True) - returns) / others.clamp(min=1)


def judge(rollout: Rollout, config: Config, value: ValueNet, value_params: Params | None) -> tuple[Tensor, Tensor]:
    """Returns G and advantages G − b, both ``[learner, env, time]``."""
    if config.baseline == "value":
        with torch.no_grad():
            values, next_values = (value.value(value_params, o) for o in (rollout.observations, rollout.next_observations))
        returns = returns_to_go(rollout, config.discount, next_values)
        return returns, returns - values
    returns = returns_to_go(rollout, config.discount)
    return returns, returns - mean_of_the_others(returns, rollout.alive) if config.baseline == "mean" else returns


# --- losses -----------------------------------------------------------------------------------------------------------


def policy_loss(policy: PolicyNet, params: Params, batch: Batch, episodes: int) -> tuple[Tensor, Tensor]:
    """Minus Σ log π(a|s) (G − b) over the steps of an episode, mean over ``episodes``, and the mean entropy; ``[learner]``.

    Its gradient is minus the estimate of the policy gradient. The batch's ``weights`` are 0 at padding.
    """
    log_pi = policy.logits(params, batch.observations).log_softmax(-1)
    gain = log_pi.gather(-1, batch.actions[..., None]).squeeze(-1) * batch.advantages
    entropy = -(batch.weights * (log_pi.exp() * log_pi).sum(-1)).sum(-1)
    return -(gain * (batch.weights > 0)).sum(-1) / episodes, entropy.detach()


def value_loss(value: ValueNet, params: Params, observations: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """Half the mean squared error of V, ``[learner]``; observations ``[learner, sample, …]``, the rest ``[learner, sample]``."""
    errors = returns - value.value(params, observations)
    return 0.5 * (weights * errors.square()).sum(-1) / weights.sum(-1).clamp(min=1e-12)


def policy_gradient(policy: PolicyNet, params: Params, batch: Batch, episodes: int) -> Tensor:
    """Every learner's estimate of the policy gradient, all parameters in one row, ``[learner, parameter]``."""
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss, _ = policy_loss(policy, params, batch, episodes)
    return torch.cat([-g.flatten(1) for g in torch.autograd.grad(loss.sum(), list(params.values()))], 1)


# --- training ---------------------------------------------------------------------------------------------------------


def descend(loss: Tensor, params: Params, optimizer: torch.optim.Optimizer, remaining: Tensor) -> None:
    """One step of Adam on ``loss`` ``[learner]``, each learner's shortened to its share ``remaining`` of the full length.

    The sum's gradient is every learner's own, and Adam treats every number apart, so that no learner affects another.
    """
    optimizer.zero_grad()
    loss.sum().backward()
    finite = torch.stack([torch.isfinite(p.grad).flatten(1).all(1) for p in params.values()]).all(0)
    if not finite.all():
        raise FloatingPointError(f"the gradient of learner {int((~finite).nonzero()[0])} is not finite (NaN or infinity)")
    before = [p.detach().clone() for p in params.values()]
    optimizer.step()
    with torch.no_grad():
        for old, p in zip(before, params.values(), strict=True):
            p.copy_(torch.lerp(old, p, remaining[:, None, None]))


def update(
    policy: PolicyNet,
    value: ValueNet,
    params: dict[str, Params],
    rollout: Rollout,
    config: Config,
    optimizers: dict[str, torch.optim.Optimizer],
    remaining: Tensor,
) -> Tensor:
    """One step of every policy, then a few of every value network; the entropy before it, ``[learner]``."""
    returns, advantages = judge(rollout, config, value, params.get("value"))
    batch = pack(rollout, advantages)
    loss, entropy = policy_loss(policy, params["policy"], batch, config.episodes)
    descend(loss, params["policy"], optimizers["policy"], remaining)
    if config.baseline == "value":
        targets = pack(rollout, returns).advantages
        for k in range(config.value_steps):  # every minibatch has samples from all episodes
            seen = (x[:, k :: config.value_steps] for x in (batch.observations, targets, batch.weights))
            descend(value_loss(value, params["value"], *seen), params["value"], optimizers["value"], remaining)
    return entropy


def train(world: World, config: Config) -> Iterator[Log]:
    """Train every learner at once, yielding a :class:`Log` after every iteration, until each has used its ``env_steps``.

    All randomness comes from ``config.seed``. Raises ``FloatingPointError``, naming the iteration, as soon as a reward, an
    observation or a learner's gradient is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy, value = networks(world, config)
    task = world.sample_tasks(config.learners, generator)
    dtype = world.reset(task, config.episodes, generator)[1].dtype
    params = {"policy": policy.init(config.learners, generator, dtype)}
    if config.baseline == "value":
        params["value"] = value.init(config.learners, generator, dtype)
    step_sizes = {"policy": config.step_size, "value": config.value_step_size}
    optimizers = {
        name: torch.optim.Adam([p.requires_grad_() for p in net.values()], lr=step_sizes[name], fused=True)
        for name, net in params.items()
    }
    env_steps = torch.zeros(config.learners, dtype=torch.int64, device=config.device)
    iteration = 0

    while (env_steps < config.env_steps).any():
        iteration, started = iteration + 1, time.perf_counter()
        remaining = (1 - env_steps / config.env_steps).clamp(min=0).to(dtype)
        try:
            rollout = collect(world, task, policy, params["policy"], config.episodes, generator)
            entropy = update(policy, value, params, rollout, config, optimizers, remaining)
        except FloatingPointError as error:
            raise FloatingPointError(f"iteration {iteration}: {error}") from error
        waits = remaining == 0
        env_steps = env_steps + rollout.alive.sum((-2, -1)).masked_fill(waits, 0)
        yield Log(
            iteration=iteration,
            env_steps=env_steps,
            returns=rollout.returns.mean(-1).masked_fill(waits, torch.nan),
            params={name: {k: p.detach().clone() for k, p in net.items()} for name, net in params.items()},
            entropy=entropy,
            seconds=time.perf_counter() - started,
        )
