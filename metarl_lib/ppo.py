"""Proximal policy optimisation: PPO with the clipped objective :cite:p:`schulman2017proximal`.

A policy gradient is right for one step only: after it, the data come from another policy than the one that is improved. PPO takes
many steps on the same data all the same, and weighs each action by how much likelier it has become since it was taken,

.. math::
    \\max_\\theta \\; \\mathbb{E} \\big[ \\min \\big( r_\\theta \\hat A, \\;
    \\operatorname{clip}(r_\\theta, 1 - \\varepsilon, 1 + \\varepsilon) \\, \\hat A \\big) \\big], \\qquad
    r_\\theta = \\frac{\\pi_\\theta(a | s)}{\\pi_\\text{old}(a | s)}, \\qquad
    \\min_w \\; \\mathbb{E} \\, \\tfrac12 \\big( \\hat A + V_\\text{old}(s) - V_w(s) \\big)^2

Where the ratio has left the interval on the side that the advantage asks for, the minimum is flat and the gradient zero: there
is nothing to be gained from going on. :math:`\\hat A` is the generalised advantage estimate :cite:p:`schulman2016high`.

What is not in the equation and matters :cite:p:`engstrom2020implementation,huang2022details`; each is a line of this file:

1. policy and value are separate networks;
2. the policy's last layer begins small, so that the first policy is nearly uniform (:class:`~metarl_lib.nets.PolicyNet`);
3. several epochs over the data, in minibatches shuffled anew in each, for every learner by itself;
4. advantages normalised in every minibatch, of every learner by itself;
5. Adam's ε is 1e-5, not 1e-8;
6. Adam's step size and the clip fall linearly to zero;
7. the gradient's norm is clipped, each learner's by itself: one norm over all learners would couple them;
8. an episode that the clock cut short is bootstrapped :cite:p:`pardo2018time`;
9. off unless asked for: an entropy bonus, a clipped value loss, stopping early when the policy has moved too far.

Where this departs from the paper: of its objectives only the clipped one; no parameters are shared, so that the two losses
need no coefficient between them; weights begin Xavier-uniform, not orthogonal; neither observations nor rewards are
normalised by running statistics.
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

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)  # of the ratio, in the log


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    learners: int = 10
    env_steps: int = 100_000  # of each learner
    envs: int = 16  # of each learner
    rollout_steps: int = 64  # in every environment between two updates
    epochs: int = 2  # times that the data of an iteration are gone through
    minibatch: int = 64  # transitions of each learner in one step of Adam
    step_size: float = 3e-3  # of Adam on the policy
    value_step_size: float = 3e-3  # of Adam on the value network
    clip: float = 0.2  # ε; infinity leaves the ratio unclipped
    decay: bool = True  # step sizes and ε fall linearly to zero over the iterations
    discount: float = 0.98  # γ
    gae_lambda: float = 0.95  # λ
    normalise_advantages: bool = True
    entropy_coefficient: float = 0.0
    value_clip: float = math.inf  # how far a value may move in an iteration before its loss goes flat
    max_gradient_norm: float = 0.5  # of each learner's policy gradient, and of its value gradient
    target_kl: float = math.inf  # a learner whose policy is further than this from the old one sits out the remaining epochs
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None  # see PolicyNet
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("learners", "envs", "rollout_steps", "epochs", "minibatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("step_size", "value_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("clip", "value_clip", "max_gradient_norm", "target_kl"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, infinity for none; got {getattr(self, name)}")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.entropy_coefficient < math.inf:
            raise ValueError(f"entropy_coefficient must be at least 0 and finite, got {self.entropy_coefficient}")
        samples = self.envs * self.rollout_steps
        if samples % self.minibatch:
            raise ValueError(f"minibatch must divide envs · rollout_steps = {samples}, got {self.minibatch}")
        if self.normalise_advantages and self.minibatch < 2:
            raise ValueError(f"minibatch must be at least 2 to normalise advantages, got {self.minibatch}")
        if self.env_steps < samples:
            raise ValueError(f"env_steps must be at least envs · rollout_steps = {samples}, got {self.env_steps}")


class Log(NamedTuple):
    """What one iteration of :func:`train` did. What follows ``params`` compares its policy with the one before, on the data."""

    iteration: int  # counted from 1
    env_steps: int  # of each learner, so far
    returns: Tensor  # [learner], mean undiscounted return of the episodes that ended in this iteration; NaN where none did
    params: dict[str, Params]  # "policy" and "value", copies, leaves [learner, ...]
    entropy: Tensor  # [learner], of the policy, in nats
    approx_kl: Tensor  # [learner], of the old policy from the new one, in nats
    clip_fraction: Tensor  # [learner], share of the ratios outside 1 ± ε, with the ε of this iteration
    ratio_quantiles: Tensor  # [learner, quantile], those of QUANTILES: the smallest ratio, …, the median, …, the largest
    value_loss: Tensor  # [learner], half the mean squared error
    explained_variance: Tensor  # [learner], 1 − var(error) / var(targets) of the values before the update; NaN if nothing varies
    seconds: float  # of this iteration


class Segment(NamedTuple):
    """A few steps in every environment, episodes ending where they will."""

    observations: Tensor  # [learner, env, time, observation]
    actions: Tensor  # [learner, env, time]
    log_probs: Tensor  # [learner, env, time], log π_old(a | s)
    next_observations: Tensor  # [learner, env, time, observation], reached, before any reset
    rewards: Tensor  # [learner, env, time]
    terminated: Tensor  # [learner, env, time] bool
    truncated: Tensor  # [learner, env, time] bool


class Samples(NamedTuple):
    """What a segment teaches, transition by transition."""

    observations: Tensor  # [learner, sample, observation]
    actions: Tensor  # [learner, sample]
    log_probs: Tensor  # [learner, sample], log π_old(a | s)
    advantages: Tensor  # [learner, sample]
    values: Tensor  # [learner, sample], V_old(s)
    targets: Tensor  # [learner, sample], of the value network


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
            action, log_prob = policy.act(params, observation, noise[t])
            rows.append((observation, action, log_prob, *stream.step(action)))
    return Segment(*(torch.stack(column, 2) for column in zip(*rows, strict=True)))


@torch.no_grad()
def to_samples(value: ValueNet, params: Params, segment: Segment, config: Config) -> Samples:
    """Advantages, and the value network's targets :math:`\\hat A + V_\\text{old}(s)`: fixed for the iteration's updates."""
    values = value.value(params, segment.observations)
    next_values = value.value(params, segment.next_observations)
    ends = segment.terminated, segment.truncated
    advantages = gae(segment.rewards, values, next_values, *ends, config.discount, config.gae_lambda)
    columns = (segment.observations, segment.actions, segment.log_probs, advantages, values, advantages + values)
    return Samples(*(column.flatten(1, 2) for column in columns))


# --- losses -----------------------------------------------------------------------------------------------------------


def normalise(advantages: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 along the last axis, each learner by itself."""
    centred = advantages - advantages.mean(-1, keepdim=True)
    return centred / (centred.std(-1, keepdim=True) + 1e-8)


def clipped_objective(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """min(r Â, clip(r, 1 − ε, 1 + ε) Â) with r = exp(log π − log π_old), of every transition; all arguments of one shape."""
    ratio = (log_prob - old_log_prob).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: Tensor, targets: Tensor, old_values: Tensor, clip: float = math.inf) -> Tensor:
    """½ (target − V)² of every transition; with a ``clip``, the larger of that and the loss of V held within it of V_old."""
    loss = 0.5 * (values - targets).square()
    if clip < math.inf:
        held = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, 0.5 * (held - targets).square())
    return loss


def losses(
    policy: PolicyNet, value: ValueNet, params: dict[str, Params], batch: Samples, clip: float, config: Config
) -> tuple[Tensor, Tensor]:
    """The actor's and the critic's loss on a minibatch, ``[learner]``; neither has a gradient in the other's network."""
    log_pi = policy.logits(params["policy"], batch.observations).log_softmax(-1)
    log_prob = log_pi.gather(-1, batch.actions[..., None]).squeeze(-1)
    advantages = normalise(batch.advantages) if config.normalise_advantages else batch.advantages
    actor = -clipped_objective(log_prob, batch.log_probs, advantages, clip).mean(-1)
    if config.entropy_coefficient:
        actor = actor + config.entropy_coefficient * (log_pi.exp() * log_pi).sum(-1).mean(-1)
    values = value.value(params["value"], batch.observations)
    return actor, value_loss(values, batch.targets, batch.values, config.value_clip).mean(-1)


# --- updates ----------------------------------------------------------------------------------------------------------


def clip_gradients(params: Params, max_norm: float) -> None:
    """Scale each learner's own gradient down to ``max_norm`` where it is longer.

    PyTorch's ``clip_grad_norm_`` takes one norm over all parameters: with stacked learners, one learner's large gradient would
    shorten everybody's step.
    """
    gradients = [p.grad for p in params.values()]
    norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
    scale = (max_norm / norms).clamp(max=1)[:, None, None]
    for gradient in gradients:
        gradient *= scale


def minibatches(samples: Samples, size: int, generator: torch.Generator) -> Iterator[Samples]:
    """Every transition once, in an order of each learner's own, ``size`` of each learner at a time."""
    learners, n = samples.actions.shape
    order = torch.rand(learners, n, generator=generator, device=generator.device).argsort(-1)
    order += n * torch.arange(learners, device=order.device)[:, None]  # addresses the learners laid end to end
    flat = [column.flatten(0, 1) for column in samples]
    for chosen in order.split(size, 1):
        yield Samples(*(column[chosen] for column in flat))


def update(
    policy: PolicyNet,
    value: ValueNet,
    params: dict[str, Params],
    samples: Samples,
    clip: float,
    config: Config,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """``config.epochs`` over the samples, both networks of every learner in each step; ``params`` change in place."""
    stopped = torch.zeros(config.learners, dtype=torch.bool, device=generator.device)
    for _ in range(config.epochs):
        held = [leaf.clone() for leaf in moving(optimizer)] if config.target_kl < math.inf and stopped.any() else []
        for batch in minibatches(samples, config.minibatch, generator):
            actor, critic = losses(policy, value, params, batch, clip, config)
            optimizer.zero_grad()
            (actor + critic).sum().backward()
            clip_gradients(params["policy"], config.max_gradient_norm)
            clip_gradients(params["value"], config.max_gradient_norm)
            optimizer.step()
        if held:  # whoever had stopped before this epoch goes back to where it was
            for leaf, old in zip(moving(optimizer), held, strict=True):
                leaf[stopped] = old[stopped]
        if config.target_kl < math.inf:
            stopped |= diagnose(policy, value, params, samples, clip)["approx_kl"] > config.target_kl


def moving(optimizer: torch.optim.Adam) -> list[Tensor]:
    """Parameters and running averages of Adam, leaves ``[learner, ...]``: whatever a step changes, its count excepted."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    averages = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    return [*(p.detach() for p in parameters), *averages]


@torch.no_grad()
def diagnose(policy: PolicyNet, value: ValueNet, params: dict[str, Params], samples: Samples, clip: float) -> dict[str, Tensor]:
    """How far the updates went and how well the values fit, as :class:`Log` describes them."""
    log_pi = policy.logits(params["policy"], samples.observations).log_softmax(-1)
    log_ratio = log_pi.gather(-1, samples.actions[..., None]).squeeze(-1) - samples.log_probs
    ratio = log_ratio.exp()
    values = value.value(params["value"], samples.observations)
    variance = samples.targets.var(-1)
    explained = 1 - samples.advantages.var(-1) / variance  # an advantage is the old values' error
    quantiles = ratio.new_tensor(QUANTILES)
    return {
        "entropy": -(log_pi.exp() * log_pi).sum(-1).mean(-1),
        "approx_kl": (ratio - 1 - log_ratio).mean(-1),
        "clip_fraction": ((ratio - 1).abs() > clip).to(ratio.dtype).mean(-1),
        "ratio_quantiles": ratio.quantile(quantiles, -1).T,
        "value_loss": value_loss(values, samples.targets, samples.values).mean(-1),
        "explained_variance": explained.where(variance > 0, torch.nan),
    }


# --- training ---------------------------------------------------------------------------------------------------------


def train(world: World, config: Config) -> Iterator[Log]:
    """Train every learner at once, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    All randomness comes from ``config.seed``. Raises ``FloatingPointError``, naming the iteration, as soon as a reward, an
    observation or a learner's loss is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy, value = networks(world, config)
    stream = Stream(world, config.learners, config.envs, generator)
    params = {
        name: net.init(config.learners, generator, stream.observation.dtype)
        for name, net in (("policy", policy), ("value", value))
    }
    optimizer = optimizer_for(params)
    samples_an_iteration = config.envs * config.rollout_steps
    iterations = config.env_steps // samples_an_iteration

    for iteration in range(1, iterations + 1):
        started = time.perf_counter()
        remaining = 1 - (iteration - 1) / iterations if config.decay else 1.0
        clip = config.clip * remaining
        set_step_sizes(optimizer, config.step_size * remaining, config.value_step_size * remaining)
        try:
            segment = act(stream, policy, params["policy"], config.rollout_steps)
        except FloatingPointError as error:
            raise FloatingPointError(f"iteration {iteration}: {error}") from error
        samples = to_samples(value, params["value"], segment, config)
        update(policy, value, params, samples, clip, config, optimizer, generator)
        diagnostics = diagnose(policy, value, params, samples, clip)
        check_finite(diagnostics, iteration)
        yield Log(
            iteration=iteration,
            env_steps=iteration * samples_an_iteration,
            returns=stream.finished_returns(),
            params={name: {k: p.detach().clone() for k, p in net.items()} for name, net in params.items()},
            seconds=time.perf_counter() - started,
            **diagnostics,
        )


def optimizer_for(params: dict[str, Params]) -> torch.optim.Adam:
    """Adam on both networks of every learner; it works entry by entry, so that learners do not meet in it."""
    groups = [{"params": [p.requires_grad_() for p in params[name].values()]} for name in ("policy", "value")]
    return torch.optim.Adam(groups, eps=1e-5, fused=True)


def set_step_sizes(optimizer: torch.optim.Adam, policy: float, value: float) -> None:
    for group, step_size in zip(optimizer.param_groups, (policy, value), strict=True):
        group["lr"] = step_size


def check_finite(diagnostics: dict[str, Tensor], iteration: int) -> None:
    """``FloatingPointError`` if a learner's networks no longer give numbers."""
    finite = torch.isfinite(diagnostics["entropy"] + diagnostics["value_loss"])
    if not finite.all():
        learner = int((~finite).nonzero()[0])
        last_good = f"the last good parameters are those of iteration {iteration - 1}"
        raise FloatingPointError(
            f"iteration {iteration}: the losses of learner {learner} are not finite (NaN or infinity); {last_good}"
        )
