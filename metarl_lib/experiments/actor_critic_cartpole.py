"""Actor-critic and REINFORCE on CartPole-v1, ten seeds each, with the same number of environment steps.

The seeds of a method are the learners of one pass. A seed is scored by its final policy, acting greedily, over 100 episodes in
Gymnasium's own environment; the return while learning is that of the policies that were learning, averaged over all of a seed's
environment steps.

The variance of the gradient is measured on fixed policies, those of REINFORCE with a value network early and later in training:
after 1% and after 5% of its steps. (Soon after, every episode lasts until the clock stops it, all returns are the same, and a
baseline leaves no variance at all.) From each seed's policy many batches of episodes are drawn anew; each gives an estimate of
the gradient without and with each baseline, and the variance is that of the estimates, summed over all parameters.

Step sizes were chosen on seed 1000, which takes no part here: see ``TRIED``.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from .. import actor_critic, reinforce, results
from ..cartpole import CartPole
from ..collect import collect, pack
from ..evaluate import Interval, interval, returns_in_gymnasium
from ..types import Params
from . import Progress, run_pieces

NAME = "actor-critic-cartpole"
SEEDS, EPISODES, THRESHOLD = 10, 100, 475  # the last is Gymnasium's own, in the registry entry of CartPole-v1
POINTS = 50  # of a curve
ESTIMATES = 50  # of the gradient, from each seed's policy, to take the variance of
WORLD = CartPole("default", max_steps=500)
CONFIGS = {
    "actor-critic": actor_critic.Config(),
    "REINFORCE": reinforce.Config(baseline="none", step_size=3e-3),
    "REINFORCE, mean baseline": reinforce.Config(baseline="mean", step_size=1e-2),
    "REINFORCE, value baseline": reinforce.Config(baseline="value", step_size=1e-2),
}
MEASURED = "REINFORCE, value baseline"  # whose policies the variance of the gradient is measured on,
MOMENTS = (0.01, 0.05)  # and after which share of the environment steps
TRIED = {
    "actor-critic": "100,000 and 200,000 steps, 10 to 30 learners of seeds 1000, 1001 and 1003: step size 1e-3, 2e-3, 3e-3, 6e-3 "
    "· value step size 3e-3, 5e-3, 6e-3, 1e-2, 2e-2 · envs × rollout_steps 16 × 16, 32 × 16, 64 × 16, 8 × 32, 16 × 32, 32 × 8, "
    "8 × 64 · λ 0.95, 0.98 · γ 0.98, 0.99, 0.995 · entropy coefficient 0, 0.01 · max_gradient_norm 0.5, 5 · angle scaled by 1, "
    "10. Then 500,000 steps, 30 and 40 learners of seeds 1001 and 1002: value step size 1e-2, 2e-2 · step size 2e-3, 3e-3 · "
    "envs 16, 32.",
    "REINFORCE": "500,000 steps, 10 learners of seed 1000, 30 episodes each: step size 1e-3, 3e-3, 1e-2, for each baseline. "
    "Where final policies were alike, the step size that earned more while learning was taken.",
}


def configured(method: str, seeds: int, scale: float) -> actor_critic.Config | reinforce.Config:
    config = CONFIGS[method]
    return replace(config, learners=seeds, env_steps=max(1, round(config.env_steps * scale)))


def measure(method: str, seeds: int, scale: float) -> dict[str, Any]:
    """Train every seed; its greedy returns in Gymnasium, its curve, and the CPU-seconds of training alone."""
    config = configured(method, seeds, scale)
    module = actor_critic if isinstance(config, actor_critic.Config) else reinforce
    env_steps, returns, fixed = [], [], []
    started = time.process_time()
    for log in module.train(WORLD, config):
        env_steps.append(torch.as_tensor(log.env_steps).expand(seeds).numpy())
        returns.append(log.returns.numpy())
        if len(fixed) < len(MOMENTS) and env_steps[-1].mean() >= MOMENTS[len(fixed)] * config.env_steps:
            fixed.append(log.params)
    seconds = time.process_time() - started
    policy, _ = module.networks(WORLD, config)
    played = returns_in_gymnasium(
        "CartPole-v1",
        lambda observation: policy.act(log.params["policy"], observation, None)[0],
        seeds,
        max(1, round(EPISODES * scale)),
        seed=10_000,
    )
    curve = averaged(np.array(env_steps), np.array(returns), config.env_steps)
    done = {"greedy": played.mean(1).tolist(), "curve": curve.tolist(), "training_seconds": seconds}
    if method == MEASURED:
        estimates = max(2, round(ESTIMATES * scale))
        done["variance"] = [gradient_variance(params, config, estimates) for params in fixed]
    return done


def averaged(env_steps: np.ndarray, returns: np.ndarray, total: int) -> np.ndarray:
    """Returns ``[log, seed]``, at ``env_steps`` ``[log, seed]``, as means over equal stretches of ``total``, ``[POINTS, seed]``.

    A stretch in which no episode of a seed ended has the value of the one before it, and before the first ending, of the one
    after it.
    """
    stretch = np.minimum((env_steps - 1) * POINTS // total, POINTS - 1)
    curve = np.full((POINTS, returns.shape[1]), np.nan)
    for seed in range(returns.shape[1]):
        for point in range(POINTS):
            seen = returns[stretch[:, seed] == point, seed]
            if np.isfinite(seen).any():
                curve[point, seed] = np.nanmean(seen)
        known = np.flatnonzero(np.isfinite(curve[:, seed]))
        latest = np.maximum(np.searchsorted(known, np.arange(POINTS), side="right") - 1, 0)
        curve[:, seed] = curve[known[latest], seed]
    return curve.round(1)


def gradient_variance(params: dict[str, Params], config: reinforce.Config, estimates: int) -> dict[str, list[float]]:
    """By baseline and seed: the variance of one iteration's estimate of the policy gradient, summed over all parameters."""
    policy, value = reinforce.networks(WORLD, config)
    generator = torch.Generator().manual_seed(20_000)
    task = WORLD.sample_tasks(estimates, generator)
    variance = {baseline: [] for baseline in reinforce.BASELINES}
    for seed in range(config.learners):
        # As many learners as estimates, all with the parameters of one seed.
        copies = {
            name: {k: p[seed].expand(estimates, *p.shape[1:]) for k, p in network.items()} for name, network in params.items()
        }
        rollout = collect(WORLD, task, policy, copies["policy"], config.episodes, generator)
        for baseline in variance:
            _, advantages = reinforce.judge(rollout, replace(config, baseline=baseline), value, copies["value"])
            batch = pack(rollout, advantages)
            gradients = reinforce.policy_gradient(policy, copies["policy"], batch, config.episodes)
            variance[baseline].append(float(gradients.double().var(0).sum()))
    return variance


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr((CONFIGS, EPISODES, POINTS, ESTIMATES, MOMENTS)).encode()).hexdigest()[:8]
    pieces = [(method, seeds, scale) for method in CONFIGS]
    done = dict(zip(CONFIGS, run_pieces(measure, pieces, Path("runs") / f"{NAME}-{digest}", progress), strict=True))
    metrics, curves = {}, {}
    for method, piece in done.items():
        metrics |= {f"{method} · {label}": values for label, values in metrics_of(method, piece, seeds).items()}
        total = configured(method, seeds, scale).env_steps
        curves[f"{method} · environment steps"] = [round(total * (i + 1) / POINTS) for i in range(POINTS)]
        curves[f"{method} · return while learning"] = piece["curve"]  # [stretch, seed]
        curves[f"{method} · greedy return"] = [round(r, 2) for r in piece["greedy"]]  # [seed]
    metrics["Gymnasium's threshold"] = metric(THRESHOLD, None, None, 1, "return") | {
        "published": THRESHOLD,
        "source": "Gymnasium's registry, CartPole-v1",
    }
    metrics |= variance_metrics(done[MEASURED]["variance"], seeds)
    return {
        "name": NAME,
        "title": "CartPole-v1: actor-critic and REINFORCE",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {method: asdict(configured(method, seeds, scale)) for method in CONFIGS} | {"tried": TRIED},
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": curves,
    }


def metrics_of(method: str, piece: dict[str, Any], seeds: int) -> dict[str, Any]:
    """One method's metrics, by label."""
    solved = sum(r >= THRESHOLD for r in piece["greedy"])
    while_learning = np.mean(piece["curve"], axis=0)
    greedy = metric(*capped(interval(piece["greedy"])), seeds, "return")
    if method == "actor-critic":
        greedy |= {"published": "500 ± 0", "source": "rl-baselines3-zoo, benchmark.md, A2C, 500k steps, one run"}
    return {
        "greedy return": greedy,
        "greedy return, worst seed": metric(min(piece["greedy"]), None, None, seeds, "return"),
        f"seeds at {THRESHOLD} or more": metric(
            solved / seeds, *stats.binomtest(solved, seeds).proportion_ci(), seeds, "of the seeds"
        ),
        "return while learning": metric(*capped(interval(while_learning)), seeds, "return"),
        "training, all seeds in one pass": metric(piece["training_seconds"], None, None, 1, "CPU-seconds"),
    }


def capped(bounds: Interval) -> Interval:
    """Student's t knows nothing of the most that can be earned."""
    return bounds._replace(high=np.minimum(bounds.high, WORLD.max_steps))


def variance_metrics(variance: list[dict[str, list[float]]], seeds: int) -> dict[str, Any]:
    """How large the variance of the gradient is with a baseline, as a share of that without."""
    metrics = {}
    for moment, by_baseline in zip(MOMENTS, variance, strict=True):
        for baseline in ("mean", "value"):
            share = np.array(by_baseline[baseline]) / np.array(by_baseline["none"])
            mean, low, high = interval(share)
            label = f"gradient variance after {moment:.0%} of training, {baseline} baseline"
            metrics[label] = metric(mean, max(0.0, low), high, seeds, "of that without a baseline")  # no variance is below 0
    return metrics


def metric(value: float, low: float | None, high: float | None, n: int, unit: str) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if low is None else {"low": float(low), "high": float(high)}
    return {"value": float(value), **bounds, "n": n, "unit": unit, "published": None, "source": None}
