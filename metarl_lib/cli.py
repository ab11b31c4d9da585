"""The command line: ``python -m metarl_lib train``, ``reproduce`` and ``play``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional

from . import checkpoint, maml, results
from .animation import animate, from_rollout
from .baseline import to_batch
from .cartpole import CartPole, Physics, policy_for
from .checkpoint import CheckpointError
from .collect import collect
from .experiments import EXPERIMENTS
from .nets import PolicyNet
from .types import Rollout

INTERRUPTED = 130  # the exit status of a program that was stopped by Ctrl-C


@dataclass(frozen=True)
class _Flags(maml.Config):
    """What training does, and how much of it."""

    def __post_init__(self) -> None:
        """Nothing: checked when the command runs, where an error is one sentence and not a box."""


@dataclass(frozen=True)
class Train:
    """Meta-train a policy, writing a checkpoint as it goes. Ctrl-C stops and keeps what was learnt."""

    name: Positional[str]  # what to train: maml-cartpole
    config: OmitArgPrefixes[_Flags] = field(default_factory=_Flags)
    distribution: str = "flipwide"  # of cart-poles: default, mild, wide, windy, flip or flipwide
    max_steps: int = 200  # at which an episode is cut
    checkpoint: Path | None = None  # where progress is kept; runs/maml-cartpole.pt if neither this nor --resume is given
    checkpoint_every: int = 1  # iterations
    overwrite: bool = False  # replace a checkpoint of an earlier run
    resume: Path | None = None  # go on from this checkpoint, with its settings; only --iterations may differ
    threads: int = 1  # more are slower for networks this small

    def run(self) -> int:
        if self.name != "maml-cartpole":
            raise ValueError(f"unknown name {self.name!r}; what can be trained is maml-cartpole")
        for name in ("checkpoint_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        torch.set_num_threads(self.threads)
        config = maml.Config(**dataclasses.asdict(self.config))
        _check_device(config.device)
        world, state = CartPole(self.distribution, self.max_steps), None
        policy = policy_for(world)
        if self.resume:
            world, policy, state = self._resumed(world, config)
        path = self.checkpoint or self.resume or Path("runs/maml-cartpole.pt")
        if path.exists() and not self.overwrite and not (self.resume and path.samefile(self.resume)):
            raise ValueError(f"{path} exists; --resume goes on from it, --overwrite replaces it, --checkpoint names another")
        return self._loop(world, policy, config, state, path)

    def _resumed(self, world: CartPole, config: maml.Config) -> tuple[CartPole, PolicyNet, dict[str, Any]]:
        saved_world, policy, saved_config, state = _read(self.resume)
        for given, saved in ((config, saved_config), (world, saved_world)):
            for f in dataclasses.fields(saved):
                before, now = getattr(saved, f.name), getattr(given, f.name)
                if now != before and f.name not in ("iterations", "observe_task", "dtype"):
                    raise ValueError(f"{f.name} is {before} in {self.resume} and cannot become {now} when training is resumed")
        if state["iteration"] >= config.iterations:
            raise ValueError(f"{self.resume} has done its {state['iteration']} iterations; give more with --iterations")
        return saved_world, policy, state

    def _loop(self, world: CartPole, policy: PolicyNet, config: maml.Config, state: dict[str, Any] | None, path: Path) -> int:
        log, kept, where = None, state["iteration"] if state else 0, self.resume

        def keep() -> str:
            """Save the last finished iteration, if it is not yet, and say where progress is."""
            nonlocal kept, where
            if log is not None and log.iteration > kept:
                _write(path, world, policy, config, log.state)
                kept, where = log.iteration, path
            return f"saved in {where}" if where else "nothing is saved"

        bar = tqdm(total=config.iterations, initial=kept, desc=self.name, unit="iteration")
        try:
            with bar:
                for log in maml.train(world, policy, config, resume=state):
                    bar.set_postfix_str(f"return {log.returns[0]:.1f} -> {log.returns[-1]:.1f}", refresh=False)
                    bar.update()
                    if log.iteration % self.checkpoint_every == 0:
                        keep()
        except KeyboardInterrupt:
            saved = keep()
            print(f"Interrupted after iteration {kept} of {config.iterations}, {saved}", file=sys.stderr)
            return INTERRUPTED
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}, {keep()}") from error
        returns = f"{log.returns[0]:.1f} before and {log.returns[-1]:.1f} after {_steps(config.inner_steps)}"
        print(f"Return {returns}, mean of the last {config.tasks} training tasks; {keep()}")
        return 0


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment of the book at full size and write its result to book/results/NAME.json."""

    name: Positional[str | None] = None  # which one; --list shows them
    list: bool = False  # show the experiments and their cost
    seeds: int | None = None  # fewer seeds: a quick look, written to runs/quick/NAME.json
    scale: float = 1.0  # a fraction of the full size, likewise

    def run(self) -> int:
        if self.list or self.name is None:
            for name, experiment in EXPERIMENTS.items():
                print(f"{name:22}{experiment.minutes:4.0f} min on two cores   {experiment.title}")
            return 0
        if self.name not in EXPERIMENTS:
            raise ValueError(f"unknown experiment {self.name!r}; there are {', '.join(EXPERIMENTS)}")
        full = self.seeds is None and self.scale == 1
        with tqdm(desc=self.name) as bar:

            def progress(done: int, total: int, what: str) -> None:
                bar.n, bar.total = done, total
                bar.set_postfix_str(what)

            try:
                result = EXPERIMENTS[self.name].run(self.seeds, self.scale, progress)
            except KeyboardInterrupt:
                bar.close()
                print("Interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
                return INTERRUPTED
        path = (_results_folder() if full else Path("runs/quick")) / f"{self.name}.json"
        results.save(result, path)
        print(f"Wrote {path}." if full else f"Wrote {path}: a quick look, not the result that the book prints.")
        return 0


@dataclass(frozen=True)
class Play:
    """Adapt a trained policy to a task that it has never seen, and draw it before and after."""

    checkpoint: Positional[Path]
    distribution: str | None = None  # the one it was trained on, if not given
    split: str = "test"  # of the tasks: train, validation, test or ood (out of distribution)
    task_seed: int = 0  # which task of the split
    adapt: int = 1  # gradient steps
    episodes: int = 20  # before each gradient step, and for each return
    out: Path = Path("runs/play.html")  # the picture, .html or .svg

    def run(self) -> int:
        torch.set_num_threads(1)
        for name, least in (("adapt", 0), ("episodes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        world, policy, config, state = _read(self.checkpoint)
        if self.distribution:
            world = dataclasses.replace(world, distribution=self.distribution)
        generator = torch.Generator().manual_seed(self.task_seed)
        task = world.sample_tasks(1, generator, self.split)
        rollouts = self._rollouts(world, task, policy, config, state, generator)
        panels = [from_rollout(rollouts[0], task, caption="Before adaptation")]
        if self.adapt:
            panels.append(from_rollout(rollouts[-1], task, caption=f"After {_steps(self.adapt)}"))
        animate(panels).save(self.out)
        print(f"Task {self.task_seed} of {world.distribution}, {self.split} split: {_in_words(task)}")
        returns = [f"{rollout.returns.mean():.1f} after {_steps(k)}" for k, rollout in enumerate(rollouts)]
        print(f"Return {', '.join(returns)} ({self.episodes} episodes each, at most {world.max_steps} steps)")
        print(f"Open {self.out} in a browser")
        return 0

    def _rollouts(
        self, world: CartPole, task: Physics, policy: PolicyNet, config: maml.Config, state: dict, generator: torch.Generator
    ) -> list[Rollout]:
        """Fresh episodes after 0 … ``adapt`` gradient steps."""
        phi, alpha = state["params"], {name: p.exp() for name, p in state["log_step_sizes"].items()}
        rollouts = [collect(world, task, policy, phi, self.episodes, generator)]
        for _ in range(self.adapt):
            batch = to_batch(rollouts[-1], config.discount, config.gae_lambda)
            phi = maml.adapt(policy, phi, alpha, batch, config.surrogate)
            rollouts.append(collect(world, task, policy, phi, self.episodes, generator))
        return rollouts


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Play, tyro.conf.subcommand("play")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status; what goes wrong is one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a Windows console may have no α
    try:
        return _parse(sys.argv[1:] if args is None else list(args)).run()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _parse(args: list[str]) -> Train | Reproduce | Play:
    def parse(default: Any = tyro.MISSING) -> Train | Reproduce | Play:
        return tyro.cli(Command, default=default, args=args, prog="python -m metarl_lib", description=__doc__)

    command = parse()
    if isinstance(command, Train) and command.resume:  # what the flags leave open is as the checkpoint has it
        world, _, config, _ = _read(command.resume)
        flags = _Flags(**dataclasses.asdict(config))
        return parse(dataclasses.replace(command, config=flags, distribution=world.distribution, max_steps=world.max_steps))
    return command


def _write(path: Path, world: CartPole, policy: PolicyNet, config: maml.Config, state: dict[str, Any]) -> None:
    parts = {"world": world, "policy": policy, "config": config}
    plain = {name: dataclasses.asdict(part) for name, part in parts.items()}
    checkpoint.save(path, {"algorithm": "maml", **plain, "state": state})


def _read(path: Path) -> tuple[CartPole, PolicyNet, maml.Config, dict[str, Any]]:
    saved = checkpoint.load(path)
    try:
        if saved["algorithm"] != "maml":
            raise CheckpointError(f"{path} holds a run of {saved['algorithm']}, not of maml")
        return CartPole(**saved["world"]), PolicyNet(**saved["policy"]), maml.Config(**saved["config"]), saved["state"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold a run of maml on CartPole, or one of another version: {error}") from error


def _results_folder() -> Path:
    found = results.folder()
    return found if found.parent.name == "book" else Path("book/results")  # and not into an installed package


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _steps(n: int) -> str:
    return f"{n} gradient step{'' if n == 1 else 's'}"


def _in_words(task: Physics) -> str:
    gravity, cart, pole, half_length, force, wind = (float(leaf[0]) for leaf in task)
    parts = [
        f"pole of {2 * half_length:.2f} m and {pole:.2f} kg",
        f"cart of {cart:.2f} kg",
        f"motor of {abs(force):.1f} N" + (", wired backwards" if force < 0 else ""),
        f"gravity {gravity:.1f} m/s²",
    ]
    if wind:
        parts.append(f"wind of {wind:.1f} N")
    return ", ".join(parts)
