"""Advantage actor-critic, synchronous: A2C :cite:p:`mnih2016asynchronous`.

A value network, the critic, says after a few steps already whether an action was better than expected; the policy, the
actor, need not wait for the end of the episode:

.. math::
    \\nabla_\\theta J \\approx \\mathbb{E} \\big[ \\nabla_\\theta \\log \\pi_\\theta(a_t | s_t) \\, \\hat A_t
    + c \\, \\nabla_\\theta \\mathcal{H}(\\pi_\\theta(\\cdot | s_t)) \\big], \\qquad
    \\min_w \\; \\mathbb{E} \\, \\tfrac12 \\big( \\hat A_t + V_{w^-}(s_t) - V_w(s_t) \\big)^2

Every learner (seed) acts for ``rollout_steps`` in each of its environments with one policy, takes one gradient step on
what it saw, and throws it away. :math:`\\hat A` is the generalised advantage estimate :cite:p:`schulman2016high`;
:math:`w^-` is :math:`w` before the step.

Where this departs from the paper: environments advance in lockstep in place of asynchronous workers; the optimiser is Adam,
its step size falling linearly to zero; policy and value are separate networks; advantages are GAE(λ), which for λ = 1 are the
paper's n-step ones. An episode that the clock cut short is bootstrapped :cite:p:`pardo2018time`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .nets import PolicyNet, ValueNet
from .returns import gae
from .stream import Stream
from .types import Params, World


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    learners: int = 10
    env_steps: int = 500_000  # of each learner
    envs: int = 32  # of each learner
    rollout_steps: int = 16  # n, in every environment between two updates
    step_size: float = 3e-3  # of Adam on the policy, falling linearly to zero
    value_step_size: float = 1e-2  # of Adam on the value network, likewise: the critic has to keep up with the actor
    discount: float = 0.99  # γ
    gae_lambda: float = 0.95  # λ
    entropy_coefficient: float = 0.0  # c
    max_gradient_norm: float = 0.5  # of each learner's policy gradient, and of its value gradient
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None  # see PolicyNet
    iteration_updates: int = 10  # updates between two logs
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("learners", "envs", "rollout_steps", "iteration_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("step_size", "value_step_size", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.entropy_coefficient < math.inf:
            raise ValueError(f"entropy_coefficient must be at least 0 and finite, got {self.entropy_coefficient}")
        if self.env_steps < self.envs * self.rollout_steps:
            needed = f"envs · rollout_steps = {self.envs * self.rollout_steps}, the steps of one update"
            raise ValueError(f"env_steps must be at least {needed}, got {self.env_steps}")


class Log(NamedTuple):
    """What one iteration of :func:`train` did: ``config.iteration_updates`` updates, fewer in the last one."""

    iteration: int  # counted from 1
    env_steps: int  # of each learner, so far
    returns: Tensor  # [learner], mean undiscounted return of the episodes that ended in this iteration; NaN where none did
    params: dict[str, Params]  # "policy" and "value", copies, leaves [learner, ...]
    entropy: Tensor  # [learner], of the policy, in nats; mean over the iteration's updates, as the following
    value_loss: Tensor  # [learner], half the mean squared error, before each update
    seconds: float  # of this iteration


class Segment(NamedTuple):
    """A few steps in every environment, episodes ending where they will."""

    observations: Tensor  # [learner, env, time, observation]
    actions: Tensor  # [learner, env, time]
    next_observations: Tensor  # [learner, env, time, observation], reached, before any reset
    rewards: Tensor  # [learner, env, time]
    terminated: Tensor  # [learner, env, time] bool
    truncated: Tensor  # [learner, env, time] bool


def networks(world: World, config: Config) -> tuple[PolicyNet, ValueNet]:
    """The actor and the critic."""
    if not hasattr(world, "actions"):
        raise ValueError("world must have discrete actions, got one with continuous actions")
    policy = PolicyNet(world.observation_size, world.actions, config.hidden, config.observation_scale)
    return policy, ValueNet(world.observation_size, config.hidden, config.observation_scale)


# --- acting -----------------------------------------------------------------------------------------------------------


def act(stream: Stream, policy: PolicyNet, params: Params, steps: int) -> Segment:
    """Take ``steps`` in every environment of the stream with actions drawn from the policy."""
    noise = policy.noise((steps, *stream.observation.shape[:-1]), stream.generator, stream.observation.dtype)
    rows = []
    with torch.inference_mode():
        for t in range(steps):
            observation = stream.observation
            action, _ = policy.act(params, observation, noise[t])
            rows.append((observation, action, *stream.step(action)))
    return Segment(*(torch.stack(column, 2) for column in zip(*rows, strict=True)))


# --- losses -----------------------------------------------------------------------------------------------------------


def policy_loss(
    policy: PolicyNet, params: Params, observations: Tensor, actions: Tensor, advantages: Tensor, entropy_coefficient: float
) -> tuple[Tensor, Tensor]:
    """Minus the mean of log π(a|s) Â + c H(π(·|s)), and the mean of H, both ``[learner]``; data ``[learner, env, time]``."""
    log_pi = policy.logits(params, observations).log_softmax(-1)
    gain = log_pi.gather(-1, actions[..., None]).squeeze(-1) * advantages
    entropy = -(log_pi.exp() * log_pi).sum(-1).mean((-2, -1))
    return -gain.mean((-2, -1)) - entropy_coefficient * entropy, entropy.detach()


def losses(
    policy: PolicyNet, value: ValueNet, params: dict[str, Params], segment: Segment, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """The actor's loss, the critic's loss and the entropy, ``[learner]``; neither loss has a gradient in the other's network."""
    values = value.value(params["value"], segment.observations)
    with torch.no_grad():
        next_values = value.value(params["value"], segment.next_observations)
        ends = segment.terminated, segment.truncated
        advantages = gae(segment.rewards, values, next_values, *ends, config.discount, config.gae_lambda)
        targets = advantages + values
    seen = segment.observations, segment.actions, advantages
    actor, entropy = policy_loss(policy, params["policy"], *seen, config.entropy_coefficient)
    critic = 0.5 * (targets - values).square().mean((-2, -1))
    return actor, critic, entropy


# --- training ---------------------------------------------------------------------------------------------------------


def clip_gradients(params: Params, max_norm: float) -> Tensor:
    """Scale each learner's own gradient down to ``max_norm`` where it is longer; the norms before, ``[learner]``.

    PyTorch's ``clip_grad_norm_`` takes one norm over all parameters: with stacked learners, one learner's large gradient would
    shorten everybody's step.
    """
    gradients = [p.grad for p in params.values()]
    norms = sum(g.square().flatten(1).sum(1) for g in gradients).sqrt()
    scale = (max_norm / norms.clamp(min=max_norm))[:, None, None]
    for g in gradients:
        g *= scale
    return norms


def update(
    policy: PolicyNet,
    value: ValueNet,
    params: dict[str, Params],
    segment: Segment,
    config: Config,
    optimizer: torch.optim.Optimizer,
) -> tuple[Tensor, Tensor]:
    """One step of both networks of every learner; entropy and value loss before it, ``[learner]``."""
    actor, critic, entropy = losses(policy, value, params, segment, config)
    optimizer.zero_grad()
    (actor + critic).sum().backward()
    norms = torch.stack([clip_gradients(params[name], config.max_gradient_norm) for name in ("policy", "value")])
    if not torch.isfinite(norms).all():
        learner = int((~torch.isfinite(norms)).any(0).nonzero()[0])
        raise FloatingPointError(f"the gradient of learner {learner} is not finite (NaN or infinity)")
    optimizer.step()
    return entropy, critic.detach()


def train(world: World, config: Config) -> Iterator[Log]:
    """Train every learner at once, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    All randomness comes from ``config.seed``. Raises ``FloatingPointError``, naming the iteration, as soon as a reward, an
    observation or a learner's gradient is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy, value = networks(world, config)
    stream = Stream(world, config.learners, config.envs, generator)
    params = {
        "policy": policy.init(config.learners, generator, stream.observation.dtype),
        "value": value.init(config.learners, generator, stream.observation.dtype),
    }
    groups = [{"params": [p.requires_grad_() for p in params[name].values()]} for name in ("policy", "value")]
    optimizer = torch.optim.Adam(groups, fused=True)
    updates = config.env_steps // (config.envs * config.rollout_steps)

    for first in range(0, updates, config.iteration_updates):
        started, iteration = time.perf_counter(), first // config.iteration_updates + 1
        last, seen = min(first + config.iteration_updates, updates), []
        for i in range(first, last):
            for group, step_size in zip(optimizer.param_groups, (config.step_size, config.value_step_size), strict=True):
                group["lr"] = step_size * (1 - i / updates)
            try:
                segment = act(stream, policy, params["policy"], config.rollout_steps)
                seen.append(update(policy, value, params, segment, config, optimizer))
            except FloatingPointError as error:
                raise FloatingPointError(f"iteration {iteration}: {error}") from error
        entropy, value_loss = (torch.stack(column).mean(0) for column in zip(*seen, strict=True))
        yield Log(
            iteration=iteration,
            env_steps=last * config.envs * config.rollout_steps,
            returns=stream.finished_returns(),
            params={name: {k: p.detach().clone() for k, p in net.items()} for name, net in params.items()},
            entropy=entropy,
            value_loss=value_loss,
            seconds=time.perf_counter() - started,
        )
