"""MAML on CartPole against everything that could make its adaptation look better than it is.

For every seed: train each method on a distribution's training tasks, then measure the return after 0–3 inner steps on 40
tasks of its test split and 40 of its out-of-distribution split. The methods of one seed see the same tasks; seeds see
different ones, so that the interval over seeds covers both.

- **MAML**, and on *flipwide* its ablations: first-order, the naive surrogate, one episode per task instead of twenty
  (with twenty times the tasks), and inner step sizes that are not learned: right, ten times too small, ten too large.
- **Domain randomisation**: one policy for all training tasks, with MAML's environment steps, then fine-tuned.
- **Random init**: a fresh network, fine-tuned.
- **Oracle**: domain randomisation for a policy that is shown the task's physics. It has nothing left to adapt to.

Fine-tuned methods use, for each number of steps, the step size of ``STEP_SIZES`` that scored best with that number
of steps on 20 validation tasks. ``TRIALS`` lists the step sizes that were tried for MAML and for pretraining on
*flipwide*, by the return on validation tasks after one step, with seeds that take no part in the result. Among MAML's the
differences are smaller than those between two seeds, and the library's defaults stay; pretraining does best with the
smallest, that is, with the least of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint, maml, results
from ..cartpole import CartPole, policy_for
from ..evaluate import adaptation_curve, interval
from . import Progress, run_pieces

NAME = "maml-cartpole"
STEPS = 3
STEP_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TUNING_SEEDS = (1000, 1001)
TEST_TASKS, VALIDATION_TASKS = 40, 20

MAML = maml.Config(iterations=20)
PRETRAINING = maml.Config(iterations=120, inner_steps=0, meta_step_size=5e-4)
METHODS = {
    "flipwide": {
        "MAML": MAML,
        "domain randomisation": PRETRAINING,
        "random init": replace(PRETRAINING, iterations=0),
        "oracle": maml.Config(iterations=60, inner_steps=0, epochs=5),
        "first-order MAML": replace(MAML, first_order=True),
        "naive surrogate": replace(MAML, surrogate="log_prob"),
        "one episode": replace(MAML, episodes=1, tasks=400, group=100),
        "fixed step 0.05": replace(MAML, step_sizes="fixed", inner_step_size=0.05),
        "fixed step 0.5": replace(MAML, step_sizes="fixed"),
        "fixed step 5": replace(MAML, step_sizes="fixed", inner_step_size=5.0),
    },
    "mild": {
        "MAML": MAML,
        "domain randomisation": replace(PRETRAINING, iterations=40, meta_step_size=5e-3),
        "random init": replace(PRETRAINING, iterations=0),
    },
}
PAIRS = [(distribution, method) for distribution, methods in METHODS.items() for method in methods]
SPLITS = ("test", "ood")
TRIALS = {  # what the outer step size β and, for MAML, the initial inner one α were chosen from
    f"MAML, β {beta:g}, α {alpha:g}": replace(MAML, meta_step_size=beta, inner_step_size=alpha)
    for beta in (2e-3, 5e-3, 1e-2)
    for alpha in (0.5, 3.0)
} | {f"domain randomisation, β {beta:g}": replace(PRETRAINING, meta_step_size=beta) for beta in (5e-4, 2e-3, 5e-3)}


def train(distribution: str, method: str, config: maml.Config) -> tuple[CartPole, Any, list[list[float]], int]:
    """The world, the last state, the training returns per iteration and the environment steps taken."""
    world = CartPole(distribution, observe_task=method == "oracle")
    policy = policy_for(world)
    state, curve = maml.initial_state(world, policy, config), []
    for log in maml.train(world, policy, config):
        state = log.state
        curve.append([round(r, 1) for r in log.returns])
    return world, state, curve, state["env_steps"]


def measure(distribution: str, method: str, seed: int, scale: float) -> dict[str, Any]:
    """Train one method with one seed and measure it on held-out tasks: one piece of the experiment."""
    config = METHODS[distribution][method]
    config = replace(config, seed=seed, iterations=round(config.iterations * scale))
    world, state, training, env_steps = train(distribution, method, config)
    theta, piece = state["params"], {"training": training, "env_steps": env_steps}
    learned = {name: log_alpha.exp() for name, log_alpha in state["log_step_sizes"].items()}
    fine_tuned = method in ("domain randomisation", "random init")
    if fine_tuned:
        piece["step_sizes"] = best_step_sizes(world, theta, seed, config)
    for split in SPLITS:
        tasks = world.sample_tasks(max(2, round(TEST_TASKS * scale)), generator_for(10_000, seed), split)
        if fine_tuned:  # one evaluation for each step size that some number of steps has chosen
            curves = {alpha: evaluate(world, theta, alpha, tasks, seed, config) for alpha in set(piece["step_sizes"])}
            chosen = [piece["step_sizes"][0], *piece["step_sizes"]]
            piece[split] = [curves[alpha][k] for k, alpha in enumerate(chosen)]
        elif method == "oracle":
            piece[split] = evaluate(world, theta, learned, tasks, seed, config, steps=0)
        else:
            piece[split] = evaluate(world, theta, learned, tasks, seed, config)
    if seed == 0:
        piece["params"] = {name: p.tolist() for name, p in theta.items()}
        piece["learned"] = {name: alpha.tolist() for name, alpha in learned.items()}
    return piece


def generator_for(stream: int, seed: int) -> torch.Generator:
    """Random numbers for one purpose, the same for every method of a seed."""
    return torch.Generator().manual_seed(stream + seed)


def evaluate(
    world: CartPole, theta: dict, alpha: Any, tasks: Any, seed: int, config: maml.Config, steps: int = STEPS
) -> list[float]:
    """Return after 0 … ``steps`` steps, averaged over tasks. One episode a task before each step if so trained, else 20."""
    episodes = 1 if config.episodes == 1 else 20
    generator = generator_for(20_000, seed)
    curve = adaptation_curve(world, policy_for(world), theta, alpha, tasks, generator, steps, episodes, config.surrogate)
    return curve.mean(-1).tolist()


def best_step_sizes(world: CartPole, theta: dict, seed: int, config: maml.Config) -> list[float]:
    """For 1 … STEPS steps, the fixed step size that earned most on validation tasks after that many."""
    tasks = world.sample_tasks(VALIDATION_TASKS, generator_for(30_000, seed), "validation")
    curves = torch.tensor([evaluate(world, theta, alpha, tasks, seed, config) for alpha in STEP_SIZES])
    best = curves.argmax(0)
    return [STEP_SIZES[int(best[k])] for k in range(1, STEPS + 1)]


def tune(label: str, seed: int, scale: float) -> dict[str, Any]:
    """Return on *flipwide* validation tasks after one step, for one of ``TRIALS``."""
    config = replace(TRIALS[label], seed=seed, iterations=round(TRIALS[label].iterations * scale))
    world, state, _, _ = train("flipwide", label, config)
    tasks = world.sample_tasks(2 * VALIDATION_TASKS, generator_for(50_000, seed), "validation")
    alpha: Any = {name: log_alpha.exp() for name, log_alpha in state["log_step_sizes"].items()}
    if not config.inner_steps:
        alpha = best_step_sizes(world, state["params"], seed, config)[0]
    return {"return": evaluate(world, state["params"], alpha, tasks, seed, config, steps=1)[1]}


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = 10 if seeds is None else seeds
    digest = hashlib.sha256(repr((METHODS, TRIALS, scale)).encode()).hexdigest()[:8]
    folder = Path("runs") / f"{NAME}-{digest}"
    pieces = [(*pair, seed, scale) for seed in range(seeds) for pair in PAIRS]
    done = dict(zip(pieces, run_pieces(measure, pieces, folder, progress), strict=True))
    trials = [(label, seed, scale) for label in TRIALS for seed in TUNING_SEEDS]
    tuned = dict(zip(trials, run_pieces(tune, trials, folder / "tuning", progress), strict=True))

    metrics, curves, chosen = {}, {}, {}
    for distribution, method in PAIRS:
        of_pair = [done[distribution, method, seed, scale] for seed in range(seeds)]
        label = f"{distribution} · {method}"
        metrics[f"{label} · environment steps"] = metric([piece["env_steps"] for piece in of_pair], "environment steps")
        curves[f"{distribution} · training · {method}"] = [piece["training"] for piece in of_pair]
        if "step_sizes" in of_pair[0]:
            chosen[label] = [piece["step_sizes"] for piece in of_pair]
        for split in SPLITS:
            samples = curves[f"{distribution} · {split} · {method}"] = [piece[split] for piece in of_pair]
            for k, after_k in enumerate(zip(*samples, strict=True)):
                metrics[f"{distribution} · {split} · {method} · after {k}"] = metric(after_k, "return, of at most 200")
    if scale == 1:
        save_weights(done)
    return {
        "name": NAME,
        "title": "MAML on CartPole: adaptation on held-out tasks",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "methods": {d: {name: asdict(config) for name, config in methods.items()} for d, methods in METHODS.items()},
            "test tasks a seed": TEST_TASKS,
            "validation tasks a seed": VALIDATION_TASKS,
            "step sizes tried": list(STEP_SIZES),
            "step sizes chosen after 1, 2, 3 steps": chosen,
            "tuning": {label: [tuned[label, seed, scale]["return"] for seed in TUNING_SEEDS] for label in TRIALS},
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in [*done.values(), *tuned.values()]),
        "metrics": metrics,
        "curves": curves,
    }


def metric(samples: Any, unit: str) -> dict[str, Any]:
    """Mean and interval over seeds. No comparable figure is in print."""
    mean, low, high = (float(x) for x in interval(samples))
    return {"value": mean, "low": low, "high": high, "n": len(samples), "unit": unit, "published": None, "source": None}


def save_weights(done: dict) -> None:
    """Seed 0's weights and step sizes for *flipwide*, beside the result, for whoever wants to see them move."""
    weights = {}
    for method in ("MAML", "first-order MAML", "domain randomisation"):
        piece = done["flipwide", method, 0, 1.0]
        weights[method] = {
            "params": {name: torch.tensor(p) for name, p in piece["params"].items()},
            "step_sizes": {name: torch.tensor(alpha) for name, alpha in piece["learned"].items()},
        }
    checkpoint.save(results.folder() / f"{NAME}.pt", weights)
