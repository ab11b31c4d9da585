"""Bridges between our worlds and Gymnasium's environments :cite:p:`towers2024gymnasium`, one in each direction.

**Ours as Gymnasium's.** Importing this module registers an environment for every named distribution of
:mod:`metarl_lib.cartpole`, ``metarl/CartPole-flipwide-v0`` and so on, and ``metarl/Navigation-v0`` for
:mod:`metarl_lib.navigation`. Gymnasium can import it by itself::

    gymnasium.make("metarl_lib.gymnasium_bridge:metarl/CartPole-flipwide-v0", split="test")
    gymnasium.make_vec("metarl_lib.gymnasium_bridge:metarl/CartPole-flipwide-v0", num_envs=8)

**Gymnasium's as ours.** ``GymnasiumWorld(gymnasium.make_vec("Acrobot-v1", num_envs=16))`` can be collected from, and
made with ``vectorization_mode="sync"`` it can be streamed from too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .cartpole import DISTRIBUTIONS, CartPole
from .navigation import Navigation
from .types import Step, World, select

# --- ours as Gymnasium's ----------------------------------------------------------------------------------------------


class _Episodes:
    """A running episode in each of ``size`` environments, each with a task of its own, ``[size, 1, ...]``."""

    def __init__(self, world: World, size: int, task: Any, split: str) -> None:
        self.world, self.size, self.split = world, size, split
        self.pattern = world.sample_tasks(1, torch.Generator(), split)  # the type and shape of a task
        self.task, self.fixed = None, False
        self.state = self.generator = None
        if task is not None:
            self.fix(task)

    def fix(self, task: Any) -> None:
        if type(task) is not type(self.pattern):
            raise TypeError(f"task must be a {type(self.pattern).__name__}, got {type(task).__name__}")
        leaves = []
        for name, leaf, like in zip(task._fields, task, self.pattern, strict=True):
            leaf = torch.as_tensor(leaf, dtype=like.dtype)
            leaf = leaf[None] if leaf.dim() < like.dim() else leaf
            if leaf.shape[0] not in (1, self.size) or leaf.shape[1:] != like.shape[1:]:
                raise ValueError(f"task must hold 1 or {self.size} tasks, got {name} of shape {tuple(leaf.shape)}")
            leaves.append(leaf.expand(self.size, *like.shape[1:]))
        self.task, self.fixed = type(task)(*leaves), True

    def reset(self, random: np.random.Generator, seeded: bool, options: dict[str, Any] | None) -> np.ndarray:
        options = options or {}
        if unknown := sorted(options.keys() - {"task"}):
            raise ValueError(f"unknown reset option {unknown[0]!r}; there is 'task'")
        if "task" in options:
            self.fix(options["task"])
        if seeded or self.generator is None:
            self.generator = torch.Generator().manual_seed(int(random.integers(2**63)))
            if not self.fixed:
                self.task = self.world.sample_tasks(self.size, self.generator, self.split)
        self.state, observation = self.world.reset(self.task, 1, self.generator)
        return _to_numpy(observation)

    @torch.inference_mode()
    def step(self, actions: np.ndarray, ended: np.ndarray | None = None) -> tuple:
        """Advance by ``actions``, except that an ``ended`` environment begins its next episode instead."""
        if self.state is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step()")
        # Spaces take integers of every kind, tensors are indexed by int64; torch.tensor copies.
        chosen = torch.tensor(actions, dtype=torch.int64 if hasattr(self.world, "actions") else self.world.dtype)[:, None]
        state, step = self.world.step(self.task, self.state, chosen, self.generator)
        if ended is not None and ended.any():
            mask = torch.from_numpy(ended)[:, None]
            fresh, observation = self.world.reset(self.task, 1, self.generator)
            nothing = (torch.zeros_like(leaf) for leaf in step[1:])  # no reward, not terminated, not truncated
            state, step = select(mask, fresh, state), select(mask, Step(observation, *nothing), step)
        self.state = state
        return _to_numpy(step.observation), *(leaf[:, 0].numpy() for leaf in step[1:])


def _to_numpy(observation: Tensor) -> np.ndarray:
    return observation[:, 0].numpy().astype(np.float32)  # a copy: what the caller does to it must not reach the state


def _observation_space(world: World) -> spaces.Box:
    # Finite, but no bound: Gymnasium's checker warns of infinities.
    largest = np.finfo(np.float32).max
    return spaces.Box(-largest, largest, (world.observation_size,), np.float32)


def _action_space(world: World) -> spaces.Discrete | spaces.Box:
    if hasattr(world, "actions"):
        return spaces.Discrete(world.actions)
    return spaces.Box(np.float32(world.action_low), np.float32(world.action_high), dtype=np.float32)


class WorldEnv(gymnasium.Env[np.ndarray, Any]):
    """One of our worlds as a Gymnasium environment, playing one task.

    ``task``, of the type that ``world.sample_tasks`` returns and with tensors ``[1]`` or plain numbers, fixes what is
    played; so does ``reset(options={"task": task})``, from then on. Otherwise a task of ``split`` is drawn at the first
    reset and again at every *seeded* one, so that a seed determines everything that follows. No other reset changes the task.
    """

    metadata = {"render_modes": []}

    def __init__(self, world: World, task: Any = None, split: str = "train") -> None:
        self.observation_space, self.action_space = _observation_space(world), _action_space(world)
        self._episodes = _Episodes(world, 1, task, split)

    @property
    def task(self) -> Any:
        """The task that is played, tensors ``[1]``; None before the first reset has drawn it."""
        return self._episodes.task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._episodes.reset(self.np_random, seed is not None, options)[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action must be in {self.action_space}, got {action!r}")
        observation, reward, terminated, truncated = self._episodes.step(np.array([action]))
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


class WorldVectorEnv(VectorEnv):
    """One of our worlds as a Gymnasium vector environment: all environments advance in one batched call.

    Every environment plays a task of its own, as in a ``SyncVectorEnv`` of :class:`WorldEnv`; what is said there of ``task``
    and of resets holds here too, with tensors ``[1]`` for one task that all environments share, or ``[num_envs]``.
    Automatic reset is Gymnasium's default, ``NEXT_STEP``: the step after an episode's end ignores its action and
    returns the next episode's first observation with reward 0.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, world: World, num_envs: int = 1, task: Any = None, split: str = "train") -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.single_observation_space, self.single_action_space = _observation_space(world), _action_space(world)
        self.num_envs = num_envs
        self._episodes = _Episodes(world, num_envs, task, split)
        self._ended = np.zeros(num_envs, dtype=bool)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def task(self) -> Any:
        """The tasks that are played, tensors ``[num_envs]``; None before the first reset has drawn them."""
        return self._episodes.task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return self._episodes.reset(self.np_random, seed is not None, options), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise ValueError(f"actions must be in {self.action_space}, got {actions!r}")
        observation, reward, terminated, truncated = self._episodes.step(actions, self._ended)
        self._ended = terminated | truncated
        return observation, reward, terminated, truncated, {}


def cartpole(distribution: str, observe_task: bool = False, task: Any = None, split: str = "train") -> WorldEnv:
    """What ``gymnasium.make("metarl/CartPole-…")`` builds. It never truncates: Gymnasium wraps it in its own ``TimeLimit``."""
    return WorldEnv(CartPole(distribution, max_steps=2**31 - 1, observe_task=observe_task), task, split)


def cartpole_vector(
    distribution: str,
    num_envs: int = 1,
    max_episode_steps: int = CartPole.max_steps,
    observe_task: bool = False,
    task: Any = None,
    split: str = "train",
) -> WorldVectorEnv:
    """What ``gymnasium.make_vec("metarl/CartPole-…", vectorization_mode="vector_entry_point")`` builds."""
    return WorldVectorEnv(CartPole(distribution, max_episode_steps, observe_task), num_envs, task, split)


for _name in DISTRIBUTIONS:
    gymnasium.register(
        f"metarl/CartPole-{_name}-v0",
        entry_point="metarl_lib.gymnasium_bridge:cartpole",
        vector_entry_point="metarl_lib.gymnasium_bridge:cartpole_vector",
        max_episode_steps=CartPole.max_steps,
        kwargs={"distribution": _name},
    )


def navigation(task: Any = None, split: str = "train") -> WorldEnv:
    """What ``gymnasium.make("metarl/Navigation-v0")`` builds, for Gymnasium's own ``TimeLimit`` to truncate."""
    return WorldEnv(Navigation(max_steps=2**31 - 1), task, split)


def navigation_vector(
    num_envs: int = 1, max_episode_steps: int = Navigation.max_steps, task: Any = None, split: str = "train"
) -> WorldVectorEnv:
    """What ``gymnasium.make_vec("metarl/Navigation-v0", vectorization_mode="vector_entry_point")`` builds."""
    return WorldVectorEnv(Navigation(max_episode_steps), num_envs, task, split)


gymnasium.register(
    "metarl/Navigation-v0",
    entry_point="metarl_lib.gymnasium_bridge:navigation",
    vector_entry_point="metarl_lib.gymnasium_bridge:navigation_vector",
    max_episode_steps=Navigation.max_steps,
)


# --- Gymnasium's as ours ----------------------------------------------------------------------------------------------


class Nothing(NamedTuple):
    """The task and the state of a :class:`GymnasiumWorld`: it is a single task, and the environment keeps its own state."""


class GymnasiumWorld:
    """A Gymnasium vector environment as a world of one task, its environments shared out among ``learners``.

    Gymnasium steps all environments together, so one that has ended goes on into another episode, whichever way it resets
    itself. For :func:`~metarl_lib.collect.collect`, which plays one episode in every environment, those steps are not
    ``alive``; the observation that an episode ends on is the one before the reset. A :class:`~metarl_lib.stream.Stream`
    calls :meth:`restart`.

    Discrete and bounded continuous actions are understood. ``max_steps`` truncates every episode; by default it is the
    limit in the environment's ``spec``. Observations are flattened and cast to ``dtype``, and live on the device of what
    drives the world: the generator's, the actions'. Raises ``TypeError`` if ``env`` is not a vector environment, and
    ``ValueError`` if its spaces do not fit, if it does not say how it resets, if ``max_steps`` is not known, or if
    ``learners`` does not divide its environments.
    """

    def __init__(
        self, env: VectorEnv, max_steps: int | None = None, dtype: torch.dtype = torch.float32, learners: int = 1
    ) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"env must be a vector environment, as gymnasium.make_vec(id, num_envs) makes it, got {env!r}")
        actions, observations = env.single_action_space, env.single_observation_space
        if isinstance(actions, spaces.Discrete):
            self.actions, self._first_action = int(actions.n), int(actions.start)
        elif isinstance(actions, spaces.Box) and actions.is_bounded() and len(actions.shape) == 1:
            self.action_low, self.action_high = tuple(actions.low.tolist()), tuple(actions.high.tolist())
        else:
            raise ValueError(f"env must have Discrete actions, or a bounded Box of one dimension, got {actions}")
        if not isinstance(observations, spaces.Box):
            raise ValueError(f"env must have Box observations, got {observations}; see gymnasium.wrappers.FlattenObservation")
        if "autoreset_mode" not in env.metadata:
            raise ValueError(f"env must name its AutoresetMode in metadata['autoreset_mode'], its metadata is {env.metadata}")
        if max_steps is None and env.spec is not None:
            max_steps = env.spec.kwargs.get("max_episode_steps", env.spec.max_episode_steps)
        if max_steps is None or max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or be known from env.spec, got {max_steps}")
        if learners < 1 or env.num_envs % learners:
            raise ValueError(f"learners must divide env.num_envs, which is {env.num_envs}, got {learners}")
        self.env, self.max_steps, self.dtype, self.learners = env, max_steps, dtype, learners
        self.observation_size = int(np.prod(observations.shape))
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._action_dtype = actions.dtype
        self._ended = np.zeros(env.num_envs, dtype=bool)
        self._steps = np.zeros(env.num_envs, dtype=int)

    def sample_tasks(self, n: int, generator: torch.Generator, split: str = "train") -> Nothing:
        """The only task there is, whatever the split."""
        if n != self.learners:
            raise ValueError(
                f"n must be {self.learners}, the learners that this Gymnasium environment was shared out to, got {n}"
            )
        return Nothing()

    def reset(self, task: Nothing, n: int, generator: torch.Generator) -> tuple[Nothing, Tensor]:
        """Seed the environment from ``generator`` and start an episode in each of its ``n`` environments a learner."""
        if n * self.learners != self.env.num_envs:
            raise ValueError(f"n must be {self.env.num_envs // self.learners}, the environments of each learner, got {n}")
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        observation, _ = self.env.reset(seed=seed)
        self._ended[:], self._steps[:] = False, 0
        return Nothing(), self._tensor(observation, self.dtype, generator.device).flatten(2)

    def step(
        self, task: Nothing, state: Nothing, action: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Nothing, Step]:
        """Advance every environment by ``action``, ``[learner, env]`` or, if continuous, ``[learner, env, action]``.

        ``generator`` is unused: the environment has its own.
        """
        if self._mode is AutoresetMode.DISABLED and self._ended.any():
            self.env.reset(options={"reset_mask": self._ended.copy()})  # Gymnasium refuses to step an episode that has ended
        actions = action.detach().flatten(0, 1).cpu().numpy().astype(self._action_dtype)
        if hasattr(self, "actions"):
            actions = actions + self._first_action
        observation, reward, terminated, truncated, info = self.env.step(actions)
        self._ended, self._steps = terminated | truncated, self._steps + 1
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            observation = observation.copy()
            for i in np.flatnonzero(self._ended):
                observation[i] = info["final_obs"][i]
        truncated = truncated | (self._steps >= self.max_steps)
        device = action.device
        flags = self._tensor(terminated, torch.bool, device), self._tensor(truncated, torch.bool, device)
        reached = self._tensor(observation, self.dtype, device).flatten(2)
        return Nothing(), Step(reached, self._tensor(reward, self.dtype, device), *flags)

    def restart(self, state: Nothing, observation: Tensor, ended: Tensor) -> tuple[Nothing, Tensor]:
        """Begin the next episode where ``ended`` ``[learner, env]``; ``observation`` with those episodes' first observations.

        Gymnasium's own vectorised environments cannot start a few episodes and leave the others alone: ``ValueError``
        says so if this is one.
        """
        if not isinstance(self.env.unwrapped, (SyncVectorEnv, AsyncVectorEnv)):
            raise ValueError(
                'env must be made with vectorization_mode="sync" or "async", since episodes are restarted one by one; '
                f"got {self.env.unwrapped!r}"
            )
        mask = ended.flatten().cpu().numpy()
        if not mask.any():  # a stream on an accelerator asks after every step; Gymnasium refuses to reset no environment
            return Nothing(), observation
        first, _ = self.env.reset(options={"reset_mask": mask.copy()})
        self._ended[mask], self._steps[mask] = False, 0
        first = self._tensor(first, self.dtype, observation.device).flatten(2)
        return Nothing(), torch.where(ended[..., None], first, observation)

    def _tensor(self, array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
        # torch.tensor copies: an environment may write its next observation into the same array.
        return torch.tensor(array, dtype=dtype, device=device).unflatten(0, (self.learners, -1))
