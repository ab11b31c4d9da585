"""Soft actor-critic, SAC :cite:p:`haarnoja2018soft`, with a learned temperature :cite:p:`haarnoja2018applications`.

For continuous actions: a policy that is paid for its entropy too, learnt from a memory of all that has been seen.

.. math::
    \\max_\\pi \\; \\mathbb{E} \\sum_t \\gamma^t \\big( r_t + \\alpha \\, \\mathcal{H}(\\pi(\\cdot \\mid s_t)) \\big)

On transitions (s, a, r, s') from the memory, with actions ã ~ π(·|s) and ã' ~ π(·|s') drawn afresh, three losses are minimised:

.. math::
    J(\\theta_j) &= \\mathbb{E} \\, \\tfrac12 \\big( y - Q_{\\theta_j}(s, a) \\big)^2, \\qquad
    y = r + \\gamma \\big( \\min_j Q_{\\theta^-_j}(s', \\tilde a') - \\alpha \\log \\pi(\\tilde a' | s') \\big) \\\\
    J(\\phi) &= \\mathbb{E} \\big( \\alpha \\log \\pi_\\phi(\\tilde a | s) - \\min_j Q_{\\theta_j}(s, \\tilde a) \\big) \\\\
    J(\\log \\alpha) &= -\\log \\alpha \\; \\mathbb{E} \\big( \\log \\pi(\\tilde a | s) + \\bar{\\mathcal{H}} \\big)

with y = r where the episode terminated. The action is a Gaussian's, squashed into [−1, 1] by tanh; the gradient of J(φ) goes
through it. There are two critics and the lower value counts, since the policy goes wherever a value is too high
:cite:p:`fujimoto2018addressing`. θ⁻ follows θ at a distance. The temperature α rises while the policy's entropy is below
:math:`\\bar{\\mathcal{H}}` and falls while it is above.

All densities are of the action in [−1, 1], in the units of the network and not of the environment. Other units would add one
constant to the entropy and to its target, and leave their difference as it is: the usual target, −1 nat a dimension, asks
for the same share of the range of actions whether that is a torque of ±2 or of ±200.

Where this departs from the papers: no network for the state's value, which the second paper dropped too; the temperature's loss
is linear in log α and not in α, so that α stays positive; the three gradients are taken at the same parameters, in one
backward pass, and applied together; several environments in lockstep may fill one memory; an episode that the clock cut
short is bootstrapped :cite:p:`pardo2018time`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .nets import check_scale, constant, init_mlp, mlp, scaled
from .replay import Replay, Transitions
from .stream import Stream
from .types import Params, World

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # of the Gaussian before it is squashed


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    learners: int = 10
    env_steps: int = 20_000  # of each learner
    envs: int = 1  # of each learner
    start_steps: int = 100  # transitions of each learner, with uniform actions, before the first update
    updates: int = 1  # gradient steps after each step in all of a learner's environments
    batch: int = 64  # transitions in an update, drawn with replacement
    memory: int = 1_000_000  # transitions that each learner keeps
    critics: int = 2  # of which the lowest value counts
    temperature: float | None = None  # α, if it is to stay as it is; None learns it
    initial_temperature: float = 1.0  # of a learned α
    target_entropy: float | None = None  # in nats, of a learned α; None is −1 a dimension of the action
    entropy_in_target: bool = True  # False: the critics value the return alone, and only the actor's loss has an entropy
    target_step: float = 0.005  # τ in θ⁻ ← θ⁻ + τ (θ − θ⁻)
    discount: float = 0.99  # γ
    actor_step_size: float = 1e-3  # of Adam on φ
    critic_step_size: float = 1e-3  # of Adam on θ
    temperature_step_size: float = 1e-3  # of Adam on log α
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None  # see SquashedGaussian
    iteration_steps: int = 1000  # steps of each learner between two logs
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("learners", "env_steps", "envs", "start_steps", "updates", "batch", "memory", "critics", "iteration_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("initial_temperature", "actor_step_size", "critic_step_size", "temperature_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, or None to learn it; got {self.temperature}")
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            raise ValueError(f"target_entropy must be finite, or None for −1 a dimension; got {self.target_entropy}")
        if not 0 < self.target_step <= 1:
            raise ValueError(f"target_step must be in (0, 1], got {self.target_step}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {self.discount}")
        if self.start_steps > self.memory:
            raise ValueError(f"start_steps must be at most memory, {self.memory}, got {self.start_steps}")
        if self.env_steps < self.envs:
            raise ValueError(f"env_steps must be at least envs, {self.envs}, got {self.env_steps}")
        if self.memory < self.envs:
            raise ValueError(f"memory must be at least envs, {self.envs}, got {self.memory}")


class Log(NamedTuple):
    """What one iteration of :func:`train` did: about ``config.iteration_steps`` steps of each learner.

    ``critic_loss``, ``entropy`` and ``value`` are means over the iteration's updates, NaN where there was none.
    """

    iteration: int  # counted from 1
    env_steps: int  # of each learner, so far
    returns: Tensor  # [learner], mean undiscounted return of the episodes that ended in this iteration; NaN where none did
    params: dict[str, Params]  # "actor", "critics", "target" and "temperature", as in :func:`init`: a copy
    entropy: Tensor  # [learner], of the policy in the memory's states, in nats
    value: Tensor  # [learner], the lower critic's, of the policy's actions there
    critic_loss: Tensor  # [learner], summed over the critics
    seconds: float  # of this iteration

    @property
    def temperature(self) -> Tensor:
        """α, ``[learner]``."""
        return self.params["temperature"]["log"].exp()


# --- the policy -------------------------------------------------------------------------------------------------------


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action in (−1, 1) and the log of its density there; all arguments are ``[..., action]``, ``noise`` standard normal.

    With u = μ + σε and a = tanh u,

    .. math::
        \\log \\pi(a) = \\sum_i \\log \\mathcal{N}(u_i; \\mu_i, \\sigma_i) - \\log(1 - \\tanh^2 u_i), \\qquad
        \\log(1 - \\tanh^2 u) = 2 \\big( \\log 2 - u - \\operatorname{softplus}(-2u) \\big)

    The right-hand side stays exact where tanh u rounds to ±1 and 1 − tanh² u to zero.
    """
    u = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)  # (u − μ) / σ is the noise
    log_slope = 2 * (math.log(2) - u - softplus(-2 * u))
    return u.tanh(), (normal - log_slope).sum(-1)


@dataclass(frozen=True)
class SquashedGaussian:
    """A policy over actions in a box: a Gaussian with a diagonal covariance, squashed by tanh, for many learners at once.

    ``low`` and ``high`` are the box of the environment, a number per dimension. ``observation_scale`` multiplies the observation
    before the first layer, as in :class:`~metarl_lib.nets.PolicyNet`.
    """

    observation_size: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_scale(self.observation_scale, self.observation_size)
        box = zip(self.low, self.high, strict=True)
        if not all(-math.inf < low < high < math.inf for low, high in box):
            raise ValueError(f"low must be below high, both finite; got {self.low} and {self.high}")

    def init(self, learners: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Fresh parameters, leaves ``[learner, ...]``; in every state the policy is close to tanh of a standard normal."""
        sizes = (self.observation_size, *self.hidden, 2 * len(self.low))
        return init_mlp(sizes, learners, generator, 0.01, dtype)

    def gaussian(self, params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ before squashing, ``[learner, ..., action]``."""
        hidden = mlp(params, scaled(observations, self.observation_scale), torch.relu_)
        mean, log_std = hidden.chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def noise(self, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal noise ``[*shape, action]``: what :meth:`sample` needs."""
        return torch.randn(*shape, len(self.low), generator=generator, device=generator.device, dtype=dtype)

    def sample(self, params: Params, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An action in (−1, 1), ``[learner, ..., action]``, and log π of it, ``[learner, ...]``; differentiable in ``params``."""
        return squash(*self.gaussian(params, observations), noise)

    def to_box(self, action: Tensor) -> Tensor:
        """From [−1, 1] to the environment's units."""
        low, high = (constant(tuple(bound), action.dtype, action.device) for bound in (self.low, self.high))
        return torch.lerp(low, high, (action + 1) / 2)

    def act(self, params: Params, observations: Tensor) -> Tensor:
        """The mean's action, without noise, in the environment's units, ``[learner, ..., action]``."""
        return self.to_box(self.gaussian(params, observations)[0].tanh())


# --- the critics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Critics:
    """Q(s, a), several for each learner, all in one call: the leaves of ``params`` are ``[critic · learner, ...]``.

    A learner's critics see the same batch; since they begin differently, they err differently.
    """

    observation_size: int
    action_size: int
    critics: int = 2
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_scale(self.observation_scale, self.observation_size)

    def init(self, learners: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Fresh parameters, those of every learner's first critic before those of the second."""
        sizes = (self.observation_size + self.action_size, *self.hidden, 1)
        return init_mlp(sizes, self.critics * learners, generator, 1.0, dtype)

    def values(self, params: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """Of ``actions`` in [−1, 1], ``[learner, n, action]``, in ``observations``; the result is ``[critic, learner, n]``."""
        x = torch.cat((scaled(observations, self.observation_scale), actions), -1)
        q = mlp(params, x.repeat(self.critics, 1, 1), torch.relu_)
        return q[..., 0].unflatten(0, (self.critics, -1))


# --- the losses -------------------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """Of every learner, ``[learner]``; ``entropy`` and ``value`` come from the same actions and are without a gradient."""

    critics: Tensor  # J(θ₁) + J(θ₂)
    actor: Tensor  # J(φ)
    temperature: Tensor  # J(log α)
    entropy: Tensor
    value: Tensor


def targets(
    policy: SquashedGaussian,
    critics: Critics,
    params: dict[str, Params],
    batch: Transitions,
    noise: Tensor,
    config: Config,
) -> Tensor:
    """y, ``[learner, n]``; only a termination, not the clock, leaves nothing to come. ``noise`` is that of ã'."""
    with torch.no_grad():
        action, log_prob = policy.sample(params["actor"], batch.next_observation, noise)
        value = critics.values(params["target"], batch.next_observation, action).amin(0)
        if config.entropy_in_target:
            value = value - params["temperature"]["log"].exp()[:, None] * log_prob
        return batch.reward + config.discount * value * ~batch.terminated


def losses(
    policy: SquashedGaussian,
    critics: Critics,
    params: dict[str, Params],
    batch: Transitions,
    noise: Tensor,
    config: Config,
) -> Losses:
    """All three on one batch, with ``noise [2, learner, n, action]``, that of ã and that of ã'.

    Each has a gradient in its own parameters alone, so that one backward pass through their sum serves all.
    """
    y = targets(policy, critics, params, batch, noise[1], config)
    error = y - critics.values(params["critics"], batch.observation, batch.action)

    action, log_prob = policy.sample(params["actor"], batch.observation, noise[0])
    held = {name: p.detach() for name, p in params["critics"].items()}  # the gradient is wanted in the action, not in θ
    value = critics.values(held, batch.observation, action).amin(0).mean(-1)
    log_prob, log_alpha = log_prob.mean(-1), params["temperature"]["log"]

    entropy = -log_prob.detach()
    wanted = -float(len(policy.low)) if config.target_entropy is None else config.target_entropy
    return Losses(
        critics=0.5 * error.square().mean(-1).sum(0),
        actor=log_alpha.detach().exp() * log_prob - value,
        temperature=log_alpha * (entropy - wanted) if config.temperature is None else torch.zeros_like(entropy),
        entropy=entropy,
        value=value.detach(),
    )


def follow(target_params: Params, params: Params, target_step: float) -> None:
    """θ⁻ ← θ⁻ + τ (θ − θ⁻), in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target_params.values()), list(params.values()), target_step)


def learn(
    policy: SquashedGaussian,
    critics: Critics,
    params: dict[str, Params],
    memory: Replay,
    config: Config,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Losses:
    """One update from the memory; its losses, before it."""
    batch = memory.sample(config.batch, generator)
    noise = policy.noise((2, *batch.reward.shape), generator, batch.reward.dtype)
    found = losses(policy, critics, params, batch, noise, config)
    each = found.critics + found.actor + found.temperature
    total = each.sum()
    if not torch.isfinite(total):
        learner = int((~torch.isfinite(each)).nonzero()[0])
        raise FloatingPointError(f"the losses of learner {learner} are not finite (NaN or infinity)")
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    follow(params["target"], params["critics"], config.target_step)
    return Losses(*(loss.detach() for loss in found))


# --- training ---------------------------------------------------------------------------------------------------------


def networks(world: World, config: Config) -> tuple[SquashedGaussian, Critics]:
    """The policy and the critics for a world; ``ValueError`` if its actions are not continuous."""
    if not hasattr(world, "action_low"):
        raise ValueError(f"world must have continuous actions, with bounds action_low and action_high; got {world!r}")
    low, high = tuple(map(float, world.action_low)), tuple(map(float, world.action_high))
    policy = SquashedGaussian(world.observation_size, low, high, config.hidden, config.observation_scale)
    return policy, Critics(world.observation_size, len(low), config.critics, config.hidden, config.observation_scale)


def init(
    policy: SquashedGaussian, critics: Critics, config: Config, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Params]:
    """ "actor" φ and "temperature", whose ``log`` is log α, leaves ``[learner, ...]``; "critics" θ and "target" θ⁻, a copy."""
    actor = policy.init(config.learners, generator, dtype)
    theta = critics.init(config.learners, generator, dtype)
    alpha = config.initial_temperature if config.temperature is None else config.temperature
    return {
        "actor": actor,
        "critics": theta,
        "target": {name: p.clone() for name, p in theta.items()},
        "temperature": {"log": torch.full((config.learners,), alpha, dtype=dtype, device=generator.device).log()},
    }


def optimizer_for(params: dict[str, Params], config: Config) -> torch.optim.Adam:
    """Adam on all that is learnt, each with its step size; it works entry by entry, so that learners do not meet in it."""
    step_sizes = {"actor": config.actor_step_size, "critics": config.critic_step_size}
    if config.temperature is None:
        step_sizes["temperature"] = config.temperature_step_size
    groups = [{"params": [p.requires_grad_() for p in params[name].values()], "lr": lr} for name, lr in step_sizes.items()]
    # One kernel for all parameters, where there is one: about three times quicker than Adam's default on small networks.
    return torch.optim.Adam(groups, fused=params["temperature"]["log"].device.type in ("cpu", "cuda"))


def act(stream: Stream, policy: SquashedGaussian, actor: Params, memory: Replay, uniform: bool) -> None:
    """One step in every environment, by the policy or with ``uniform`` actions, into the memory."""
    observation, generator = stream.observation, stream.generator
    if uniform:
        shape, device = (*observation.shape[:-1], len(policy.low)), generator.device
        action = 2 * torch.rand(shape, generator=generator, device=device, dtype=observation.dtype) - 1
    else:
        with torch.no_grad():
            action, _ = policy.sample(actor, observation, policy.noise(observation.shape[:-1], generator, observation.dtype))
    step = stream.step(policy.to_box(action))
    memory.add(observation, action, step.reward, step.observation, step.terminated)


def train(world: World, config: Config) -> Iterator[Log]:
    """Train every learner at once, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    All randomness comes from ``config.seed``. Raises ``FloatingPointError``, naming the iteration, as soon as a reward, an
    observation or a learner's loss is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy, critics = networks(world, config)
    stream = Stream(world, config.learners, config.envs, generator)
    dtype = stream.observation.dtype
    params = init(policy, critics, config, generator, dtype)
    optimizer = optimizer_for(params, config)
    capacity = min(config.memory, config.env_steps)
    memory = Replay(
        config.learners, capacity, world.observation_size, (len(policy.low),), dtype, device=config.device, dtype=dtype
    )
    steps, iteration, started, seen = config.env_steps // config.envs, 1, time.perf_counter(), []

    for t in range(1, steps + 1):
        try:
            act(stream, policy, params["actor"], memory, uniform=len(memory) < config.start_steps)
            if len(memory) >= config.start_steps:
                for _ in range(config.updates):
                    seen.append(learn(policy, critics, params, memory, config, optimizer, generator))
        except FloatingPointError as error:
            raise FloatingPointError(f"iteration {iteration}: {error}") from error
        if t * config.envs >= iteration * config.iteration_steps or t == steps:
            nothing = torch.full_like(stream.observation[:, 0, 0], torch.nan)
            mean = (
                Losses(*(torch.stack(losses).mean(0) for losses in zip(*seen, strict=True))) if seen else Losses(*[nothing] * 5)
            )
            yield Log(
                iteration=iteration,
                env_steps=t * config.envs,
                returns=stream.finished_returns(),
                params={name: {k: p.detach().clone() for k, p in net.items()} for name, net in params.items()},
                entropy=mean.entropy,
                value=mean.value,
                critic_loss=mean.critics,
                seconds=time.perf_counter() - started,
            )
            iteration, started, seen = iteration + 1, time.perf_counter(), []
