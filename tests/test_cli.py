import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch

from metarl_lib import checkpoint, cli, maml, results
from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.cli import main

TINY = ["--tasks", "2", "--episodes", "3", "--max-steps", "20", "--distribution", "flip"]
TRAIN = ["train", "maml-cartpole", *TINY, "--checkpoint", "run.pt", "--iterations"]
CONFIG = {"tasks": 2, "episodes": 3}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(folder):
    assert main([*TRAIN, "2"]) == 0
    return folder / "run.pt"


def straight(iterations):
    world = CartPole("flip", 20)
    return list(maml.train(world, policy_for(world), maml.Config(iterations=iterations, **CONFIG)))


def same_params(path, log):
    params = checkpoint.load(path)["state"]["params"]
    return all(torch.equal(params[name], p) for name, p in log.params.items())


def one_sentence(capsys):
    """What was said on stderr after the progress bar, which has to be one line."""
    err = capsys.readouterr().err.replace("\r", "\n")
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.strip() and "|" not in line and "0it [" not in line]
    return line


def interrupted_after(iterations, monkeypatch):
    train = maml.train

    def interrupted(*args, **kwargs):
        for log in train(*args, **kwargs):
            yield log
            if log.iteration == iterations:
                raise KeyboardInterrupt

    monkeypatch.setattr(maml, "train", interrupted)


def test_train_does_what_the_library_does(folder, capsys):
    assert main([*TRAIN, "2"]) == 0
    log = straight(2)[-1]
    assert same_params("run.pt", log)
    assert capsys.readouterr().out == (
        f"Return {log.returns[0]:.1f} before and {log.returns[1]:.1f} after 1 gradient step, mean of the last 2 training tasks; "
        "saved in run.pt\n"
    )
    saved = checkpoint.load("run.pt")
    assert saved["algorithm"] == "maml"
    assert CartPole(**saved["world"]) == CartPole("flip", 20)
    assert saved["config"] == asdict(maml.Config(iterations=2, **CONFIG))


@pytest.mark.parametrize("every", ["1", "100"])
def test_interrupted_and_resumed_is_bitwise_equal(folder, monkeypatch, capsys, every):
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert main([*TRAIN, "4", "--checkpoint-every", every]) == 130
    assert one_sentence(capsys) == "Interrupted after iteration 2 of 4, saved in run.pt"
    assert main(["train", "maml-cartpole", "--resume", "run.pt"]) == 0
    assert same_params("run.pt", straight(4)[-1])


def test_interrupted_before_anything_was_learnt(folder, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(maml, "gather", interrupted)
    assert main([*TRAIN, "4"]) == 130
    assert one_sentence(capsys) == "Interrupted after iteration 0 of 4, nothing is saved"
    assert not (folder / "run.pt").exists()


def test_resumed_elsewhere_and_interrupted_at_once(trained, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(maml, "gather", interrupted)
    assert main(["train", "maml-cartpole", "--resume", "run.pt", "--checkpoint", "new.pt", "--iterations", "9"]) == 130
    assert one_sentence(capsys).endswith("Interrupted after iteration 2 of 9, saved in run.pt")


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGINT to send to one process")
def test_ctrl_c(folder, capsys):
    command = [sys.executable, "-m", "metarl_lib", *TRAIN, "1000000"]
    # Whoever runs the tests in the background may have SIGINT ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=heed)
    deadline = time.monotonic() + 60
    while not (folder / "run.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = re.fullmatch(r"Interrupted after iteration (\d+) of 1000000, saved in run\.pt", err.splitlines()[-1])
    assert "Traceback" not in err
    iteration = int(last[1])
    assert checkpoint.load("run.pt")["state"]["iteration"] == iteration >= 1
    assert os.listdir() == ["run.pt"]


@pytest.mark.parametrize("bad_iteration", [1, 3])
def test_nan_in_a_reward(folder, monkeypatch, capsys, bad_iteration):
    step, gather, iteration = CartPole.step, maml.gather, 0

    def counted(*args):
        nonlocal iteration
        iteration += 1
        return gather(*args)

    def broken(*args):
        state, result = step(*args)
        return state, result._replace(reward=result.reward * (float("nan") if iteration == bad_iteration else 1))

    monkeypatch.setattr(maml, "gather", counted)
    monkeypatch.setattr(CartPole, "step", broken)
    assert main([*TRAIN, "5", "--checkpoint-every", "100"]) == 1
    good = bad_iteration - 1
    where = "saved in run.pt" if good else "nothing is saved"
    assert one_sentence(capsys) == (
        f"Error: iteration {bad_iteration}: the environment returned rewards that are not finite (NaN or infinity); "
        f"the last good state is that of iteration {good}, {where}"
    )
    if good:
        assert checkpoint.load("run.pt")["state"]["iteration"] == good
    else:
        assert not (folder / "run.pt").exists()


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["train", "mamal-cartpole"], "unknown name 'mamal-cartpole'; what can be trained is maml-cartpole"),
        ([*TRAIN, "2", "--distribution", "flop"], "unknown distribution 'flop'; there are default, mild,"),
        ([*TRAIN, "2", "--tasks", "0"], "tasks must be at least 1, got 0"),
        ([*TRAIN, "2", "--inner-steps", "-1"], "inner_steps must be at least 0, got -1"),
        ([*TRAIN, "2", "--surrogate", "log"], "unknown surrogate 'log'; there are ratio, log_prob"),
        ([*TRAIN, "2", "--max-steps", "0"], "max_steps must be at least 1, got 0"),
        ([*TRAIN, "2", "--checkpoint-every", "0"], "checkpoint_every must be at least 1, got 0"),
        ([*TRAIN, "2", "--threads", "0"], "threads must be at least 1, got 0"),
        ([*TRAIN, "2", "--device", "abacus"], "device 'abacus' cannot be used here: "),
        ([*TRAIN, "2", "--resume", "none.pt"], "there is no checkpoint at none.pt"),
        (["play", "none.pt"], "there is no checkpoint at none.pt"),
        (["reproduce", "mamal"], "unknown experiment 'mamal'; there are cliff-walking"),
        (["reproduce", "maml-cartpole", "--seeds", "1"], "seeds must be at least 2"),
        (["reproduce", "maml-cartpole", "--scale", "0"], "scale must be in "),
    ],
)
def test_bad_input_is_answered_in_one_sentence(folder, capsys, args, sentence):
    assert main(args) == 1
    assert one_sentence(capsys).startswith(f"Error: {sentence}")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["play", "run.pt", "--adapt", "-1"], "adapt must be at least 0, got -1"),
        (["play", "run.pt", "--episodes", "0"], "episodes must be at least 1, got 0"),
        (["play", "run.pt", "--distribution", "flop"], "unknown distribution 'flop'"),
        (["play", "run.pt", "--split", "exam"], "unknown split 'exam'; there are train, validation, test, ood"),
        (["play", "run.pt", "--out", "a.gif"], "path must end in .svg or .html, got a.gif"),
        ([*TRAIN, "2"], "run.pt exists; --resume goes on from it, --overwrite replaces it"),
        (["train", "maml-cartpole", "--resume", "run.pt"], "run.pt has done its 2 iterations; give more with --iterations"),
        (["train", "maml-cartpole", "--resume", "run.pt", "--tasks", "3"], "tasks is 2 in run.pt and cannot become 3"),
        (["train", "maml-cartpole", "--resume", "run.pt", "--distribution", "wide"], "distribution is flip in run.pt and cannot"),
    ],
)
def test_bad_input_beside_a_checkpoint(trained, capsys, args, sentence):
    before = trained.read_bytes()
    capsys.readouterr()
    assert main(args) == 1
    assert one_sentence(capsys).startswith(f"Error: {sentence}")
    assert trained.read_bytes() == before


@pytest.mark.parametrize("command", [["play", "run.pt"], ["train", "maml-cartpole", "--resume", "run.pt"]])
def test_a_damaged_checkpoint(trained, capsys, command):
    whole = trained.read_bytes()
    trained.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert main(command) == 1
    assert one_sentence(capsys) == "Error: run.pt is not a complete checkpoint: cut short, damaged, or of another kind"
    for foreign, sentence in (
        ({"algorithm": "ppo"}, "holds a run of ppo, not of maml"),
        ({}, "does not hold a run of maml on CartPole, or one of another version: 'algorithm'"),
        ({"algorithm": "maml", "world": {"size": 3}}, "does not hold a run of maml on CartPole, or one of another version"),
    ):
        checkpoint.save("run.pt", foreign)
        assert main(command) == 1
        assert one_sentence(capsys).startswith(f"Error: run.pt {sentence}")


def test_a_full_disk(trained, monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["train", "maml-cartpole", "--resume", "run.pt", "--iterations", "4"]) == 1
    assert one_sentence(capsys) == "Error: could not write run.pt: No space left on device; what it held before is untouched"
    assert same_params(trained, straight(2)[-1])


def test_overwrite(trained):
    assert main([*TRAIN, "1", "--overwrite"]) == 0
    assert checkpoint.load(trained)["state"]["iteration"] == 1


def test_play_draws_a_held_out_task_before_and_after(trained, capsys):
    capsys.readouterr()
    assert main(["play", "run.pt", "--adapt", "2", "--episodes", "4", "--task-seed", "3"]) == 0
    out = capsys.readouterr().out
    task = CartPole("flip", 20).sample_tasks(1, torch.Generator().manual_seed(3), "test")
    assert f"Task 3 of flip, test split: pole of {2 * float(task.half_length):.2f} m" in out
    assert ("wired backwards" in out) == bool(task.force < 0)
    number = r"(\d+\.\d)"
    returns = re.search(f"Return {number} after 0 gradient steps, {number} after 1 gradient step, {number} after 2 gradient", out)
    picture = Path("runs/play.html").read_text(encoding="utf-8")
    assert all(1 <= float(r) <= 20 for r in returns.groups())
    # All four episodes are in the picture, so that its caption and the line agree.
    assert f"4 episodes, mean return {float(returns[1]):.0f}" in picture
    assert "Before adaptation" in picture
    assert "After 2 gradient steps" in picture


def test_play_without_adaptation_and_out_of_distribution(trained):
    args = ["play", "run.pt", "--adapt", "0", "--episodes", "2", "--split", "ood", "--distribution", "windy", "--out", "a.svg"]
    assert main(args) == 0
    assert "After" not in Path("a.svg").read_text(encoding="utf-8")


class Sample:
    title, minutes = "A sample", 3.0

    def run(self, seeds, scale, progress):
        progress(1, 1, "all")
        metric = {"value": scale, "low": None, "high": None, "n": 1, "unit": "", "published": None, "source": None}
        texts = dict.fromkeys(("name", "title", "command", "hardware"), "sample")
        return texts | {
            "seeds": list(range(seeds or 10)),
            "config": {},
            "versions": {},
            "cpu_seconds": 0.0,
            "metrics": {"a": metric},
            "curves": {},
        }


@pytest.fixture
def sample(monkeypatch):
    monkeypatch.setattr(cli, "EXPERIMENTS", {"sample": Sample()})


@pytest.mark.parametrize("flags", [["--seeds", "2"], ["--scale", "0.5"]])
def test_a_quick_look_is_kept_apart(folder, sample, capsys, flags):
    assert main(["reproduce", "sample", *flags]) == 0
    assert "a quick look, not the result that the book prints" in capsys.readouterr().out
    assert [p.name for p in (folder / "runs" / "quick").iterdir()] == ["sample.json"]
    assert not (folder / "book").exists()


@pytest.mark.parametrize("home", ["book/results", "metarl_lib/_results"])
def test_a_full_size_result_goes_into_the_book(folder, sample, monkeypatch, home):
    monkeypatch.setattr(results, "folder", lambda: folder / home)
    assert main(["reproduce", "sample"]) == 0
    monkeypatch.setattr(results, "folder", lambda: folder / "book" / "results")
    assert results.load("sample")["metrics"]["a"]["value"] == 1


def test_experiments_are_listed_with_their_cost(sample, capsys):
    assert main(["reproduce", "--list"]) == 0
    assert re.fullmatch(r"sample +3 min on two cores   A sample\n", capsys.readouterr().out)


def test_an_interrupted_experiment(sample, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sample, "run", interrupted)
    assert main(["reproduce", "sample"]) == 130
    assert one_sentence(capsys) == "Interrupted; what is finished is kept, and the same command goes on from there"


def test_help_on_a_console_without_greek(folder):
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "metarl_lib", "train", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"--inner-step-size" in done.stdout
