"""The full-size runs behind ``book/results/``: one short file each, named as its result.

An experiment's module has ``run(seeds, scale, progress) -> dict``, which gives the result in the one form that
:mod:`metarl_lib.results` describes. Finished pieces of work are kept in ``runs/NAME/``, so that a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Progress = Callable[[int, int, str], None]
"""Called with (pieces done, pieces in all, what was just done)."""


@dataclass(frozen=True)
class Experiment:
    """A full-size run: ``module`` is imported only when it is run."""

    module: str
    title: str
    minutes: float  # on two cores

    def run(self, seeds: int | None = None, scale: float = 1.0, progress: Progress | None = None) -> dict[str, Any]:
        if seeds is not None and seeds < 2:
            raise ValueError(f"seeds must be at least 2, for an interval; got {seeds}")
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {scale}")
        module = importlib.import_module(f"metarl_lib.experiments.{self.module}")
        return module.run(seeds, scale, progress or (lambda done, total, what: None))


EXPERIMENTS = {
    "cliff-walking": Experiment("cliff_walking", "Cliff walking: three targets, one policy", 1),
    "frozen-lake": Experiment("frozen_lake", "Frozen lake: Q-learning against the exact optimum", 4),
    "actor-critic-cartpole": Experiment("actor_critic_cartpole", "CartPole-v1: actor-critic and REINFORCE", 2),
    "dqn-cartpole": Experiment("dqn_cartpole", "DQN on CartPole: what its parts buy", 10),
    "ppo-cartpole": Experiment("ppo_cartpole", "PPO on CartPole-v1, its details taken away one by one", 6),
    "sac-pendulum": Experiment("sac_pendulum", "SAC on Pendulum: what its parts buy", 10),
    "maml-sinusoid": Experiment("maml_sinusoid", "Five examples of a sinusoid: MAML against pretraining", 10),
    "reptile-sinusoid": Experiment("reptile_sinusoid", "Reptile on sinusoids, beside MAML", 12),
    "few-shot-glyphs": Experiment("few_shot_glyphs", "Few-shot recognition of letters from unseen alphabets", 20),
    "rl2-bandits": Experiment("rl2_bandits", "RL² on bandits: what exploration is worth", 25),
    "rl2-mdp": Experiment("rl2_mdp", "RL² on random decision processes, against posterior sampling", 20),
    "estimator-bias": Experiment("estimator_bias", "The meta-gradient: bias and variance of its estimators", 4),
    "lane-keeping": Experiment("lane_keeping", "Keeping the lane in a car whose steering may be reversed", 8),
    "maze": Experiment("maze", "A hidden prize in a maze: RL² against the best player", 5),
    "pmaml-ambiguous": Experiment("pmaml_ambiguous", "Sinusoids or lines: one answer or several", 6),
    "maml-navigation": Experiment("maml_navigation", "MAML on 2-D navigation, and what adapts without it", 10),
    "maml-cartpole": Experiment("maml_cartpole", "MAML on CartPole: adaptation on held-out tasks", 40),
}


def run_pieces(
    work: Callable[..., dict[str, Any]],
    pieces: Iterable[tuple],
    folder: Path,
    progress: Progress,
    processes: int | None = None,
) -> list[dict[str, Any]]:
    """``[work(*piece) for piece in pieces]`` in processes of one thread each; finished pieces are read from ``folder``.

    Each result is given the CPU-seconds it took, under ``"cpu_seconds"``.
    """
    pieces = list(pieces)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {piece: folder / (re.sub(r"[^\w.]+", "-", "-".join(map(str, piece))) + ".json") for piece in pieces}
    missing = [piece for piece in pieces if not paths[piece].exists()]
    done = len(pieces) - len(missing)
    progress(done, len(pieces), "found finished" if done else "starting")
    with ProcessPoolExecutor(processes or min(2, os.cpu_count() or 1), get_context("spawn")) as pool:
        futures = {pool.submit(_timed, work, piece): piece for piece in missing}
        try:
            for future in as_completed(futures):
                path = paths[futures[future]]
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(future.result()))
                os.replace(partial, path)
                done += 1
                progress(done, len(pieces), path.stem)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [json.loads(paths[piece].read_text()) for piece in pieces]


def _timed(work: Callable[..., dict[str, Any]], piece: tuple) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.process_time()
    return work(*piece) | {"cpu_seconds": time.process_time() - started}
