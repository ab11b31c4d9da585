"""The entry point that the book's source article describes, on top of :mod:`metarl_lib.maml`."""

from __future__ import annotations

from torch import nn
from tqdm.auto import tqdm

from .cartpole import DISTRIBUTIONS, CartPole, policy_for
from .maml import Config, train
from .nets import to_module

ENVIRONMENTS = {"CartPole-v1": "flipwide", **{f"CartPole-{name}": name for name in DISTRIBUTIONS}}


def maml_train(
    env_name: str = "CartPole-v1",
    num_tasks: int = 1000,
    num_iterations: int = 20,
    inner_steps: int = 1,
    meta_batch_size: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Meta-train a policy with MAML and return it as a network: observations ``[..., 4]`` to logits ``[..., 2]``.

    ``env_name`` is a task distribution, ``CartPole-flipwide`` or another of :data:`metarl_lib.cartpole.DISTRIBUTIONS`.
    ``CartPole-v1`` means ``CartPole-flipwide``: a single environment holds nothing to adapt to, so its tasks are
    cart-poles of many sizes, half of them with the motor wired backwards, with episodes of at most 200 steps.

    ``num_tasks`` is the pool of training tasks, of which every iteration draws ``meta_batch_size``; ``inner_steps`` is the
    number of gradient steps of an adaptation. All else is as in :class:`metarl_lib.maml.Config`, except that the inner step
    size stays where it starts: a network that came with a step size of its own for every tensor could not be adapted
    without them.

    A bar shows the return before and after adaptation unless ``progress`` is False. Interrupting it returns what has been
    learnt so far. Raises ``ValueError`` for an unknown ``env_name`` and for numbers that are too small.
    """
    if env_name not in ENVIRONMENTS:
        raise ValueError(f"unknown env_name {env_name!r}; there are {', '.join(ENVIRONMENTS)}")
    least = {"num_tasks": (num_tasks, 1), "num_iterations": (num_iterations, 1), "inner_steps": (inner_steps, 0)}
    for name, (given, low) in (least | {"meta_batch_size": (meta_batch_size, 1)}).items():
        if given < low:
            raise ValueError(f"{name} must be at least {low}, got {given}")
    if num_tasks < meta_batch_size:
        raise ValueError(f"num_tasks must be at least meta_batch_size ({meta_batch_size}), got {num_tasks}")

    world = CartPole(ENVIRONMENTS[env_name])
    policy = policy_for(world)
    sizes = {"iterations": num_iterations, "inner_steps": inner_steps, "tasks": meta_batch_size, "task_pool": num_tasks}
    config = Config(**sizes, step_sizes="fixed", seed=seed)
    log = None
    with tqdm(train(world, policy, config), total=num_iterations, disable=not progress, desc=env_name) as bar:
        try:
            for log in bar:
                bar.set_postfix_str(f"return {log.returns[0]:.1f} -> {log.returns[-1]:.1f}")
        except KeyboardInterrupt:
            if log is None:
                raise
            print(f"Interrupted: this is what was learnt in {log.iteration} of {num_iterations} iterations.")
    return to_module(policy, log.params)
