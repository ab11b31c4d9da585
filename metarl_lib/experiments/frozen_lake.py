"""Q-learning on the frozen lake, against the exact optimum.

Each seed is one learner of a single pass per map. A learner's greedy policy is measured twice: its probability of reaching
the goal within Gymnasium's time limit, exactly, by carrying the distribution over states through time; and the share of
1,000 episodes in Gymnasium's own environment.

Two optima stand beside it. *Time-aware* is the best that any agent can do, one that knows how many steps are left.
*Stationary* is the policy that is optimal without a time limit, for a discount of 0.999, under the limit.

Values start at 1, more than can be earned, so that learners try what they do not know; α falls, so that the noise of the ice
averages out. α and ε were chosen from ``TRIED`` by the exact success of 20 learners of seed 1000, which take no part here.
γ was chosen by the exact solution: a discount closer to 1 asks for patience that the time limit does not allow.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import torch

from .. import results
from ..evaluate import interval
from ..tabular import Config, train
from ..tabular_worlds import (
    TabularWorld,
    expected_return,
    from_gymnasium,
    optimal_values,
    optimal_values_in_time,
    play_in_gymnasium,
)
from . import Progress, run_pieces

NAME = "frozen-lake"
SEEDS, EPISODES = 20, 1000
_SHARED = Config(step_size=0.5, final_step_size=0.005, epsilon=0.2, final_epsilon=0.0, initial_value=1.0, iteration_steps=5000)
CONFIGS = {
    "4x4": replace(_SHARED, episodes=3000, discount=0.99),
    "8x8": replace(_SHARED, episodes=4000, discount=0.995),
}
TRIED = {
    "4x4": "α 0.5 → 0.01, 0.3 → 0.01, 0.5 → 0.005, with ε 0.1",
    "8x8": "α, ε: 0.5 → 0.01, 0.1 · 0.1 → 0.01, 0.3 → 0.05 · 0.5 → 0.01, 0.05 · 0.5 → 0.002, 0.1 · 0.5 → 0.005, 0.05 · "
    "0.3 → 0.005, 0.1 → 0.02 · 0.5 → 0.005, 0.2 → 0",
}
NAMES = {"4x4": "FrozenLake-v1", "8x8": "FrozenLake8x8-v1"}
PUBLISHED = {"4x4": 0.74, "8x8": 0.91}  # remarks on the optimum in Gymnasium's registry of environments


def success(world: TabularWorld, q: torch.Tensor) -> torch.Tensor:
    """Probability that the greedy policy of ``q``, ``[..., state, action]``, reaches the goal in time, ``[...]``."""
    greedy = torch.nn.functional.one_hot(q.argmax(-1), world.actions)
    return expected_return(world.mdp, greedy, world.max_steps)


def measure(lake: str, seeds: int, scale: float) -> dict[str, Any]:
    """Train on one map; every learner's success through training and at its end, exactly and in Gymnasium."""
    world = from_gymnasium(NAMES[lake])
    config = configured(lake, seeds, scale)
    curve, env_steps = [], []
    for log in train(world, config):
        curve.append([round(p, 4) for p in success(world, log.q).tolist()])
        env_steps.append(log.env_steps // seeds)
    env = gymnasium.make(NAMES[lake])
    played = [
        play_in_gymnasium(env, actions, max(1, round(EPISODES * scale)), seed=learner)[0].mean()
        for learner, actions in enumerate(log.q.argmax(-1))
    ]
    return {"exact": success(world, log.q).tolist(), "played": [float(p) for p in played], "curve": curve, "env_steps": env_steps}


def configured(lake: str, seeds: int, scale: float) -> Config:
    return replace(CONFIGS[lake], learners=seeds, episodes=max(1, round(CONFIGS[lake].episodes * scale)))


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr((CONFIGS, EPISODES)).encode()).hexdigest()[:8]
    pieces = [(lake, seeds, scale) for lake in CONFIGS]
    done = dict(zip(CONFIGS, run_pieces(measure, pieces, Path("runs") / f"{NAME}-{digest}", progress), strict=True))
    metrics, curves = {}, {}
    for lake, piece in done.items():
        metrics |= {f"{lake} · {label}": values for label, values in metrics_of(lake, piece, seeds).items()}
        curves[f"{lake} · environment steps"] = piece["env_steps"]
        curves[f"{lake} · success through training"] = piece["curve"]  # [log, seed]
    return {
        "name": NAME,
        "title": "Frozen lake: Q-learning against the exact optimum",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {lake: asdict(configured(lake, seeds, scale)) for lake in CONFIGS} | {"tried": TRIED},
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": curves,
    }


def metrics_of(lake: str, piece: dict[str, Any], seeds: int) -> dict[str, Any]:
    """One map's metrics, by label."""
    world = from_gymnasium(NAMES[lake])
    best = float(world.mdp.initial @ optimal_values_in_time(world.mdp, world.max_steps)[0].amax(-1))
    uniform = torch.full((world.observation_size, world.actions), 1 / world.actions)
    exact = interval(piece["exact"])
    return {
        "greedy Q-learning": metric(*exact, seeds),
        "greedy Q-learning, in Gymnasium's environment": metric(*interval(piece["played"]), seeds),
        "greedy Q-learning, worst seed": metric(min(piece["exact"]), None, None, seeds),
        "greedy Q-learning, share of the time-aware optimum": metric(*(bound / best for bound in exact), seeds, unit=""),
        "time-aware optimum": metric(best, None, None, 1) | {"published": PUBLISHED[lake], "source": "Gymnasium's registry"},
        "stationary optimum": metric(float(success(world, optimal_values(world.mdp, 0.999))), None, None, 1),
        "random actions": metric(float(expected_return(world.mdp, uniform, world.max_steps)), None, None, 1),
    }


def metric(value: float, low: float | None, high: float | None, n: int, unit: str = "probability of success") -> dict[str, Any]:
    bounds = {"low": None, "high": None} if low is None else {"low": float(low), "high": float(high)}
    return {"value": float(value), **bounds, "n": n, "unit": unit, "published": None, "source": None}
