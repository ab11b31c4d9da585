"""RL² in a maze with a hidden prize, against the best player there is, computed exactly; and MAML, for what gradients do there.

Trials of 100 steps in one maze. Every seed trains one recurrent policy and tests it on 800 trials, with the actions drawn from
the policy. A player's worth is the number of prizes that it finds; how much of that is memory shows in the length of its
walks, the first of which is a search: ``walk k`` is the number of steps to prize k beyond the shortest walk, counted from prize
k − 1, over the trials that found it.

The references are exact: they are played on all eight tasks. **MAML**, **domain randomisation** and **random init** have no
memory; they see 20 episodes before each gradient step, six trials' worth, and their figure is the return of an episode.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import maml, results, rl2
from ..evaluate import adaptation_curve, best_step_size
from ..maze import STEP_COST, Maze, best_player, distances, play, prizes_if_known, systematic, walks_to_prize
from ..nets import PolicyNet
from . import Progress, run_pieces
from .maml_cartpole import generator_for, metric

NAME = "maze"
SEEDS, TESTS, TRIAL, WALKS = 3, 800, 100, 4
WORLD = Maze()
STEP_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RL2 = rl2.Config(
    iterations=500, trials=128, trial_steps=TRIAL, gae_lambda=0.95, step_size=3e-3, entropy=0.1, value_coefficient=10.0
)
GRADIENTS = {
    "MAML": maml.Config(iterations=60),
    "domain randomisation": maml.Config(iterations=120, inner_steps=0, meta_step_size=2e-3),
    "random init": maml.Config(iterations=0, inner_steps=0),
}


def measure(method: str, seed: int, scale: float) -> dict[str, Any]:
    """Train and test one method with one seed: one piece of the experiment."""
    return remembering(seed, scale) if method == "RL²" else adapting(method, seed, scale)


def remembering(seed: int, scale: float) -> dict[str, Any]:
    config, curve = replace(RL2, seed=seed, iterations=max(1, round(RL2.iterations * scale))), []
    for log in rl2.train(WORLD, config):
        curve.append((log.env_steps, round(log.reward + STEP_COST * TRIAL, 2)))
    generator = generator_for(10_000, seed)
    policy = rl2.Policy(WORLD, config, generator)
    policy.load_state_dict(log.params)
    task = WORLD.sample_tasks(max(50, round(TESTS * scale)), generator, "test")
    trials = rl2.run_trials(WORLD, policy, task, TRIAL, generator)
    walks = walks_to_prize(trials.rewards)
    shortest = distances(task.reached[0].numpy())[WORLD.start, task.goal.numpy()]
    extra = [[walk[k] - d for walk, d in zip(walks, shortest, strict=True) if len(walk) > k] for k in range(WALKS)]
    return {
        "prizes": float((trials.rewards > 0).sum(-1).float().mean()),
        "walks": [float(np.mean(beyond)) if beyond else None for beyond in extra],
        "found": [len(beyond) / len(walks) for beyond in extra],
        "curve": curve[:: max(1, len(curve) // 60)],
        "env_steps": log.env_steps,
    }


def adapting(method: str, seed: int, scale: float) -> dict[str, Any]:
    config = replace(GRADIENTS[method], seed=seed, iterations=round(GRADIENTS[method].iterations * scale))
    policy = PolicyNet(WORLD.observation_size, WORLD.actions)
    state = maml.initial_state(WORLD, policy, config)
    for log in maml.train(WORLD, policy, config):
        state = log.state
    theta, task = state["params"], WORLD.all_tasks("test")
    alpha: Any = {name: log_alpha.exp() for name, log_alpha in state["log_step_sizes"].items()}
    if method != "MAML":
        alpha = best_step_size(WORLD, policy, theta, STEP_SIZES, WORLD.all_tasks("validation"), 30_000 + seed)
    after = adaptation_curve(WORLD, policy, theta, alpha, task, generator_for(20_000, seed), 3).mean(-1).tolist()
    return {"after": after, "env_steps": state["env_steps"], "step size": alpha if method != "MAML" else None}


def references() -> dict[str, float]:
    """Prizes in a trial, averaged over the eight tasks: exact, except for the random walk, which is played often."""
    task = WORLD.all_tasks()
    reached, rng = task.reached[0].numpy(), np.random.default_rng(0)
    value, _ = best_player(WORLD, reached, task.goal.tolist(), TRIAL)

    def mean(player: Any, times: int = 1) -> float:
        return float(np.mean([play(WORLD, task, player, TRIAL, i).prizes for i in range(len(task.goal)) for _ in range(times)]))

    return {
        "best player": value,
        "systematic search": mean(systematic(reached)),
        "knows the goal": float(prizes_if_known(WORLD, task, TRIAL).mean()),
        "random walk": mean(lambda *_: int(rng.integers(4)), 200),
    }


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    folder = Path("runs") / f"{NAME}-{hashlib.sha256(repr((RL2, GRADIENTS, TESTS, scale)).encode()).hexdigest()[:8]}"
    pieces = [(method, seed, scale) for seed in range(seeds) for method in ("RL²", *GRADIENTS)]
    done = dict(zip(pieces, run_pieces(measure, pieces, folder, progress), strict=True))
    own = [done["RL²", seed, scale] for seed in range(seeds)]
    metrics = {"RL² · prizes": metric([piece["prizes"] for piece in own], "prizes in 100 steps")}
    for k in range(WALKS):
        metrics[f"RL² · found prize {k + 1}"] = metric([piece["found"][k] for piece in own], "share of trials")
        if all(piece["walks"][k] is not None for piece in own):
            metrics[f"RL² · walk {k + 1}"] = metric([piece["walks"][k] for piece in own], "steps beyond the shortest walk")
    for name, value in references().items():
        unit = {"unit": "prizes in 100 steps", "published": None, "source": None}
        metrics[f"{name} · prizes"] = {"value": value, "low": None, "high": None, "n": len(WORLD.all_tasks().goal)} | unit
    for method in GRADIENTS:
        for k, after_k in enumerate(zip(*(done[method, seed, scale]["after"] for seed in range(seeds)), strict=True)):
            metrics[f"{method} · after {k}"] = metric(after_k, "return of an episode, of at most 1")
    for method in ("RL²", *GRADIENTS):
        steps = [done[method, seed, scale]["env_steps"] for seed in range(seeds)]
        metrics[f"{method} · environment steps"] = metric(steps, "environment steps")
    return {
        "name": NAME,
        "title": "A hidden prize in a maze: RL² against the best player",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {"RL²": asdict(RL2)} | {name: asdict(config) for name, config in GRADIENTS.items()},
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": {"RL² · training, environment steps and prizes a trial": [piece["curve"] for piece in own]},
    }
