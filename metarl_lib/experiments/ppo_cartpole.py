"""PPO on CartPole-v1 :cite:p:`schulman2017proximal`: with each of its details taken away, and beside Stable-Baselines3.

Each method trains all its seeds in one pass, a seed being a learner, for 100,000 steps each; the final policy, without
exploration, plays 100 episodes in Gymnasium's own environment. ``METHODS`` are the ablations. The more epochs on the same
data, the more there is for the clip to hold back: hence two and ten epochs, both with and without it. Treating truncation as
termination is no option of the library; here a world says so.

Stable-Baselines3, with the settings of its zoo (:mod:`metarl_lib.experiments.peers`), trains one seed at a time. What the two
cost is measured apart, one after the other in one process, so that both find the machine equally busy; CPU-seconds are those
of training alone. ``TRIALS`` lists what the settings were chosen from, with seeds that take no part in the result.
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

from .. import results
from ..cartpole import CartPole, policy_for
from ..evaluate import interval, returns_in_gymnasium
from ..ppo import QUANTILES, Config, networks, train
from . import Progress, peers, run_pieces

NAME, TITLE = "ppo-cartpole", "PPO on CartPole-v1, its details taken away one by one"
SEEDS, EPISODES, SOLVED, LIMIT = 10, 100, 475, 500
REPETITIONS = 3  # of the measurement of cost
TUNING_SEED = 1000
GROUP = 2  # iterations that are averaged to one point of a curve
CONFIG = Config(observation_scale=policy_for(CartPole("default")).observation_scale)
TEN = replace(CONFIG, epochs=10)
METHODS = {
    "PPO": CONFIG,
    "no clip": replace(CONFIG, clip=float("inf")),
    "one epoch": replace(CONFIG, epochs=1),
    "ten epochs": TEN,
    "ten epochs, no clip": replace(TEN, clip=float("inf")),
    "advantages not normalised": replace(CONFIG, normalise_advantages=False),
    "no GAE, λ = 1": replace(CONFIG, gae_lambda=1.0),
    "truncation as termination": CONFIG,
    "angle not scaled": replace(CONFIG, observation_scale=None),
}
TRIALS = {
    f"{epochs} epochs, minibatch {minibatch}, step size {step_size:g}": replace(
        CONFIG, epochs=epochs, minibatch=minibatch, step_size=step_size, value_step_size=step_size, seed=TUNING_SEED
    )
    for epochs, minibatch, step_size in (
        (2, 64, 1e-3),
        (2, 64, 2e-3),
        (2, 64, 3e-3),
        (2, 128, 3e-3),
        (4, 64, 1e-3),
        (4, 128, 3e-3),
    )
}
ZOO = {"published": "500 ± 0 at 100k steps", "source": "RL Baselines3 Zoo, benchmark.md"}
CLEANRL = {"published": "490.04 ± 6.12 at 500k steps", "source": "CleanRL, documentation of PPO"}


class Forgetful(CartPole):
    """A cart-pole that calls the clock's end a fall: nothing is earned after it."""

    def step(self, task, state, action, generator=None):
        state, step = super().step(task, state, action, generator)
        ended = step.terminated | step.truncated
        return state, step._replace(terminated=ended, truncated=torch.zeros_like(ended))


def configured(config: Config, seeds: int, scale: float) -> Config:
    env_steps = max(config.envs * config.rollout_steps, round(config.env_steps * scale))
    return replace(config, learners=seeds, env_steps=env_steps)


def run_training(method: str, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last parameters, and every iteration's log by column, with the CPU-seconds of it all."""
    world = (Forgetful if method == "truncation as termination" else CartPole)("default", max_steps=500)
    started, logs = time.process_time(), []
    for log in train(world, config):
        params = log.params["policy"]
        logs.append(log._replace(params=None))
    seconds = time.process_time() - started
    columns = {name: torch.stack([getattr(log, name) for log in logs]).double().numpy() for name in DIAGNOSTICS}
    reached = [first_at(column, [log.env_steps for log in logs]) for column in columns["returns"].T]
    ratios = columns.pop("ratio_quantiles")
    columns |= {
        "largest ratio": ratios[..., QUANTILES.index(1.0)],
        "99th percentile of the ratio": ratios[..., QUANTILES.index(0.99)],
    }
    return params, {"training_seconds": seconds, "reached": reached, "env_steps": logs[-1].env_steps, "columns": columns}


DIAGNOSTICS = ("returns", "entropy", "approx_kl", "clip_fraction", "explained_variance", "ratio_quantiles")


def first_at(returns: np.ndarray, env_steps: list[int]) -> int | None:
    """Steps after the first iteration in whose finished episodes the mean return was at least ``SOLVED``; None if never."""
    return next((steps for mean, steps in zip(returns, env_steps, strict=True) if mean >= SOLVED), None)


def measure(method: str, seeds: int, scale: float) -> dict[str, Any]:
    """Train all seeds of one method in one pass and play their final policies in Gymnasium."""
    config = configured(METHODS[method], seeds, scale)
    params, piece = run_training(method, config)
    policy, _ = networks(CartPole("default"), config)
    greedy = returns_in_gymnasium("CartPole-v1", lambda o: policy.act(params, o, None)[0], seeds, EPISODES, 10_000)
    curves = {name: thin(column) for name, column in piece.pop("columns").items()}
    return piece | {"final": greedy.mean(1).round(2).tolist(), "curves": curves}


def cost(repetition: int, seeds: int, scale: float) -> dict[str, Any]:
    """CPU-seconds of all our seeds in one pass, and of one seed of Stable-Baselines3 right after it."""
    config = configured(CONFIG, seeds, scale)
    _, piece = run_training("PPO", config)
    model = peers.make("PPO", repetition)
    started = time.process_time()
    model.learn(config.env_steps)
    return {"ours": piece["training_seconds"], "theirs": time.process_time() - started}


def tune(trial: str, seeds: int, scale: float) -> dict[str, Any]:
    """What one of ``TRIALS`` comes to."""
    _, piece = run_training("PPO", configured(TRIALS[trial], seeds, scale))
    last = piece["columns"]["returns"][-10:]
    return {
        "mean return of the last ten iterations, by seed": nan_mean(last).round(1).tolist(),
        "steps to 475, by seed": piece["reached"],
        "CPU-seconds": round(piece["training_seconds"], 1),
    }


def nan_mean(rows: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; 0 where nothing is."""
    there = ~np.isnan(rows)
    return np.where(there, rows, 0).sum(0) / np.maximum(there.sum(0), 1)


def thin(column: np.ndarray) -> list[list[float | None]]:
    """``[iteration, seed]`` to ``[point, seed]``, ``GROUP`` iterations to a point; None where no episode ended."""
    points = []
    for start in range(0, len(column), GROUP):
        rows = column[start : start + GROUP]
        points.append(np.where(np.isnan(rows).all(0), np.nan, nan_mean(rows)))
    return [[None if np.isnan(x) else float(f"{x:.4g}") for x in row] for row in points]


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr((METHODS, TRIALS)).encode()).hexdigest()[:8]
    folder = Path("runs") / f"{NAME}-{digest}"
    done = dict(zip(METHODS, run_pieces(measure, [(m, seeds, scale) for m in METHODS], folder, progress), strict=True))
    tried = dict(zip(TRIALS, run_pieces(tune, [(t, seeds, scale) for t in TRIALS], folder / "tuning", progress), strict=True))
    pairs = run_pieces(cost, [(i, seeds, scale) for i in range(REPETITIONS)], folder / "cost", progress, processes=1)
    peer = run_pieces(peers.measure, [("PPO", seed, scale) for seed in range(seeds)], peers.FOLDER, progress)
    return {
        "name": NAME,
        "title": TITLE,
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "PPO": finite(asdict(configured(CONFIG, seeds, scale))),
            "changed by method": {method: changes(config) for method, config in METHODS.items()},
            "tried": {trial: {k: v for k, v in piece.items() if k != "cpu_seconds"} for trial, piece in tried.items()},
            "evaluation episodes a seed": EPISODES,
            "CPU-seconds of training, by method": {method: round(piece["training_seconds"], 2) for method, piece in done.items()},
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in [*done.values(), *tried.values(), *pairs]),
        "metrics": metrics_of(done, peer) | cost_metrics(pairs),
        "curves": curves_of(done),
    }


def finite(config: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: where the configuration has it, there is no limit, None."""
    return {name: None if value == float("inf") else value for name, value in config.items()}


def changes(config: Config) -> dict[str, Any]:
    """What a method's configuration has otherwise than ``CONFIG``."""
    return {name: value for name, value in finite(asdict(config)).items() if value != finite(asdict(CONFIG))[name]}


def metrics_of(done: dict[str, dict], peer: list[dict]) -> dict[str, dict]:
    """Final returns, worst seeds, solved seeds and steps to solve, by method."""
    finals = {method: piece["final"] for method, piece in done.items()}
    finals["Stable-Baselines3"] = [float(np.mean(piece["returns"])) for piece in peer]
    published, metrics = {"PPO": CLEANRL, "Stable-Baselines3": ZOO}, {}
    for method, final in finals.items():
        n, solved = len(final), sum(x >= SOLVED for x in final)
        mean, low, high = interval(final)
        bounds = low, min(high, LIMIT)  # nothing above the limit can be earned, whatever Student's t says
        metrics[f"{method} · final return"] = metric(mean, *bounds, n, "return, of at most 500", published.get(method))
        metrics[f"{method} · worst seed"] = metric(min(final), None, None, n, "return, of at most 500")
        share = stats.binomtest(solved, n).proportion_ci()
        metrics[f"{method} · seeds of at least {SOLVED}"] = metric(solved / n, *share, n, "of the seeds")
        reached = [steps for steps in done[method]["reached"] if steps is not None] if method in done else []
        if len(reached) > 1:
            label = f"{method} · steps to {SOLVED} in training, seeds that got there"
            metrics[label] = metric(*interval(reached), len(reached), "environment steps")
    return metrics


def cost_metrics(pairs: list[dict]) -> dict[str, dict]:
    """What training costs, with intervals over the repetitions."""
    ours, theirs = (np.array([pair[side] for pair in pairs]) for side in ("ours", "theirs"))
    samples = {
        "PPO · all seeds in one pass": (ours, "CPU-seconds"),
        "Stable-Baselines3 · one seed": (theirs, "CPU-seconds"),
        "PPO · all seeds over one seed of Stable-Baselines3": (ours / theirs, "ratio of CPU-seconds"),
    }
    return {label: metric(*interval(sample), len(pairs), unit) for label, (sample, unit) in samples.items()}


def metric(value: float, low: Any, high: Any, n: int, unit: str, published: dict | None = None) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if low is None else {"low": float(low), "high": float(high)}
    return {"value": float(value), **bounds, "n": n, "unit": unit, **(published or {"published": None, "source": None})}


def curves_of(done: dict[str, dict]) -> dict[str, list]:
    """Returns ``[point, seed]`` of every method; of those that show what the clip does, mean diagnostics ``[point]``."""
    points = len(done["PPO"]["curves"]["returns"])
    steps = CONFIG.envs * CONFIG.rollout_steps
    curves = {"environment steps": [min(GROUP * (i + 1) * steps, done["PPO"]["env_steps"]) for i in range(points)]}
    for method, piece in done.items():
        curves[f"{method} · return"] = piece["curves"]["returns"]
    for method in ("PPO", "no clip", "ten epochs", "ten epochs, no clip"):
        for name, column in done[method]["curves"].items():
            if name != "returns":
                rows = np.array(column, dtype=float)
                curves[f"{method} · {name.replace('_', ' ')}"] = [float(f"{x:.4g}") for x in nan_mean(rows.T)]
    return curves
