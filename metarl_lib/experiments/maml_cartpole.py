"""MAML on CartPole against everything that could make its adaptation look better than it is.

For every seed: train each method on a distribution's training tasks, then measure the return after 0–3 inner steps on 60
tasks of its test split and 60 of its out-of-distribution split. The methods of one seed see the same tasks; seeds see
different ones, so that the interval over seeds covers both.

- **MAML**, and on *flipwide* its ablations: first-order, the naive surrogate, one episode per task instead of twenty
  (with twenty times the tasks, at equal interaction), and a fixed inner step ten times too small or too large.
- **Domain randomisation**: one policy for all training tasks, given at least MAML's environment steps, then fine-tuned.
- **Random init**: a fresh network, fine-tuned.
- **Oracle**: domain randomisation for a policy that is shown the task's physics. It has nothing left to adapt to.

Fine-tuned methods use, for each number of steps, the step size of ``STEP_SIZES`` that scored best with that number
of steps on 40 validation tasks. ``TRIALS`` lists what the outer step sizes were chosen from, on validation tasks of
*flipwide* after one step, with seeds that take no part in the result.
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
TEST_TASKS, VALIDATION_TASKS = 60, 40

MAML = maml.Config(iterations=20)
PRETRAINING = maml.Config(iterations=80, inner_steps=0)
ORACLE = maml.Config(iterations=60, inner_steps=0, epochs=5)
METHODS = {
    "MAML": MAML,
    "domain randomisation": PRETRAINING,
    "random init": replace(PRETRAINING, iterations=0),
    "oracle": ORACLE,
}
ABLATIONS = {
    "first-order MAML": replace(MAML, first_order=True),
    "naive surrogate": replace(MAML, surrogate="log_prob"),
    "one episode": replace(MAML, episodes=1, tasks=400, group=100),
    "fixed step 0.05": replace(MAML, step_sizes="fixed", inner_step_size=0.05),
    "fixed step 0.5": replace(MAML, step_sizes="fixed"),
    "fixed step 5": replace(MAML, step_sizes="fixed", inner_step_size=5.0),
}
TRIALS = {  # what the outer step size β and, for MAML, the initial inner one α were chosen from
    f"MAML, β {beta:g}, α {alpha:g}": replace(MAML, meta_step_size=beta, inner_step_size=alpha)
    for beta in (2e-3, 5e-3, 1e-2)
    for alpha in (0.5, 3.0)
} | {f"domain randomisation, β {beta:g}": replace(PRETRAINING, meta_step_size=beta) for beta in (2e-3, 5e-3, 1e-2)}
PAIRS = [(distribution, method) for distribution in ("flipwide", "mild") for method in METHODS] + [
    ("flipwide", method) for method in ABLATIONS
]


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
    config = (METHODS | ABLATIONS)[method]
    config = replace(config, seed=seed, iterations=round(config.iterations * scale))
    world, state, training, env_steps = train(distribution, method, config)
    theta = state["params"]
    if config.inner_steps:
        chosen = [{name: log_alpha.exp() for name, log_alpha in state["log_step_sizes"].items()}] * STEPS
    else:
        chosen = best_step_sizes(world, theta, seed, config)
    piece = {"training": training, "env_steps": env_steps}
    if not config.inner_steps:
        piece["step_sizes"] = chosen
    for split in ("test", "ood"):
        generator = torch.Generator().manual_seed(10_000 + seed)
        tasks = world.sample_tasks(max(2, round(TEST_TASKS * scale)), generator, split)
        curves = {}
        for k, alpha in enumerate(chosen):  # one evaluation serves every number of steps that chose its step size
            if k == 0 or alpha != chosen[k - 1]:
                generator.manual_seed(20_000 + seed)
                curves[k] = evaluate(world, theta, alpha, tasks, generator, config)
            else:
                curves[k] = curves[k - 1]
        piece[split] = [float(curves[0][0])] + [float(curves[k][k + 1]) for k in range(STEPS)]
    if seed == 0:
        piece["state"] = {name: p.tolist() for name, p in theta.items()}
        piece["alpha"] = {name: p.exp().tolist() for name, p in state["log_step_sizes"].items()}
    return piece


def evaluate(
    world: CartPole, theta: dict, alpha: Any, tasks: Any, generator: torch.Generator, config: maml.Config
) -> torch.Tensor:
    """Return after 0 … STEPS steps, averaged over tasks, ``[STEPS + 1]``."""
    episodes = 1 if config.episodes == 1 else 20
    curve = adaptation_curve(world, policy_for(world), theta, alpha, tasks, generator, STEPS, episodes, config.surrogate)
    return curve.mean(-1)


def best_step_sizes(world: CartPole, theta: dict, seed: int, config: maml.Config) -> list[float]:
    """For 1 … STEPS steps, the fixed step size that earned most on validation tasks after that many."""
    generator = torch.Generator().manual_seed(30_000 + seed)
    tasks = world.sample_tasks(VALIDATION_TASKS, generator, "validation")
    curves = []
    for alpha in STEP_SIZES:
        generator.manual_seed(40_000 + seed)
        curves.append(evaluate(world, theta, alpha, tasks, generator, config))
    best = torch.stack(curves).argmax(0)
    return [STEP_SIZES[int(best[k])] for k in range(1, STEPS + 1)]


def tune(label: str, seed: int, scale: float) -> dict[str, Any]:
    """Return on *flipwide* validation tasks after one step, for one of ``TRIALS``."""
    config = replace(TRIALS[label], seed=seed, iterations=round(TRIALS[label].iterations * scale))
    world, state, _, _ = train("flipwide", label, config)
    generator = torch.Generator().manual_seed(50_000 + seed)
    tasks = world.sample_tasks(VALIDATION_TASKS, generator, "validation")
    alpha: Any = {name: log_alpha.exp() for name, log_alpha in state["log_step_sizes"].items()}
    if not config.inner_steps:
        alpha = best_step_sizes(world, state["params"], seed, config)[0]
    return {"return": float(evaluate(world, state["params"], alpha, tasks, generator, config)[1])}


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = 10 if seeds is None else seeds
    digest = hashlib.sha256(repr((METHODS, ABLATIONS, scale)).encode()).hexdigest()[:8]
    folder = Path("runs") / f"{NAME}-{digest}"
    pieces = [(*pair, seed, scale) for seed in range(seeds) for pair in PAIRS]
    done = dict(zip(pieces, run_pieces(measure, pieces, folder, progress), strict=True))
    trials = [(label, seed, scale) for label in TRIALS for seed in TUNING_SEEDS]
    tuned = dict(zip(trials, run_pieces(tune, trials, folder / "tuning", progress), strict=True))

    metrics, curves = {}, {}
    for distribution, method in PAIRS:
        of_pair = [done[distribution, method, seed, scale] for seed in range(seeds)]
        curves[f"{distribution} · training · {method}"] = [piece["training"] for piece in of_pair]
        for split in ("test", "ood"):
            samples = [piece[split] for piece in of_pair]
            curves[f"{distribution} · {split} · {method}"] = samples
            mean, low, high = interval(samples)
            for k in range(STEPS + 1):
                metrics[f"{distribution} · {split} · {method} · after {k}"] = {
                    "value": float(mean[k]), "low": float(low[k]), "high": float(high[k]), "n": seeds,
                    "unit": "return, of at most 200", "published": None, "source": None,
                }  # fmt: skip
        metrics[f"{distribution} · {method} · environment steps"] = count([piece["env_steps"] for piece in of_pair])
    config = {
        "methods": {name: asdict(config) for name, config in (METHODS | ABLATIONS).items()},
        "test_tasks": TEST_TASKS,
        "step_sizes": list(STEP_SIZES),
        "chosen step sizes": {
            f"{distribution} · {method}": [done[distribution, method, seed, scale]["step_sizes"] for seed in range(seeds)]
            for distribution, method in PAIRS if method in ("domain randomisation", "random init")
        },
        "tuning": {label: [tuned[label, seed, scale]["return"] for seed in TUNING_SEEDS] for label in TRIALS},
    }  # fmt: skip
    save_weights(done, scale)
    return {
        "name": NAME,
        "title": "MAML on CartPole: adaptation on held-out tasks",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": config,
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in [*done.values(), *tuned.values()]),
        "metrics": metrics,
        "curves": curves,
    }


def count(samples: list[int]) -> dict[str, Any]:
    """A metric for a number of environment steps."""
    mean, low, high = interval(samples)
    return {"value": float(mean), "low": float(low), "high": float(high), "n": len(samples),
            "unit": "environment steps", "published": None, "source": None}  # fmt: skip


def save_weights(done: dict, scale: float) -> None:
    """Seed 0's weights and step sizes for *flipwide*, beside the result, for whoever wants to look at them move."""
    if scale != 1:
        return
    weights = {}
    for method in ("MAML", "first-order MAML", "domain randomisation"):
        piece = done["flipwide", method, 0, scale]
        weights[method] = {
            "params": {name: torch.tensor(p) for name, p in piece["state"].items()},
            "step_sizes": {name: torch.tensor(p) for name, p in piece["alpha"].items()},
        }
    checkpoint.save(results.folder() / f"{NAME}.pt", weights)
