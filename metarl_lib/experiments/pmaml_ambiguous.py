"""Sinusoids or lines from three examples: one answer, an ensemble of answers, or samples :cite:p:`finn2018probabilistic`.

On a good third of the tasks the examples fit a line and a sinusoid. Every method trains three seeds side by side, each on tasks
of its own; then each seed sees 500 held-out tasks of its own, the same for all methods, and is scored at 50 inputs. A task is
*ambiguous* if the exact posterior gives the less probable kind at least ``AMBIGUOUS``.

- **PMAML**: :mod:`metarl_lib.pmaml`; predictions are mixtures of 4, 16 or 64 samples.
- **MAML**: the same network, inner steps and learned step sizes, without the distribution. Four of them make an **ensemble**,
  whose initialisations differ and who have seen different tasks. **MAML, trained longer** has as much computation as PMAML.
- **MAML, noise predicted**: the network gives a standard deviation with every prediction, and the loss is the likelihood.
- **Exact posterior**: what a Bayesian would say who knows how tasks are drawn; no predictor has a smaller expected loss.

Measures: the negative log-likelihood (NLL) of an observation in nats, under a mixture of Gaussians around the samples, whose
common standard deviation is chosen on 300 validation tasks from ``NOISES`` for each method and seed, except where the method
gives its own; the squared error of the samples' mean and that of the best sample; the calibration error of central intervals;
and on how many ambiguous tasks there is a line among the samples and also a sinusoid that fits
(:func:`metarl_lib.mixtures.kinds_covered`).

No figures for this problem are in print. ``TRIED`` says what was tuned, on validation tasks, with a seed that is not used here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checkpoint, pmaml, results, supervised_maml
from ..evaluate import interval
from ..mixtures import LEVELS, best_of, calibration_error, coverage, cumulative, kinds_covered, log_density
from ..sinusoids import Curve, Examples, SinusoidsOrLines
from ..types import Params, index_tasks
from . import Progress, run_pieces

NAME = "pmaml-ambiguous"
SEEDS, TEST_TASKS, VALIDATION_TASKS, QUERIES = 3, 500, 300, 50
SAMPLES = (4, 16, 64)
AMBIGUOUS = 0.1
NOISES = (0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
GRID = torch.linspace(-5, 5, 41, dtype=torch.float64)  # where curves are compared
TRIED = (
    "few of the combinations, by the NLL of 16 samples on 200 validation tasks after at most 3,500 iterations. PMAML: Adam's "
    "step size of the mean 0.003, 0.008, 0.01, 0.016, 0.02, of the logarithms 0.01, 0.03, 0.05; both standard deviations "
    "0.02, 0.03, 0.05, 0.08; a wider context; 3, 5, 10, 20 queries; 1, 4 samples; 3, 5 inner steps; step sizes per tensor, "
    "per parameter; a trained MAML to start from. MAML, by its loss on fresh training tasks, the second value with another seed "
    "than the others: Adam's step size 0.001, 0.003, 0.01"
)

WORLD = SinusoidsOrLines()
PMAML = pmaml.Config(iterations=5000, meta_step_size=8e-3, prior_std=0.05, inference_std=0.05)
MAML = supervised_maml.Config(
    iterations=4000,
    inner_steps=3,
    tasks=PMAML.tasks,
    shots=PMAML.shots,
    queries=PMAML.queries,
    inner_step_size=PMAML.inner_step_size,
    step_sizes="per_tensor",
    meta_step_size=3e-3,
    step_size_step_size=3e-2,
)
METHODS = {
    "exact posterior": None,
    "PMAML": PMAML,
    "MAML": MAML,
    "MAML, trained longer": replace(MAML, iterations=24_000),
    "MAML, noise predicted": MAML,
}
NETWORKS = {"MAML": 4}  # of each seed, where more than one: the first is MAML, all four are the ensemble
SAVED = ("PMAML", "MAML")  # seed 0's are kept


class Samples(NamedTuple):
    """What a method says of some tasks."""

    at_queries: Tensor  # [task, sample, query], float64
    on_grid: Tensor  # [task, sample, point], likewise
    noise: Tensor | None  # [task, sample, query], where the method gives it


class Tasks(NamedTuple):
    """Held-out tasks of one seed: the same for every method."""

    task: Curve
    support: Examples
    query: Examples


# --- training and predicting ------------------------------------------------------------------------------------------


def configured(method: str, seeds: int, scale: float) -> pmaml.Config | supervised_maml.Config | None:
    config, learners = METHODS[method], seeds * NETWORKS.get(method, 1)
    return config and replace(config, learners=learners, iterations=max(1, round(config.iterations * scale)))


def trained(method: str, seeds: int, scale: float) -> tuple[pmaml.Theta | tuple[Params, Params], list[list[float]]]:
    """What all learners have learned, leaves ``[learner, ...]``, and their training loss, ``[stretch of 20][learner]``."""
    config, losses = configured(method, seeds, scale), []
    if method == "PMAML":
        logs = pmaml.train(WORLD, config)
    else:
        init, loss = pmaml.init, pmaml.KNOWN_NOISE
        if method == "MAML, noise predicted":
            init, loss = partial(pmaml.init, sizes=(1, 48, 48, 2)), pmaml.gaussian_nll()
        logs = supervised_maml.train(WORLD, config, init, pmaml.apply, loss)
    for log in logs:
        losses.append(log.loss)
    learned = log.theta if method == "PMAML" else (log.params, log.step_sizes)
    stretches = torch.stack(losses).tensor_split(min(20, len(losses)))
    return learned, [[round(loss, 3) for loss in stretch.mean(0).tolist()] for stretch in stretches]


def of_seed(learned: pmaml.Theta | tuple[Params, Params], seed: int, networks: int) -> Any:
    """The learners of one seed."""
    mine = slice(seed * networks, (seed + 1) * networks)
    parts = ({name: p[mine] for name, p in leaves.items()} for leaves in learned)
    return pmaml.Theta(*parts) if isinstance(learned, pmaml.Theta) else tuple(parts)


def adapted(method: str, learned: Any, support: Examples, samples: int, seed: int) -> Params:
    """Every sample's parameters after the inner steps, leaves ``[task · sample, ...]``; of MAML a sample is a learner."""
    if method == "PMAML":
        return pmaml.sample(learned, support, samples, PMAML, torch.Generator().manual_seed(seed))
    tasks = len(support.x)
    params, step_sizes = ({name: p.repeat(tasks, *(1,) * (p.dim() - 1)) for name, p in leaves.items()} for leaves in learned)
    support = pmaml.repeated(support, len(learned[0]["context"]))
    loss = pmaml.gaussian_nll() if method == "MAML, noise predicted" else pmaml.KNOWN_NOISE
    return supervised_maml.adapt(params, step_sizes, support, MAML.inner_steps, apply=pmaml.apply, loss=loss)


def predicted(method: str, learned: Any, tasks: Tasks, samples: int, seed: int) -> Samples:
    """The samples of a trained method, for a few tasks at a time."""
    parts = []
    for start in range(0, len(tasks.support.x), 25):
        support, query = (index_tasks(examples, slice(start, start + 25)) for examples in tasks[1:])
        phi = adapted(method, learned, support, samples, seed + start)
        x = torch.cat((query.x, GRID.float().expand(len(query.x), -1)[..., None]), 1)
        parts.append(pmaml.predict(phi, x, pmaml.apply).double())
    found = torch.cat(parts)  # [task, sample, query and point, output]
    noise = found[:, :, :QUERIES, 1].exp() if found.shape[-1] == 2 else None
    return Samples(found[:, :, :QUERIES, 0], found[:, :, QUERIES:, 0], noise)


def from_posterior(tasks: Tasks, samples: int, seed: int) -> Samples:
    """Samples of the exact posterior."""
    draws = torch.Generator().manual_seed(seed)
    curves = WORLD.posterior(tasks.support).sample(samples, draws)
    n = len(tasks.support.x)
    values = (
        WORLD.function(curves, x.double().repeat_interleave(samples, 0))[..., 0].unflatten(0, (n, samples))
        for x in (tasks.query.x, GRID.expand(n, -1)[..., None])
    )
    return Samples(*values, None)


# --- measuring --------------------------------------------------------------------------------------------------------


def held_out(split: str, seed: int, scale: float = 1.0) -> Tasks:
    """Test or validation tasks of a seed."""
    n, stream = {"validation": (VALIDATION_TASKS, 30_000), "test": (TEST_TASKS, 10_000)}[split]
    generator = torch.Generator().manual_seed(stream + seed)
    task = WORLD.sample_tasks(max(20, round(n * scale)), generator, split)
    return Tasks(task, *WORLD.support_and_query(task, PMAML.shots, QUERIES, generator))


def measure(method: str, seeds: int, scale: float) -> dict[str, Any]:
    """Train all seeds of a method and measure each on held-out tasks: one piece of the experiment."""
    if method == "exact posterior":
        return {"rows": [exact_rows(held_out("test", seed, scale), seed) for seed in range(seeds)]}
    started = time.process_time()
    learned, training = trained(method, seeds, scale)
    piece: dict[str, Any] = {"training": training, "training seconds": time.process_time() - started}
    each = [of_seed(learned, seed, NETWORKS.get(method, 1)) for seed in range(seeds)]
    piece["rows"] = [tested(method, one, seed, scale) for seed, one in enumerate(each)]
    if method in SAVED:
        piece["learned"] = [{name: p.tolist() for name, p in leaves.items()} for leaves in each[0]]
    return piece


def tested(method: str, learned: Any, seed: int, scale: float) -> dict[str, dict[str, Any]]:
    """One seed's measures, by label."""
    tests, validation = (held_out(split, seed, scale) for split in ("test", "validation"))
    samples, validating = (predicted(method, learned, tasks, max(SAMPLES), seed) for tasks in (tests, validation))
    counts = {"PMAML": {f"PMAML, {n} samples": n for n in SAMPLES}, "MAML": {"MAML": 1, "four MAMLs": 4}}.get(method, {method: 1})
    return {label: row(tests, first(samples, n), chosen_noise(validation, first(validating, n))) for label, n in counts.items()}


def first(samples: Samples, n: int) -> Samples:
    """The first ``n`` of them."""
    return Samples(*(leaf if leaf is None else leaf[:, :n] for leaf in samples))


def chosen_noise(tasks: Tasks, samples: Samples) -> float | None:
    """The standard deviation of ``NOISES`` with the least NLL on validation tasks; None where the method gives its own."""
    if samples.noise is not None:
        return None
    y = tasks.query.y[..., 0].double()
    return min(NOISES, key=lambda noise: -log_density(samples.at_queries, y, noise).mean().item())


def row(
    tasks: Tasks, samples: Samples, noise: float | None, log_likelihood: Tensor | None = None, mean: Tensor | None = None
) -> dict[str, Any]:
    """All measures of one method. ``log_likelihood`` and ``mean`` are given where they are known better than by samples."""
    y, truth = tasks.query.y[..., 0].double(), WORLD.function(tasks.task, tasks.query.x)[..., 0].double()
    posterior = WORLD.posterior(tasks.support)
    unsure = (posterior.line - 0.5).abs() <= 0.5 - AMBIGUOUS
    spread = samples.noise if noise is None else noise
    nll = -(log_density(samples.at_queries, y, spread) if log_likelihood is None else log_likelihood)
    below = cumulative(samples.at_queries, y, spread)
    error = ((samples.at_queries.mean(1) if mean is None else mean) - truth).square()
    ambiguous = posterior._replace(log_weights=posterior.log_weights[unsure])
    covered = kinds_covered(WORLD, ambiguous, samples.on_grid[unsure], GRID)
    measures = {
        "NLL": nll.mean().item(),
        "NLL, ambiguous tasks": nll[unsure].mean().item(),
        "squared error": error.mean().item(),
        "squared error of the best sample": best_of(samples.at_queries, truth).mean().item(),
        "calibration error": calibration_error(below),
        "both kinds covered": covered.all(1).double().mean().item(),
    }
    return measures | {"ambiguous": unsure.double().mean().item(), "noise": noise, "coverage": coverage(below).tolist()}


def exact_rows(tasks: Tasks, seed: int) -> dict[str, Any]:
    """The exact posterior's row; its best sample and what it covers are those of 16 samples, its calibration that of 500."""
    posterior = WORLD.posterior(tasks.support)
    known = {
        "log_likelihood": WORLD.log_predictive(posterior, tasks.query),
        "mean": WORLD.predictive_mean(posterior, tasks.query.x)[..., 0],
    }
    found = row(tasks, from_posterior(tasks, 16, seed), WORLD.noise, **known)
    many = cumulative(from_posterior(tasks, 500, seed).at_queries, tasks.query.y[..., 0].double(), WORLD.noise)
    return {"exact posterior": found | {"calibration error": calibration_error(many), "coverage": coverage(many).tolist()}}


# --- the result -------------------------------------------------------------------------------------------------------

UNITS = {
    "NLL": "nats",
    "NLL, ambiguous tasks": "nats",
    "squared error": "mean squared error",
    "squared error of the best sample": "mean squared error",
    "calibration error": "of the observations",
    "both kinds covered": "of ambiguous tasks",
}


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    done = run_pieces(measure, [(method, seeds, scale) for method in METHODS], folder(scale), progress)
    pieces = dict(zip(METHODS, done, strict=True))
    metrics, curves, noises = {}, {"coverage · levels": list(LEVELS)}, {}
    for method, piece in pieces.items():
        for label in piece["rows"][0]:
            rows = [rows[label] for rows in piece["rows"]]
            metrics |= {f"{label} · {name}": metric([r[name] for r in rows], unit) for name, unit in UNITS.items()}
            curves[f"coverage · {label}"] = [[round(share, 4) for share in r["coverage"]] for r in rows]
            noises[label] = [r["noise"] for r in rows]
        if METHODS[method]:
            seconds = round(piece["training seconds"], 1)
            metrics[f"{method} · training of all seeds"] = alone(seconds, "CPU-seconds")
            curves[f"training · {method}"] = piece["training"]
    shares = [rows["exact posterior"]["ambiguous"] for rows in pieces["exact posterior"]["rows"]]
    metrics["ambiguous tasks"] = metric(shares, "of the tasks")
    if scale == 1:
        save_weights(pieces)
    return {
        "name": NAME,
        "title": "Sinusoids or lines: one answer or several",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "methods": {m: asdict(configured(m, seeds, scale)) for m in METHODS if METHODS[m]},
            "test tasks a seed": TEST_TASKS,
            "validation tasks a seed": VALIDATION_TASKS,
            "inputs at which a task is scored": QUERIES,
            "a task is ambiguous if the less probable kind has at least": AMBIGUOUS,
            "standard deviation chosen (null: predicted), by seed": noises,
            "tried": TRIED,
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done),
        "metrics": metrics,
        "curves": curves,
    }


def folder(scale: float) -> Path:
    """Where finished pieces are kept: another one for every change of the settings."""
    settings = (METHODS, NETWORKS, SAMPLES, NOISES, AMBIGUOUS, TEST_TASKS, VALIDATION_TASKS, QUERIES, scale)
    return Path("runs") / f"{NAME}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"


def metric(samples: Sequence[float], unit: str) -> dict[str, Any]:
    mean, low, high = (round(float(x), 5) for x in interval(samples))
    return {"value": mean, "low": low, "high": high, "n": len(samples), "unit": unit, "published": None, "source": None}


def alone(value: float, unit: str) -> dict[str, Any]:
    """A figure that there is only one of."""
    return {"value": value, "low": None, "high": None, "n": 1, "unit": unit, "published": None, "source": None}


def save_weights(pieces: dict[str, dict[str, Any]]) -> None:
    """Seed 0's weights, beside the result: Θ of PMAML by field, of MAML the first of four, and the noise chosen for each."""
    parts = {m: [{name: torch.tensor(p) for name, p in leaves.items()} for leaves in pieces[m]["learned"]] for m in SAVED}
    of_maml = [{name: p[:1].clone() for name, p in leaves.items()} for leaves in parts["MAML"]]
    weights = {
        "PMAML": dict(zip(pmaml.Theta._fields, parts["PMAML"], strict=True)),
        "MAML": dict(zip(("params", "step_sizes"), of_maml, strict=True)),
    }
    rows = {"PMAML": pieces["PMAML"]["rows"][0]["PMAML, 16 samples"], "MAML": pieces["MAML"]["rows"][0]["MAML"]}
    noise = {method: row["noise"] for method, row in rows.items()}
    checkpoint.save(results.folder() / f"{NAME}.pt", weights | {"noise": noise})
