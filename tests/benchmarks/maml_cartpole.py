"""One meta-iteration on CartPole, all tasks at once against one task after another: ``python tests/benchmarks/maml_cartpole.py``.

The work is the same for both: 20 tasks × 20 episodes of 200 steps before and after one inner step, 64 × 64 tanh policy, one
second-order outer gradient, one thread. Episodes are made not to end early, so that both take 160,000 environment
steps and no padding can be dropped. The loop is what a careful user writes with Gymnasium's own vector environment and a
network per task; it shares none of our collection or adaptation. CPU-seconds, median of interleaved repetitions.
"""

from __future__ import annotations

import statistics
import time

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from metarl_lib import maml
from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.nets import to_module

TASKS, EPISODES, HORIZON, REPETITIONS = 20, 20, 200, 5


class Endless(CartPole):
    """Carts that go back to the middle where they would have fallen, so that every episode has its full length."""

    def step(self, task, state, action, generator=None):
        state, step = super().step(task, state, action, generator)
        back = step.terminated[..., None]
        body = torch.where(back, torch.zeros_like(state.body), state.body)
        return state._replace(body=body), step._replace(observation=body, terminated=torch.zeros_like(step.terminated))


def batched(world: CartPole, config: maml.Config, theta: dict, log_alpha: dict, optimizer, generator) -> None:
    policy = policy_for(world)
    task = world.sample_tasks(TASKS, generator)
    batches, _, steps = maml.gather(world, policy, theta, log_alpha, task, config, generator)
    assert steps == 2 * TASKS * EPISODES * HORIZON
    maml.outer_step(policy, theta, log_alpha, batches, config, optimizer)


def run_episodes(env, network, params: dict[str, Tensor], generator) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, actions and normalised reward-to-go of one task, ``[time · env]``."""
    observation, _ = env.reset(seed=0)
    observations, actions, rewards = [], [], []
    with torch.no_grad():
        for _ in range(HORIZON):
            x = torch.from_numpy(observation)
            action = torch.multinomial(functional_call(network, params, x).softmax(-1), 1, generator=generator)[:, 0]
            observation, reward, *_ = env.step(action.numpy())
            observations.append(x)
            actions.append(action)
            rewards.append(reward)
    to_go = np.cumsum(np.stack(rewards)[::-1], 0)[::-1].copy()
    advantages = torch.from_numpy(to_go).float().flatten()
    advantages = (advantages - advantages.mean()) / advantages.std()
    return torch.cat(observations), torch.cat(actions), advantages


def objective(network, params: dict[str, Tensor], data: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    observations, actions, advantages = data
    log_prob = functional_call(network, params, observations).log_softmax(-1).gather(-1, actions[:, None])[:, 0]
    return ((log_prob - log_prob.detach()).exp() * advantages).mean()


def looped(envs: list, network: torch.nn.Module, optimizer, generator) -> None:
    params = dict(network.named_parameters())
    optimizer.zero_grad()
    for env in envs:
        support = run_episodes(env, network, params, generator)
        gradients = torch.autograd.grad(objective(network, params, support), list(params.values()), create_graph=True)
        phi = {name: p + 0.5 * g for (name, p), g in zip(params.items(), gradients, strict=True)}
        query = run_episodes(env, network, phi, generator)
        (-objective(network, phi, query) / TASKS).backward()
    optimizer.step()


def main() -> None:
    torch.set_num_threads(1)
    world = Endless("flipwide", max_steps=HORIZON)
    config = maml.Config(tasks=TASKS, episodes=EPISODES, epochs=1)
    generator = torch.Generator().manual_seed(0)
    state = maml.initial_state(world, policy_for(world), config)
    theta = {name: p.requires_grad_() for name, p in state["params"].items()}
    log_alpha = {name: p.requires_grad_() for name, p in state["log_step_sizes"].items()}
    ours = torch.optim.Adam([*theta.values(), *log_alpha.values()], 1e-5)
    network = to_module(policy_for(world), theta)
    theirs = torch.optim.Adam(network.parameters(), 1e-5)
    envs = [gymnasium.make_vec("CartPole-v1", EPISODES, vectorization_mode="vector_entry_point") for _ in range(TASKS)]

    seconds: dict[str, list[float]] = {"all tasks at once": [], "one task after another": []}
    for repetition in range(REPETITIONS + 1):
        for name, work in (
            ("all tasks at once", lambda: batched(world, config, theta, log_alpha, ours, generator)),
            ("one task after another", lambda: looped(envs, network, theirs, generator)),
        ):
            started = time.process_time()
            work()
            if repetition:  # the first one warms up
                seconds[name].append(time.process_time() - started)
    steps = 2 * TASKS * EPISODES * HORIZON
    for name, measured in seconds.items():
        median = statistics.median(measured)
        spread = f"{min(measured):.2f}–{max(measured):.2f}"
        rates = f"{1 / median:5.2f} iterations/s, {steps / median:9,.0f} environment steps/s"
        print(f"{name:23} {median:6.2f} CPU-s an iteration ({spread}), {rates}")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"ratio, pair by pair: {statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})")


if __name__ == "__main__":
    main()
