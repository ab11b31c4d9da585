"""Cliff walking, Example 6.6 of Sutton and Barto :cite:p:`sutton2018reinforcement`, with intervals.

ε = 0.1, α = 0.5, γ = 1, values from 0, 500 episodes; each seed is one learner of a single pass. Measured are the return
while learning, ε and all, averaged over a seed's last 100 episodes, and the walk of the greedy policy that a seed ends
with, in Gymnasium's own environment. That walk is deterministic: one that has not arrived after as many steps as there
are states never will.

The book prints a figure, not numbers, so that there is nothing to set beside these.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
from scipy import stats

from .. import results
from ..evaluate import interval
from ..tabular import ALGORITHMS, Config, train
from ..tabular_worlds import from_gymnasium, play_in_gymnasium
from . import Progress, run_pieces

NAME = "cliff-walking"
SEEDS, LAST = 1000, 100
CONFIG = Config(episodes=500, step_size=0.5, epsilon=0.1, discount=1.0)
LABELS = {"q-learning": "Q-learning", "sarsa": "SARSA", "expected-sarsa": "Expected SARSA"}


def configured(algorithm: str, seeds: int, scale: float) -> Config:
    episodes = max(1, round(CONFIG.episodes * scale))
    return replace(CONFIG, algorithm=algorithm, learners=seeds, episodes=episodes)


def measure(algorithm: str, seeds: int, scale: float) -> dict[str, Any]:
    """Every seed's mean return over its last episodes, the curve of all, and where the greedy policies walk."""
    world = from_gymnasium("CliffWalking-v1")
    *_, log = train(world, configured(algorithm, seeds, scale))
    returns = log.returns.double().numpy()
    env = gymnasium.make("CliffWalking-v1", max_episode_steps=world.observation_size)
    walks = Counter()
    for actions in log.q.argmax(-1):
        (earned,), (truncated,) = play_in_gymnasium(env, actions, episodes=1, seed=0)
        walks["never arrives" if truncated else f"earns {earned:.0f}"] += 1
    return {
        "last": returns[:, -LAST:].mean(1).round(4).tolist(),
        "curve": [bound.round(2).tolist() for bound in interval(returns)],
        "walks": dict(walks.most_common()),
        "env_steps": log.env_steps,
    }


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr(CONFIG).encode()).hexdigest()[:8]
    pieces = [(algorithm, seeds, scale) for algorithm in ALGORITHMS]
    done = dict(zip(ALGORITHMS, run_pieces(measure, pieces, Path("runs") / f"{NAME}-{digest}", progress), strict=True))
    metrics, curves = {}, {}
    for algorithm, piece in done.items():
        label = LABELS[algorithm]
        mean, low, high = map(float, interval(piece["last"]))
        metrics[f"{label} · return while learning, last {LAST} episodes"] = metric(mean, low, high, seeds, "return an episode")
        for walk, count in piece["walks"].items():
            bounds = stats.binomtest(count, seeds).proportion_ci()
            metrics[f"{label} · greedy policy {walk.replace('-', '−')}"] = metric(count / seeds, *bounds, seeds, "of the seeds")
        curves |= {f"{label} · {bound}": values for bound, values in zip(("mean", "low", "high"), piece["curve"], strict=True)}
    return {
        "name": NAME,
        "title": "Cliff walking: three targets, one policy",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {LABELS[a]: asdict(configured(a, seeds, scale)) | {"env_steps": done[a]["env_steps"]} for a in ALGORITHMS},
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": curves,
    }


def metric(value: float, low: float, high: float, n: int, unit: str) -> dict[str, Any]:
    return {"value": value, "low": float(low), "high": float(high), "n": n, "unit": unit, "published": None, "source": None}
