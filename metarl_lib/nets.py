"""Networks as plain functions of ``(params, x)``, for many learners in one call.

Leaves of ``params`` are ``[learner, in, out]``, so that one ``baddbmm`` serves all learners. A leading axis
of one means that every learner shares the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from .types import Params


def init_mlp(
    sizes: Sequence[int],
    learners: int,
    generator: torch.Generator,
    output_gain: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Params:
    """Xavier-uniform weights and zero biases, ``weight_i [learner, in, out]`` and ``bias_i [learner, 1, out]``.

    ``output_gain`` scales the last layer: a small one makes a fresh policy nearly uniform.
    """
    params = {}
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        bound = (6 / (n_in + n_out)) ** 0.5 * (output_gain if i == len(sizes) - 2 else 1.0)
        unit = torch.rand(learners, n_in, n_out, generator=generator, device=generator.device, dtype=dtype)
        params[f"weight_{i}"] = (2 * unit - 1) * bound
        params[f"bias_{i}"] = torch.zeros(learners, 1, n_out, device=generator.device, dtype=dtype)
    return params


def mlp(params: Params, x: Tensor, activation: Callable[[Tensor], Tensor] = torch.tanh) -> Tensor:
    """A multilayer perceptron: ``x [learner, ..., in]`` to ``[learner, ..., out]``, linear at the last layer."""
    learners, shape = params["weight_0"].shape[0], x.shape
    if learners not in (1, shape[0]):
        raise ValueError(f"x has {shape[0]} learners on its first axis, params have {learners}")
    h = x.reshape(learners, -1, shape[-1])
    layers = len(params) // 2
    for i in range(layers):
        h = torch.baddbmm(params[f"bias_{i}"], h, params[f"weight_{i}"])
        if i < layers - 1:
            h = activation(h)
    return h.reshape(*shape[:-1], h.shape[-1])


@lru_cache(maxsize=32)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` as a tensor, made once: a rollout asks for it at every step."""
    with torch.inference_mode(False):  # it may be made inside a rollout and differentiated through later
        return torch.tensor(values, dtype=dtype, device=device)


def scaled(observations: Tensor, scale: Sequence[float] | None) -> Tensor:
    """``observations`` ``[..., observation]`` times ``scale``, a number for each of their entries; as they are for None."""
    return observations if scale is None else observations * constant(tuple(scale), observations.dtype, observations.device)


def check_scale(scale: Sequence[float] | None, observation_size: int) -> None:
    """``ValueError`` if there is a ``scale`` and it does not fit the observations."""
    if scale is not None and len(scale) != observation_size:
        raise ValueError(f"observation_scale has {len(scale)} entries, observations have {observation_size}")


@dataclass(frozen=True)
class PolicyNet:
    """A softmax policy over discrete actions: two hidden layers of 64 tanh units, for many learners at once.

    ``observation_scale`` multiplies the observation before the first layer, so that quantities measured in
    different units (a pole's angle never leaves ±0.21 rad) reach the network at a comparable size.
    """

    observation_size: int
    actions: int
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None

    action_shape, action_dtype = (), torch.int64  # of one action

    def __post_init__(self) -> None:
        check_scale(self.observation_scale, self.observation_size)

    def init(self, learners: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Fresh parameters, leaves ``[learner, ...]``; the policy they give is close to uniform."""
        return init_mlp((self.observation_size, *self.hidden, self.actions), learners, generator, 0.01, dtype)

    def logits(self, params: Params, observations: Tensor) -> Tensor:
        """``[learner, ..., observation]`` to unnormalised log-probabilities ``[learner, ..., action]``."""
        if observations.shape[-1] != self.observation_size:
            raise ValueError(f"observations have size {observations.shape[-1]}, the policy expects {self.observation_size}")
        return mlp(params, scaled(observations, self.observation_scale))

    def log_prob(self, params: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """log π(actions | observations), ``[learner, ...]``."""
        return self.logits(params, observations).log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)

    def kl(self, params: Params, other: Params, observations: Tensor) -> Tensor:
        """KL(π of ``params`` ‖ π of ``other``) in every observation, in nats, ``[learner, ...]``."""
        log_p, log_q = (self.logits(p, observations).log_softmax(-1) for p in (params, other))
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def noise(self, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gumbel noise ``[*shape, action]``: what :meth:`act` needs to draw an action at each entry of ``shape``."""
        exponential = torch.empty(*shape, self.actions, dtype=dtype, device=generator.device)
        return -exponential.exponential_(generator=generator).log()

    def act(self, params: Params, observations: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sample an action and give its log-probability; ``noise=None`` takes the most probable action.

        argmax(logits + Gumbel noise) is a sample of softmax(logits), so that the draws of a whole rollout can be
        made beforehand and handed to another implementation.
        """
        logits = self.logits(params, observations)
        actions = (logits if noise is None else logits + noise).argmax(-1)
        return actions, logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)


@dataclass(frozen=True)
class GaussianPolicyNet:
    """A Gaussian policy over continuous actions, for many learners at once: :class:`PolicyNet`'s layers give the mean.

    The logarithm of the standard deviation is a parameter too, ``log_std`` ``[learner, 1, action]``: one for each dimension of
    the action, the same in every state, and never below log ``min_std``, where its gradient is zero. Densities are of the whole
    action, so that log-probabilities are *summed* over its dimensions.

    ``action_scale`` multiplies mean and standard deviation: the network, ``initial_std`` and ``min_std`` count in it.
    Actions are not clipped here; a world clips what it is given.
    """

    observation_size: int
    action_size: int
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None
    action_scale: float = 1.0
    initial_std: float = 1.0
    min_std: float = 1e-3

    action_dtype = None  # that of the observations

    def __post_init__(self) -> None:
        check_scale(self.observation_scale, self.observation_size)
        for name in ("action_scale", "min_std", "initial_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.initial_std < self.min_std:
            raise ValueError(f"initial_std must be at least min_std, {self.min_std}, got {self.initial_std}")

    @property
    def action_shape(self) -> tuple[int]:
        return (self.action_size,)

    def init(self, learners: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Fresh parameters, leaves ``[learner, ...]``; the mean they give is close to zero."""
        params = init_mlp((self.observation_size, *self.hidden, self.action_size), learners, generator, 0.01, dtype)
        start = torch.full((learners, 1, self.action_size), math.log(self.initial_std), dtype=dtype, device=generator.device)
        return params | {"log_std": start}

    def distribution(self, params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
        """``[learner, ..., observation]`` to mean ``[learner, ..., action]`` and log standard deviation, broadcast to it."""
        if observations.shape[-1] != self.observation_size:
            raise ValueError(f"observations have size {observations.shape[-1]}, the policy expects {self.observation_size}")
        layers = {name: p for name, p in params.items() if name != "log_std"}
        mean = self.action_scale * mlp(layers, scaled(observations, self.observation_scale))
        log_std = params["log_std"].clamp(min=math.log(self.min_std)) + math.log(self.action_scale)
        return mean, log_std.reshape(-1, *(1,) * (mean.dim() - 2), self.action_size)

    def log_prob(self, params: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """log π(actions | observations), ``[learner, ...]``, of actions ``[learner, ..., action]``."""
        mean, log_std = self.distribution(params, observations)
        return gaussian_log_prob((actions - mean) * (-log_std).exp(), log_std)

    def kl(self, params: Params, other: Params, observations: Tensor) -> Tensor:
        """KL(π of ``params`` ‖ π of ``other``) in every observation, in nats, ``[learner, ...]``."""
        (mean_p, log_p), (mean_q, log_q) = (self.distribution(p, observations) for p in (params, other))
        squares = (2 * (log_p - log_q)).exp() + ((mean_p - mean_q) * (-log_q).exp()).square()
        return (log_q - log_p + 0.5 * (squares - 1)).sum(-1)

    def noise(self, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal noise ``[*shape, action]``: what :meth:`act` needs to draw an action at each entry of ``shape``."""
        return torch.randn(*shape, self.action_size, generator=generator, dtype=dtype, device=generator.device)

    def act(self, params: Params, observations: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sample an action and give its log-probability; ``noise=None`` takes the mean."""
        mean, log_std = self.distribution(params, observations)
        noise = torch.zeros_like(mean) if noise is None else noise
        return mean + log_std.exp() * noise, gaussian_log_prob(noise, log_std)


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """log N(μ + σε; μ, σ²) for ``noise`` ε ``[..., action]``, summed over the dimensions of the action: ``[...]``."""
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


@dataclass(frozen=True)
class ValueNet:
    """A state-value function V(s): the layers of :class:`PolicyNet` with one output, for many learners at once."""

    observation_size: int
    hidden: tuple[int, ...] = (64, 64)
    observation_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_scale(self.observation_scale, self.observation_size)

    def init(self, learners: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """Fresh parameters, leaves ``[learner, ...]``."""
        return init_mlp((self.observation_size, *self.hidden, 1), learners, generator, 1.0, dtype)

    def value(self, params: Params, observations: Tensor) -> Tensor:
        """``[learner, ..., observation]`` to values ``[learner, ...]``."""
        return mlp(params, scaled(observations, self.observation_scale)).squeeze(-1)


class _Scale(nn.Module):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def to_module(policy: PolicyNet, params: Params, learner: int = 0) -> nn.Sequential:
    """One learner's policy as an ordinary ``nn.Module``: observations ``[..., observation]`` to logits ``[..., action]``."""
    layers: list[nn.Module] = []
    weight = params["weight_0"]
    if policy.observation_scale is not None:
        layers.append(_Scale(constant(tuple(policy.observation_scale), weight.dtype, weight.device).clone()))
    depth = len(params) // 2
    for i in range(depth):
        weight, bias = params[f"weight_{i}"][learner].detach(), params[f"bias_{i}"][learner, 0].detach()
        linear = nn.Linear(*weight.shape, dtype=weight.dtype, device=weight.device)
        linear.weight = nn.Parameter(weight.T.clone())
        linear.bias = nn.Parameter(bias.clone())
        layers += [linear, nn.Tanh()] if i < depth - 1 else [linear]
    return nn.Sequential(*layers)
