"""Bias and variance of meta-gradient estimators, by enumeration.

Two worlds: a five-armed bandit, and decision processes of 3 states, 3 actions and 3 steps. Mean rewards are uniform in [0, 1]
and rewards have no noise; transitions are drawn from a flat Dirichlet, logits from N(0, 1). One inner step of size α = 5.

**One question is the Hessian's.** With an exact inner step the meta-gradient is
:math:`(I + \\alpha \\nabla^2 J(\\theta)) \\nabla J(\\phi)`, and what an estimator makes of it is exact too: the expectation of
its Hessian is a sum over all episodes, and so is the variance.

**The other is the support's.** An inner step on N sampled episodes lands at a φ that depends on them, and the objective becomes
:math:`F_N(\\theta) = \\mathbb{E}\\, J(\\theta + \\alpha \\hat g)`. Its gradient has a term for the probability of the episodes,

.. math::
    \\nabla F_N = \\mathbb{E} \\Bigl[ (I + \\alpha \\nabla \\hat g) \\nabla J(\\phi)
        + (J(\\phi) - b) \\sum_n \\nabla \\log P(\\tau_n; \\theta) \\Bigr],

where :math:`\\nabla \\hat g` is the Hessian of the log-probability objective
:cite:p:`al2018continuous,stadie2018importance`. Ratio and DiCE have in place of the second term an estimate of what it is
in the limit of many episodes: biased for small N, and far less noisy :cite:p:`tang2022biased`. Here b is the return before
adaptation, which is at hand, or the expected return after it, which is not; with any other b than that the noise grows with N.
The advantages' baseline is a number that no derivative sees. Supports are enumerated where there are few, sampled where there
are many; the outer gradient ∇J(φ) is exact throughout, so that all noise is the support's. A meta-batch of M tasks divides
the variance by M, and leaves the bias.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from .. import enumerable, results
from ..meta_gradient import dice, loaded_dice, log_prob, ratio
from ..random_mdps import RandomMDPs, Task
from ..returns import discounted_returns
from ..types import index_tasks
from . import Progress, run_pieces

NAME = "estimator-bias"
SEEDS = 1000  # random tasks, each with a random policy
STEP_SIZE = 5.0
WORLDS = {"bandit": (1, 5, 1), "MDP": (3, 3, 3)}  # states, actions, steps
HORIZONS, HORIZON_TASKS = (1, 2, 3, 4, 5), 0.2  # the share of the seeds that a costlier sweep gets
DECAYS, DECAY_TASKS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0), 0.2
SHIFTS = tuple(i / 8 for i in range(-12, 9))  # added to every reward
BATCHES, BATCH_TASKS, TABLED = (1, 2, 4, 8, 16, 32, 64, 128), 0.1, 16
SUPPORTS, ENUMERATED = 4000, 30_000  # how many are sampled where there are more than can be enumerated
META_BATCH = 20  # tasks, alike, over which the last of the errors averages


class Problem(NamedTuple):
    """Tasks with a policy each, and all their episodes."""

    task: Task
    theta: Tensor  # [task, state, action]
    steps: int
    episodes: enumerable.Episodes
    probability: Tensor  # [task, episode]
    returns: Tensor  # [task, episode, time], reward-to-go
    advantages: Tensor  # [task, episode, time], the same less the exact value

    def expected_return(self, theta: Tensor) -> Tensor:
        return enumerable.expected_return(theta, self.task, self.steps)


OBJECTIVES: dict[str, Callable[[Tensor, Problem], Tensor]] = {
    "first-order": lambda log_probs, problem: 0 * log_prob(log_probs, problem.returns),
    "log-probability": lambda log_probs, problem: log_prob(log_probs, problem.returns),
    "log-probability, baseline": lambda log_probs, problem: log_prob(log_probs, problem.advantages),
    "ratio": lambda log_probs, problem: ratio(log_probs, problem.returns),
    "ratio, baseline": lambda log_probs, problem: ratio(log_probs, problem.advantages),
    "DiCE": lambda log_probs, problem: dice(log_probs, problem.episodes.rewards),
    "Loaded DiCE, baseline": lambda log_probs, problem: loaded_dice(log_probs, problem.advantages),
}
WITH_BASELINE = ("first-order", "log-probability, baseline", "ratio, baseline", "Loaded DiCE, baseline")
SAMPLING = "sampling term, b = J(θ)", "sampling term, b = E J(φ)"  # the log-probability's and the sampling term


def draw(tasks: int, states: int, actions: int, steps: int, seed: int = 0) -> tuple[Task, Tensor]:
    """Random tasks, and random logits ``[task, state, action]``."""
    generator = torch.Generator().manual_seed(seed)
    task = RandomMDPs(states, actions, steps, torch.float64).sample_tasks(tasks, generator)
    task = task._replace(reward=torch.rand(task.reward.shape, generator=generator, dtype=torch.float64))
    return task, torch.randn(task.reward.shape, generator=generator, dtype=torch.float64)


def problem_of(task: Task, theta: Tensor, steps: int) -> Problem:
    episodes = enumerable.every_episode(task, steps)
    returns = discounted_returns(episodes.rewards, torch.zeros_like(episodes.rewards, dtype=torch.bool), 1.0)
    values = enumerable.state_values(theta, task, steps)[:, torch.arange(steps), episodes.states]
    return Problem(task, theta, steps, episodes, enumerable.probability(theta, episodes), returns, returns - values)


# --- an exact inner step ----------------------------------------------------------------------------------------------


def hessians(problem: Problem, objective: Callable[[Tensor, Problem], Tensor]) -> Tensor:
    """Every episode's estimate of ∇²J, ``[task, episode, parameter, parameter]``."""
    return enumerable.of_each_episode(enumerable.hessian, lambda x: objective(x, problem), problem.theta, problem.episodes)


def true_meta_gradient(problem: Problem) -> Tensor:
    return _meta_gradient(problem, enumerable.hessian(problem.expected_return, problem.theta))


def _meta_gradient(problem: Problem, hessian: Tensor) -> Tensor:
    return enumerable.meta_gradient(problem.theta, problem.task, problem.steps, STEP_SIZE, hessian)


def errors(problem: Problem, objective: Callable[[Tensor, Problem], Tensor]) -> dict[str, Tensor]:
    """Bias and standard deviation of one episode's meta-gradient, over the true one's norm, and the cosine, all ``[task]``."""
    true = true_meta_gradient(problem)
    j, theta = problem.expected_return, problem.theta
    outer = enumerable.gradient(j, theta + STEP_SIZE * enumerable.gradient(j, theta).view_as(theta))
    each = hessians(problem, objective)
    mean = _meta_gradient(problem, torch.einsum("te,tepq->tpq", problem.probability, each))
    one = outer[:, None] + STEP_SIZE * torch.einsum("tepq,tq->tep", each, outer)
    variance = (problem.probability * (one - mean[:, None]).square().sum(-1)).sum(-1)
    return {
        "bias": (mean - true).norm(dim=-1) / true.norm(dim=-1),
        "cosine": torch.cosine_similarity(mean, true, dim=-1),
        "sd": variance.sqrt() / true.norm(dim=-1),
    }


def exact(world: str, seeds: int, scale: float) -> dict[str, Any]:
    """Every task's errors, by estimator."""
    task, theta = draw(seeds, *WORLDS[world])
    found = {name: [] for name in OBJECTIVES}
    for chosen in slices(seeds, 50):
        problem = problem_of(index_tasks(task, chosen), theta[chosen], WORLDS[world][-1])
        for name, objective in OBJECTIVES.items():
            found[name].append(errors(problem, objective))
    return {name: {key: torch.cat([e[key] for e in parts]).tolist() for key in parts[0]} for name, parts in found.items()}


def slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def arrows(seeds: int, scale: float) -> dict[str, Any]:
    """The six bandits on which the naive meta-gradient points furthest from the true one, and all there is to draw."""
    task, theta = draw(seeds, *WORLDS["bandit"])
    problem = problem_of(task, theta, 1)
    vectors = {
        name: _meta_gradient(problem, torch.einsum("te,tepq->tpq", problem.probability, hessians(problem, OBJECTIVES[name])))
        for name in ("log-probability", "first-order", "ratio")
    }
    vectors = {"true": true_meta_gradient(problem), **vectors}
    cosine = torch.cosine_similarity(vectors["true"], vectors["log-probability"], dim=-1)
    worst = cosine.argsort()[: min(6, seeds)]
    shown = {"logits": theta[:, 0], "rewards": task.reward[:, 0], **vectors}
    return {f"bandit · worst cases · {name}": rounded(value[worst]) for name, value in shown.items()}


def rounded(values: Tensor) -> list:
    return [rounded(v) for v in values] if values.ndim > 1 else [round(float(f"{v:.6g}"), 12) for v in values]


# --- sweeps -----------------------------------------------------------------------------------------------------------


def horizon(seeds: int, scale: float) -> dict[str, Any]:
    """The estimators with a baseline on processes of 1 to 5 steps."""
    tasks, curves = share(seeds, HORIZON_TASKS), {"MDP · steps": list(HORIZONS)}
    for steps in HORIZONS:
        task, theta = draw(tasks, *WORLDS["MDP"][:2], steps)
        # Few tasks at a time: five steps make 19,683 episodes, each with its Hessian.
        problems = [problem_of(index_tasks(task, chosen), theta[chosen], steps) for chosen in slices(tasks, 5)]
        for name in WITH_BASELINE:
            found = [errors(problem, OBJECTIVES[name]) for problem in problems]
            for key in ("bias", "sd"):
                curves.setdefault(f"MDP · by steps · {name} · {key}", []).append(median([e[key] for e in found])[0])
    return curves


def decay(seeds: int, scale: float) -> dict[str, Any]:
    """Loaded DiCE from the ratio, λ = 0, to the unbiased estimator, λ = 1."""
    problem = problem_of(*draw(share(seeds, DECAY_TASKS), *WORLDS["MDP"]), WORLDS["MDP"][-1])
    curves = {"MDP · decay": list(DECAYS)}
    for lam in DECAYS:
        found = errors(problem, lambda log_probs, problem, lam=lam: loaded_dice(log_probs, problem.advantages, decay=lam))
        for key in ("bias", "sd"):
            curves.setdefault(f"MDP · by decay · {key}", []).append(median([found[key]])[0])
    return curves


def shift(seeds: int, scale: float) -> dict[str, Any]:
    """A constant added to all rewards changes nothing about a bandit, and everything about the naive estimator."""
    task, theta = draw(seeds, *WORLDS["bandit"])
    curves = {"bandit · shift": list(SHIFTS)}
    for constant in SHIFTS:
        problem = problem_of(task._replace(reward=task.reward + constant), theta, 1)
        for name in ("log-probability", "ratio"):
            cosine = errors(problem, OBJECTIVES[name])["cosine"]
            for key, q in (("median", 0.5), ("5%", 0.05)):
                curves.setdefault(f"bandit · by shift · {name} · {key}", []).append(rounded(cosine.quantile(q)[None])[0])
    return curves


def share(seeds: int, part: float) -> int:
    return max(2, round(part * seeds))


def median(parts: list[Tensor]) -> list[float]:
    """Median and its 95% interval by the binomial distribution, which assumes nothing of the samples' own."""
    samples = torch.cat(parts)
    value, low, high = float(samples.quantile(0.5)), *stats.quantile_test(samples.numpy(), p=0.5).confidence_interval(0.95)
    # Fewer than six samples cannot have an interval of that level: then it is their range.
    low, high = float(samples.min()) if math.isnan(low) else low, float(samples.max()) if math.isnan(high) else high
    return rounded(torch.tensor([value, min(low, value), max(high, value)], dtype=torch.float64))


# --- a support of N episodes ------------------------------------------------------------------------------------------


def batches(world: str, seeds: int, scale: float) -> dict[str, Any]:
    """Bias, standard deviation and their root sum of squares against the size of the support, over the norm of ∇F_N."""
    tasks, curves = share(seeds, BATCH_TASKS), {f"{world} · episodes": list(BATCHES)}
    problem = problem_of(*draw(tasks, *WORLDS[world]), WORLDS[world][-1])
    generator = torch.Generator().manual_seed(1)
    found = {size: [] for size in BATCHES}
    for i in range(tasks):
        tables = tabulate(problem, i)
        for size in BATCHES:
            drawn = supports(problem.probability[i], size, max(2, round(SUPPORTS * scale)), generator)
            found[size].append(moments(problem, i, tables, size, drawn))
    for size in BATCHES:
        for label in found[size][0]:
            value, low, high = median([torch.tensor([task[label] for task in found[size]], dtype=torch.float64)])
            for bound, number in (("median", value), ("low", low), ("high", high)):
                curves.setdefault(f"{world} · by episodes · {label} · {bound}", []).append(number)
    return curves


class Tables(NamedTuple):
    """What every episode of one task contributes: ``[episode, parameter]``, and Hessians with one more such axis."""

    gradient: Tensor  # to the inner step
    score: Tensor  # ∇ log P(τ; θ)
    hessians: dict[str, Tensor]


def tabulate(problem: Problem, i: int) -> Tables:
    alone = problem_of(index_tasks(problem.task, slice(i, i + 1)), problem.theta[i : i + 1], problem.steps)

    def gradients(objective: Callable[[Tensor], Tensor]) -> Tensor:
        return enumerable.of_each_episode(enumerable.gradient, objective, alone.theta, alone.episodes)[0]

    return Tables(
        gradient=gradients(lambda log_probs: log_prob(log_probs, alone.advantages)),
        score=gradients(lambda log_probs: log_probs.sum(-1)),
        hessians={name: hessians(alone, OBJECTIVES[name])[0] for name in WITH_BASELINE},
    )


def supports(probability: Tensor, size: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Supports as counts ``[support, episode]``, their weights, and how many were sampled: infinitely many if all are there."""
    kinds = len(probability)
    if math.comb(kinds + size - 1, size) <= ENUMERATED:
        counts, log_ways = enumerable.every_batch(kinds, size)
        return counts, (log_ways + counts @ probability.log()).exp(), math.inf
    drawn = torch.multinomial(probability, samples * size, replacement=True, generator=generator).view(samples, size)
    counts = torch.zeros(samples, kinds, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    return counts, torch.full((samples,), 1 / samples, dtype=torch.float64), samples


def moments(problem: Problem, i: int, tables: Tables, size: int, drawn: tuple[Tensor, Tensor, float]) -> dict[str, float]:
    """Errors of the meta-gradients of task ``i`` over its supports, and how far ∇F_N is from its limit, each over a norm."""
    counts, weights, samples = drawn
    task, theta = index_tasks(problem.task, slice(i, i + 1)), problem.theta[i : i + 1]
    step = counts @ tables.gradient / size
    phi = theta[:, None] + STEP_SIZE * step.view(1, len(step), *theta.shape[1:])
    earned, outer = _return_and_gradient(task, phi, problem.steps)
    estimates = {}
    for name, each in tables.hessians.items():
        hessian = (counts @ each.flatten(1) / size).view(-1, *each.shape[1:])
        estimates[name] = outer + STEP_SIZE * (hessian @ outer[..., None])[..., 0]
    naive, score = estimates["log-probability, baseline"], counts @ tables.score
    before, _ = _return_and_gradient(task, theta[:, None], problem.steps)
    estimates |= {SAMPLING[0]: naive + (earned - before)[:, None] * score}
    estimates |= {SAMPLING[1]: naive + (earned - weights @ earned)[:, None] * score}

    # The sampling term less its linear part in ĝ, whose expectation is known: much less noise where supports are sampled.
    p, middle = problem.probability[i], problem.probability[i] @ tables.gradient
    earned_there, outer_there = _return_and_gradient(task, theta[:, None] + STEP_SIZE * middle.view_as(theta), problem.steps)
    rest = earned - earned_there - STEP_SIZE * (step - middle) @ outer_there[0]
    linear = STEP_SIZE * (p[:, None] * tables.score).T @ (tables.gradient @ outer_there[0])
    truth = naive + rest[:, None] * score + linear

    target, found = weights @ truth, {}
    for name, estimate in estimates.items():
        variance = _spread(estimate, weights, samples)
        # Of sampled supports a squared mean is too large by its own variance. With the sampling term nothing is left.
        bias = ((weights @ (estimate - truth)).square().sum() - _spread(estimate - truth, weights, samples) / samples).clamp(0)
        bias = bias * (name not in SAMPLING)
        squares = {"bias": bias, "sd": variance, "error": bias + variance, "error of a meta-batch": bias + variance / META_BATCH}
        found |= {f"{name} · {key}": float(square.sqrt() / target.norm()) for key, square in squares.items()}
    limit = outer_there[0] + STEP_SIZE * torch.einsum("e,epq,q->p", p, tables.hessians["Loaded DiCE, baseline"], outer_there[0])
    return found | {"∇F_N from its limit": float((target - limit).norm() / limit.norm())}


def _return_and_gradient(task: Task, theta: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """J ``[support]`` and ∇J ``[support, parameter]`` of one task, for θ ``[1, support, state, action]``."""
    j = lambda theta: enumerable.expected_return(theta, task, steps)  # noqa: E731
    return j(theta)[0], enumerable.gradient(j, theta)[0]


def _spread(x: Tensor, weights: Tensor, samples: float) -> Tensor:
    """Trace of the covariance of the rows."""
    correction = 1.0 if math.isinf(samples) else samples / (samples - 1)
    return correction * weights @ (x - weights @ x).square().sum(-1)


# --- the result -------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "bandit": lambda seeds, scale: exact("bandit", seeds, scale),
    "MDP": lambda seeds, scale: exact("MDP", seeds, scale),
    "arrows": arrows,
    "shift": shift,
    "decay": decay,
    "horizon": horizon,
    "bandit batches": lambda seeds, scale: batches("bandit", seeds, scale),
    "MDP batches": lambda seeds, scale: batches("MDP", seeds, scale),
}


def measure(part: str, seeds: int, scale: float) -> dict[str, Any]:
    return PARTS[part](seeds, scale)


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    config = {
        "step_size": STEP_SIZE,
        "worlds": {world: dict(zip(("states", "actions", "steps"), size, strict=True)) for world, size in WORLDS.items()},
        "discount": 1.0,
        "tasks": {
            "steps": share(seeds, HORIZON_TASKS),
            "decay": share(seeds, DECAY_TASKS),
            "episodes": share(seeds, BATCH_TASKS),
        },
        "meta_batch": META_BATCH,
        "supports": {"sampled": max(2, round(SUPPORTS * scale)), "enumerated up to": ENUMERATED},
    }
    digest = hashlib.sha256(repr((config, HORIZONS, DECAYS, SHIFTS, BATCHES)).encode()).hexdigest()[:8]
    pieces = [(part, seeds, scale) for part in PARTS]
    done = dict(zip(PARTS, run_pieces(measure, pieces, Path("runs") / f"{NAME}-{digest}", progress), strict=True))
    cpu_seconds = sum(piece.pop("cpu_seconds") for piece in done.values())
    metrics, curves = {}, {}
    for world in WORLDS:
        metrics |= metrics_of(world, done.pop(world), seeds)
    for piece in done.values():
        curves |= piece
    for world in WORLDS:
        metrics |= metrics_of_supports(world, curves, config["tasks"]["episodes"])
    return {
        "name": NAME,
        "title": "The meta-gradient: bias and variance of its estimators",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": config,
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": cpu_seconds,
        "metrics": metrics,
        "curves": curves,
    }


def metrics_of(world: str, found: dict[str, dict[str, list[float]]], seeds: int) -> dict[str, Any]:
    metrics = {}
    for name, errors in found.items():
        bias, cosine, sd = (torch.tensor(errors[key], dtype=torch.float64) for key in ("bias", "cosine", "sd"))
        label = f"{world} · {name}"
        metrics[f"{label} · bias"] = metric(*median([bias]), seeds, "of the norm, median")
        metrics[f"{label} · cosine"] = metric(*median([cosine]), seeds, "median")
        metrics[f"{label} · worst cosine"] = metric(rounded(cosine.min()[None])[0], None, None, seeds, "")
        wrong = int((cosine < 0).sum())
        metrics[f"{label} · points the wrong way"] = metric(wrong / seeds, *_proportion(wrong, seeds), seeds, "of the tasks")
        metrics[f"{label} · noise of one episode"] = metric(*median([sd]), seeds, "of the norm, median")
    unbiased, biased = (found[name] for name in ("Loaded DiCE, baseline", "ratio, baseline"))
    if WORLDS[world][-1] > 1:
        needed = [(u**2 - r**2) / b**2 for u, r, b in zip(unbiased["sd"], biased["sd"], biased["bias"], strict=True)]
        label = f"{world} · episodes from which Loaded DiCE errs less than the ratio"
        metrics[label] = metric(*median([torch.tensor(needed, dtype=torch.float64)]), seeds, "episodes, median")
    return metrics


def metrics_of_supports(world: str, curves: dict[str, list], tasks: int) -> dict[str, Any]:
    metrics, at = {}, BATCHES.index(TABLED)
    for name in (*WITH_BASELINE, *SAMPLING):
        for key, what in (("error", "1 task"), ("error of a meta-batch", f"{META_BATCH} tasks")):
            bounds = (curves[f"{world} · by episodes · {name} · {key} · {bound}"][at] for bound in ("median", "low", "high"))
            label = f"{world} · {name} · error with {TABLED} episodes, {what}"
            metrics[label] = metric(*bounds, tasks, "of the norm, median")
    return metrics


def _proportion(count: int, n: int) -> tuple[float, float]:
    return tuple(map(float, stats.binomtest(count, n).proportion_ci()))


def metric(value: float, low: float | None, high: float | None, n: int, unit: str) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "unit": unit, "published": None, "source": None}
