"""RL²: learning to reinforcement-learn with a memory :cite:p:`duan2016rl2,wang2016learning`.

A trial is a number of steps on *one* task, over as many episodes as fit, and the memory is emptied between trials only. The
policy reads, besides the observation, what it did last, what that earned and whether an episode has just ended:

.. math::
    x_t = (s_t, a_{t-1}, r_{t-1}, \\text{ended}_{t-1}), \\qquad
    h_t = f_\\theta(h_{t-1}, x_t), \\qquad a_t \\sim \\pi_\\theta(\\cdot \\mid h_t)

Trained to earn as much as possible in whole trials of many tasks, by PPO, it has to learn within a trial: to adapt is to
remember, and no gradient step is taken on a new task. The memory f is a recurrent network (GRU) or causal attention over
the trial so far, the idea of :cite:t:`mishra2018simple` with one layer and the shortest of convolutions.

Where this departs from the paper: PPO in place of TRPO; an optional curriculum of trial lengths, without which long bandit trials
collapse onto greedy play before they learn to explore.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, scaled_dot_product_attention
from torch.nn.utils import skip_init

from .ppo import clipped_objective
from .returns import gae
from .stream import Stream
from .types import World


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    iterations: int = 100
    trials: int = 256  # in an iteration, each on a task of its own
    trial_steps: int = 100
    curriculum: tuple[tuple[float, int], ...] = ()  # (until this share of the iterations, trials of this many steps)
    memory: str = "gru"  # or "attention"
    width: int = 64
    discount: float = 0.99  # across episodes: the end of one is not the end of the trial
    gae_lambda: float = 0.6
    clip: float = 0.2
    epochs: int = 4
    minibatches: int = 4  # of whole trials
    step_size: float = 5e-3  # of Adam, falling linearly to zero
    entropy: float = 0.05  # coefficient of the entropy bonus, falling linearly to zero
    value_coefficient: float = 0.5
    max_gradient: float = 0.5  # norm at which the gradient is clipped
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("trials", "trial_steps", "width", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {self.iterations}")
        if self.trials % self.minibatches:
            raise ValueError(f"minibatches must divide trials, which is {self.trials}, got {self.minibatches}")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("clip", "step_size", "max_gradient"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("entropy", "value_coefficient"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.memory not in MEMORIES:
            raise ValueError(f"unknown memory {self.memory!r}; there are {', '.join(MEMORIES)}")
        shares, lengths = zip(*self.curriculum, strict=True) if self.curriculum else ((), ())
        if list(shares) != sorted(shares) or not all(0 < share < 1 for share in shares) or not all(n >= 1 for n in lengths):
            raise ValueError(f"curriculum must hold rising shares in (0, 1), each with at least 1 step, got {self.curriculum}")
        if self.memory == "attention" and self.width % Attention.HEADS:
            raise ValueError(f"width must be a multiple of the {Attention.HEADS} heads of attention, got {self.width}")
        if self.memory == "attention" and max(lengths, default=1) > self.trial_steps:
            raise ValueError(f"curriculum must not exceed trial_steps, which is {self.trial_steps}, got {self.curriculum}")

    def steps_at(self, iteration: int) -> int:
        """Length of the trials in ``iteration``, counted from 1."""
        share = (iteration - 1) / self.iterations
        return next((steps for until, steps in self.curriculum if share < until), self.trial_steps)


class Log(NamedTuple):
    """What one iteration of :func:`train` did."""

    iteration: int  # counted from 1
    env_steps: int  # so far
    trial_steps: int  # of each trial of this iteration
    reward: float  # mean total reward of a trial
    entropy: float  # of the policy, nats, mean over steps
    seconds: float
    params: dict[str, Tensor]  # a copy: policy.load_state_dict(log.params)


class Trials(NamedTuple):
    """Whole trials side by side."""

    inputs: Tensor  # [trial, time, input]
    actions: Tensor  # [trial, time] int64
    log_probs: Tensor  # [trial, time]
    values: Tensor  # [trial, time]
    rewards: Tensor  # [trial, time]


# --- the memory -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A gated recurrent unit: everything that is remembered is in ``width`` numbers."""

    def __init__(self, inputs: int, width: int, trial_steps: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, width, batch_first=True, device="meta").to_empty(device="cpu")

    def start(self, trials: int) -> Tensor:
        return self.gru.weight_hh_l0.new_zeros(1, trials, self.gru.hidden_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """``x [trial, input]`` to what is remembered ``[trial, width]``, and the next state."""
        h, state = self.gru(x[:, None], state)
        return h[:, 0], state

    def unroll(self, x: Tensor) -> Tensor:
        """``x [trial, time, input]`` to ``[trial, time, width]``, the same as one step after another."""
        return self.gru(x)[0]


class Attention(nn.Module):
    """Causal self-attention over the trial so far: nothing is forgotten, and reading it again is what costs time.

    What stands at a place is made of this input and the one before it: only the two together say what was done where, and what
    it earned. (A convolution of width two, where :cite:t:`mishra2018simple` have several, and wider ones.)
    """

    HEADS = 4

    def __init__(self, inputs: int, width: int, trial_steps: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.embed = skip_init(nn.Linear, 2 * inputs, width)
        self.place = nn.Parameter(torch.empty(trial_steps, width))
        self.qkv = skip_init(nn.Linear, width, 3 * width)
        self.out = skip_init(nn.Linear, width, width)
        self.mix = nn.Sequential(skip_init(nn.Linear, width, 2 * width), nn.ReLU(), skip_init(nn.Linear, 2 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def start(self, trials: int) -> tuple[Tensor, Tensor, Tensor]:
        empty = self.place.new_zeros(trials, self.HEADS, 0, self.place.shape[1] // self.HEADS)
        return empty, empty, self.place.new_zeros(trials, self.inputs)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        keys, values, before = state
        if keys.shape[2] == len(self.place):
            raise ValueError(f"a trial must have at most trial_steps steps, which is {len(self.place)}, with this memory")
        h = self.embed(torch.cat((x, before), -1))[:, None] + self.place[keys.shape[2]]
        q, k, v = self._heads(h)
        keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        return self._read(h, scaled_dot_product_attention(q, keys, values))[:, 0], (keys, values, x)

    def unroll(self, x: Tensor) -> Tensor:
        before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        h = self.embed(torch.cat((x, before), -1)) + self.place[: x.shape[1]]
        q, k, v = self._heads(h)
        return self._read(h, scaled_dot_product_attention(q, k, v, is_causal=True))

    def _heads(self, h: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each ``[trial, head, time, width / heads]``."""
        return tuple(z.unflatten(-1, (self.HEADS, -1)).transpose(1, 2) for z in self.qkv(self.norms[0](h)).chunk(3, -1))

    def _read(self, h: Tensor, read: Tensor) -> Tensor:
        h = h + self.out(read.transpose(1, 2).flatten(-2))
        return self.norms[2](h + self.mix(self.norms[1](h)))


MEMORIES = {"gru": Recurrent, "attention": Attention}


class Policy(nn.Module):
    """A memory, and on it a softmax policy and a value. The value is that of the rest of the trial."""

    def __init__(self, world: World, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        if not hasattr(world, "actions"):
            raise ValueError("world must have discrete actions, got one with continuous actions")
        self.actions = world.actions
        inputs = world.observation_size + world.actions + 2
        self.memory = MEMORIES[config.memory](inputs, config.width, config.trial_steps)
        self.logits = skip_init(nn.Linear, config.width, world.actions)
        self.value = skip_init(nn.Linear, config.width, 1)
        # Values are learned in units of what a trial can hold, so that the critic's targets are of order one.
        self.value_unit = min(config.trial_steps, 1 / max(1 - config.discount, 1e-3))
        initialise(self, generator)

    def input(self, observation: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> Tensor:
        """x_t from s_t, the last action (−1 before the first), its reward and whether an episode ended, ``[..., input]``."""
        last = one_hot(action.clamp(min=0), self.actions).to(observation.dtype) * (action >= 0)[..., None]
        x = torch.cat((observation, last, reward[..., None], ended[..., None].to(observation.dtype)), -1)
        return x.to(self.logits.weight.dtype)  # a world may be in double precision, a policy is in single

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Logits ``[trial, action]``, value ``[trial]`` and the memory's next state."""
        h, state = self.memory.step(x, state)
        return self.logits(h), self.value(h)[..., 0] * self.value_unit, state

    def unroll(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[trial, time, action]`` and values ``[trial, time]`` of whole trials."""
        h = self.memory.unroll(x)
        return self.logits(h), self.value(h)[..., 0] * self.value_unit


def initialise(policy: Policy, generator: torch.Generator) -> None:
    """Parameters from ``generator``: weights in ±1/√inputs, biases and the GRU in ±1/√width; a first policy near uniform."""
    for name, p in policy.named_parameters():
        with torch.no_grad():
            if "norms" in name:
                continue
            bound = 1 / math.sqrt(policy.logits.in_features if p.dim() < 2 or "gru" in name else p.shape[-1])
            p.copy_((2 * torch.rand(p.shape, generator=generator, device=generator.device) - 1) * bound)
            if name.startswith("logits") or name.endswith("place"):  # random places would be noise to learn through
                p.mul_(0.01)


# --- trials -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_trials(world: World, policy: Policy, tasks: Any, steps: int, generator: torch.Generator, greedy: bool = False) -> Trials:
    """One trial of ``steps`` steps on each of ``tasks``, from an empty memory."""
    n = len(tasks[0])
    stream = Stream(world, n, 1, generator, tasks)
    observation, device = stream.observation[:, 0], stream.observation.device
    action = torch.full((n,), -1, device=device)
    reward, ended, state = observation.new_zeros(n), torch.zeros(n, dtype=torch.bool, device=device), policy.memory.start(n)
    columns = []
    for _ in range(steps):
        x = policy.input(stream.observation[:, 0], action, reward, ended)
        logits, value, state = policy.step(x, state)
        noise = torch.zeros_like(logits) if greedy else -torch.empty_like(logits).exponential_(generator=generator).log()
        action = (logits + noise).argmax(-1)
        log_prob = logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]
        step = stream.step(action[:, None])
        reward, ended = step.reward[:, 0], (step.terminated | step.truncated)[:, 0]
        columns.append((x, action, log_prob, value, reward))
    return Trials(*(torch.stack(column, 1) for column in zip(*columns, strict=True)))


# --- training ---------------------------------------------------------------------------------------------------------


def loss(
    policy: Policy, trials: Trials, advantages: Tensor, targets: Tensor, entropy: float, config: Config
) -> tuple[Tensor, Tensor]:
    """What is minimised on a minibatch of whole trials, and the policy's mean entropy, in nats."""
    logits, values = policy.unroll(trials.inputs)
    log_probs = logits.log_softmax(-1)
    log_prob = log_probs.gather(-1, trials.actions[..., None])[..., 0]
    bonus = -(log_probs.exp() * log_probs).sum(-1).mean()
    gain = clipped_objective(log_prob, trials.log_probs, advantages, config.clip).mean()
    error = ((values - targets) / policy.value_unit).square().mean()
    return -gain - entropy * bonus + config.value_coefficient * error, bonus.detach()


def update(
    policy: Policy, optimizer: torch.optim.Optimizer, trials: Trials, entropy: float, config: Config, generator: torch.Generator
) -> float:
    """A few epochs of PPO on whole trials; the mean entropy during the last one."""
    nothing = torch.zeros_like(trials.rewards, dtype=torch.bool)
    last = nothing.clone()
    last[:, -1] = True  # the trial's end is a real end: nothing is earned after it
    next_values = torch.cat((trials.values[:, 1:], torch.zeros_like(trials.values[:, :1])), 1)
    advantages = gae(trials.rewards, trials.values, next_values, last, nothing, config.discount, config.gae_lambda)
    targets = advantages + trials.values
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    for _ in range(config.epochs):
        order = torch.randperm(config.trials, generator=generator, device=generator.device)
        entropies = []
        for chosen in order.chunk(config.minibatches):
            batch = Trials(*(leaf[chosen] for leaf in trials))
            objective, bonus = loss(policy, batch, advantages[chosen], targets[chosen], entropy, config)
            optimizer.zero_grad()
            objective.backward()
            norm = nn.utils.clip_grad_norm_(policy.parameters(), config.max_gradient)
            if not torch.isfinite(norm):
                raise FloatingPointError("the gradient is not finite (NaN or infinity)")
            optimizer.step()
            entropies.append(bonus)
    return float(torch.stack(entropies).mean())


def train(world: World, config: Config) -> Iterator[Log]:
    """Train over trials on new tasks, yielding a :class:`Log` after every iteration.

    The policy that is trained is that of ``Policy(world, config, generator)``; ``log.params`` are its parameters. Raises
    ``FloatingPointError`` as soon as a reward, an observation or a gradient is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    policy = Policy(world, config, generator).to(config.device)
    optimizer = torch.optim.Adam(policy.parameters(), config.step_size, eps=1e-5)
    env_steps = 0
    for iteration in range(1, config.iterations + 1):
        started, remaining = time.perf_counter(), 1 - (iteration - 1) / config.iterations
        optimizer.param_groups[0]["lr"] = config.step_size * remaining
        steps = config.steps_at(iteration)
        try:
            trials = run_trials(world, policy, world.sample_tasks(config.trials, generator), steps, generator)
            entropy = update(policy, optimizer, trials, config.entropy * remaining, config, generator)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"iteration {iteration}: {error}; the last good parameters are those of iteration {iteration - 1}"
            ) from error
        env_steps += trials.rewards.numel()
        yield Log(
            iteration=iteration,
            env_steps=env_steps,
            trial_steps=steps,
            reward=float(trials.rewards.sum(-1).mean()),
            entropy=entropy,
            seconds=time.perf_counter() - started,
            params=copy.deepcopy(policy.state_dict()),
        )
