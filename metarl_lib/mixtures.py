"""What several predictions are worth together: the density and the calibration of their mixture, and the best one of them.

A predictor that samples S curves for a task says that y is distributed as the mixture of S Gaussians of equal weight, one around
each curve, whose standard deviation is the noise of the observations. One network is a mixture of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .sinusoids import Curve, Posterior, SinusoidsOrLines
from .types import index_tasks

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def log_density(predictions: Tensor, y: Tensor, noise: Tensor | float) -> Tensor:
    """log p(y) in nats under the mixture of ``predictions [task, sample, query]`` with ``noise``: y and it ``[task, query]``.

    ``noise`` is a number, or of the predictions' shape.
    """
    noise = torch.as_tensor(noise, dtype=predictions.dtype, device=predictions.device)
    z = (y[:, None] - predictions) / noise
    density = -0.5 * z.square() - noise.log() - 0.5 * math.log(2 * math.pi)
    return density.logsumexp(1) - math.log(predictions.shape[1])


def cumulative(predictions: Tensor, y: Tensor, noise: Tensor | float) -> Tensor:
    """P(Y ≤ y) under the same mixture, ``[task, query]``: uniform in [0, 1] where the mixture is what y is drawn from."""
    return torch.special.ndtr((y[:, None] - predictions) / noise).mean(1)


def coverage(cumulative: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """The share of y that lie in the central interval of each level, ``[level]``; ``cumulative`` has any shape.

    A mixture's central 90% interval, say, is from its 5% to its 95% quantile: y lies in it where P(Y ≤ y) is between the two.
    """
    distance = 2 * (cumulative.flatten() - 0.5).abs()
    return torch.stack([(distance <= level).double().mean() for level in levels])


def calibration_error(cumulative: Tensor, levels: Sequence[float] = LEVELS) -> float:
    """How far coverage is from the level, the mean over levels: 0 where intervals hold as many y as they say."""
    return (coverage(cumulative, levels) - torch.tensor(levels, dtype=torch.float64)).abs().mean().item()


def best_of(predictions: Tensor, truth: Tensor) -> Tensor:
    """The mean squared error of each task's best sample, ``[task]``, ``truth`` being ``[task, query]``."""
    return (predictions - truth[:, None]).square().mean(-1).amin(1)


def kinds_covered(
    world: SinusoidsOrLines, posterior: Posterior, predictions: Tensor, x: Tensor, tolerance: float = 0.5, nats: float = 4.0
) -> Tensor:
    """Whether some sample is a line, and some sample a sinusoid, that fits the support: ``[task, 2]`` bool, lines first.

    ``predictions [task, sample, point]`` are the samples at ``x [point]``. A sample is of the kind of the posterior's curve that
    it is nearest to, if it is within ``tolerance`` of it (root mean square). Only those curves count that are at most ``nats``
    less probable than the best one of their kind.
    """
    found = torch.zeros(len(predictions), 2, dtype=torch.bool)
    for i, log_weights in enumerate(posterior.log_weights):
        distances = []
        for line in (True, False):
            kind = posterior.curves.line == line
            near = kind & (log_weights > log_weights[kind].max() - nats)
            distances.append(_distances(world, index_tasks(posterior.curves, near), predictions[i], x).amin(1))
        distance, nearest = torch.stack(distances, 1).min(1)
        for k in range(2):
            found[i, k] = ((nearest == k) & (distance <= tolerance)).any()
    return found


def _distances(world: SinusoidsOrLines, curves: Curve, predictions: Tensor, x: Tensor) -> Tensor:
    """Root mean square distances between ``predictions [sample, point]`` and curves, ``[sample, curve]``."""
    values = world.function(curves, x.double().expand(len(curves.line), -1)[..., None])[..., 0]
    return torch.cdist(predictions.double(), values) / math.sqrt(len(x))
