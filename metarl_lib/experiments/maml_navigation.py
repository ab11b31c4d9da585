"""MAML on 2-D navigation :cite:p:`finn2017model`: three outer updates, and what adapts without meta-learning.

For every seed: train each method on goals of the training split, then measure the return after 0–3 gradient steps on the forty
goals that the paper's released code evaluates on, on 40 goals of the test split, and on 40 outside the square. The methods of
one seed see the same held-out goals; seeds see different ones, except that the paper's are always the same.

- **MAML**, trained for one step of adaptation as in the paper, by three outer updates at equal interaction: *clipped* (three
  epochs of Adam on a clipped ratio), *Adam* (one step of it on the plain gradient) and *trust region*, the paper's own.
- **Pretraining**: one policy for all training goals, with MAML's environment steps, then fine-tuned.
- **Random init**: a fresh network, fine-tuned.
- **Oracle**: goes straight to the goal. Its return is exact.

A gradient step uses twenty episodes, as in training; on the paper's goals forty, as in the released evaluation, which collects
4,000 steps for it. The released code halves the step size after the first step; here every method may, by the factor of
``LATER`` that earned most on 20 validation goals after as many steps. Fine-tuned methods have a step size of ``STEP_SIZES``
chosen along with it; MAML has the ones that it learned.

What differs from the released code besides the outer update: two layers of 64 tanh units for 100 ReLUs; a smaller initial
standard deviation; step sizes that are learned; a baseline that is never fitted on the episodes that it scores. ``TRIED``
says what was tuned.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint, maml, results
from ..evaluate import adaptation_curve, interval
from ..navigation import Goal, Navigation, best_return, paper_goals, policy_for
from . import Progress, run_pieces
from .maml_cartpole import generator_for

NAME = "maml-navigation"
STEPS = 3
LEARNED = "learned"
STEP_SIZES = (0.03, 0.1, 0.3, 1.0, 3.0)
LATER = (1.0, 0.5, 0.25)  # lengths of the steps after the first, as fractions of the first's
TEST_GOALS, VALIDATION_GOALS = 40, 20
SPLITS = ("paper", "test", "ood")
WORLD = Navigation()
POLICY = policy_for(WORLD)

MAML = maml.Config(iterations=30, step_sizes="per_parameter", gae_lambda=0.9)
METHODS = {
    "MAML, clipped": MAML,
    "MAML, Adam": replace(MAML, clip=0, epochs=1, meta_step_size=1.5e-2),
    "MAML, trust region": replace(MAML, outer="trust_region", radius=0.04),
    "pretraining": replace(MAML, inner_steps=0, iterations=60),
    "random init": replace(MAML, inner_steps=0, iterations=0),
}
ORACLE = "oracle"
FINE_TUNED = ("pretraining", "random init")
TRIED = {
    "MAML, clipped: return on 40 validation goals after 1, 2, 3 steps, later ones half as long; seed 1000": {
        "50 iterations, λ 1, initial std 1, a step size a tensor": [-12.5, -8.6, -8.0],
        "50 iterations, λ 1, initial std 1, initial step size 0.2": [-12.5, -6.7, -6.4],
        "25 iterations, λ 0.97, initial std 1": [-12.9, -7.1, -7.3],
        "25 iterations, λ 0.97, initial std 1, β 0.01": [-13.3, -8.6, -7.3],
        "25 iterations, λ 0.9, initial std 1": [-12.7, -6.5, -5.7],
        "25 iterations, λ 0.9": [-12.4, -7.5, -6.1],
        "18 iterations, λ 1, initial std 0.3, initial step size 0.2": [-14.5, -21.5, -14.3],
    },
    "MAML, Adam: return on training goals after 1 step, iterations 17 to 20; seed 1000": {"β 0.005": -14.3, "β 0.015": -13.4},
    "MAML, trust region: likewise, iterations 7 and 8": {"δ 0.04": -15.5},
    "pretraining": "nothing but the step sizes of fine-tuning",
}

# In the paper's released result files: mean over the forty goals and half-width of its 95% interval, for a single policy.
SOURCE = "cbfinn/maml_rl, icml/"
RELEASED = {
    "MAML, trust region": ("−40.41 ± 4.01", "−11.68 ± 2.16", "−3.33 ± 0.55", "−3.23 ± 0.58"),
    "random init": ("−82.66 ± 2.16", "−57.96 ± 1.84", "−53.84 ± 1.62", "−46.81 ± 1.28"),
}
ORACLE_RELEASED = "−2.29 ± 0.14"


def measure(method: str, seed: int, scale: float) -> dict[str, Any]:
    """Train one method with one seed and measure it on held-out goals: one piece of the experiment."""
    config = METHODS[method]
    config = replace(config, seed=seed, iterations=round(config.iterations * scale))
    state, piece = maml.initial_state(WORLD, POLICY, config), {"training": [], "env_steps": []}
    started = time.process_time()
    for log in maml.train(WORLD, POLICY, config):
        state = log.state
        piece["training"].append([round(r, 2) for r in log.returns])
        piece["env_steps"].append(log.env_steps)
    piece["training_seconds"] = time.process_time() - started

    theta, learned = state["params"], {name: p.exp() for name, p in state["log_step_sizes"].items()}
    piece["chosen"] = best_step_sizes(theta, learned, method in FINE_TUNED, seed, config)
    for split in SPLITS:  # one evaluation for each pair that some number of steps has chosen
        tasks, episodes = goals(split, seed, scale), 40 if split == "paper" else 20
        curves = {pair: evaluate(theta, learned, pair, tasks, seed, config, episodes) for pair in set(piece["chosen"])}
        pairs = [piece["chosen"][0], *piece["chosen"]]
        piece[split] = [curves[pair][k] for k, pair in enumerate(pairs)]
    if seed == 0:
        piece["params"] = {name: p.tolist() for name, p in theta.items()}
        piece["learned"] = {name: p.tolist() for name, p in learned.items()}
    return piece


def goals(split: str, seed: int, scale: float) -> Goal:
    """What is measured on."""
    if split == "paper":
        return paper_goals(WORLD.dtype)
    return WORLD.sample_tasks(max(2, round(TEST_GOALS * scale)), generator_for(10_000, seed), split)


def evaluate(
    theta: dict, learned: dict, pair: tuple[Any, float], tasks: Goal, seed: int, config: maml.Config, episodes: int = 20
) -> list[float]:
    """Return after 0 … STEPS steps, averaged over goals; ``pair`` is a step size, or LEARNED, and the factor on later steps."""
    alpha, later = pair
    alpha, settings = learned if alpha == LEARNED else alpha, (config.surrogate, config.discount, config.gae_lambda)
    generator = generator_for(20_000, seed)
    return adaptation_curve(WORLD, POLICY, theta, alpha, tasks, generator, STEPS, episodes, *settings, later).mean(-1).tolist()


def best_step_sizes(theta: dict, learned: dict, fine_tuned: bool, seed: int, config: maml.Config) -> list[tuple[Any, float]]:
    """For 1 … STEPS steps, the step size and the factor on later ones that earned most on validation goals after that many."""
    tasks = WORLD.sample_tasks(VALIDATION_GOALS, generator_for(30_000, seed), "validation")
    pairs = [(alpha, later) for alpha in (STEP_SIZES if fine_tuned else (LEARNED,)) for later in LATER]

    def earned(pair: tuple[Any, float]) -> list[float]:
        try:
            return evaluate(theta, learned, pair, tasks, seed, config)
        except FloatingPointError:  # a step so long that nothing is finite after it
            return [-math.inf] * (STEPS + 1)

    best = torch.tensor([earned(pair) for pair in pairs]).argmax(0)
    return [pairs[int(best[k])] for k in range(1, STEPS + 1)]


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = 5 if seeds is None else seeds
    digest = hashlib.sha256(repr((METHODS, POLICY, STEP_SIZES, scale)).encode()).hexdigest()[:8]
    pieces = [(method, seed, scale) for seed in range(seeds) for method in METHODS]
    done = dict(zip(pieces, run_pieces(measure, pieces, Path("runs") / f"{NAME}-{digest}", progress), strict=True))

    metrics, curves, chosen = {}, {}, {}
    for method in METHODS:
        of_method = [done[method, seed, scale] for seed in range(seeds)]
        for split in SPLITS:
            samples = curves[f"{split} · {method}"] = [piece[split] for piece in of_method]
            for k, after_k in enumerate(zip(*samples, strict=True)):
                published = RELEASED[method][k] if split == "paper" and method in RELEASED else None
                metrics[f"{split} · {method} · after {k}"] = metric(after_k, "return", published)
        metrics[f"{method} · environment steps"] = metric(
            [max(p["env_steps"], default=0) for p in of_method], "environment steps"
        )
        metrics[f"{method} · training time"] = metric([piece["training_seconds"] for piece in of_method], "CPU seconds")
        curves[f"training · {method}"] = [piece["training"] for piece in of_method]
        curves[f"environment steps · {method}"] = [piece["env_steps"] for piece in of_method]
        chosen[method] = [piece["chosen"] for piece in of_method]
    for split in SPLITS:
        best = [best_return(WORLD, goals(split, seed, scale)).mean().item() for seed in range(seeds)]
        metrics[f"{split} · {ORACLE}"] = metric(best, "return", ORACLE_RELEASED if split == "paper" else None)
    if scale == 1:
        save_weights(done)
    return {
        "name": NAME,
        "title": "MAML on 2-D navigation: three outer updates, and what adapts without meta-learning",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "methods": {name: asdict(config) for name, config in METHODS.items()},
            "policy": asdict(POLICY),
            "test goals a seed": TEST_GOALS,
            "validation goals a seed": VALIDATION_GOALS,
            "step sizes tried": list(STEP_SIZES),
            "factors on later steps tried": list(LATER),
            "step sizes and factors chosen after 1, 2, 3 steps": chosen,
            "tried": TRIED,
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": curves,
    }


def metric(samples: Any, unit: str, published: str | None = None) -> dict[str, Any]:
    """Mean and interval over seeds."""
    mean, low, high = (float(x) for x in interval(samples))
    source = SOURCE if published else None
    return {"value": mean, "low": low, "high": high, "n": len(samples), "unit": unit, "published": published, "source": source}


def save_weights(done: dict) -> None:
    """Seed 0's weights and step sizes, beside the result, for whoever wants to see them move."""
    weights = {}
    for method in ("MAML, clipped", "pretraining"):
        piece = done[method, 0, 1.0]
        weights[method] = {
            "params": {name: torch.tensor(p) for name, p in piece["params"].items()},
            "step_sizes": {name: torch.tensor(alpha) for name, alpha in piece["learned"].items()},
        }
    weights["pretraining"]["chosen"] = [list(pair) for pair in done["pretraining", 0, 1.0]["chosen"]]
    checkpoint.save(results.folder() / f"{NAME}.pt", weights)
