"""Reptile on the sinusoids of MAML :cite:p:`nichol2018first`, beside MAML itself.

Reptile has settings of its own, and no figure for this problem is in print. How many inner steps it takes, of what size and on
which examples, was chosen from ``TRIALS`` by the error on validation tasks, five examples each, after ``STEPS`` steps with the
trial's own best step size, averaged over six seeds that take no part in the result. A trial of which one seed diverges counts
as the ceiling of :mod:`~metarl_lib.experiments.maml_sinusoid`. Inner steps are plain gradient descent, so that tests take the
steps of training.

What was chosen trains five seeds, and adapts to the same test tasks by the same gradient steps on all of the examples: with the
step size of its training and with its own best. If one of the five diverges in training, the next best trial takes its place,
and the result says so. MAML's figures are those of that experiment; CPU-seconds of both are of the same order.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import results
from ..reptile import Config, train
from ..sinusoids import Sinusoids
from ..types import Params
from . import Progress, run_pieces
from .maml_sinusoid import CEILING, MAML, SEEDS, SETTINGS, STEPS, fine_tuned, metrics_of, one, pieces, validated

NAME = "reptile-sinusoid"
TUNING_SEEDS, TUNING_ITERATIONS = 6, 2000
REPTILE = Config(iterations=20_000, inner_steps=10)
TRIALS = {
    "k 5, α 0.02": replace(REPTILE, inner_steps=5, inner_step_size=0.02),
    "k 10, α 0.01": REPTILE,
    "k 10, α 0.02": replace(REPTILE, inner_step_size=0.02),
    "k 10, α 0.01, minibatches of 5 of 10 examples": replace(REPTILE, shots=10, minibatch=5),
    "k 10, α 0.02, minibatches of 5 of 10 examples": replace(REPTILE, shots=10, minibatch=5, inner_step_size=0.02),
    "k 10, α 0.01, 50 examples": replace(REPTILE, shots=50),
    "k 10, α 0.02, 50 examples": replace(REPTILE, shots=50, inner_step_size=0.02),
    "k 20, α 0.01, 50 examples": replace(REPTILE, inner_steps=20, shots=50),
    "k 20, α 0.02, 50 examples": replace(REPTILE, inner_steps=20, shots=50, inner_step_size=0.02),
    "k 20, α 0.01, 50 examples, ε 0.5": replace(REPTILE, inner_steps=20, shots=50, meta_step_size=0.5),
}


def trained(config: Config) -> tuple[Params, list[list[float]]]:
    """θ of every seed, leaves ``[seed, ...]``, and the training loss of each in 20 stretches, ``[stretch][seed]``."""
    losses = []
    for log in train(Sinusoids(), config):
        losses.append(log.loss)
    stretches = torch.stack(losses).tensor_split(min(20, len(losses)))
    return log.params, [[round(loss, 3) for loss in stretch.mean(0).tolist()] for stretch in stretches]


def tune(label: str, scale: float) -> dict[str, Any]:
    """Error on validation tasks after ``STEPS`` steps of each tuning seed, for one of ``TRIALS``."""
    iterations = max(1, round(TUNING_ITERATIONS * scale))
    config = replace(TRIALS[label], iterations=iterations, learners=TUNING_SEEDS, seed=1000)
    try:
        params, _ = trained(config)
    except FloatingPointError as error:
        return {"errors": [CEILING] * TUNING_SEEDS, "stopped": str(error)}
    by_seed = (validated(one(params, i), "5-shot", 1000 + i, scale) for i in range(TUNING_SEEDS))
    return {"errors": [errors[:, STEPS].min().item() for errors in by_seed]}


def measure(label: str, seeds: int, scale: float) -> dict[str, Any]:
    """Train all seeds with the settings of one trial, for longer, and measure each on held-out tasks."""
    config, tests = configured(label, seeds, scale), []
    try:
        params, training = trained(config)
    except FloatingPointError as error:
        return {"stopped": str(error)}
    for seed in range(seeds):
        by_setting = [fine_tuned("Reptile", one(params, seed), config.inner_step_size, s, seed, scale) for s in SETTINGS]
        tests.append([tested for rows in by_setting for tested in rows])
    return {"training": training, "tests": tests}


def configured(label: str, seeds: int, scale: float) -> Config:
    return replace(TRIALS[label], iterations=max(1, round(REPTILE.iterations * scale)), learners=seeds)


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr((TRIALS, TUNING_ITERATIONS, SETTINGS, CEILING, scale)).encode()).hexdigest()[:8]
    folder = Path("runs") / f"{NAME}-{digest}"
    trials = run_pieces(tune, [(label, scale) for label in TRIALS], folder / "tuning", progress)
    tuned = {label: trial["errors"] for label, trial in zip(TRIALS, trials, strict=True)}
    stopped: dict[str, str] = {}
    for chosen in sorted(tuned, key=lambda label: sum(tuned[label])):
        (reptile,) = run_pieces(measure, [(chosen, seeds, scale)], folder, progress)
        if "stopped" not in reptile:
            break
        stopped[chosen] = reptile["stopped"]
    maml = pieces(["MAML"], seeds, scale, progress)["MAML"]
    metrics, curves, step_sizes = {}, {"training · Reptile": reptile["training"]}, {}
    for rows in [*zip(*reptile["tests"], strict=True), *zip(*maml["tests"], strict=True)]:
        label = rows[0]["label"]
        metrics |= metrics_of(label, rows)
        curves[label] = [[round(e, 3) for e in of_seed["errors"]] for of_seed in rows]
        if "step sizes" in rows[0]:
            step_sizes[label] = [of_seed["step sizes"] for of_seed in rows]
    return {
        "name": NAME,
        "title": "Reptile on sinusoids, beside MAML",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "Reptile": asdict(configured(chosen, seeds, scale)),
            "MAML": asdict(replace(MAML, learners=seeds, iterations=round(MAML.iterations * scale))),
            "chosen": chosen,
            "better in tuning, but one of the seeds diverged": stopped,
            "tried": {label: [round(error, 3) for error in errors] for label, errors in tuned.items()},
            "iterations of each trial": TUNING_ITERATIONS,
            "step sizes chosen after 1, 5, 10 steps, by seed": step_sizes,
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in [*trials, reptile, maml]),
        "metrics": metrics,
        "curves": curves,
    }
