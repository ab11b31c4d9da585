import pytest
import torch

from metarl_lib import maml
from metarl_lib.article import maml_train
from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.nets import to_module

TINY = {"num_tasks": 3, "num_iterations": 2, "meta_batch_size": 2}
OBSERVATIONS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def short_episodes(monkeypatch):
    monkeypatch.setattr("metarl_lib.article.CartPole", lambda name: CartPole(name, max_steps=20))


def expected(distribution="flipwide", **changes):
    world = CartPole(distribution, max_steps=20)
    policy = policy_for(world)
    config = maml.Config(**{"iterations": 2, "tasks": 2, "task_pool": 3, "step_sizes": "fixed"} | changes)
    *_, log = maml.train(world, policy, config)
    return to_module(policy, log.params)(OBSERVATIONS)


@pytest.mark.parametrize("env_name, distribution", [("CartPole-v1", "flipwide"), ("CartPole-windy", "windy")])
def test_it_returns_the_network_that_maml_learns(short_episodes, env_name, distribution):
    network = maml_train(env_name, **TINY)
    assert isinstance(network, torch.nn.Module)
    assert network(OBSERVATIONS).shape == (5, 2)
    assert torch.equal(network(OBSERVATIONS), expected(distribution))


def test_its_arguments_reach_the_algorithm(short_episodes):
    network = maml_train(**TINY | {"num_tasks": 4}, inner_steps=2, seed=7)
    assert torch.equal(network(OBSERVATIONS), expected(inner_steps=2, task_pool=4, seed=7))


def test_progress_is_shown_or_not(short_episodes, capsys):
    maml_train(**TINY)
    assert "CartPole-v1: 100%" in capsys.readouterr().err
    maml_train(**TINY, progress=False)
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_returns_what_was_learnt(short_episodes, monkeypatch, capsys):
    gather, calls = maml.gather, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return gather(*args)

    monkeypatch.setattr(maml, "gather", interrupted)
    network = maml_train(**TINY)
    assert capsys.readouterr().out == "Interrupted: this is what was learnt in 1 of 2 iterations.\n"
    monkeypatch.undo()
    world = CartPole(max_steps=20)
    policy = policy_for(world)
    log = next(maml.train(world, policy, maml.Config(iterations=2, tasks=2, task_pool=3, step_sizes="fixed")))
    assert torch.equal(network(OBSERVATIONS), to_module(policy, log.params)(OBSERVATIONS))


def test_an_interrupt_before_anything_was_learnt(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(maml, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        maml_train(**TINY)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"env_name": "Pendulum-v1"}, "unknown env_name 'Pendulum-v1'; there are CartPole-v1, CartPole-default, CartPole-mild,"),
        ({"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, got -1"),
        ({"meta_batch_size": 0}, "meta_batch_size must be at least 1, got 0"),
        ({"num_tasks": 10}, r"num_tasks must be at least meta_batch_size \(20\), got 10"),
    ],
)
def test_bad_input(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        maml_train(**arguments)
