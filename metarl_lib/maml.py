"""Model-agnostic meta-learning for policies :cite:p:`finn2017model`.

Find initial parameters θ from which one or a few policy-gradient steps on a task's own episodes give a good policy:

.. math::
    \\max_\\theta \\; \\mathbb{E}_i \\, J_i(\\phi_i), \\qquad
    \\phi_i^{0} = \\theta, \\quad \\phi_i^{k+1} = \\phi_i^{k} + \\alpha \\nabla_\\phi \\hat J_i^{(k)}(\\phi_i^{k})

Where this departs from the paper: the inner objective is a likelihood ratio, whose second derivative keeps the
score-function term that the paper's own log-probability surrogate loses :cite:p:`rothfuss2019promp`; the outer step
is a few epochs of Adam on a clipped ratio :cite:p:`schulman2017proximal`, with the paper's trust region as an alternative
(``outer="trust_region"``, see :mod:`metarl_lib.trust_region`); step sizes may be learned :cite:p:`li2017metasgd`. With
``inner_steps=0`` what is left is domain-randomised pretraining by policy gradient: one policy for all tasks.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import trust_region
from .baseline import to_batch
from .collect import collect
from .nets import GaussianPolicyNet, PolicyNet
from .types import Batch, Params, World, index_tasks

Policy = PolicyNet | GaussianPolicyNet


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    iterations: int = 20
    inner_steps: int = 1  # K, gradient steps of adaptation; 0 is domain-randomised pretraining
    tasks: int = 20  # tasks in a meta-batch
    episodes: int = 20  # a task, before each inner step and again after the last
    inner_step_size: float = 0.5  # α, where it starts
    step_sizes: str = "per_tensor"  # learned "per_tensor", learned "per_parameter", or "fixed"
    first_order: bool = False  # treat the inner gradient as a constant
    surrogate: str = "ratio"  # of the inner steps: "ratio", or the naive "log_prob"
    outer: str = "clipped"  # how θ is moved: by Adam, as the next four lines say; or by one "trust_region" step
    meta_step_size: float = 5e-3  # of Adam on θ, falling linearly to a tenth over the iterations
    step_size_step_size: float = 2e-2  # of Adam on log α, likewise
    epochs: int = 3  # outer steps on one meta-batch
    clip: float = 0.2  # of the outer ratio; 0 leaves it unclipped
    radius: float = 0.01  # δ of the trust region: mean KL divergence of the adapted policies, in nats
    discount: float = 0.99
    gae_lambda: float = 0.97
    task_pool: int = 0  # train on this many fixed tasks; 0 draws new ones in every iteration
    group: int = 5  # tasks differentiated together: few enough to stay in the processor's cache
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"inner_steps": 0, "iterations": 0, "tasks": 1, "episodes": 1, "epochs": 1, "group": 1, "task_pool": 0, "clip": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("inner_step_size", "meta_step_size", "step_size_step_size", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        choices = {
            "step_sizes": ("per_tensor", "per_parameter", "fixed"),
            "surrogate": ("ratio", "log_prob"),
            "outer": ("clipped", "trust_region"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; there are {', '.join(allowed)}")
        if 0 < self.task_pool < self.tasks:
            raise ValueError(f"task_pool ({self.task_pool}) must hold at least one meta-batch of {self.tasks} tasks")


class Log(NamedTuple):
    """What one iteration of :func:`train` did."""

    iteration: int  # counted from 1
    returns: list[float]  # mean return on the training tasks after 0 … K inner steps, before the outer update
    env_steps: int  # so far, those of finished episodes' padding not counted
    seconds: float  # of this iteration
    state: dict[str, Any]  # a copy of everything that training goes on from: save it, or hand it to train(resume=…)

    @property
    def params(self) -> Params:
        """θ, leaves ``[1, ...]``."""
        return self.state["params"]

    @property
    def step_sizes(self) -> Params:
        """α by tensor, ``[1, 1, 1]`` or of θ's own shape."""
        return {name: log_alpha.exp() for name, log_alpha in self.state["log_step_sizes"].items()}


# --- adaptation -------------------------------------------------------------------------------------------------------


def surrogate(policy: Policy, params: Params, batch: Batch, kind: str = "ratio") -> Tensor:
    """The inner objective of every task, ``[task]``; its gradient is the policy gradient.

    ``ratio``: :math:`\\sum_n w_n \\frac{\\pi_\\phi(a_n|s_n)}{\\pi_\\text{old}(a_n|s_n)} A_n`. Differentiated
    twice it keeps both terms of the policy Hessian, :math:`\\nabla\\log\\pi\\,\\nabla\\log\\pi^\\top + \\nabla^2\\log\\pi`:
    exact for one decision; over several it drops the products between different time steps, which makes it slightly
    biased and much less noisy.
    ``log_prob``: :math:`\\sum_n w_n \\log\\pi_\\phi(a_n|s_n) A_n`, the same first derivative, but its second keeps only
    :math:`\\nabla^2\\log\\pi`. It is here for the lesson.
    """
    log_prob = policy.log_prob(params, batch.observations, batch.actions)
    score = log_prob if kind == "log_prob" else (log_prob - batch.log_probs).exp()
    return (batch.weights * score * batch.advantages).sum(-1)


def adapt(
    policy: Policy,
    params: Params,
    step_sizes: Params | float,
    batch: Batch,
    kind: str = "ratio",
    second_order: bool = False,
) -> Params:
    """One gradient step on every task at once: :math:`\\phi_i = \\theta_i + \\alpha \\nabla \\hat J_i(\\theta_i)`.

    ``params`` leaves are ``[task, ...]``, or ``[1, ...]`` for a start that all tasks share. The tasks' objectives are summed
    before differentiation; since no task's objective contains another's parameters, the sum's gradient is every
    task's own. If ``params`` require gradients the result is differentiable with respect to them: through the gradient
    too with ``second_order``, and as if the gradient were a constant without.
    """
    tasks = batch.observations.shape[0]
    tracked = any(p.requires_grad for p in params.values())
    params = {name: p.expand(tasks, *p.shape[1:]) for name, p in params.items()}
    if not tracked:
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
    objective = surrogate(policy, params, batch, kind).sum()
    gradients = torch.autograd.grad(objective, list(params.values()), create_graph=second_order)
    adapted = {}
    for (name, p), gradient in zip(params.items(), gradients, strict=True):
        alpha = step_sizes[name] if isinstance(step_sizes, dict) else step_sizes
        adapted[name] = p + alpha * gradient
    return adapted if tracked else {name: p.detach() for name, p in adapted.items()}


# --- the outer objective ----------------------------------------------------------------------------------------------


def adapt_on(policy: Policy, params: Params, step_sizes: Params, support: list[Batch], config: Config) -> Params:
    """φ of every task, ``[task, ...]``, as a function of θ and α: one inner step on each batch of ``support``."""
    for batch in support:
        params = adapt(policy, params, step_sizes, batch, config.surrogate, second_order=not config.first_order)
    return params


def score(policy: Policy, phi: Params, query: Batch, clip: float) -> Tensor:
    """What the policies φ earn on ``query``, ``[task]``, relative to those that collected it."""
    phi = {name: p.expand(query.observations.shape[0], *p.shape[1:]) for name, p in phi.items()}
    ratio = (policy.log_prob(phi, query.observations, query.actions) - query.log_probs).exp()
    gain = ratio * query.advantages
    if clip:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * query.advantages)
    return (query.weights * gain).sum(-1)


def meta_objective(
    policy: Policy, params: Params, step_sizes: Params, support: list[Batch], query: Batch, config: Config
) -> Tensor:
    """What the adapted policies earn, ``[task]``, as a function of θ and α: adapt on ``support``, score on ``query``."""
    return score(policy, adapt_on(policy, params, step_sizes, support, config), query, config.clip)


# --- the outer loop ---------------------------------------------------------------------------------------------------


def initial_state(world: World, policy: Policy, config: Config) -> dict[str, Any]:
    """θ, log α, an optimiser and a random generator, all fresh from ``config.seed``."""
    generator = torch.Generator(config.device).manual_seed(config.seed)
    params = policy.init(1, generator, world.dtype)
    start = math.log(config.inner_step_size)
    per_parameter = config.step_sizes == "per_parameter"
    log_step_sizes = {name: torch.full_like(p if per_parameter else p[:1, :1, :1], start) for name, p in params.items()}
    pool_seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    return {
        "iteration": 0,
        "env_steps": 0,
        "params": params,
        "log_step_sizes": log_step_sizes,
        "optimizer": None,
        "generator": generator.get_state(),
        "pool_seed": pool_seed,
    }


def train(world: World, policy: Policy, config: Config, resume: dict[str, Any] | None = None) -> Iterator[Log]:
    """Meta-train, yielding a :class:`Log` after every iteration; whoever iterates decides when to stop.

    ``resume`` is a previous ``log.state``: training goes on bit for bit as if it had not been interrupted. Raises
    ``FloatingPointError`` as soon as a reward, an observation or the objective is not finite.
    """
    state = copy.deepcopy(resume) if resume is not None else initial_state(world, policy, config)
    theta = {name: p.to(config.device).requires_grad_() for name, p in state["params"].items()}
    log_alpha = {name: p.to(config.device).requires_grad_() for name, p in state["log_step_sizes"].items()}
    groups = [{"params": list(theta.values()), "lr": config.meta_step_size}]
    if config.step_sizes != "fixed":
        groups.append({"params": list(log_alpha.values()), "lr": config.step_size_step_size})
    optimizer = torch.optim.Adam(groups)
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator(config.device)
    generator.set_state(state["generator"])
    pool = None
    if config.task_pool:
        pool = world.sample_tasks(config.task_pool, torch.Generator(config.device).manual_seed(state["pool_seed"]))
    env_steps = state["env_steps"]

    for iteration in range(state["iteration"] + 1, config.iterations + 1):
        started = time.perf_counter()
        remaining = 1 - 0.9 * (iteration - 1) / config.iterations
        for group, step_size in zip(optimizer.param_groups, (config.meta_step_size, config.step_size_step_size)):  # noqa: B905
            group["lr"] = step_size * remaining
        if pool is None:
            task = world.sample_tasks(config.tasks, generator)
        else:
            chosen = torch.randperm(config.task_pool, generator=generator, device=generator.device)[: config.tasks]
            task = index_tasks(pool, chosen)
        try:
            batches, returns, steps = gather(world, policy, theta, log_alpha, task, config, generator)
            if config.outer == "trust_region":
                trust_region_step(policy, theta, log_alpha, batches, config)
            else:
                for _ in range(config.epochs):
                    outer_step(policy, theta, log_alpha, batches, config, optimizer)
        except FloatingPointError as error:
            last_good = f"the last good state is that of iteration {iteration - 1}"
            raise FloatingPointError(f"iteration {iteration}: {error}; {last_good}") from error
        env_steps += steps
        yield Log(
            iteration=iteration,
            returns=returns,
            env_steps=env_steps,
            seconds=time.perf_counter() - started,
            state=copy.deepcopy(
                {
                    "iteration": iteration,
                    "env_steps": env_steps,
                    "params": {name: p.detach() for name, p in theta.items()},
                    "log_step_sizes": {name: p.detach() for name, p in log_alpha.items()},
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "pool_seed": state["pool_seed"],
                }
            ),
        )


def gather(
    world: World, policy: Policy, theta: Params, log_alpha: Params, task: Any, config: Config, generator: torch.Generator
) -> tuple[list[Batch], list[float], int]:
    """Fresh episodes before each inner step and after the last: batches, mean returns, and environment steps taken."""
    phi = {name: p.detach().expand(config.tasks, *p.shape[1:]) for name, p in theta.items()}
    alpha = {name: p.detach().exp() for name, p in log_alpha.items()}
    batches, returns, steps = [], [], 0
    for k in range(config.inner_steps + 1):
        if k:
            phi = adapt(policy, phi, alpha, batches[-1], config.surrogate)
        rollout = collect(world, task, policy, phi, config.episodes, generator)
        batches.append(to_batch(rollout, config.discount, config.gae_lambda))
        returns.append(float(rollout.returns.mean()))
        steps += int(rollout.alive.sum())
    return batches, returns, steps


def outer_step(
    policy: Policy,
    theta: Params,
    log_alpha: Params,
    batches: list[Batch],
    config: Config,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Adam on θ and log α by the gradient of the mean meta-objective, a few tasks at a time."""
    optimizer.zero_grad()
    for start in range(0, config.tasks, config.group):
        *support, query = (index_tasks(batch, slice(start, start + config.group)) for batch in batches)
        alpha = {name: p.exp() for name, p in log_alpha.items()}
        objective = meta_objective(policy, theta, alpha, support, query, config).sum() / config.tasks
        if not torch.isfinite(objective):
            raise FloatingPointError("the meta-objective is not finite (NaN or infinity)")
        (-objective).backward()
    gradients = [p.grad for p in (*theta.values(), *log_alpha.values()) if p.grad is not None]
    if not all(torch.isfinite(gradient).all() for gradient in gradients):
        raise FloatingPointError("the meta-gradient is not finite (NaN or infinity)")
    optimizer.step()


def trust_region_step(policy: Policy, theta: Params, log_alpha: Params, batches: list[Batch], config: Config) -> None:
    """One trust-region step of θ, and of log α if it is learned, on the mean meta-objective: unclipped, the region bounds it."""

    def part(start: int) -> trust_region.Part:
        *support, query = (index_tasks(batch, slice(start, start + config.group)) for batch in batches)

        def phi() -> Params:
            return adapt_on(policy, theta, {name: p.exp() for name, p in log_alpha.items()}, support, config)

        before = {name: p.detach() for name, p in phi().items()}

        def evaluate() -> tuple[Tensor, Tensor]:
            after = phi()
            divergence = (query.weights * policy.kl(before, after, query.observations)).sum()
            return score(policy, after, query, clip=0).sum() / config.tasks, divergence / config.tasks

        return evaluate

    leaves = [*theta.values(), *(log_alpha.values() if config.step_sizes != "fixed" else ())]
    parts = [part(start) for start in range(0, config.tasks, config.group)]
    trust_region.step(leaves, parts, config.radius, every=2 if len(parts) > 3 else 1)
