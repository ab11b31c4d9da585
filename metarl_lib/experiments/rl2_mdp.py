"""RL² on random tabular decision processes, against posterior sampling that knows the prior :cite:p:`duan2016rl2`.

Trials of 10 and of 25 episodes, ten steps each. Every seed trains one policy with attention and tests it on 4,000 new tasks, with
the actions drawn from the policy; posterior sampling plays 10,000 tasks. A recurrent policy, the paper's, had learned less from
as many steps (``TRIED``). What an agent would earn that knew its task is the bound.

``TRIED`` lists what the settings were chosen from: the reward of trials with seed 1000, which takes no part here, but for one
entry, which says so and which ruled a setting out.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checkpoint, results, rl2
from ..evaluate import interval
from ..random_mdps import RandomMDPs, best_return, psrl
from . import Progress, run_pieces

NAME = "rl2-mdp"
SEEDS, TESTS, PLAYS = 3, 4000, 10_000
SAVED = 10  # episodes: seed 0's weights are kept
WORLD = RandomMDPs()
_CONFIG = rl2.Config(memory="attention", width=64, gae_lambda=0.5, step_size=2e-3, entropy=0.02, value_coefficient=1.0)
CONFIGS = {
    10: replace(_CONFIG, iterations=250, trial_steps=100),
    25: replace(_CONFIG, iterations=120, trial_steps=250, curriculum=((0.8, 100),)),
}
# Reward a trial of 10 episodes, mean over 5 iterations of training with 256 trials each, where not said otherwise.
TRIED = {
    "λ .3, entropy .05, iteration 45 of 150, where it was highest": 122.9,
    "λ .3, entropy .05, iteration 70 of 150, where it was stopped": 116.2,
    "λ .5, entropy .02, step 2e-3, 150 iterations": 125.3,
    "λ .8, 150 iterations": 124.3,
    "λ .8, 300 iterations, seeds 0 and 1 on 4,000 test tasks, mean; one of the two earned 112.2": 122.3,
    "λ .8, value coefficient 30, iteration 30 of 150, where it was stopped": 99.8,
    "gru of width 64, λ .3, step 5e-3, entropy .05, 5 episodes counted twice, iteration 235 of 300, where it was stopped": 109.4,
    "gru of width 64, λ .3, step 5e-3, 512 trials, iteration 15 of 120, where it was stopped": 100.8,
}
SOURCE = "Duan et al. (2016), table 2"
PUBLISHED = {"RL²": {10: 156.2, 25: 445.7}, "posterior sampling": {10: 138.1, 25: 408.8}, "random": {10: 100.1, 25: 250.2}}


def configured(episodes: int, seed: int, scale: float) -> rl2.Config:
    config = CONFIGS[episodes]
    return replace(config, seed=seed, iterations=max(1, round(config.iterations * scale)))


def measure(episodes: int, seed: int, scale: float) -> dict[str, Any]:
    """Train one policy; its mean reward on new tasks, and what an episode earns, first to last."""
    config, curve = configured(episodes, seed, scale), []
    for log in rl2.train(WORLD, config):
        curve.append((log.env_steps, round(log.reward, 1)))
    generator = torch.Generator().manual_seed(10_000 + seed)
    policy = rl2.Policy(WORLD, config, generator)
    policy.load_state_dict(log.params)
    task = WORLD.sample_tasks(max(100, round(TESTS * scale)), generator, "test")
    rewards = rl2.run_trials(WORLD, policy, task, episodes * WORLD.max_steps, generator).rewards
    by_episode = rewards.unflatten(1, (episodes, -1)).sum(-1).mean(0).double().numpy().round(3).tolist()
    kept = {"params": {name: p.tolist() for name, p in log.params.items()}} if (episodes, seed) == (SAVED, 0) else {}
    return kept | {
        "reward": float(rewards.sum(-1).mean()),
        "by episode": by_episode,
        "curve": curve[:: max(1, len(curve) // 60)],
        "env_steps": log.env_steps,
    }


def play_reference(episodes: int, scale: float) -> dict[str, Any]:
    """Posterior sampling, and what knowing the task is worth, on the same tasks."""
    task = WORLD.sample_tasks(max(100, round(PLAYS * scale)), torch.Generator().manual_seed(0), "test")
    total = psrl(WORLD, task, episodes, np.random.default_rng(0))
    value = torch.zeros(len(task.reward), WORLD.states)  # of random actions, by backward induction
    for _ in range(WORLD.max_steps):
        value = task.reward.mean(-1) + (task.transition.mean(2) @ value[..., None])[..., 0]
    random = value[:, 0].double().numpy() * episodes
    summed = {"posterior sampling": total, "best policy for the task": best_return(WORLD, task) * episodes, "random": random}
    return {name: [float(x) for x in interval(values)] for name, values in summed.items()} | {"n": len(total)}


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    folder = Path("runs") / f"{NAME}-{hashlib.sha256(repr((CONFIGS, TESTS)).encode()).hexdigest()[:8]}"
    trained = [(episodes, seed, scale) for episodes in CONFIGS for seed in range(seeds)]
    pieces = dict(zip(trained, run_pieces(measure, trained, folder, progress), strict=True))
    played = [(episodes, scale) for episodes in CONFIGS]
    references = dict(zip(CONFIGS, run_pieces(play_reference, played, folder, progress), strict=True))
    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for episodes, reference in references.items():
        own = [pieces[episodes, seed, scale] for seed in range(seeds)]
        metrics[f"{episodes} episodes · RL²"] = metric(*interval([p["reward"] for p in own]), seeds, "RL²", episodes)
        for name in ("posterior sampling", "best policy for the task", "random"):
            metrics[f"{episodes} episodes · {name}"] = metric(*reference[name], reference["n"], name, episodes)
        curves[f"{episodes} episodes · RL² · return by episode"] = [p["by episode"] for p in own]
        curves[f"{episodes} episodes · RL² · training, environment steps and reward a trial"] = own[0]["curve"]
    if scale == 1:
        params = pieces[SAVED, 0, scale]["params"]
        checkpoint.save(results.folder() / f"{NAME}.pt", {"attention": {name: torch.tensor(p) for name, p in params.items()}})
    return {
        "name": NAME,
        "title": "RL² on random decision processes, against posterior sampling",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {f"{n} episodes": asdict(configured(n, 0, scale)) for n in CONFIGS} | {"tried": TRIED},
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in (*pieces.values(), *references.values())),
        "metrics": metrics,
        "curves": curves,
    }


def metric(value: float, low: float, high: float, n: int, name: str, episodes: int) -> dict[str, Any]:
    published = PUBLISHED.get(name, {}).get(episodes)
    source = SOURCE if published is not None else None
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
        "n": n,
        "unit": "reward a trial",
        "published": published,
        "source": source,
    }
