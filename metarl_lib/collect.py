"""Running a policy: one episode in every environment, all tasks at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .nets import GaussianPolicyNet, PolicyNet
from .types import Batch, Params, Rollout, World, select


def collect(
    world: World,
    task: Any,
    policy: PolicyNet | GaussianPolicyNet,
    params: Params,
    episodes: int,
    generator: torch.Generator,
    greedy: bool = False,
    initial: tuple[Any, Tensor] | None = None,
    noise: Tensor | None = None,
) -> Rollout:
    """Run ``episodes`` episodes of every task from start to end, without gradients.

    Environments are never reset inside: after an episode's end its environment is frozen and its entries are
    padding (``alive`` False), so no transition is ever made up. The time axis is as long as the longest episode,
    at most ``world.max_steps``.

    ``initial`` (a state and its observations) and ``noise`` (``policy.noise((max_steps, task, env))``) replace what
    would have been drawn from ``generator``. Raises ``FloatingPointError`` if a reward or observation is not finite.
    """
    with torch.no_grad():
        state, observation = initial if initial is not None else world.reset(task, episodes, generator)
        lead, horizon = observation.shape[:-1], world.max_steps
        if noise is None and not greedy:
            noise = policy.noise((horizon, *lead), generator, observation.dtype)
        if noise is not None and noise.shape[:-1] != (horizon, *lead):
            raise ValueError(f"noise must be [{horizon}, {', '.join(map(str, lead))}, ...], got {list(noise.shape)}")

        def buffer(*shape: int, dtype: torch.dtype = observation.dtype) -> Tensor:
            return torch.zeros(horizon, *lead, *shape, dtype=dtype, device=observation.device)

        size = observation.shape[-1]
        # One time step is contiguous while the rollout is written; it is read with time behind env.
        rollout = Rollout(
            observations=buffer(size),
            actions=buffer(*policy.action_shape, dtype=policy.action_dtype or observation.dtype),
            log_probs=buffer(),
            rewards=buffer(),
            next_observations=buffer(size),
            terminated=buffer(dtype=torch.bool),
            truncated=buffer(dtype=torch.bool),
            alive=buffer(dtype=torch.bool),
        )
        alive = torch.ones(lead, dtype=torch.bool, device=observation.device)
        stop_early = observation.device.type == "cpu"  # on an accelerator, asking would stall it at every step

        # Inference mode spares autograd's bookkeeping; the buffers above are ordinary tensors all the same.
        with torch.inference_mode():
            for t in range(horizon):
                action, log_prob = policy.act(params, observation, None if greedy else noise[t])
                new_state, step = world.step(task, state, action, generator)
                rows = (observation, action, log_prob, step.reward, step.observation, step.terminated, step.truncated, alive)
                for column, row in zip(rollout, rows, strict=True):
                    column[t] = row
                state = select(alive, new_state, state)
                observation = torch.where(alive[..., None], step.observation, observation)
                alive = alive & ~(step.terminated | step.truncated)
                if stop_early and not alive.any():
                    break
        length = t + 1
    rollout = Rollout(*(column[:length].movedim(0, len(lead)) for column in rollout))
    for name in ("rewards", "next_observations"):
        if not torch.isfinite(getattr(rollout, name)).all():
            raise FloatingPointError(f"the environment returned {name.replace('_', ' ')} that are not finite (NaN or infinity)")
    return rollout


def pack(rollout: Rollout, advantages: Tensor) -> Batch:
    """Drop the padding: ``[task, env, time]`` to ``[task, sample]``, as short as the task with the most steps allows.

    Failing episodes are short, so that this makes everything that follows several times cheaper.
    """
    alive = rollout.alive.flatten(-2)
    counts = alive.sum(-1, keepdim=True)
    order = alive.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., : int(counts.max())]
    axis = order.dim() - 1

    def take(x: Tensor) -> Tensor:
        """``[task, env, time, ...]`` to ``[task, sample, ...]``."""
        x = x.flatten(axis, axis + 1)
        trailing = x.shape[axis + 1 :]
        return x.gather(axis, order.reshape(*order.shape, *(1,) * len(trailing)).expand(*order.shape, *trailing))

    return Batch(
        observations=take(rollout.observations),
        actions=take(rollout.actions),
        log_probs=take(rollout.log_probs),
        advantages=take(advantages),
        weights=alive.gather(-1, order).to(advantages.dtype) / counts,
    )
