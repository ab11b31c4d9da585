"""A linear value function per task, never fitted on the trajectories that it scores.

:cite:t:`duan2016benchmarking` regress returns on simple features of observation and time. Fitted on the very episodes
that it then judges, such a baseline explains part of each episode's luck and biases the gradient; here the episodes of
a task are split in two halves and each half is scored by the other's fit (cross-fitting).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .collect import pack
from .returns import discounted_returns, gae
from .types import Batch, Rollout

RIDGE = 1e-3  # relative to each feature's own second moment, so that units do not matter


def features(observations: Tensor, time: Tensor) -> Tensor:
    """``[..., time, observation]`` to ``[..., time, 2·observation + 4]``: o, o², t, t², t³, 1, with t in hundreds of steps."""
    t = (time.to(observations.dtype) / 100).expand(observations.shape[:-1])[..., None]
    return torch.cat((observations, observations.square(), t, t.square(), t**3, torch.ones_like(t)), -1)


def fit(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Ridge regression per leading axis: ``x [..., sample, feature]``, ``y, mask [..., sample]`` to weights ``[..., feature]``.

    The normal equations are summed in the data's own precision and solved in float64.
    """
    x = x * mask[..., None]
    gram = (x.mT @ x).double()
    moment = (x.mT @ (y * mask)[..., None]).double()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE * diagonal + 1e-8 * (1 + diagonal.amax(-1, keepdim=True))
    return torch.linalg.solve(gram + torch.diag_embed(ridge), moment).squeeze(-1).to(x.dtype)


def cross_fitted_values(rollout: Rollout, discount: float) -> tuple[Tensor, Tensor]:
    """Values of observations and of next observations, each ``[task, env, time]``.

    Even episodes are scored by a fit on the odd ones and the other way round. A single episode leaves nothing to fit on,
    and its values are 0: no baseline at all rather than a biased one.
    """
    envs, horizon = rollout.rewards.shape[-2:]
    if envs < 2:
        return torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards)
    time = torch.arange(horizon + 1, device=rollout.rewards.device)
    x, x_next = features(rollout.observations, time[:-1]), features(rollout.next_observations, time[1:])
    targets = discounted_returns(rollout.rewards * rollout.alive, rollout.terminated | rollout.truncated, discount)
    values, next_values = torch.empty_like(targets), torch.empty_like(targets)
    for half in (0, 1):
        scored, fitted = slice(half, None, 2), slice(1 - half, None, 2)
        weights = fit(
            x[..., fitted, :, :].flatten(-3, -2),
            targets[..., fitted, :].flatten(-2),
            rollout.alive[..., fitted, :].flatten(-2),
        )[..., None, :, None]
        values[..., scored, :] = (x[..., scored, :, :] @ weights).squeeze(-1)
        next_values[..., scored, :] = (x_next[..., scored, :, :] @ weights).squeeze(-1)
    return values, next_values


def to_batch(rollout: Rollout, discount: float, lam: float, normalise: bool = True) -> Batch:
    """A rollout ``[task, env, time]`` as weighted transitions ``[task, sample]``, with advantages ready for a surrogate.

    Every step of a task weighs the same, 1/(number of the task's steps): up to a positive factor per task, the sum over
    time that the policy gradient theorem asks for. Averaging inside each episode instead would let long episodes,
    which on CartPole are the good ones, count less.
    """
    values, next_values = cross_fitted_values(rollout, discount)
    terminated, truncated = rollout.terminated, rollout.truncated
    advantages = gae(rollout.rewards, values, next_values, terminated, truncated, discount, lam)
    batch = pack(rollout, advantages)
    if normalise:
        mean = (batch.weights * batch.advantages).sum(-1, keepdim=True)
        centred = batch.advantages - mean
        deviation = (batch.weights * centred.square()).sum(-1, keepdim=True).sqrt()
        batch = batch._replace(advantages=centred / (deviation + 1e-8))
    return batch
