"""How well a policy does: in Gymnasium's own environment, and on tasks it has never seen, before and after adaptation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from scipy import stats

from .baseline import to_batch
from .collect import collect
from .gymnasium_bridge import GymnasiumWorld, Nothing
from .maml import adapt
from .nets import GaussianPolicyNet, PolicyNet
from .types import Params, World


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interval(samples: Any, axis: int = 0, level: float = 0.95) -> Interval:
    """Mean and Student-t confidence interval of independent ``samples`` along ``axis``. At least two are needed."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    samples = np.asarray(samples, dtype=np.float64)
    n = samples.shape[axis] if samples.ndim else 0
    if n < 2:
        raise ValueError(f"an interval needs at least 2 samples, got {n}")
    mean = samples.mean(axis)
    half = stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(samples, axis=axis)
    return Interval(mean, mean - half, mean + half)


def returns_in_gymnasium(
    name: str, act: Callable[[torch.Tensor], torch.Tensor], learners: int, episodes: int, seed: int
) -> np.ndarray:
    """Undiscounted returns of ``episodes`` episodes of every learner in Gymnasium's own environment, ``[learner, episode]``.

    ``act`` maps observations ``[learner, env, observation]`` to actions ``[learner, env]``, or ``[learner, env, action]`` where
    they are continuous; both are on the CPU. A policy trained in a batched world of ours is scored here, where nothing of ours
    can flatter it.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    envs = gymnasium.make_vec(name, learners * episodes, vectorization_mode="sync")
    world = GymnasiumWorld(envs, learners=learners, dtype=torch.float32)
    _, observation = world.reset(Nothing(), episodes, torch.Generator().manual_seed(seed))
    returns, alive = torch.zeros(learners, episodes), torch.ones(learners, episodes, dtype=torch.bool)
    with torch.inference_mode():
        while alive.any():
            _, step = world.step(Nothing(), Nothing(), act(observation))
            returns += step.reward * alive
            alive &= ~(step.terminated | step.truncated)
            observation = step.observation
    envs.close()
    return returns.double().numpy()


def adaptation_curve(
    world: World,
    policy: PolicyNet | GaussianPolicyNet,
    params: Params,
    step_sizes: Params | float,
    tasks: Any,
    generator: torch.Generator,
    steps: int = 1,
    episodes: int = 20,
    surrogate: str = "ratio",
    discount: float = 0.99,
    gae_lambda: float = 0.97,
    later: float = 1.0,
) -> torch.Tensor:
    """Mean undiscounted return of every task after 0, 1, … ``steps`` inner steps, ``[steps + 1, task]``.

    Each step uses ``episodes`` episodes of the policy before it; each return is that of fresh episodes, which the
    step to that policy has not seen. ``params`` (leaves ``[1, ...]`` or ``[task, ...]``) are copied, so that nothing
    leaks from one evaluation to the next. ``surrogate``, ``discount`` and ``gae_lambda`` are those of training. Steps after
    the first are ``later`` times as long.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    n = len(tasks[0])
    phi = {name: p.detach().expand(n, *p.shape[1:]) for name, p in params.items()}
    curve = []
    for k in range(steps + 1):
        rollout = collect(world, tasks, policy, phi, episodes, generator)
        curve.append(rollout.returns.mean(-1))
        if k < steps:
            # These episodes may now be learned from: the next return comes from new ones.
            if k == 1 and later != 1:
                step_sizes = {name: later * (step_sizes[name] if isinstance(step_sizes, dict) else step_sizes) for name in phi}
            phi = adapt(policy, phi, step_sizes, to_batch(rollout, discount, gae_lambda), surrogate)
    return torch.stack(curve)


def best_step_size(
    world: World,
    policy: PolicyNet | GaussianPolicyNet,
    params: Params,
    candidates: tuple[float, ...],
    tasks: Any,
    seed: int,
    steps: int = 1,
    episodes: int = 20,
) -> float:
    """The fixed step size with the highest mean return after ``steps`` inner steps on ``tasks``: validation tasks, please.

    This is the tuning that a fine-tuned baseline deserves. Every candidate sees the same random numbers.
    """
    if not candidates:
        raise ValueError("candidates must hold at least one step size")
    device = params["weight_0"].device

    def score(alpha: float) -> float:
        generator = torch.Generator(device).manual_seed(seed)
        return float(adaptation_curve(world, policy, params, alpha, tasks, generator, steps, episodes)[-1].mean())

    return max(candidates, key=score)
