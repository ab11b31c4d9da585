"""RL² on Bernoulli bandits, against strategies that know the prior :cite:p:`duan2016rl2`.

Trials of 10 and of 100 pulls, with 5 and with 10 arms. Every seed trains one policy of each kind, recurrent and with
attention, and tests it on 10,000 new bandits, with the actions drawn from the policy. The references play 40,000 bandits each.
With 10 pulls the best possible play is known exactly, and greed is nearly as good; only the longer trials tell
exploration from greed.

``TRIED`` lists what the settings were chosen from, by the reward of trials with seed 1000, which takes no part here.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bandits, checkpoint, results, rl2
from ..evaluate import interval
from . import Progress, run_pieces

NAME = "rl2-bandits"
SEEDS, TESTS, PLAYS = 3, 10_000, 40_000
CELLS = ((10, 5), (10, 10), (100, 5), (100, 10))  # pulls, arms
SAVED = (100, 5)  # seed 0's weights are kept
SHORT = {
    "gru": rl2.Config(iterations=250, trials=1024, trial_steps=10, gae_lambda=0.3, step_size=8e-3, entropy=0.01),
    "attention": rl2.Config(iterations=250, trials=1024, trial_steps=10, gae_lambda=0.3, step_size=3e-3, entropy=0.02),
}
_LONG = rl2.Config(iterations=400, curriculum=((0.3, 25), (0.5, 50)), gae_lambda=0.95, value_coefficient=10.0)
LONG = {  # as many trials for either
    "gru": replace(_LONG, iterations=500),
    "attention": replace(_LONG, iterations=250, trials=512, minibatches=8, step_size=2e-3, entropy=0.1),
}
# Reward a trial of 100 pulls with 256 trials an iteration, where not said otherwise.
TRIED = {
    "gru, 5 arms: λ .6, 350 iterations, curriculum 25 → 33 → 100 at .2 and .5": 73.7,
    "gru, 5 arms: λ .9, 350 iterations, curriculum 25 → 50 → 100 at .2 and .5": 77.1,
    "gru, 10 arms: λ .9, 300 iterations": 80.1,
    "gru, 10 arms: λ .95, 250 iterations, curriculum 25 → 100 at .3, reward at iteration 210, where it was stopped": 78.5,
    "attention, 5 arms: λ .95, step 2e-3, entropy .1, 350 iterations of 512 trials in 8 minibatches": 77.5,
    "attention, 10 arms: λ .95, step 3e-3, entropy .1, reward a 100 pulls at iteration 160 of 350, where it was stopped": 56.7,
    "attention, 10 arms: λ .9, step 4e-3, entropy .03, reward at iteration 200 of 300, where it was stopped": 69.8,
    "attention, 10 arms: λ .95, step 4e-3, small random places, reward a 100 pulls at iteration 180, where it was stopped": 57.2,
    "attention, 10 arms: λ .9, step 4e-3, entropy .03, small random places": 78.4,
    "attention, 10 arms: λ .95, step 4e-3, entropy .06, 250 iterations, inputs embedded by two layers": 76.3,
    "attention, 10 arms: 100 iterations of 25 pulls, reward a 100 pulls, large random places": 66.1,
    "attention, 10 arms: 100 iterations of 25 pulls, reward a 100 pulls, small random places": 68.9,
    "attention, 10 arms: 100 iterations of 25 pulls, reward a 100 pulls, small places, inputs embedded by two layers": 64.6,
}
LABELS = {"gru": "RL², recurrent", "attention": "RL² with attention"}
STRATEGIES = {
    "random": bandits.random,
    "Thompson sampling": bandits.thompson,
    "optimistic Thompson sampling": bandits.optimistic_thompson,
    "UCB1": bandits.ucb1,
    "greedy posterior mean": bandits.greedy,
    "Gittins index": None,  # a table for the number of pulls
}
SOURCE = "Duan et al. (2016), table 1"
# In print, by cell. Their UCB1 was tuned and their greedy play broke ties in its own way: those are other strategies than ours.
PUBLISHED = {
    "RL², recurrent": (6.7, 6.7, 78.7, 83.5),
    "random": (5.0, 5.0, 49.9, 49.9),
    "Thompson sampling": (5.7, 5.5, 74.7, 76.7),
    "Gittins index": (6.6, 6.6, 78.3, 82.8),
}


def configured(memory: str, pulls: int, seed: int, scale: float) -> rl2.Config:
    config = (SHORT if pulls == 10 else LONG)[memory]
    width = 32 if memory == "attention" else 64
    return replace(config, memory=memory, width=width, seed=seed, iterations=max(1, round(config.iterations * scale)))


def measure(memory: str, pulls: int, arms: int, seed: int, scale: float) -> dict[str, Any]:
    """Train one policy; its mean reward on new bandits, sampled and greedy, in all and by pull."""
    world, config = bandits.Bandits(arms), configured(memory, pulls, seed, scale)
    curve = []
    for log in rl2.train(world, config):
        curve.append((log.env_steps, round(log.reward / log.trial_steps, 3)))
    generator = torch.Generator().manual_seed(10_000 + seed)
    policy = rl2.Policy(world, config, generator)
    policy.load_state_dict(log.params)
    task = world.sample_tasks(max(100, round(TESTS * scale)), generator, "test")
    piece: dict[str, Any] = {"curve": curve[:: max(1, len(curve) // 60)], "env_steps": log.env_steps}
    for name, greedy in (("sampled", False), ("greedy", True)):
        trials = rl2.run_trials(world, policy, task, pulls, generator, greedy)
        piece[name] = float(trials.rewards.sum(-1).mean())
        piece[f"{name} by pull"] = trials.rewards.mean(0).double().numpy().round(4).tolist()
    if (pulls, arms) == SAVED and seed == 0:
        piece["params"] = {name: p.tolist() for name, p in log.params.items()}
    return piece


def play_reference(name: str, pulls: int, arms: int, scale: float) -> dict[str, Any]:
    """The mean reward of one strategy, and its interval."""
    strategy = STRATEGIES[name] or bandits.gittins(pulls)
    rng = np.random.default_rng(0)
    total = bandits.play(strategy, rng.random((max(100, round(PLAYS * scale)), arms)), pulls, rng)
    return {"interval": [float(x) for x in interval(total)], "n": len(total)}


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr((SHORT, LONG, TESTS)).encode()).hexdigest()[:8]
    folder = Path("runs") / f"{NAME}-{digest}"
    trained = [(memory, *cell, seed, scale) for cell in CELLS for memory in LABELS for seed in range(seeds)]
    played = [(name, *cell, scale) for cell in CELLS for name in STRATEGIES]
    pieces = dict(zip(trained, run_pieces(measure, trained, folder, progress), strict=True))
    references = dict(zip(played, run_pieces(play_reference, played, folder, progress), strict=True))
    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for i, (pulls, arms) in enumerate(CELLS):
        cell = f"{pulls} pulls, {arms} arms"
        for memory, label in LABELS.items():
            own = [pieces[memory, pulls, arms, seed, scale] for seed in range(seeds)]
            metrics[f"{cell} · {label}"] = metric(*interval([p["sampled"] for p in own]), seeds, label, i)
            metrics[f"{cell} · {label}, most probable action"] = metric(*interval([p["greedy"] for p in own]), seeds)
            curves[f"{cell} · {label} · reward by pull"] = [p["sampled by pull"] for p in own]
            curves[f"{cell} · {label} · training, environment steps and reward a pull"] = own[0]["curve"]
        for name in STRATEGIES:
            piece = references[name, pulls, arms, scale]
            metrics[f"{cell} · {name}"] = metric(*piece["interval"], piece["n"], name, i)
        if pulls == 10:
            metrics[f"{cell} · best possible"] = metric(bandits.best_expected_reward(arms, pulls), None, None, 1)
    everything = [*pieces.values(), *references.values()]
    if scale == 1:
        save_weights({memory: pieces[(memory, *SAVED, 0, scale)]["params"] for memory in LABELS})
    configs = {f"{LABELS[m]}, {pulls} pulls": asdict(configured(m, pulls, 0, scale)) for m in LABELS for pulls in (10, 100)}
    return {
        "name": NAME,
        "title": "RL² on bandits: what exploration is worth",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": configs | {"tried": TRIED},
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in everything),
        "metrics": metrics,
        "curves": curves,
    }


def save_weights(params: dict[str, dict[str, Any]]) -> None:
    """Seed 0's weights, by memory, beside the result, for whoever wants to look into the policies."""
    weights = {memory: {name: torch.tensor(p) for name, p in leaves.items()} for memory, leaves in params.items()}
    checkpoint.save(results.folder() / f"{NAME}.pt", weights)


def metric(value: float, low: float | None, high: float | None, n: int, name: str = "", cell: int = 0) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if low is None else {"low": float(low), "high": float(high)}
    published = PUBLISHED[name][cell] if name in PUBLISHED else None
    source = SOURCE if name in PUBLISHED else None
    return {"value": float(value), **bounds, "n": n, "unit": "reward a trial", "published": published, "source": source}
