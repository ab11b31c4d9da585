"""Returns and advantages of episodes, time on the last axis. Terminated and truncated stay apart."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(rewards: Tensor, ended: Tensor, discount: float, bootstrap: Tensor | None = None) -> Tensor:
    """Reward-to-go :math:`G_t = r_t + \\gamma G_{t+1}`, ``[..., time]``, starting anew after each ``ended`` step.

    ``bootstrap`` ``[..., time]`` is added, discounted, where an episode is cut: give the value of the next state there
    and 0 elsewhere. Without it a truncated episode counts as finished.
    """
    if rewards.shape != ended.shape:
        raise ValueError(f"rewards and ended must have one shape, got {tuple(rewards.shape)} and {tuple(ended.shape)}")
    returns = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[..., -1])
    for t in reversed(range(rewards.shape[-1])):
        running = torch.where(ended[..., t], 0.0, running)
        if bootstrap is not None:
            running = running + bootstrap[..., t]
        running = rewards[..., t] + discount * running
        returns[..., t] = running
    return returns


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates :cite:p:`schulman2016high`, all arguments and the result ``[..., time]``.

    .. math::
        \\delta_t = r_t + \\gamma (1 - \\text{terminated}_t) V(s_{t+1}) - V(s_t), \\qquad
        A_t = \\delta_t + \\gamma \\lambda (1 - \\text{ended}_t) A_{t+1}

    A terminated step has no future; a truncated one is bootstrapped from ``next_values``, and neither lets the
    advantage of what follows it leak backwards.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) > 1:
        raise ValueError(f"gae needs arguments of one shape [..., time], got {sorted(shapes)}")
    deltas = rewards + discount * next_values * ~terminated - values
    carry = discount * lam * (~(terminated | truncated)).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[..., -1])
    for t in reversed(range(deltas.shape[-1])):
        running = deltas[..., t] + carry[..., t] * running
        advantages[..., t] = running
    return advantages
