"""A trust-region step :cite:p:`schulman2015trust`, as the outer update of MAML with which its paper trained policies.

Of all steps that change the (adapted) policies by no more than a radius δ, in mean KL divergence, take the one that gains most:

.. math::
    \\max_{\\theta'} \\; g^\\top (\\theta' - \\theta), \\qquad
    \\tfrac12 (\\theta' - \\theta)^\\top F \\, (\\theta' - \\theta) \\le \\delta
    \\quad\\Longrightarrow\\quad
    \\theta' - \\theta = \\sqrt{2 \\delta / (g^\\top F^{-1} g)} \\; F^{-1} g .

F is the Hessian of the mean KL divergence at θ: the Fisher information, seen through the adaptation. It is never formed.
:math:`F^{-1} g` comes from conjugate gradients, which ask only for products F v, and such a product is the gradient of
:math:`(\\nabla_\\theta \\mathrm{KL})^\\top v`. A line search then shortens the step until the objective itself has risen and the
KL divergence itself, and not its quadratic model, is within δ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Part = Callable[[], tuple[Tensor, Tensor]]
"""Some tasks' share of the objective, and of the mean KL divergence from the policies before the step, as the leaves are now."""


class Outcome(NamedTuple):
    """What :func:`step` did."""

    gain: float  # of the objective
    divergence: float  # mean KL from the policies before, in nats
    length: float  # of the step, as a fraction of the one that the quadratic model allows; 0: none was good enough


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int, tolerance: float = 1e-10) -> Tensor:
    """x with A x ≈ ``target``, for A symmetric and positive definite and given as ``product(v)`` = A v; all ``[n]``.

    Stops early once the squared norm of the residual is below ``tolerance`` times that of ``target``.
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual, residual @ residual
    enough = tolerance * square
    for _ in range(iterations):
        if square <= enough:
            break
        image = product(direction)
        length = square / (direction @ image)
        x = x + length * direction
        residual = residual - length * image
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    return x


def flat_gradient(y: Tensor, leaves: Sequence[Tensor], differentiable: bool = False) -> Tensor:
    """The gradient of a scalar, ``[n]``, its graph kept; zero where ``y`` does not depend on a leaf."""
    gradients = torch.autograd.grad(y, leaves, create_graph=differentiable, retain_graph=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in gradients])


def step(
    leaves: Sequence[Tensor],
    parts: Sequence[Part],
    radius: float,
    iterations: int = 5,
    every: int = 1,
    damping: float = 1e-5,
    shrink: float = 0.8,
    backtracks: int = 15,
) -> Outcome:
    """Move ``leaves`` in place by one step that raises the sum of the parts' objectives within ``radius`` (δ, in nats).

    ``iterations`` of conjugate gradients are taken on F + ``damping``·1, with F estimated from one part in ``every``; the line
    search, on all of them, tries ``backtracks`` steps, each ``shrink`` times as long as the one before, and leaves everything as
    it was if none will do. Damping and line search are those of MAML's released code, which takes ten iterations on all tasks.
    Raises ``FloatingPointError`` if the gradient is not finite.
    """
    objective, gradient, slopes = 0.0, 0.0, []
    for i, part in enumerate(parts):
        gain, divergence = part()
        objective += float(gain.detach())
        gradient = gradient + flat_gradient(gain, leaves)
        if i % every == 0:
            slopes.append(flat_gradient(divergence, leaves, differentiable=True))
    if not torch.isfinite(gradient).all():
        raise FloatingPointError("the meta-gradient is not finite (NaN or infinity)")

    share = len(slopes) / len(parts)

    def product(v: Tensor) -> Tensor:
        return sum((flat_gradient(slope @ v, leaves) / share for slope in slopes), damping * v)

    direction = conjugate_gradient(product, gradient, iterations)
    # Conjugate gradients leave a residual that is orthogonal to x, so that xᵀA x is xᵀg, whenever they stop.
    curvature = float(direction @ gradient)
    slopes.clear()  # and with them the graphs, which are as large as the batch
    start = [leaf.detach().clone() for leaf in leaves]
    if curvature > 0:
        full = (2 * radius / curvature) ** 0.5 * direction
        for length in (shrink**k for k in range(backtracks)):
            move(leaves, start, length * full)
            gain, divergence = (float(sum(values)) for values in zip(*(detached(part) for part in parts), strict=True))
            if gain > objective and divergence <= radius:
                return Outcome(gain - objective, divergence, length)
    move(leaves, start, torch.zeros_like(gradient))
    return Outcome(0.0, 0.0, 0.0)


def detached(part: Part) -> tuple[Tensor, Tensor]:
    """A part's two values without their graph."""
    gain, divergence = part()
    return gain.detach(), divergence.detach()


def move(leaves: Sequence[Tensor], start: Sequence[Tensor], by: Tensor) -> None:
    """Set every leaf to where it started plus its share of ``by`` ``[n]``."""
    with torch.no_grad():
        shares = by.split([leaf.numel() for leaf in leaves])
        for leaf, origin, share in zip(leaves, start, shares, strict=True):
            leaf.copy_(origin + share.view_as(leaf))
