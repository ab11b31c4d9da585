"""Model-agnostic meta-learning for supervised tasks :cite:p:`finn2017model`.

Find initial parameters θ from which K gradient steps on a task's support examples 𝒟 do well on its query examples 𝒟':

.. math::
    \\min_\\theta \\; \\mathbb{E}_i \\, L_i(\\phi_i^K; \\mathcal D_i'), \\qquad
    \\phi_i^0 = \\theta, \\quad \\phi_i^{k+1} = \\phi_i^k - \\alpha \\nabla_\\phi L_i(\\phi_i^k; \\mathcal D_i)

The outer gradient goes through the inner ones, so that it holds their Hessians; *first-order* MAML leaves these out. With
*ANIL* :cite:p:`raghu2020rapid` the inner steps move the last layer alone. With ``inner_steps=0`` what is left is joint
pretraining: one network for all tasks.

The network is two functions, here :func:`init` and :func:`apply`, and the loss a third, so that others can take their place.
Learners (seeds) train side by side, each on tasks of its own; in the inner loop every task of every learner is a learner.

Where this departs from the paper: initial weights are Xavier-uniform; step sizes may be learned :cite:p:`li2017metasgd`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .nets import init_mlp, mlp
from .sinusoids import Examples
from .types import Params

Init = Callable[[int, torch.Generator], Params]
"""``init(learners, generator)``: fresh parameters, leaves ``[learner, ...]``."""

Apply = Callable[[Params, Tensor], Tensor]
"""``apply(params, x)``: predictions ``[task, example, ...]``, leaves of ``params`` being ``[task, ...]``."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(prediction, y)``: each task's own, ``[task]``."""

HEAD = ("weight_2", "bias_2")  # the last layer of the network below: all that ANIL adapts


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it. The defaults are the paper's for sinusoids, where it gives them."""

    iterations: int = 15_000
    learners: int = 1
    inner_steps: int = 1  # K, gradient steps of adaptation; 0 is joint pretraining
    tasks: int = 25  # in a meta-batch of one learner
    shots: int = 10  # support examples of a task (in classification, of each of its classes)
    queries: int = 10  # likewise
    inner_step_size: float = 0.01  # α, where it starts
    step_sizes: str = "fixed"  # or learned, "per_tensor" or "per_parameter"
    first_order: bool = False  # treat the inner gradient as a constant
    adapted: tuple[str, ...] | None = None  # the parameters that inner steps move, all of them if None; HEAD makes it ANIL
    meta_step_size: float = 1e-3  # of Adam on θ
    step_size_step_size: float = 1e-2  # of Adam on log α
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"iterations": 0, "learners": 1, "inner_steps": 0, "tasks": 1, "shots": 1, "queries": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("inner_step_size", "meta_step_size", "step_size_step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        kinds = ("fixed", "per_tensor", "per_parameter")
        if self.step_sizes not in kinds:
            raise ValueError(f"unknown step_sizes {self.step_sizes!r}; there are {', '.join(kinds)}")
        if self.adapted is not None and not self.adapted:
            raise ValueError("adapted must name at least one parameter, got none; inner_steps=0 adapts nothing")


class Log(NamedTuple):
    """What one iteration of :func:`train` did. Nothing in it changes later."""

    iteration: int  # counted from 1
    loss: Tensor  # [learner], on the queries after K inner steps, before the outer update
    params: Params  # θ after it, leaves [learner, ...]
    step_sizes: Params  # α after it, by adapted parameter, [learner, 1, ...] or of θ's own shape
    seconds: float  # of this iteration


# --- the network and the losses ---------------------------------------------------------------------------------------


def init(
    learners: int,
    generator: torch.Generator,
    sizes: tuple[int, ...] = (1, 40, 40, 1),
    dtype: torch.dtype = torch.float32,
) -> Params:
    """Fresh parameters of the paper's regressor, leaves ``[learner, in, out]`` and ``[learner, 1, out]``."""
    return init_mlp(sizes, learners, generator, dtype=dtype)


def apply(params: Params, x: Tensor) -> Tensor:
    """Two hidden layers of rectified linear units: x ``[task, example, in]`` to ``[task, example, out]``."""
    return mlp(params, x, torch.relu)


def squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """The mean over a task's examples, ``[task]``."""
    return (prediction - y).square().flatten(1).mean(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """In nats, the mean over a task's examples, ``[task]``: logits ``[task, example, class]``, y ``[task, example]`` int64."""
    return -logits.log_softmax(-1).gather(-1, y[..., None]).flatten(1).mean(1)


# --- adaptation -------------------------------------------------------------------------------------------------------


def spread(params: Params, tasks: int) -> Params:
    """Every learner's parameters once for each of its ``tasks``: leaves ``[learner, ...]`` to ``[learner · task, ...]``."""
    return {name: p[:, None].expand(-1, tasks, *p.shape[1:]).flatten(0, 1) for name, p in params.items()}


def adapt(
    params: Params,
    step_sizes: Params | float,
    support: Examples,
    steps: int = 1,
    second_order: bool = False,
    adapted: tuple[str, ...] | None = None,
    apply: Apply = apply,
    loss: Loss = squared_error,
) -> Params:
    """``steps`` gradient steps on every task at once: :math:`\\phi_i \\leftarrow \\phi_i - \\alpha \\nabla L_i(\\phi_i)`.

    ``params`` leaves are ``[task, ...]``; only those named in ``adapted`` move. The tasks' losses are summed before
    differentiation; since no task's loss contains another's parameters, the sum's gradient is every task's own. If
    ``params`` require gradients the result is differentiable with respect to them and to the step sizes: through the
    gradients too with ``second_order``, and as if these were constants without.
    """
    tracked = any(p.requires_grad for p in params.values())
    phi, names = dict(params), tuple(params) if adapted is None else adapted
    unknown = [name for name in names if name not in phi]
    if unknown:
        raise ValueError(f"adapted names {unknown[0]!r}, which is no parameter; there are {', '.join(phi)}")
    for _ in range(steps):
        if not tracked:
            phi |= {name: phi[name].detach().requires_grad_() for name in names}
        task_losses = loss(apply(phi, support.x), support.y)
        gradients = torch.autograd.grad(task_losses.sum(), [phi[name] for name in names], create_graph=second_order)
        for name, gradient in zip(names, gradients, strict=True):
            alpha = step_sizes[name] if isinstance(step_sizes, dict) else step_sizes
            phi[name] = phi[name] - alpha * gradient
    return phi if tracked else {name: p.detach() for name, p in phi.items()}


# --- the outer objective ----------------------------------------------------------------------------------------------


def meta_loss(
    theta: Params,
    step_sizes: Params,
    support: Examples,
    query: Examples,
    config: Config,
    apply: Apply = apply,
    loss: Loss = squared_error,
) -> Tensor:
    """:math:`L_i(\\phi_i^K; \\mathcal D_i')` as a function of θ and α: adapt on ``support``, score on ``query``.

    Leaves of ``theta`` and ``step_sizes`` are ``[learner, ...]``, examples ``[learner · task, ...]``; the losses are
    ``[learner, task]``.
    """
    learners = len(next(iter(theta.values())))
    tasks = len(query.x) // learners
    phi, alpha = spread(theta, tasks), spread(step_sizes, tasks)
    phi = adapt(phi, alpha, support, config.inner_steps, not config.first_order, config.adapted, apply, loss)
    return loss(apply(phi, query.x), query.y).unflatten(0, (learners, tasks))


# --- the outer loop ---------------------------------------------------------------------------------------------------


def train(tasks: Any, config: Config, init: Init = init, apply: Apply = apply, loss: Loss = squared_error) -> Iterator[Log]:
    """Meta-train on the training tasks, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    ``tasks`` is a distribution of supervised tasks, as :mod:`metarl_lib.sinusoids` says. All randomness comes from
    ``config.seed``, and no learner's affects another's. Raises ``FloatingPointError`` as soon as a loss or a gradient is not
    finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    theta = {name: p.requires_grad_() for name, p in init(config.learners, generator).items()}
    log_alpha = initial_log_step_sizes(theta, config)
    groups = [{"params": list(theta.values()), "lr": config.meta_step_size}]
    if config.step_sizes != "fixed":
        groups.append({"params": list(log_alpha.values()), "lr": config.step_size_step_size})
    optimizer = torch.optim.Adam(groups, fused=True)

    for iteration in range(1, config.iterations + 1):
        started = time.perf_counter()
        task = tasks.sample_tasks(config.learners * config.tasks, generator)
        support, query = tasks.support_and_query(task, config.shots, config.queries, generator)
        alpha = {name: p.exp() for name, p in log_alpha.items()}
        losses = meta_loss(theta, alpha, support, query, config, apply, loss).mean(1)
        optimizer.zero_grad()
        losses.sum().backward()
        _check_finite(iteration, losses, theta)
        optimizer.step()
        yield Log(
            iteration=iteration,
            loss=losses.detach(),
            params={name: p.detach().clone() for name, p in theta.items()},
            step_sizes={name: p.detach().exp() for name, p in log_alpha.items()},
            seconds=time.perf_counter() - started,
        )


def initial_log_step_sizes(theta: Params, config: Config) -> Params:
    """log α of every adapted parameter of every learner, ``[learner, 1, ...]`` or of θ's own shape."""
    start, learned = math.log(config.inner_step_size), config.step_sizes != "fixed"
    log_alpha = {}
    for name in theta if config.adapted is None else config.adapted:
        if name not in theta:
            raise ValueError(f"adapted names {name!r}, which is no parameter; there are {', '.join(theta)}")
        p = theta[name].detach()
        shape = p.shape if config.step_sizes == "per_parameter" else (len(p), *(1,) * (p.dim() - 1))
        log_alpha[name] = p.new_full(shape, start).requires_grad_(learned)
    return log_alpha


def _check_finite(iteration: int, losses: Tensor, theta: Params) -> None:
    # A sum is finite only if all of its terms are.
    gradients = sum(p.grad.flatten(1).sum(1) for p in theta.values() if p.grad is not None)
    bad = ~torch.isfinite(losses.detach() + gradients)
    if bad.any():
        learner = int(bad.nonzero()[0])
        raise FloatingPointError(f"iteration {iteration}: the meta-loss of learner {learner} or its gradient is NaN or infinite")


# --- how well it adapts -----------------------------------------------------------------------------------------------


def adaptation_curve(
    params: Params,
    step_sizes: Params | float,
    support: Examples,
    query: Examples,
    steps: int,
    adapted: tuple[str, ...] | None = None,
    apply: Apply = apply,
    loss: Loss = squared_error,
) -> Tensor:
    """Loss on ``query`` of every task after 0, 1, … ``steps`` inner steps on all of its ``support``, ``[steps + 1, task]``.

    ``params`` leaves are ``[1, ...]`` or ``[task, ...]``; they are copied, so that nothing leaks from one evaluation to the
    next. Fine-tuning a pretrained network, or one that has learned nothing, is this too.
    """
    tasks = len(query.x)
    phi = {name: p.detach().expand(tasks, *p.shape[1:]) for name, p in params.items()}
    curve = []
    for k in range(steps + 1):
        if k:
            phi = adapt(phi, step_sizes, support, adapted=adapted, apply=apply, loss=loss)
        with torch.no_grad():
            curve.append(loss(apply(phi, query.x), query.y))
    return torch.stack(curve)
