"""Deep Q-learning: DQN :cite:p:`mnih2015human` and double DQN :cite:p:`vanhasselt2016deep`.

Q-learning with a network in place of the table. On transitions drawn from a memory of all that has been seen, the network's
values move towards Q-learning's target,

.. math::
    \\min_\\theta \\; \\mathbb{E}_{(s, a, r, s') \\sim \\text{memory}} \\, \\ell \\big( y - Q_\\theta(s, a) \\big), \\qquad
    y = r + \\gamma \\max_{a'} Q_{\\theta^-}(s', a')

with y = r where the episode terminated. θ⁻ is the *target network*: it follows θ at a distance, so that a target does not
move with every step towards it. Double DQN lets one network choose the action and the other value it, since a maximum over
noisy values is too high:

.. math::
    y = r + \\gamma \\, Q_{\\theta^-} \\big( s', \\operatorname{argmax}_{a'} Q_\\theta(s', a') \\big)

The policy that acts is ε-greedy in :math:`Q_\\theta`.

Where this departs from the papers: a small multilayer perceptron on the state in place of convolutions on pixels; Adam in place
of RMSProp, its step size falling to zero; a squared error, not cut off at ±1; θ⁻ may be a running average of θ
:cite:p:`lillicrap2016continuous` in place of a copy made now and then; r may be the discounted sum of the next n rewards and s'
the state after them :cite:p:`hessel2018rainbow`, without correcting for actions that the policy would not take today; several
environments in lockstep fill one memory; an episode that the clock cut short is bootstrapped :cite:p:`pardo2018time`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .nets import check_scale, mlp, scaled
from .replay import Replay, Transitions
from .stream import Stream
from .types import Params, Step, World


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    learners: int = 10
    env_steps: int = 50_000  # of each learner
    envs: int = 16  # of each learner
    start_steps: int = 1000  # transitions of each learner before the first update
    updates: int = 4  # gradient steps after each step in all of a learner's environments
    batch: int = 128  # transitions in an update
    double: bool = True
    replay: bool = True  # False: learn from the newest transitions alone, ``batch`` of them
    memory: int = 100_000  # transitions that each learner keeps
    target_step: float = 0.02  # τ in θ⁻ ← θ⁻ + τ (θ − θ⁻); 1 makes θ⁻ a copy of θ
    target_every: int = 1  # updates between two such steps; with target_step 1 and target_every 1 there is no target network
    return_steps: int = 3  # n, rewards in a target; 1 as in the papers
    discount: float = 0.99  # γ
    loss: str = "squared"  # or "huber": squared up to an error of 1, linear beyond
    step_size: float = 1e-3  # of Adam, falling linearly to zero
    epsilon: float = 1.0  # ε, the probability of a random action, at the start
    final_epsilon: float = 0.04  # what it falls to, linearly, in the first ``exploration_steps``
    exploration_steps: int = 10_000  # of each learner
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None  # see QNet
    iteration_steps: int = 1000  # steps of each learner between two logs
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = ("learners", "env_steps", "envs", "updates", "batch", "target_every", "return_steps", "exploration_steps")
        for name in (*least, "iteration_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, got {self.step_size}")
        if not 0 < self.target_step <= 1:
            raise ValueError(f"target_step must be in (0, 1], got {self.target_step}")
        for name in ("epsilon", "final_epsilon", "discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.loss not in ("squared", "huber"):
            raise ValueError(f"unknown loss {self.loss!r}; there are squared, huber")
        if not self.batch <= self.start_steps <= self.memory:
            raise ValueError(
                f"start_steps must be at least batch ({self.batch}) and at most memory ({self.memory}), got {self.start_steps}"
            )
        if self.env_steps < self.envs:
            raise ValueError(f"env_steps must be at least envs, {self.envs}, got {self.env_steps}")
        if self.memory < self.envs:
            raise ValueError(f"memory must be at least envs, {self.envs}, got {self.memory}")


class Log(NamedTuple):
    """What one iteration of :func:`train` did: about ``config.iteration_steps`` steps of each learner."""

    iteration: int  # counted from 1
    env_steps: int  # of each learner, so far
    returns: Tensor  # [learner], mean undiscounted return of the episodes that ended in this iteration; NaN where none did
    params: Params  # θ, a copy, leaves [learner, ...]
    target_params: Params  # θ⁻, likewise
    loss: Tensor  # [learner], mean over the iteration's updates; NaN where there was none
    epsilon: float  # ε of the last step
    seconds: float  # of this iteration


# --- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QNet:
    """Q(s, ·): a multilayer perceptron with rectified linear units and one output per action, for many learners at once.

    ``observation_scale`` multiplies the observation before the first layer, as in :class:`~metarl_lib.nets.PolicyNet`.
    """

    observation_size: int
    actions: int
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_scale(self.observation_scale, self.observation_size)

    def init(self, learners: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Weights and biases uniform in ±1/√(inputs), as in ``torch.nn.Linear``, leaves ``[learner, ...]``.

        Were the biases zero, every unit of the first layer would have its kink at the origin, the one state that a balanced
        pole is always near.
        """
        sizes, params = (self.observation_size, *self.hidden, self.actions), {}
        for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            for name, rows in (("weight", n_in), ("bias", 1)):
                unit = torch.rand(learners, rows, n_out, generator=generator, device=generator.device, dtype=dtype)
                params[f"{name}_{i}"] = (2 * unit - 1) * n_in**-0.5
        return params

    def values(self, params: Params, observations: Tensor) -> Tensor:
        """``[learner, ..., observation]`` to the value of every action, ``[learner, ..., action]``."""
        return mlp(params, scaled(observations, self.observation_scale), torch.relu)

    def act(self, params: Params, observations: Tensor) -> Tensor:
        """The greedy action, ``[learner, ...]``."""
        return self.values(params, observations).argmax(-1)


# --- acting -----------------------------------------------------------------------------------------------------------


def epsilon_at(env_steps: int, config: Config) -> float:
    """ε after ``env_steps`` of each learner."""
    return config.epsilon + (config.final_epsilon - config.epsilon) * min(1.0, env_steps / config.exploration_steps)


def epsilon_greedy(greedy: Tensor, actions: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """Each of the ``greedy`` actions, or with probability ε one of all ``actions``, all equally probable."""
    random = torch.randint(actions, greedy.shape, generator=generator, device=greedy.device)
    explore = torch.rand(greedy.shape, generator=generator, device=greedy.device) < epsilon
    return torch.where(explore, random, greedy)


def several_steps(steps: list[Step], discount: float) -> tuple[Step, Tensor]:
    """Consecutive steps of every environment as one: rewards summed with their discounts, up to the first episode's end.

    The result's ``observation`` is the one on which the sum ends. With it, the number of steps summed, ``[learner, env]``.
    """
    total, ended = steps[0], steps[0].terminated | steps[0].truncated
    taken = torch.ones_like(ended, dtype=torch.int64)
    for k, step in enumerate(steps[1:], start=1):
        total = Step(
            observation=torch.where(ended[..., None], total.observation, step.observation),
            reward=total.reward + discount**k * step.reward * ~ended,
            terminated=total.terminated | (step.terminated & ~ended),
            truncated=total.truncated | (step.truncated & ~ended),
        )
        taken = taken + ~ended
        ended = total.terminated | total.truncated
    return total, taken


def act(net: QNet, params: Params, stream: Stream, epsilon: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Step]:
    """Take one step in every environment; the observation before it, the action, and the step."""
    observation = stream.observation
    with torch.no_grad():
        greedy = net.act(params, observation)
    action = epsilon_greedy(greedy, net.actions, epsilon, generator)
    return observation, action, stream.step(action)


def remember(memory: Replay, recent: list[tuple[Tensor, Tensor, Step]], discount: float) -> None:
    """Store what ``recent``, consecutive results of :func:`act`, is as one transition."""
    observation, action, _ = recent[0]
    total, taken = several_steps([step for _, _, step in recent], discount)
    memory.add(observation, action, total.reward, total.observation, total.terminated, taken)


# --- learning ---------------------------------------------------------------------------------------------------------


def targets(net: QNet, params: Params, target_params: Params, batch: Transitions, config: Config) -> Tensor:
    """y, ``[learner, n]``: what was earned, and what the target network expects from there on; nothing after a termination."""
    with torch.no_grad():
        q_next = net.values(target_params, batch.next_observation)
        if config.double:
            best = net.act(params, batch.next_observation)
            value = q_next.gather(-1, best[..., None]).squeeze(-1)
        else:
            value = q_next.amax(-1)
        discount = config.discount ** batch.steps.to(value.dtype)
        return batch.reward + discount * value * ~batch.terminated


def losses(net: QNet, params: Params, target_params: Params, batch: Transitions, config: Config) -> Tensor:
    """Mean of ℓ(y − Q(s, a)) over a batch, ``[learner]``; its gradient is in θ alone."""
    y = targets(net, params, target_params, batch, config)
    q = net.values(params, batch.observation).gather(-1, batch.action[..., None]).squeeze(-1)
    if config.loss == "huber":
        return torch.nn.functional.huber_loss(q, y, reduction="none").mean(-1)
    return 0.5 * (y - q).square().mean(-1)


def follow(target_params: Params, params: Params, target_step: float) -> None:
    """θ⁻ ← θ⁻ + τ (θ − θ⁻), in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target_params.values()), list(params.values()), target_step)


def learn(
    net: QNet,
    params: Params,
    target_params: Params,
    memory: Replay,
    updates: int,
    config: Config,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Tensor:
    """One step's updates, ``updates`` having been made before; their mean loss, ``[learner]``."""
    seen = []
    for i in range(updates + 1, updates + config.updates + 1):
        batch = memory.sample(config.batch, generator) if config.replay else memory.latest(config.batch)
        loss = losses(net, params, target_params, batch, config)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        if i % config.target_every == 0:
            follow(target_params, params, config.target_step)
        seen.append(loss.detach())
    mean = torch.stack(seen).mean(0)
    if not torch.isfinite(mean).all():
        learner = int((~torch.isfinite(mean)).nonzero()[0])
        raise FloatingPointError(f"the loss of learner {learner} is not finite (NaN or infinity)")
    return mean


# --- training ---------------------------------------------------------------------------------------------------------


def network(world: World, config: Config) -> QNet:
    """The Q-network for a world."""
    if not hasattr(world, "actions"):
        raise ValueError("world must have discrete actions, got one with continuous actions")
    return QNet(world.observation_size, world.actions, config.hidden, config.observation_scale)


def copy_of(params: Params) -> Params:
    return {name: p.detach().clone() for name, p in params.items()}


def adam(leaves: list[Tensor], config: Config) -> torch.optim.Adam:
    """Adam in one kernel for all parameters, where there is one: on small networks about three times quicker than the default."""
    return torch.optim.Adam(leaves, config.step_size, fused=leaves[0].device.type in ("cpu", "cuda"))


def train(world: World, config: Config) -> Iterator[Log]:
    """Train every learner at once, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    All randomness comes from ``config.seed``. Raises ``FloatingPointError``, naming the iteration, as soon as a reward, an
    observation or a learner's loss is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    net, stream = network(world, config), Stream(world, config.learners, config.envs, generator)
    params = net.init(config.learners, generator, stream.observation.dtype)
    target_params = copy_of(params)
    optimizer = adam([p.requires_grad_() for p in params.values()], config)
    capacity = min(config.memory, config.env_steps)
    memory = Replay(config.learners, capacity, net.observation_size, device=config.device, dtype=stream.observation.dtype)
    recent = []  # the last return_steps results of act
    steps, updates, iteration, started, seen = config.env_steps // config.envs, 0, 1, time.perf_counter(), []

    for t in range(1, steps + 1):
        epsilon = epsilon_at((t - 1) * config.envs, config)
        try:
            recent = [*recent, act(net, params, stream, epsilon, generator)][-config.return_steps :]
            if len(recent) == config.return_steps:
                remember(memory, recent, config.discount)
            if len(memory) >= config.start_steps:
                optimizer.param_groups[0]["lr"] = config.step_size * (1 - t / steps)
                seen.append(learn(net, params, target_params, memory, updates, config, optimizer, generator))
                updates += config.updates
        except FloatingPointError as error:
            raise FloatingPointError(f"iteration {iteration}: {error}") from error
        if t * config.envs >= iteration * config.iteration_steps or t == steps:
            returns = stream.finished_returns()
            yield Log(
                iteration=iteration,
                env_steps=t * config.envs,
                returns=returns,
                params=copy_of(params),
                target_params=copy_of(target_params),
                loss=torch.stack(seen).mean(0) if seen else torch.full_like(returns, torch.nan),
                epsilon=epsilon,
                seconds=time.perf_counter() - started,
            )
            iteration, started, seen = iteration + 1, time.perf_counter(), []
