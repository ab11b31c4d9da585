"""Curves to regress: the sinusoids of MAML :cite:p:`finn2017model`, and curves whose kind is in doubt.

A distribution of supervised tasks is two functions:

- ``sample_tasks(n, generator, split) -> Task``, a NamedTuple of tensors ``[task]``;
- ``support_and_query(task, shots, queries, generator) -> (Examples, Examples)``, what a learner adapts on and what it is
  scored on. No example is in both.

A sinusoid is :math:`y = A \\sin(x - \\varphi)` with amplitude A in [0.1, 5], phase φ in [0, π] and x uniform in [−5, 5].
*Sinusoids or lines* are observed with noise, and through three examples from a narrow window: often too little to tell
the one from the other. Their exact posterior is there to compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .types import index_tasks

X_RANGE = (-5.0, 5.0)
SPLITS = {"train": (0, 2, 4), "validation": (1,), "test": (3,), "iid": (0, 1, 2, 3, 4), "ood": ()}
_SLICES = 1000  # of a range; slice i belongs to the split that holds i mod 5


class Examples(NamedTuple):
    """Inputs and targets of every task."""

    x: Tensor  # [task, example, ...]
    y: Tensor  # [task, example, ...]


class Sinusoid(NamedTuple):
    """A task: one value per task, ``[task]``."""

    amplitude: Tensor
    phase: Tensor  # rad


class Curve(NamedTuple):
    """A task that is a line where ``line`` is true and a sinusoid elsewhere, ``[task]``."""

    line: Tensor  # bool
    amplitude: Tensor
    phase: Tensor  # rad
    slope: Tensor
    intercept: Tensor


# --- drawing tasks ----------------------------------------------------------------------------------------------------


def uniform(n: int, generator: torch.Generator) -> Tensor:
    """``n`` numbers in [0, 1), in double precision."""
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


def interleaved(n: int, generator: torch.Generator, split: str) -> Tensor:
    """``n`` numbers of one split, uniform in [0, 1): ``train``, ``validation`` and ``test`` have none in common.

    The unit interval is cut into 1,000 slices with gaps between them. Of each five in a row three are for training, one for
    validation and one for testing, so that every split has the whole interval's distribution to within half a per cent
    (of its cumulative distribution function). ``iid`` has no slices: the published protocol, in which training and test
    tasks come from one continuous range and are equal with probability zero.
    """
    u = uniform(n, generator)
    if split == "iid":
        return u
    kinds = torch.tensor(SPLITS[split], device=generator.device)
    kind = kinds[torch.randint(len(kinds), (n,), generator=generator, device=generator.device)]
    fifth = torch.randint(_SLICES // 5, (n,), generator=generator, device=generator.device)
    return (5 * fifth + kind + 0.05 + 0.9 * u) / _SLICES


def _check_split(n: int, split: str) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1 task, got {n}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")


def _inputs(tasks: int, examples: int, low: Tensor | float, high: Tensor | float, generator: torch.Generator) -> Tensor:
    """``[task, example, 1]``, uniform between ``low`` and ``high``."""
    if examples < 1:
        raise ValueError(f"shots and queries must be at least 1, got {examples}")
    return low + (high - low) * torch.rand(tasks, examples, 1, generator=generator, device=generator.device, dtype=torch.float64)


# --- sinusoids --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sinusoids:
    """The sinusoids of :cite:t:`finn2017model`, without noise.

    With ``observe_task`` amplitude and phase are appended to every input: that is what an oracle sees.
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    observe_task: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def input_size(self) -> int:
        return 3 if self.observe_task else 1

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Sinusoid:
        """Draw ``n`` tasks of a split; ``train``, ``validation`` and ``test`` are interleaved in phase (:func:`interleaved`).

        In ``ood`` both parameters lie above their range, by at most half of its upper end.
        """
        _check_split(n, split)
        u = uniform(n, generator)
        if split == "ood":
            values = (high * (1.5 - u / 2) for high, u in ((self.amplitude[1], u), (self.phase[1], uniform(n, generator))))
        else:
            values = (between(*self.amplitude, u), between(*self.phase, interleaved(n, generator, split)))
        return Sinusoid(*(value.to(self.dtype) for value in values))

    def function(self, task: Sinusoid, x: Tensor) -> Tensor:
        """The exact y at ``x [task, ..., 1]``, of the same shape."""
        amplitude, phase = (leaf.reshape(-1, *(1,) * (x.dim() - 1)) for leaf in task)
        return amplitude * torch.sin(x - phase)

    def sample(self, task: Sinusoid, shots: int, generator: torch.Generator, x_range: tuple[float, float] = X_RANGE) -> Examples:
        """``shots`` examples of every task, x uniform in ``x_range``: x ``[task, shot, input]``, y ``[task, shot, 1]``."""
        x = _inputs(len(task.phase), shots, *x_range, generator).to(self.dtype)
        y = self.function(task, x)
        if self.observe_task:
            x = torch.cat((x, torch.stack(tuple(task), -1)[:, None].expand(-1, shots, -1)), -1)
        return Examples(x, y)

    def support_and_query(
        self, task: Sinusoid, shots: int, queries: int, generator: torch.Generator
    ) -> tuple[Examples, Examples]:
        """Two independent samples of every task."""
        together = self.sample(task, shots + queries, generator)
        return Examples(*(leaf[:, :shots] for leaf in together)), Examples(*(leaf[:, shots:] for leaf in together))


# --- sinusoids or lines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SinusoidsOrLines:
    """Curves that are a sinusoid or a line with even odds, observed with noise, after the tasks of
    :cite:t:`finn2018probabilistic`.

    Where this departs from the paper: amplitude in [0.5, 3], slope and intercept in [−1, 1], and a task's few support
    examples come from one window of width ``window`` anywhere in [−5, 5], while queries cover it all. Over the paper's wider
    domain five examples settle the question nearly always.
    """

    noise: float = 0.3  # standard deviation of y
    window: float = 4.0
    amplitude: tuple[float, float] = (0.5, 3.0)
    phase: tuple[float, float] = (0.0, math.pi)
    slope: tuple[float, float] = (-1.0, 1.0)
    intercept: tuple[float, float] = (-1.0, 1.0)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive and finite, got {self.noise}")
        if not 0 < self.window <= X_RANGE[1] - X_RANGE[0]:
            raise ValueError(f"window must be in (0, {X_RANGE[1] - X_RANGE[0]:g}], got {self.window}")

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Curve:
        """Draw ``n`` tasks of a split, each a line with probability ½ and otherwise a sinusoid.

        Splits are interleaved in phase and in slope (:func:`interleaved`). In ``ood`` all parameters lie beyond their range, by
        at most half of its upper end; slope and intercept on either side.
        """
        _check_split(n, split)
        values = {"line": uniform(n, generator) < 0.5}
        for name in Curve._fields[1:]:
            low, high = getattr(self, name)
            u = uniform(n, generator)
            if split == "ood":
                below = (uniform(n, generator) < 0.5) & (low < 0)
                values[name] = (torch.where(below, -high, high) * (1.5 - u / 2)).to(self.dtype)
            else:
                u = interleaved(n, generator, split) if name in ("phase", "slope") else u
                values[name] = between(low, high, u).to(self.dtype)
        return Curve(**values)

    def function(self, task: Curve, x: Tensor) -> Tensor:
        """The curve without noise at ``x [task, ..., 1]``, of the same shape."""
        line, amplitude, phase, slope, intercept = (leaf.reshape(-1, *(1,) * (x.dim() - 1)) for leaf in task)
        return torch.where(line, slope * x + intercept, amplitude * torch.sin(x - phase))

    def observe(self, task: Curve, x: Tensor, generator: torch.Generator) -> Examples:
        """Noisy examples at ``x [task, example, 1]``."""
        noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=torch.float64)
        return Examples(x, self.function(task, x) + self.noise * noise.to(x.dtype))

    def sample(self, task: Curve, shots: int, generator: torch.Generator) -> Examples:
        """``shots`` examples of every task from one window of its own, x and y ``[task, shot, 1]``."""
        n = len(task.phase)
        left = _inputs(n, 1, X_RANGE[0], X_RANGE[1] - self.window, generator)
        return self.observe(task, _inputs(n, shots, left, left + self.window, generator).to(self.dtype), generator)

    def support_and_query(self, task: Curve, shots: int, queries: int, generator: torch.Generator) -> tuple[Examples, Examples]:
        """``shots`` examples from one window, and ``queries`` from all of [−5, 5]."""
        support = self.sample(task, shots, generator)
        x = _inputs(len(task.phase), queries, *X_RANGE, generator).to(self.dtype)
        return support, self.observe(task, x, generator)

    # --- what an exact Bayesian would say -----------------------------------------------------------------------------

    def posterior(self, support: Examples, points: int = 48) -> Posterior:
        """How probable every curve of a grid is after the ``support`` of each task, in double precision.

        The grid has ``points`` midpoints along each parameter, for sinusoids and lines alike, and every curve of it is
        equally probable beforehand: the distribution of :meth:`sample_tasks`, up to the width of a grid cell.
        """
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        unit = (torch.arange(points, dtype=torch.float64, device=support.x.device) + 0.5) / points
        rows, columns = (u.flatten() for u in torch.meshgrid(unit, unit, indexing="ij"))
        first, second = torch.cat((rows, rows)), torch.cat((columns, columns))
        curves = Curve(
            line=torch.arange(2 * points**2, device=unit.device) >= points**2,
            amplitude=between(*self.amplitude, first),
            phase=between(*self.phase, second),
            slope=between(*self.slope, first),
            intercept=between(*self.intercept, second),
        )
        log_likelihood = self._log_density(curves, support).sum(1)  # [task, curve]
        return Posterior(curves, log_likelihood.log_softmax(-1))

    def log_predictive(self, posterior: Posterior, query: Examples) -> Tensor:
        """log p(y | x, support) at every query, ``[task, query]``, in nats: no predictor does better on average."""
        rows = []
        for i, log_weights in enumerate(posterior.log_weights):
            # Many curves are less than e⁻¹⁰⁰ times as probable as the best one, too little to be seen in the sum.
            near = log_weights > log_weights.max() - 100
            curves = index_tasks(posterior.curves, near)
            density = self._log_density(curves, index_tasks(query, slice(i, i + 1)))[0]
            rows.append((log_weights[near] + density).logsumexp(-1))
        return torch.stack(rows)

    def predictive_mean(self, posterior: Posterior, x: Tensor) -> Tensor:
        """E[y | x, support] at ``x [task, query, 1]``, of the same shape: the least squared error."""
        rows = [
            self._values(posterior.curves, x[i : i + 1])[0] @ log_weights.exp()
            for i, log_weights in enumerate(posterior.log_weights)
        ]
        return torch.stack(rows)[..., None]

    def _values(self, curves: Curve, x: Tensor) -> Tensor:
        """Every curve at every input, ``[task, example, curve]``."""
        flat = x.double().reshape(1, -1)
        return self.function(curves, flat).T.reshape(*x.shape[:2], -1)

    def _log_density(self, curves: Curve, examples: Examples) -> Tensor:
        """log p(y | x, curve), ``[task, example, curve]``."""
        z = (examples.y.double() - self._values(curves, examples.x)) / self.noise
        return -0.5 * z.square() - math.log(self.noise * math.sqrt(2 * math.pi))


class Posterior(NamedTuple):
    """The curves of a grid and, for every task, their probabilities."""

    curves: Curve  # [curve]
    log_weights: Tensor  # [task, curve]

    @property
    def line(self) -> Tensor:
        """The probability that a task is a line, ``[task]``."""
        return (self.log_weights.exp() * self.curves.line).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Curve:
        """``n`` curves from every task's posterior, ``[task · n]``, a task's own in a row."""
        return index_tasks(self.curves, torch.multinomial(self.log_weights.exp(), n, True, generator=generator).flatten())
