"""Five examples of a sinusoid: MAML, what is left of it, and pretraining :cite:p:`finn2017model`.

Every method trains five seeds side by side, each on tasks of its own; then each seed adapts to 5,000 held-out tasks of its own
from five examples (some methods: from ten, and out of distribution too), by 0 to 10 gradient steps on all of them. The methods
of one seed see the same tasks. A task's error is its mean squared error at 100 other inputs, counted as at most ``CEILING``: on
very few tasks the steps diverge, and such a task would be all that a mean over 5,000 shows. How many diverge is reported too.

- **MAML**: one inner step, α = 0.01, five examples and five queries a task. **Ten-shot MAML** is the paper's text to the letter:
  trained with ten of each, and tested with five all the same. The paper's Table 2 does not say which of the two it shows.
- What is left of MAML when only the last layer adapts in the tests, or in training too (**ANIL**), or when it is
  **first-order**; and what it becomes with step sizes that are learned. (Trained through five inner steps of α = 0.01, one
  seed of five diverged, so that this variant is not run.)
- **Pretraining**: one network for all tasks, then fine-tuned.
- **Parameter mean**: 500 networks, each trained on a task of its own from an initialisation of its own, and their mean
  fine-tuned: the paper's *multi-task, no reg*.
- **Random init**: a fresh network, fine-tuned. **Oracle**: pretraining for a network that is shown amplitude and
  phase; it has nothing to adapt to.

MAML and whatever is fine-tuned is so with α = 0.01 and with *its own* step size: for each number of steps, the one of
``STEP_SIZES`` with the least error after that many on 500 validation tasks of the seed. The paper tunes its baselines' too.

From the paper are the distribution, the network, Adam, one inner step and α = 0.01; from its code, since the paper does not give
them, are 25 tasks in a meta-batch. (That code's own default for α is 0.001.) Adam's step size is twice that code's, which both
MAML and pretraining prefer, and 20,000 iterations take the place of the 70,000 of its usage notes: ``TRIED``. The initial weights
are this book's. Nothing else was tuned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, results
from ..evaluate import interval
from ..sinusoids import Sinusoid, Sinusoids
from ..supervised_maml import HEAD, Config, adaptation_curve, init, train
from ..types import Params
from . import Progress, run_pieces

NAME = "maml-sinusoid"
SEEDS, STEPS, SHOWN = 5, 10, (0, 1, 5, 10)
TEST_TASKS, VALIDATION_TASKS, QUERIES = 5000, 500, 100
STEP_SIZES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
TRIED = {
    # Error after 1, 5 and 10 steps, mean over five seeds that take no part here, trained for 20,000 iterations, on 6,000
    # validation tasks each (pretraining: on 1,500, with the best of five step sizes of fine-tuning).
    "MAML, Adam's step size 0.001": [0.625, 0.444, 0.384],
    "MAML, Adam's step size 0.002": [0.592, 0.360, 0.323],
    "MAML, Adam's step size falling from 0.001 to 0.0001": [0.688, 0.516, 0.440],
    "MAML, Adam's step size 0.001, weights and biases drawn as PyTorch draws them": [0.668, 0.391, 0.349],
    "pretraining, Adam's step size 0.001": [2.369, 2.093, 2.046],
    "pretraining, Adam's step size 0.002": [2.321, 1.998, 1.923],
    # On 2,000 test tasks of each of the result's own seeds: the later steps profit no more from training for one step.
    "MAML, Adam's step size 0.001, 70,000 iterations": [0.573, 0.433, 0.399],
}

MAML = Config(iterations=20_000, shots=5, queries=5, meta_step_size=2e-3)
METHODS = {
    "MAML": MAML,
    "ten-shot MAML": replace(MAML, shots=10, queries=10),
    "first-order MAML": replace(MAML, first_order=True),
    "ANIL": replace(MAML, adapted=HEAD),
    "MAML, a learned step size per tensor": replace(MAML, step_sizes="per_tensor"),
    "MAML, a learned step size per parameter": replace(MAML, step_sizes="per_parameter"),
    "pretraining": replace(MAML, inner_steps=0, queries=10),
    "parameter mean": replace(MAML, iterations=4000, inner_steps=0, tasks=1, shots=1, queries=20),
    "random init": replace(MAML, iterations=0, inner_steps=0),
    "oracle": replace(MAML, inner_steps=0, queries=10),
}
FINE_TUNED = ("MAML", "pretraining", "parameter mean", "random init")  # with α = 0.01 and with the best step size of each
SAVED = ("MAML", "pretraining")  # seed 0's weights are kept
CEILING = 100.0  # of a task's error: one that diverges must not be the mean of 5,000. Predicting zero costs at most 28
NETWORKS = 500  # behind a parameter mean
EVERYWHERE = ("MAML", "ten-shot MAML", "pretraining", "oracle")  # measured in all settings, the others in the first alone
SETTINGS = {"5-shot": (5, "test"), "10-shot": (10, "test"), "5-shot, out of distribution": (5, "ood")}
PUBLISHED = {  # Table 2, 5-shot, after 1, 5 and 10 steps; the step sizes of fine-tuning are tuned there too
    "MAML": (0.67, 0.38, 0.35),
    "pretraining, own step size": (2.41, 2.23, 2.19),
    "parameter mean, own step size": (4.19, 3.85, 3.69),
}


@dataclass(frozen=True)
class Fixed(Sinusoids):
    """Sinusoids of which every learner only ever sees one."""

    task: Sinusoid | None = None

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Sinusoid:
        return self.task


# --- training ---------------------------------------------------------------------------------------------------------


def trained(method: str, seeds: int, scale: float) -> tuple[Params, Params | float, list[list[float]]]:
    """θ and α of every seed, leaves ``[seed, ...]``, and the training loss of each in 20 stretches, ``[stretch][seed]``."""
    config = configured(method, seeds, scale)
    if method == "parameter mean":
        return parameter_mean(config, seeds, scale)
    if not config.iterations:
        return init(seeds, torch.Generator().manual_seed(config.seed)), config.inner_step_size, []
    world = Sinusoids(observe_task=method == "oracle")
    losses = []
    for log in train(world, config, partial(init, sizes=(world.input_size, 40, 40, 1))):
        losses.append(log.loss)
    stretches = torch.stack(losses).tensor_split(min(20, len(losses)))
    curve = [[round(loss, 3) for loss in stretch.mean(0).tolist()] for stretch in stretches]
    return log.params, log.step_sizes, curve


def configured(method: str, seeds: int, scale: float) -> Config:
    config = METHODS[method]
    return replace(config, learners=seeds, iterations=round(config.iterations * scale))


def parameter_mean(config: Config, seeds: int, scale: float) -> tuple[Params, float, list[list[float]]]:
    """The mean of networks that know one task each: trained as learners, which share nothing. And their mean last losses."""
    networks, means, losses = max(2, round(NETWORKS * scale)), [], []
    for seed in range(seeds):
        task = Sinusoids().sample_tasks(networks, generator_for(40_000, seed))
        for log in train(Fixed(task=task), replace(config, learners=networks, seed=seed)):  # noqa: B007
            pass  # to keep the logs of 500 networks would take much memory
        means.append({name: p.mean(0) for name, p in log.params.items()})
        losses.append(round(log.loss.mean().item(), 4))
    return {name: torch.stack([mean[name] for mean in means]) for name in means[0]}, config.inner_step_size, [losses]


def generator_for(stream: int, seed: int) -> torch.Generator:
    """Random numbers for one purpose, the same for every method of a seed."""
    return torch.Generator().manual_seed(stream + seed)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(method: str, seeds: int, scale: float) -> dict[str, Any]:
    """Train all seeds of a method and measure each on held-out tasks: one piece of the experiment."""
    params, step_sizes, training = trained(method, seeds, scale)
    piece: dict[str, Any] = {"training": training, "tests": []}
    for seed in range(seeds):
        theta, alpha = one(params, seed), one(step_sizes, seed)
        settings = list(SETTINGS) if method in EVERYWHERE else ["5-shot"]
        by_setting = (test(method, theta, alpha, setting, seed, scale) for setting in settings)
        piece["tests"].append([tested for rows in by_setting for tested in rows])
    if method in SAVED:
        piece["params"] = {name: p.tolist() for name, p in one(params, 0).items()}
    if METHODS[method].step_sizes == "per_tensor":
        piece["step sizes"] = {name: alpha.flatten().tolist() for name, alpha in step_sizes.items()}
    return piece


def one(values: Params | float, seed: int) -> Params | float:
    """One seed's parameters or step sizes, leaves ``[1, ...]``."""
    return {name: p[seed : seed + 1] for name, p in values.items()} if isinstance(values, dict) else values


def test(method: str, params: Params, step_sizes: Params | float, setting: str, seed: int, scale: float) -> list[dict[str, Any]]:
    """One seed in one of ``SETTINGS``: a row, or several where it is adapted in several ways."""
    n = max(2, round(TEST_TASKS * scale))
    if method not in FINE_TUNED:
        network = {"observe_task": method == "oracle", "adapted": METHODS[method].adapted}
        steps = 0 if method == "oracle" else STEPS
        return [row(setting, method, errors(params, step_sizes, setting, n, seed, steps=steps, **network))]
    fixed, tuned = fine_tuned(method, params, MAML.inner_step_size, setting, seed, scale)
    if method == "MAML":
        head = errors(params, MAML.inner_step_size, setting, n, seed, adapted=HEAD)
        return [fixed, tuned, row(setting, "MAML, only the last layer adapted", head)]
    return [fixed | {"label": f"{setting} · {method}, α 0.01"}, tuned]


def fine_tuned(
    method: str, params: Params, alpha: float, setting: str, seed: int, scale: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One seed's row with step size ``alpha``, and its row with its own best for each number of steps on validation tasks."""
    chosen = [STEP_SIZES[i] for i in validated(params, setting, seed, scale).argmin(0)[1:].tolist()]
    n = max(2, round(TEST_TASKS * scale))
    found = {step_size: errors(params, step_size, setting, n, seed) for step_size in {*chosen, alpha}}
    own = torch.stack([found[step_size][k] for k, step_size in enumerate([chosen[0], *chosen])])
    tuned = row(setting, f"{method}, own step size", own) | {"step sizes": [chosen[k - 1] for k in SHOWN[1:]]}
    return row(setting, method, found[alpha]), tuned


def validated(params: Params, setting: str, seed: int, scale: float) -> Tensor:
    """One seed's mean error on validation tasks with each of ``STEP_SIZES`` after 0 … 10 steps, ``[step size, step]``."""
    n = max(2, round(VALIDATION_TASKS * scale))
    return torch.stack([errors(params, alpha, setting, n, seed, validation=True).mean(1) for alpha in STEP_SIZES])


def errors(
    params: Params,
    step_sizes: Params | float,
    setting: str,
    n: int,
    seed: int,
    validation: bool = False,
    observe_task: bool = False,
    adapted: tuple[str, ...] | None = None,
    steps: int = STEPS,
) -> Tensor:
    """Mean squared error after 0 … ``steps`` steps, ``[step, task]``: the same tasks and examples for every method of a seed."""
    shots, split = SETTINGS[setting]
    stream = 30_000 if validation else 10_000 + 1000 * list(SETTINGS).index(setting)
    world, generator = Sinusoids(observe_task=observe_task), generator_for(stream, seed)
    tasks = world.sample_tasks(n, generator, "validation" if validation else split)
    support, query = world.support_and_query(tasks, shots, QUERIES, generator)
    found = adaptation_curve(params, step_sizes, support, query, steps, adapted)
    return found.double().nan_to_num(CEILING, CEILING).clamp(max=CEILING)


def row(setting: str, label: str, found: Tensor) -> dict[str, Any]:
    """Mean errors after 0 … 10 steps, from ``[step, task]``; the shares of tasks that end worse, and that end at the ceiling."""
    shares = {"worse": found[-1] > found[0], "diverged": found[-1] >= CEILING}
    shares = {name: share.double().mean().item() for name, share in shares.items()}
    return {"label": f"{setting} · {label}", "errors": found.mean(1).tolist(), **shares}


# --- the result -------------------------------------------------------------------------------------------------------


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    done = pieces(METHODS, seeds, scale, progress)
    metrics, curves, chosen, learned = {}, {}, {}, {}
    for method, piece in done.items():
        curves[f"training · {method}"] = piece["training"]
        for rows in zip(*piece["tests"], strict=True):
            label = rows[0]["label"]
            metrics |= metrics_of(label, rows)
            if label.startswith("5-shot · "):
                curves[label] = [[round(e, 3) for e in of_seed["errors"]] for of_seed in rows]
            if "step sizes" in rows[0]:
                chosen[label] = [of_seed["step sizes"] for of_seed in rows]
        if "step sizes" in piece:
            learned = {name: [round(alpha, 5) for alpha in alphas] for name, alphas in piece["step sizes"].items()}
    if scale == 1:
        save_weights(done)
    return {
        "name": NAME,
        "title": "Five examples of a sinusoid: MAML against pretraining",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "methods": {method: asdict(configured(method, seeds, scale)) for method in METHODS},
            "test tasks a seed": TEST_TASKS,
            "validation tasks a seed": VALIDATION_TASKS,
            "inputs at which a task is scored": QUERIES,
            "a task's error is counted as at most": CEILING,
            "step sizes of fine-tuning tried, on validation tasks": STEP_SIZES,
            "tried": TRIED,
            "step sizes chosen after 1, 5, 10 steps, by seed": chosen,
            "step sizes learned per tensor, by seed": learned,
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": curves,
    }


def pieces(methods: Iterable[str], seeds: int, scale: float, progress: Progress) -> dict[str, dict[str, Any]]:
    """The finished pieces, by method."""
    digest = hashlib.sha256(repr((METHODS, SETTINGS, STEP_SIZES, TEST_TASKS, CEILING, EVERYWHERE, scale)).encode()).hexdigest()[
        :8
    ]
    of_methods = [(method, seeds, scale) for method in methods]
    done = run_pieces(measure, of_methods, Path("runs") / f"{NAME}-{digest}", progress)
    return {method: piece for (method, _, _), piece in zip(of_methods, done, strict=True)}


def metrics_of(label: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One label's error after 0, 1, 5 and 10 steps and the share of tasks made worse: mean and interval over seeds."""
    setting, method = label.split(" · ")
    printed = dict(zip(SHOWN[1:], PUBLISHED.get(method, ()), strict=False)) if setting == "5-shot" else {}
    metrics = {}
    steps = len(rows[0]["errors"]) - 1
    for k in (k for k in SHOWN if k <= steps):
        source = {"published": printed[k], "source": "Finn et al. 2017, Table 2"} if k in printed else {}
        metrics[f"{label} · after {k}"] = metric([r["errors"][k] for r in rows], "mean squared error") | source
    if setting != "10-shot" and steps == STEPS:
        metrics[f"{label} · made worse by {STEPS} steps"] = metric([r["worse"] for r in rows], "of the tasks")
        metrics[f"{label} · diverged in {STEPS} steps"] = metric([r["diverged"] for r in rows], "of the tasks")
    return metrics


def metric(samples: Sequence[float], unit: str) -> dict[str, Any]:
    mean, low, high = (round(float(x), 5) for x in interval(samples))
    return {"value": mean, "low": low, "high": high, "n": len(samples), "unit": unit, "published": None, "source": None}


def save_weights(done: dict[str, dict[str, Any]]) -> None:
    """Seed 0's weights, beside the result, for whoever wants to see them adapt."""
    weights = {m: {name: torch.tensor(p) for name, p in done[m]["params"].items()} for m in SAVED}
    checkpoint.save(results.folder() / f"{NAME}.pt", weights)
