import errno
import os
import pickle
from collections import OrderedDict

import pytest
import torch

from metarl_lib import checkpoint, maml
from metarl_lib.cartpole import CartPole, Physics, policy_for
from metarl_lib.checkpoint import CheckpointError, load, save

STATE = {
    "algorithm": "maml",
    "world": {"distribution": "flip", "dtype": torch.float64, "limits": (1, 2.5, None, True)},
    "state": {"params": OrderedDict(weight=torch.arange(6.0).reshape(2, 3)), "optimizer": {0: [torch.tensor(3)]}},
    "generator": torch.Generator().get_state(),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def world():
    return CartPole("flip", max_steps=20)


CONFIG = maml.Config(iterations=4, tasks=2, episodes=3, task_pool=3, seed=3)


def test_what_is_saved_is_loaded(path):
    save(path, STATE)
    assert same(load(path), STATE)


def test_floats_move_to_the_device_and_the_generator_stays(path):
    save(path, STATE)
    loaded = load(path, "meta")
    assert loaded["state"]["params"]["weight"].device.type == "meta"
    assert loaded["generator"].device.type == "cpu"


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    save(tmp_path / "a" / "b" / "run.pt", STATE)
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["run.pt"]


@pytest.mark.parametrize("config", [CONFIG, maml.Config(iterations=4, tasks=2, episodes=3, step_sizes="fixed", inner_steps=2)])
def test_resumed_training_is_bitwise_equal(path, world, config):
    policy = policy_for(world)
    straight = list(maml.train(world, policy, config))
    first = maml.train(world, policy, config)
    next(first)
    save(path, {"state": next(first).state})
    resumed = list(maml.train(world, policy, config, resume=load(path)["state"]))
    assert [log.iteration for log in resumed] == [3, 4]
    for a, b in zip(straight[2:], resumed, strict=True):
        assert a.returns == b.returns
        assert same(a.state, b.state)


def test_a_missing_file(path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*run\.pt$"):
        load(path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short(path, kept):
    save(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"run\.pt is not a complete checkpoint"):
        load(path)


@pytest.mark.parametrize("content", [b"not a checkpoint\n", b"\x80\x05K\x01.", b"PK\x03\x04", bytes(1000), b'{"format": 1}'])
def test_a_file_of_another_kind(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.pt is not a"):
        load(path)


def test_somebody_elses_weights(path):
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"run\.pt is not a checkpoint of metarl_lib"):
        load(path)


def test_a_later_format(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(path, STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has checkpoint format 2, this version of metarl_lib reads format 1"):
        load(path)


class Attack:
    def __init__(self, victim):
        self.victim = str(victim)

    def __reduce__(self):
        return os.remove, (self.victim,)


def test_loading_runs_no_code(path, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    for write in (lambda: path.write_bytes(pickle.dumps({"format": Attack(victim)})), lambda: torch.save(Attack(victim), path)):
        write()
        with pytest.raises(CheckpointError, match="is not a complete checkpoint"):
            load(path)
    assert victim.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_never_replace_good_ones(path, bad):
    save(path, STATE)
    with pytest.raises(CheckpointError, match=r"the checkpoint's state\.params\.weight is not finite"):
        save(path, {"state": {"params": {"weight": torch.tensor([0.0, bad])}}})
    assert same(load(path), STATE)


@pytest.mark.parametrize(
    "value, kind",
    [(object(), "object"), (Physics(*[torch.ones(1)] * 6), "Physics"), (print, "builtin_function"), ({1, 2}, "set")],
)
def test_values_that_could_not_be_read_again(path, value, kind):
    with pytest.raises(CheckpointError, match=rf"the checkpoint's a\[1\] is a {kind}.*, not a tensor or a plain value"):
        save(path, {"a": [0, value]})
    assert not path.exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(path, monkeypatch, step):
    save(path, STATE)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"could not write .*run\.pt: No space left on device; what it held before is untouched$"):
        save(path, {"new": 1})
    monkeypatch.undo()
    assert same(load(path), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_the_old_file(path, monkeypatch):
    save(path, STATE)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"new": 1})
    monkeypatch.undo()
    assert same(load(path), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be(path):
    path.touch()
    with pytest.raises(OSError, match=r"could not write .*nothing was written$"):
        save(path / "run.pt", STATE)
