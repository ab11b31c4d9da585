"""A car whose steering may be reversed: MAML and RL² against everything that could make adaptation look better than it is.

For every seed: train each method on training vehicles, then measure the return on 40 vehicles of the test split and 40 of the
out-of-distribution split. The methods of one seed see the same vehicles.

- **MAML**, after 0–3 inner steps, each on 20 episodes of the vehicle.
- **Domain randomisation**: one policy for all vehicles, with at least MAML's environment steps, then fine-tuned.
- **Random init**: a fresh network, fine-tuned.
- **RL²**: a policy with a memory. ``after 0`` is its return with the memory empty, ``after 1`` after 200 steps on the vehicle.
  In its trials a car that has left its lane is put back, so that leaving costs RL² less than it costs the others.
- **Actuator observed**: domain randomisation for a policy that sees its last commands and the yaw rate, which tell it which way
  the car steers. Nothing is fine-tuned.
- **Oracle**: domain randomisation for a policy that is shown the vehicle.
- **Driver who knows the car** and **driver who does not**: the controller of :func:`~metarl_lib.lane_keeping.steer`, told the
  vehicle, or believing that it is the nominal one. Nothing is learned.

Fine-tuned methods use, for each number of steps, the step size of ``STEP_SIZES`` that scored best on 20 validation vehicles.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import maml, results, rl2
from ..evaluate import adaptation_curve
from ..lane_keeping import LaneKeeping, Vehicle, drive, steer
from ..nets import PolicyNet
from . import Progress, run_pieces
from .maml_cartpole import generator_for, metric

NAME = "lane-keeping"
STEPS = 3
STEP_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TEST_TASKS, VALIDATION_TASKS = 40, 20
SPLITS = ("test", "ood")

PRETRAINING = maml.Config(iterations=90, inner_steps=0, meta_step_size=2e-3)
METHODS = {
    "MAML": maml.Config(iterations=40),
    "domain randomisation": PRETRAINING,
    "random init": replace(PRETRAINING, iterations=0),
    "RL²": rl2.Config(iterations=80, trials=64, trial_steps=200, gae_lambda=0.95, step_size=3e-3, entropy=0.02),
    "actuator observed": replace(PRETRAINING, iterations=50),
    "oracle": replace(PRETRAINING, iterations=50),
}
DRIVERS = ("driver who knows the car", "driver who does not")


def world_of(method: str) -> LaneKeeping:
    return LaneKeeping(observe_task=method == "oracle", observe_actuator=method == "actuator observed")


def measure(method: str, seed: int, scale: float) -> dict[str, Any]:
    """Train one method with one seed and measure it on held-out vehicles: one piece of the experiment."""
    world = world_of(method)
    tasks = {s: world.sample_tasks(max(2, round(TEST_TASKS * scale)), generator_for(10_000, seed), s) for s in SPLITS}
    if method in DRIVERS:
        return {split: [driven(world, task, method, seed)] for split, task in tasks.items()} | {"env_steps": 0}
    config = replace(METHODS[method], seed=seed, iterations=round(METHODS[method].iterations * scale))
    if method == "RL²":
        return remembering(world, replace(config, iterations=max(1, config.iterations)), tasks, seed)
    policy = PolicyNet(world.observation_size, world.actions)
    state, training = maml.initial_state(world, policy, config), []
    for log in maml.train(world, policy, config):
        state = log.state
        training.append([round(r, 1) for r in log.returns])
    theta, piece = state["params"], {"training": training, "env_steps": state["env_steps"]}
    if method == "MAML":
        alpha = {name: log_alpha.exp() for name, log_alpha in state["log_step_sizes"].items()}
        chosen = [alpha] * STEPS
    elif method in ("oracle", "actuator observed"):
        chosen = []
    else:
        chosen = piece["step_sizes"] = best_step_sizes(world, policy, theta, seed)
    for split, task in tasks.items():
        piece[split] = [adapted(world, policy, theta, alpha, task, seed, k)[k] for k, alpha in enumerate(chosen, 1)]
        piece[split].insert(0, adapted(world, policy, theta, 0.0, task, seed, 0)[0])
    return piece


def adapted(world: LaneKeeping, policy: PolicyNet, theta: dict, alpha: Any, task: Vehicle, seed: int, steps: int) -> list[float]:
    """Return after 0 … ``steps`` inner steps, averaged over vehicles."""
    return adaptation_curve(world, policy, theta, alpha, task, generator_for(20_000, seed), steps).mean(-1).tolist()


def best_step_sizes(world: LaneKeeping, policy: PolicyNet, theta: dict, seed: int) -> list[float]:
    """For 1 … STEPS steps, the fixed step size that earned most on validation vehicles after that many."""
    task = world.sample_tasks(VALIDATION_TASKS, generator_for(30_000, seed), "validation")
    curves = torch.tensor([adapted(world, policy, theta, alpha, task, seed, STEPS) for alpha in STEP_SIZES])
    return [STEP_SIZES[int(best)] for best in curves.argmax(0)[1:]]


def driven(world: LaneKeeping, task: Vehicle, method: str, seed: int) -> float:
    generator = generator_for(20_000, seed)
    nominal = LaneKeeping("nominal").sample_tasks(len(task.gain), generator)
    believed = task if method == "driver who knows the car" else nominal
    return float(drive(world, task, lambda _, state: steer(believed, state), 20, generator).returns.mean())


def remembering(world: LaneKeeping, config: rl2.Config, tasks: dict[str, Vehicle], seed: int) -> dict[str, Any]:
    """RL², trained and tested: the return of an episode with an empty memory, and after a trial on the same vehicle."""
    training = []
    for log in rl2.train(world, config):
        training.append([round(log.reward, 1)])
    generator = generator_for(20_000, seed)
    policy = rl2.Policy(world, config, generator)
    policy.load_state_dict(log.params)
    piece: dict[str, Any] = {"training": training, "env_steps": log.env_steps}
    for split, task in tasks.items():
        piece[split] = []
        for steps in (0, config.trial_steps):
            many = Vehicle(*(leaf.repeat_interleave(20) for leaf in task))  # twenty trials of every vehicle
            piece[split].append(float(return_after(world, policy, many, steps, generator).mean()))
    return piece


@torch.no_grad()
def return_after(world: LaneKeeping, policy: rl2.Policy, task: Vehicle, steps: int, generator: torch.Generator) -> Tensor:
    """The return ``[task]`` of an episode that begins after ``steps`` steps of experience with the vehicle."""
    n = len(task.gain)
    memory = policy.memory.start(n)
    if steps:
        past = rl2.run_trials(world, policy, task, steps, generator)
        for t in range(steps):
            *_, memory = policy.step(past.inputs[:, t], memory)
        action, reward, ended = past.actions[:, -1], past.rewards[:, -1], torch.ones(n, dtype=torch.bool)
    else:
        action, reward, ended = torch.full((n,), -1), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    state, observation = world.reset(task, 1, generator)
    total, alive = torch.zeros(n), torch.ones(n, dtype=torch.bool)
    for _ in range(world.max_steps):
        logits, _, memory = policy.step(policy.input(observation[:, 0], action, reward, ended), memory)
        action = (logits - torch.empty_like(logits).exponential_(generator=generator).log()).argmax(-1)
        state, step = world.step(task, state, action[:, None])
        observation, reward = step.observation, step.reward[:, 0]
        total, alive = total + reward * alive, alive & ~step.terminated[:, 0]
        ended = torch.zeros_like(ended)
    return total


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = 5 if seeds is None else seeds
    folder = Path("runs") / f"{NAME}-{hashlib.sha256(repr((METHODS, scale)).encode()).hexdigest()[:8]}"
    pieces = [(method, seed, scale) for seed in range(seeds) for method in (*METHODS, *DRIVERS)]
    done = dict(zip(pieces, run_pieces(measure, pieces, folder, progress), strict=True))
    metrics, curves, chosen = {}, {}, {}
    for method in (*METHODS, *DRIVERS):
        own = [done[method, seed, scale] for seed in range(seeds)]
        metrics[f"{method} · environment steps"] = metric([piece["env_steps"] for piece in own], "environment steps")
        if "training" in own[0]:
            curves[f"training · {method}"] = [piece["training"] for piece in own]
        if "step_sizes" in own[0]:
            chosen[method] = [piece["step_sizes"] for piece in own]
        for split in SPLITS:
            samples = curves[f"{split} · {method}"] = [piece[split] for piece in own]
            for k, after_k in enumerate(zip(*samples, strict=True)):
                metrics[f"{split} · {method} · after {k}"] = metric(after_k, "return, of at most 200")
    return {
        "name": NAME,
        "title": "Keeping the lane in a car whose steering may be reversed",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "methods": {name: asdict(config) for name, config in METHODS.items()},
            "test vehicles a seed": TEST_TASKS,
            "validation vehicles a seed": VALIDATION_TASKS,
            "step sizes tried": list(STEP_SIZES),
            "step sizes chosen after 1, 2, 3 steps": chosen,
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in done.values()),
        "metrics": metrics,
        "curves": curves,
    }
