"""Probabilistic MAML :cite:p:`finn2018probabilistic`: a distribution over initial parameters, from which each task samples.

A few examples 𝒟 may fit several tasks. MAML's one initialisation adapts to one answer; here the initial parameters θ have a
Gaussian prior, moved towards the task by one gradient step, and every sample of it adapts to an answer of its own. With L the
negative log-likelihood, and 𝒟' the query examples:

.. math::
    p(\\theta \\mid \\mathcal D)
    &= \\mathcal N(\\mu_\\theta - \\gamma_p \\nabla L(\\mu_\\theta; \\mathcal D), \\sigma_\\theta^2) \\\\
    q(\\theta \\mid \\mathcal D')
    &= \\mathcal N(\\mu_\\theta - \\gamma_q \\nabla L(\\mu_\\theta; \\mathcal D'), v_q) \\\\
    \\phi(\\theta)
    &= \\phi^K, \\quad \\phi^0 = \\theta, \\quad \\phi^{k+1} = \\phi^k - \\alpha \\nabla L(\\phi^k; \\mathcal D) \\\\
    \\log p(\\mathcal D' \\mid \\mathcal D)
    &\\ge \\mathbb E_{\\theta \\sim q}[\\log p(\\mathcal D' \\mid \\phi(\\theta))]
    - \\mathrm{KL}(q \\,\\|\\, p(\\theta \\mid \\mathcal D))

*Meta-training* (the paper's Algorithm 1, :func:`train`) raises this bound, averaged over tasks, in
:math:`\\Theta = \\{\\mu_\\theta, \\sigma_\\theta, v_q, \\gamma_p, \\gamma_q\\}`, with θ sampled from q, which sees the queries.
*Meta-testing* (Algorithm 2, :func:`sample`) has no queries to see: it samples θ from :math:`p(\\theta \\mid \\mathcal D)`,
adapts, and predicts with the mixture of as many samples as one likes.

Where this departs from the paper: step sizes are positive, start from a setting, and α is learned too unless they are all
fixed; there may be several inner steps, and several samples a task; L is a mean over examples where it moves parameters
(so that a step size does not depend on their number) and a sum where it is a term of the bound; the KL divergence may be
weighed by β. With β = 1 the bound is one, for this model in which φ is a function of θ and 𝒟.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .nets import init_mlp, mlp
from .sinusoids import Examples
from .supervised_maml import Apply, Config as MamlConfig, Init, Loss, adapt, initial_log_step_sizes, spread
from .types import Params

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it. The defaults are for sinusoids or lines."""

    iterations: int = 10_000
    learners: int = 1
    inner_steps: int = 3  # K, of every sample
    samples: int = 1  # of θ from q, for each task
    tasks: int = 16  # in a meta-batch of one learner
    shots: int = 3  # support examples of a task (in classification, of each of its classes)
    queries: int = 10  # likewise
    inner_step_size: float = 0.01  # α, where it starts
    prior_step_size: float = 0.01  # γ_p, likewise
    inference_step_size: float = 0.01  # γ_q, likewise
    step_sizes: str = "per_tensor"  # learned, or "per_parameter", or "fixed"
    first_order: bool = False  # treat the gradients in φ and in the means of p and q as constants
    adapted: tuple[str, ...] | None = None  # the parameters that gradient steps move, all of them if None
    prior_std: float = math.exp(-2.5)  # σ_θ, where it starts
    inference_std: float = math.exp(-2.5)  # the square root of v_q, likewise
    kl_weight: float = 1.0  # β
    meta_step_size: float = 3e-3  # of Adam on μ_θ
    log_step_size: float = 3e-2  # of Adam on the logarithms of all the rest of Θ
    decay: bool = True  # of both, linearly, to zero at the end of the iterations
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"iterations": 0, "learners": 1, "inner_steps": 0, "samples": 1, "tasks": 1, "shots": 1, "queries": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        positive = ("inner_step_size", "prior_step_size", "inference_step_size", "prior_std", "inference_std")
        for name in (*positive, "meta_step_size", "log_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be at least 0 and finite, got {self.kl_weight}")
        kinds = ("fixed", "per_tensor", "per_parameter")
        if self.step_sizes not in kinds:
            raise ValueError(f"unknown step_sizes {self.step_sizes!r}; there are {', '.join(kinds)}")
        if self.adapted is not None and not self.adapted:
            raise ValueError("adapted must name at least one parameter, got none; inner_steps=0 adapts nothing")


class Theta(NamedTuple):
    """Θ, all that is learned, leaves ``[learner, ...]``: what is positive, by its logarithm."""

    mean: Params  # μ_θ
    log_std: Params  # of σ_θ, of the mean's shapes
    log_inference_std: Params  # of √v_q, likewise
    log_prior_step: Params  # of γ_p, by adapted parameter, [learner, 1, ...] or of the mean's own shapes
    log_inference_step: Params  # of γ_q, likewise
    log_step: Params  # of α, likewise


class Gaussian(NamedTuple):
    """A distribution over parameters that are independent of one another, leaves ``[task, ...]``."""

    mean: Params
    log_std: Params


class Bound(NamedTuple):
    """The two terms of the negative bound, in nats, ``[learner, task]``."""

    nll: Tensor  # E −log p(𝒟' | φ), the sum over a task's queries and the mean over samples of θ from q
    kl: Tensor  # KL(q(θ | 𝒟') ‖ p(θ | 𝒟))


class Log(NamedTuple):
    """What one iteration of :func:`train` did. Nothing in it changes later."""

    iteration: int  # counted from 1
    loss: Tensor  # [learner], the negative bound before the update: nll + β kl
    nll: Tensor  # [learner], nats a task
    kl: Tensor  # [learner], nats a task
    theta: Theta  # after the update
    seconds: float  # of this iteration


# --- the network and the likelihoods ----------------------------------------------------------------------------------


def init(
    learners: int,
    generator: torch.Generator,
    sizes: tuple[int, ...] = (1, 48, 48, 1),
    context: int = 20,
    dtype: torch.dtype = torch.float32,
) -> Params:
    """Fresh parameters, leaves ``[learner, in, out]`` and ``[learner, 1, out]``.

    ``context`` numbers, parameters like the others, are appended to every input: the *bias transformation* of
    :cite:t:`finn2017oneshot`, through which a gradient step can move the first layer's biases in more ways than one.
    """
    params = init_mlp((sizes[0] + context, *sizes[1:]), learners, generator, dtype=dtype)
    return params | {"context": torch.zeros(learners, 1, context, dtype=dtype, device=generator.device)}


def apply(params: Params, x: Tensor) -> Tensor:
    """Hidden layers of tanh units: x ``[task, example, in]`` to ``[task, example, out]``."""
    layers = {name: p for name, p in params.items() if name != "context"}
    return mlp(layers, torch.cat((x, params["context"].expand(len(x), x.shape[1], -1)), -1))


def gaussian_nll(noise: float | None = None) -> Loss:
    """The loss −log N(y; prediction, noise²) in nats, summed over outputs and averaged over a task's examples, ``[task]``.

    Without ``noise`` it is learned: the latter half of the prediction's last axis is then the logarithm of the standard
    deviation of the former half.
    """
    if noise is not None and not 0 < noise < math.inf:
        raise ValueError(f"noise must be positive and finite, got {noise}")

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        if noise is None:
            mean, log_std = prediction.chunk(2, -1)
        else:
            mean, log_std = prediction, torch.full_like(prediction[:1, :1], math.log(noise))
        density = -0.5 * ((y - mean) * (-log_std).exp()).square() - log_std - 0.5 * LOG_2PI
        return -density.flatten(2).sum(2).mean(1)

    return loss


KNOWN_NOISE = gaussian_nll(0.3)  # of sinusoids or lines


# --- distributions over parameters ------------------------------------------------------------------------------------


def prior(theta: Theta, support: Examples, config: Config, apply: Apply = apply, loss: Loss = KNOWN_NOISE) -> Gaussian:
    """p(θ | 𝒟) of every task: its mean is one gradient step from :math:`\\mu_\\theta`, of size :math:`\\gamma_p`.

    Leaves of ``theta`` are ``[learner, ...]``, examples ``[learner · task, ...]``, and so is what is given back.
    """
    return _moved(theta.mean, theta.log_std, theta.log_prior_step, support, config, apply, loss)


def inference(theta: Theta, query: Examples, config: Config, apply: Apply = apply, loss: Loss = KNOWN_NOISE) -> Gaussian:
    """q(θ | 𝒟') of every task, likewise: one gradient step on the queries, of size :math:`\\gamma_q`."""
    return _moved(theta.mean, theta.log_inference_std, theta.log_inference_step, query, config, apply, loss)


def _moved(
    mean: Params, log_std: Params, log_step: Params, examples: Examples, config: Config, apply: Apply, loss: Loss
) -> Gaussian:
    tasks = len(examples.x) // len(next(iter(mean.values())))
    step = spread(_exp(log_step), tasks)
    moved = adapt(spread(mean, tasks), step, examples, 1, not config.first_order, config.adapted, apply, loss)
    return Gaussian(moved, spread(log_std, tasks))


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q ‖ p) in nats, summed over all parameters, ``[task]``."""
    total = 0.0
    for name in q.mean:
        log_ratio = q.log_std[name] - p.log_std[name]
        z = (q.mean[name] - p.mean[name]) * (-p.log_std[name]).exp()
        total = total + (0.5 * ((2 * log_ratio).exp() + z.square() - 1) - log_ratio).flatten(1).sum(1)
    return total


def draw(gaussian: Gaussian, samples: int, generator: torch.Generator) -> Params:
    """``samples`` of every task's parameters, leaves ``[task · sample, ...]``, a task's own in a row."""
    mean, log_std = (spread(leaves, samples) for leaves in gaussian)
    noise = {name: torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype) for name, p in mean.items()}
    return {name: mean[name] + log_std[name].exp() * noise[name] for name in mean}


def _adapted(phi: Params, theta: Theta, support: Examples, samples: int, config: Config, apply: Apply, loss: Loss) -> Params:
    """Every sample's parameters after the inner steps, on the support of the task that it belongs to."""
    step = spread(_exp(theta.log_step), len(support.x) // len(next(iter(theta.mean.values()))) * samples)
    support = repeated(support, samples)
    return adapt(phi, step, support, config.inner_steps, not config.first_order, config.adapted, apply, loss)


def repeated(examples: Examples, samples: int) -> Examples:
    """Every task's examples once for each of its ``samples``, ``[task · sample, ...]``."""
    return Examples(*(leaf.repeat_interleave(samples, 0) for leaf in examples))


def _exp(logs: Params) -> Params:
    return {name: p.exp() for name, p in logs.items()}


# --- meta-training ----------------------------------------------------------------------------------------------------


def negative_bound(
    theta: Theta,
    support: Examples,
    query: Examples,
    config: Config,
    generator: torch.Generator,
    apply: Apply = apply,
    loss: Loss = KNOWN_NOISE,
) -> Bound:
    """The terms of the negative bound on log p(𝒟' | 𝒟) as a function of Θ, estimated from ``config.samples`` draws of θ."""
    learners = len(next(iter(theta.mean.values())))
    q, p = inference(theta, query, config, apply, loss), prior(theta, support, config, apply, loss)
    phi = _adapted(draw(q, config.samples, generator), theta, support, config.samples, config, apply, loss)
    queries = repeated(query, config.samples)
    nll = query.y.shape[1] * loss(apply(phi, queries.x), queries.y)  # the sum over a task's queries, not their mean
    return Bound(nll.unflatten(0, (learners, -1, config.samples)).mean(-1), kl_divergence(q, p).unflatten(0, (learners, -1)))


def train(
    tasks: Any,
    config: Config,
    init: Init = init,
    apply: Apply = apply,
    loss: Loss = KNOWN_NOISE,
    start: Params | None = None,
) -> Iterator[Log]:
    """Meta-train on the training tasks, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    ``tasks`` is a distribution of supervised tasks, as :mod:`metarl_lib.sinusoids` says. ``loss`` is a negative
    log-likelihood in nats, the mean over a task's examples: :func:`gaussian_nll`, or
    :func:`~metarl_lib.supervised_maml.cross_entropy`. ``start`` holds parameters for :math:`\\mu_\\theta` to start from, those
    of a trained MAML for one, leaves ``[learner, ...]``; otherwise they are fresh. All randomness comes from ``config.seed``,
    and no learner's affects another's. Raises ``FloatingPointError`` as soon as a loss or a gradient is not finite, or a
    standard deviation is no longer a positive number.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    theta = initial(init(config.learners, generator), config, start)
    logs = [p for leaves in theta[1:] for p in leaves.values() if p.requires_grad]
    groups = [{"params": list(theta.mean.values()), "lr": config.meta_step_size}, {"params": logs, "lr": config.log_step_size}]
    optimizer = torch.optim.Adam(groups, fused=True)
    rates = [group["lr"] for group in groups]

    for iteration in range(1, config.iterations + 1):
        started = time.perf_counter()
        task = tasks.sample_tasks(config.learners * config.tasks, generator)
        support, query = tasks.support_and_query(task, config.shots, config.queries, generator)
        nll, kl = (term.mean(1) for term in negative_bound(theta, support, query, config, generator, apply, loss))
        losses = nll + config.kl_weight * kl
        optimizer.zero_grad()
        losses.sum().backward()
        _check_finite(iteration, losses, theta)
        if config.decay:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - (iteration - 1) / config.iterations)
        optimizer.step()
        _check_spread(iteration, theta)
        after = Theta(*({name: p.detach().clone() for name, p in leaves.items()} for leaves in theta))
        yield Log(iteration, losses.detach(), nll.detach(), kl.detach(), after, time.perf_counter() - started)


def initial(fresh: Params, config: Config, start: Params | None = None) -> Theta:
    """Θ before training: the mean is ``start``, or else ``fresh``, and everything else is as the configuration says."""
    if start is not None and {n: p.shape for n, p in start.items()} != {n: p.shape for n, p in fresh.items()}:
        shapes = (", ".join(f"{n} {[*p.shape]}" for n, p in params.items()) for params in (start, fresh))
        raise ValueError("start must have the parameters {1}, got {0}".format(*shapes))
    mean = {name: p.detach().clone().requires_grad_() for name, p in (fresh if start is None else start).items()}
    log_stds = (
        {name: torch.full_like(p, math.log(std)).requires_grad_() for name, p in mean.items()}
        for std in (config.prior_std, config.inference_std)
    )
    steps = (
        MamlConfig(inner_step_size=alpha, step_sizes=config.step_sizes, adapted=config.adapted)
        for alpha in (config.prior_step_size, config.inference_step_size, config.inner_step_size)
    )
    return Theta(mean, *log_stds, *(initial_log_step_sizes(mean, s) for s in steps))


def _check_finite(iteration: int, losses: Tensor, theta: Theta) -> None:
    leaves = [p for params in theta for p in params.values()]
    gradients = (p.grad.flatten(1).isfinite().all(1) for p in leaves if p.grad is not None)
    bad = ~(torch.stack([losses.isfinite(), *gradients]).all(0))
    if bad.any():
        learner = int(bad.nonzero()[0])
        raise FloatingPointError(f"iteration {iteration}: the bound of learner {learner} or its gradient is NaN or infinite")


def _check_spread(iteration: int, theta: Theta) -> None:
    """σ_θ and √v_q, and their squares, must be positive numbers: one that has vanished would go on unseen."""
    for name in theta.mean:
        for what, leaves in (("prior", theta.log_std), ("inference", theta.log_inference_std)):
            variance = (2 * leaves[name].detach()).exp().flatten(1)
            bad = ~((variance > 0) & variance.isfinite()).all(1)
            if bad.any():
                learner = int(bad.nonzero()[0])
                raise FloatingPointError(
                    f"iteration {iteration}: the {what} variance of {name} of learner {learner} is 0 or infinite"
                )


# --- meta-testing -----------------------------------------------------------------------------------------------------


def sample(
    theta: Theta,
    support: Examples,
    samples: int,
    config: Config,
    generator: torch.Generator,
    apply: Apply = apply,
    loss: Loss = KNOWN_NOISE,
) -> Params:
    """Adapted parameters φ of every task, leaves ``[learner · task · sample, ...]``: θ from p(θ | 𝒟), then the inner steps.

    Support examples are ``[learner · task, ...]``. Nothing of the queries is seen, and no gradient is kept.
    """
    theta = Theta(*({name: p.detach() for name, p in leaves.items()} for leaves in theta))
    phi = draw(prior(theta, support, config, apply, loss), samples, generator)
    return _adapted(phi, theta, support, samples, config, apply, loss)


def predict(phi: Params, x: Tensor, apply: Apply = apply) -> Tensor:
    """What each sample predicts at its task's x ``[task, example, ...]``: ``[task, sample, example, ...]``."""
    samples = len(next(iter(phi.values()))) // len(x)
    with torch.no_grad():
        return apply(phi, x.repeat_interleave(samples, 0)).unflatten(0, (len(x), samples))
