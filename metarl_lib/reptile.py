"""Reptile, first-order meta-learning for supervised tasks :cite:p:`nichol2018first`.

Adapt to each of n tasks by k steps of an ordinary optimiser on minibatches, and move the start towards where they ended:

.. math::
    \\theta \\leftarrow \\theta + \\epsilon \\, \\frac1n \\sum_i (\\phi_i - \\theta), \\qquad
    \\phi_i = U_i^k(\\theta), \\quad U_i(\\phi) = \\phi - \\alpha \\nabla_\\phi L_i(\\phi; \\text{minibatch})

No gradient is differentiated and there are no queries. With k = 1 this is a gradient step of joint training; with more, the
later minibatches' gradients are taken where the earlier ones have led, and to leading order in α that brings in

.. math::
    \\mathbb{E} \\, (\\theta - \\phi_i) / \\alpha = k \\, \\mathbb{E}[\\bar g]
        - \\tfrac12 k (k - 1) \\, \\alpha \\, \\mathbb{E}[\\bar H \\bar g'] + O(\\alpha^2),

where g̅ and H̅ are gradient and Hessian of one minibatch at θ and g̅' is the gradient of another minibatch of the same task.
The second term raises the inner product of the two gradients: what helps on one minibatch helps on the other.

Where this departs from the paper's code: the moments of the inner Adam start afresh with every task.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sinusoids import Examples
from .supervised_maml import Apply, Init, Loss, apply, init, spread, squared_error
from .types import Params


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    iterations: int = 15_000
    learners: int = 1
    tasks: int = 25  # n, in a meta-batch of one learner
    shots: int = 20  # examples of a task (in classification, of each of its classes)
    minibatch: int = 10  # of them in an inner step, drawn without replacement until none is left (in classification, likewise)
    inner_steps: int = 8  # k
    inner_step_size: float = 0.01  # α
    optimizer: str = "sgd"  # of the inner steps: "sgd" or "adam"
    meta_step_size: float = 1.0  # ε, where it starts
    final_meta_step_size: float = 0.0  # what it falls to, linearly over the iterations
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"iterations": 0, "learners": 1, "tasks": 1, "shots": 1, "minibatch": 1, "inner_steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 < self.inner_step_size < math.inf:
            raise ValueError(f"inner_step_size must be positive and finite, got {self.inner_step_size}")
        for name in ("meta_step_size", "final_meta_step_size"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.shots % self.minibatch:
            raise ValueError(f"shots ({self.shots}) must be a multiple of minibatch ({self.minibatch})")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; there are sgd, adam")


class Log(NamedTuple):
    """What one iteration of :func:`train` did. Nothing in it changes later."""

    iteration: int  # counted from 1
    loss: Tensor  # [learner], on the last minibatch, before the step on it
    params: Params  # θ after the outer update, leaves [learner, ...]
    seconds: float  # of this iteration


# --- adaptation -------------------------------------------------------------------------------------------------------


def minibatches(examples: Examples, size: int, steps: int, generator: torch.Generator) -> Iterator[Examples]:
    """``steps`` minibatches of every task, each task's shuffled anew whenever all of its examples have been used."""
    tasks, shots = examples.y.shape[:2]
    row = torch.arange(tasks, device=examples.y.device)[:, None]
    for step in range(steps):
        start = step * size % shots
        if start == 0:
            order = torch.rand(tasks, shots, generator=generator, device=generator.device).argsort(1)
        yield Examples(*(leaf[row, order[:, start : start + size]] for leaf in examples))


def adapt(
    params: Params,
    step_size: float,
    batches: Iterable[Examples],
    optimizer: str = "sgd",
    apply: Apply = apply,
    loss: Loss = squared_error,
) -> tuple[Params, Tensor]:
    """One inner step on each of ``batches``, every task at once: the parameters reached, and the last batch's losses ``[task]``.

    ``params`` leaves are ``[task, ...]``. ``adam`` is Adam with β₁ = 0, as in the paper: without momentum, which would carry
    a task's first steps on.
    """
    phi = {name: p.detach().requires_grad_() for name, p in params.items()}
    squares, task_losses = {name: torch.zeros_like(p) for name, p in phi.items()}, torch.zeros(())
    for step, batch in enumerate(batches, start=1):
        task_losses = loss(apply(phi, batch.x), batch.y)
        gradients = torch.autograd.grad(task_losses.sum(), list(phi.values()))
        for (name, p), g in zip(phi.items(), gradients, strict=True):
            if optimizer == "adam":
                squares[name] = 0.999 * squares[name] + 0.001 * g.square()
                g = g / ((squares[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            phi[name] = (p.detach() - step_size * g).requires_grad_()
    return {name: p.detach() for name, p in phi.items()}, task_losses.detach()


# --- the outer loop ---------------------------------------------------------------------------------------------------


def move(theta: Params, phi: Params, epsilon: float) -> Params:
    """θ + ε (mean of φ − θ): leaves ``[learner, ...]`` and ``[learner · task, ...]``."""
    means = {name: p.unflatten(0, (len(theta[name]), -1)).mean(1) for name, p in phi.items()}
    return {name: p + epsilon * (means[name] - p) for name, p in theta.items()}


def train(tasks: Any, config: Config, init: Init = init, apply: Apply = apply, loss: Loss = squared_error) -> Iterator[Log]:
    """Meta-train on the training tasks, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    ``tasks`` is a distribution of supervised tasks, as :mod:`metarl_lib.sinusoids` says, network and loss are as in
    :mod:`metarl_lib.supervised_maml`. All randomness comes from ``config.seed``, and no learner's affects another's.
    Raises ``FloatingPointError`` as soon as parameters are not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    theta = init(config.learners, generator)
    for iteration in range(1, config.iterations + 1):
        started = time.perf_counter()
        task = tasks.sample_tasks(config.learners * config.tasks, generator)
        examples = tasks.sample(task, config.shots, generator)
        size = config.minibatch * examples.y.shape[1] // config.shots  # in classification every shot holds all classes
        batches = minibatches(examples, size, config.inner_steps, generator)
        phi, losses = adapt(spread(theta, config.tasks), config.inner_step_size, batches, config.optimizer, apply, loss)
        done = (iteration - 1) / config.iterations
        epsilon = config.meta_step_size + (config.final_meta_step_size - config.meta_step_size) * done
        theta = move(theta, phi, epsilon)
        _check_finite(iteration, theta)
        losses = losses.unflatten(0, (config.learners, config.tasks)).mean(1)
        yield Log(iteration, losses, theta, time.perf_counter() - started)


def _check_finite(iteration: int, theta: Params) -> None:
    # A sum is finite only if all of its terms are.
    bad = ~torch.isfinite(sum(p.flatten(1).sum(1) for p in theta.values()))
    if bad.any():
        raise FloatingPointError(f"iteration {iteration}: the parameters of learner {int(bad.nonzero()[0])} are NaN or infinite")
