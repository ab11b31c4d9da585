"""Ten seeds of an agent of ours in one pass, against one seed of Stable-Baselines3: ``python tests/benchmarks/deep_rl.py``.

Both train for the same number of environment steps a seed, in the same process, on one thread, one after the other. Ours has the
configuration of its experiment, Stable-Baselines3 the settings of its zoo, except that for SAC it is given our network and batch:
both make one update a step. CPU-seconds of training alone, evaluation and imports left out. ``--scale 0.1`` is a quick look:
short runs begin with steps in which nothing is learnt yet.

An entry is a function of the scale that gives what to train: ``train``, a world, a configuration. It is compared with the
algorithm of its name in ``metarl_lib/experiments/peers.py``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from metarl_lib import dqn, ppo, sac
from metarl_lib.cartpole import CartPole
from metarl_lib.experiments import dqn_cartpole, peers, ppo_cartpole, sac_pendulum
from metarl_lib.pendulum import Pendulum


def dqn_on_cartpole(scale: float) -> tuple[Any, Any, Any]:
    config = dqn_cartpole.CONFIG
    return (
        dqn.train,
        CartPole("default", max_steps=dqn_cartpole.LIMIT),
        replace(config, env_steps=round(config.env_steps * scale)),
    )


def ppo_on_cartpole(scale: float) -> tuple[Any, Any, Any]:
    config = ppo_cartpole.CONFIG
    return ppo.train, CartPole("default", max_steps=500), ppo_cartpole.configured(config, config.learners, scale)


def sac_on_pendulum(scale: float) -> tuple[Any, Any, Any]:
    config = sac_pendulum.CONFIG
    return sac.train, Pendulum(), replace(config, env_steps=round(config.env_steps * scale))


ENTRIES = {"DQN": dqn_on_cartpole, "PPO": ppo_on_cartpole, "SAC": sac_on_pendulum}
CHANGES = {"SAC": sac_pendulum.SAME_SIZE}  # in the zoo's settings


def ours(train: Any, world: Any, config: Any) -> float:
    started = time.process_time()
    for _ in train(world, config):
        pass
    return time.process_time() - started


def theirs(algorithm: str, env_steps: int) -> float:
    model = peers.make(algorithm, seed=0, **CHANGES.get(algorithm, {}))
    started = time.process_time()
    model.learn(env_steps)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("algorithms", nargs="*", help=f"of {', '.join(ENTRIES)}; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the environment steps")
    arguments = parser.parse_args()
    if unknown := set(arguments.algorithms) - set(ENTRIES):
        parser.error(f"there is no entry {unknown.pop()!r}; there are {', '.join(ENTRIES)}")
    torch.set_num_threads(1)
    for algorithm in arguments.algorithms or ENTRIES:
        train, world, config = ENTRIES[algorithm](arguments.scale)
        if config.env_steps != round(peers.STEPS[algorithm] * arguments.scale):
            raise ValueError(f"{algorithm} must train for as many steps as Stable-Baselines3 does, got {config.env_steps}")
        pair = ours(train, world, config), theirs(algorithm, config.env_steps)
        passes = f"{config.learners} seeds in one pass {pair[0]:.1f} CPU-s, one seed of Stable-Baselines3 {pair[1]:.1f}"
        print(f"{algorithm}, {config.env_steps:,} steps a seed: {passes}, ratio {pair[0] / pair[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
