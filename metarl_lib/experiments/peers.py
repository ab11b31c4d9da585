"""Stable-Baselines3 :cite:p:`raffin2021stable` with the settings of its zoo, one seed at a time: what our agents are set beside.

The settings are those of ``hyperparams/dqn.yml``, ``ppo.yml`` and ``sac.yml`` in DLR-RM/rl-baselines3-zoo for CartPole-v1 and
Pendulum-v1. The final policy, without exploration, plays 100 episodes, which begin differently for every seed. Finished
seeds are kept in ``runs/stable-baselines3/``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

FOLDER = Path("runs") / "stable-baselines3"
EPISODES = 100
ENVIRONMENTS = {"DQN": "CartPole-v1", "PPO": "CartPole-v1", "SAC": "Pendulum-v1"}
STEPS = {"DQN": 50_000, "PPO": 100_000, "SAC": 20_000}
ENVS = {"DQN": 1, "PPO": 8, "SAC": 1}
SETTINGS = {
    "DQN": dict(
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs=dict(net_arch=[256, 256]),
    ),
    "PPO": dict(
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda remaining: remaining * 1e-3,
        clip_range=lambda remaining: remaining * 0.2,
    ),
    "SAC": dict(learning_rate=1e-3),
}


def measure(algorithm: str, seed: int, scale: float) -> dict[str, Any]:
    """Train one seed; the returns of the final policy's episodes, and the CPU-seconds of training alone."""
    model = make(algorithm, seed)
    started = time.process_time()
    model.learn(round(STEPS[algorithm] * scale))
    seconds = time.process_time() - started
    returns = play(model, ENVIRONMENTS[algorithm], EPISODES, seed=1000 * (1 + seed))
    return {"returns": returns.tolist(), "training_seconds": seconds}


def make(algorithm: str, seed: int, **changes: Any) -> Any:
    """A model of Stable-Baselines3, ready to learn; ``ValueError`` if it is not installed."""
    try:
        import stable_baselines3
        from stable_baselines3.common.env_util import make_vec_env
    except ImportError as error:
        raise ValueError('this needs Stable-Baselines3: pip install "metarl-lib[benchmarks]"') from error
    env = make_vec_env(ENVIRONMENTS[algorithm], n_envs=ENVS[algorithm], seed=seed)
    return getattr(stable_baselines3, algorithm)("MlpPolicy", env, seed=seed, device="cpu", **SETTINGS[algorithm] | changes)


def play(model: Any, name: str, episodes: int, seed: int) -> np.ndarray:
    """Undiscounted returns of ``episodes`` episodes without exploration, played side by side, ``[episode]``."""
    envs = gymnasium.make_vec(name, episodes, vectorization_mode="sync")
    observation, _ = envs.reset(seed=seed)
    returns, alive = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while alive.any():
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = envs.step(action)
        returns += reward * alive
        alive &= ~(terminated | truncated)
    envs.close()
    return returns
