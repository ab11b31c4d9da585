"""A meta-iteration on sinusoids, all tasks at once against one after another: ``python tests/benchmarks/maml_sinusoid.py``.

The work is the same for both: 25 tasks, 10 support and 10 query examples, a 1-40-40-1 network with rectified linear units, one
second-order inner step, fused Adam, drawing the tasks included. The loop is what a careful user writes with ``nn.Module`` and
``functional_call``; it shares no code with the library. One thread, CPU-milliseconds, median of interleaved repetitions.
Before that it is checked that both compute the same meta-gradient. Then one seed of the paper's Table 2, five-shot, is made
from nothing: 15,000 iterations of MAML and of pretraining, each measured on 2,000 held-out tasks.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metarl_lib import supervised_maml as maml
from metarl_lib.sinusoids import Sinusoids

TASKS, SHOTS, ALPHA, ITERATIONS, REPETITIONS = 25, 10, 0.01, 100, 7


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def meta_loss_of_one(module: nn.Module, x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> Tensor:
    params = dict(module.named_parameters())
    inner = functional.mse_loss(module(x), y)
    gradients = torch.autograd.grad(inner, list(params.values()), create_graph=True)
    phi = {name: p - ALPHA * g for (name, p), g in zip(params.items(), gradients, strict=True)}
    return functional.mse_loss(functional_call(module, phi, x_query), y_query)


def looped(module: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    optimizer.zero_grad()
    for _ in range(TASKS):
        amplitude = 0.1 + 4.9 * torch.rand(1, generator=generator)
        phase = math.pi * torch.rand(1, generator=generator)
        x = 10 * torch.rand(2 * SHOTS, 1, generator=generator) - 5
        y = amplitude * torch.sin(x - phase)
        (meta_loss_of_one(module, x[:SHOTS], y[:SHOTS], x[SHOTS:], y[SHOTS:]) / TASKS).backward()
    optimizer.step()


def check() -> None:
    """Both give one meta-gradient for the same parameters and examples."""
    generator, module = torch.Generator().manual_seed(0), network()
    layers = [module[i] for i in (0, 2, 4)]
    theta = {}
    for i, layer in enumerate(layers):
        theta[f"weight_{i}"] = layer.weight.detach().T[None].clone().requires_grad_()
        theta[f"bias_{i}"] = layer.bias.detach()[None, None].clone().requires_grad_()
    world = Sinusoids()
    support, query = world.support_and_query(world.sample_tasks(TASKS, generator), SHOTS, SHOTS, generator)
    step_sizes = {name: torch.full((1, 1, 1), ALPHA) for name in theta}
    maml.meta_loss(theta, step_sizes, support, query, maml.Config()).mean().backward()
    for one in zip(*support, *query, strict=True):
        (meta_loss_of_one(module, *one) / TASKS).backward()
    for i, layer in enumerate(layers):
        torch.testing.assert_close(theta[f"weight_{i}"].grad[0].T, layer.weight.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(theta[f"bias_{i}"].grad[0, 0], layer.bias.grad, rtol=1e-3, atol=1e-4)


def table_2() -> None:
    """One seed of Table 2 :cite:p:`finn2017model`: what it costs, and the errors, to show that the work was done."""
    started, world = time.process_time(), Sinusoids()
    for name, inner_steps in (("MAML", 1), ("pretraining", 0)):
        for log in maml.train(world, maml.Config(iterations=15_000, inner_steps=inner_steps, shots=5, queries=5)):  # noqa: B007
            pass
        generator = torch.Generator().manual_seed(1)
        support, query = world.support_and_query(world.sample_tasks(2000, generator, "test"), 5, 100, generator)
        errors = maml.adaptation_curve(log.params, ALPHA, support, query, 10).mean(1)
        print(f"{name:11} mean squared error after 1, 5, 10 steps: " + ", ".join(f"{errors[k]:.2f}" for k in (1, 5, 10)))
    print(f"one seed of Table 2, training and tests: {time.process_time() - started:.0f} CPU-seconds")


def main() -> None:
    torch.set_num_threads(1)
    check()
    table_2()
    generator, module = torch.Generator().manual_seed(0), network()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    one, five = (maml.train(Sinusoids(), maml.Config(iterations=10**9, learners=learners)) for learners in (1, 5))
    works = {
        "one task after another": lambda: looped(module, optimizer, generator),
        "all tasks at once": lambda: next(one),
        "five learners at once": lambda: next(five),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(REPETITIONS + 1):
        for name, work in works.items():
            started = time.process_time()
            for _ in range(ITERATIONS):
                work()
            if repetition:  # the first one warms up
                milliseconds[name].append((time.process_time() - started) * 1000 / ITERATIONS)
    for name, measured in milliseconds.items():
        spread = f"{min(measured):.2f}–{max(measured):.2f}"
        print(f"{name:23} {statistics.median(measured):6.2f} CPU-ms a meta-iteration ({spread})")
    loop, batched, five_learners = milliseconds.values()
    for name, learners, measured in (("one learner", 1, batched), ("five, a learner", 5, five_learners)):
        ratios = [learners * a / b for a, b in zip(loop, measured, strict=True)]
        print(
            f"quicker than the loop, pair by pair, {name}: {statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
