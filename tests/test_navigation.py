import math

import numpy as np
import pytest
import torch

from metarl_lib import maml
from metarl_lib.baseline import to_batch
from metarl_lib.collect import collect
from metarl_lib.evaluate import adaptation_curve
from metarl_lib.navigation import Goal, Navigation, State, best_return, paper_goals, policy_for


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def goals(*positions):
    return Goal(torch.tensor(positions, dtype=torch.float64))


def at(*positions):
    position = torch.tensor(positions, dtype=torch.float64)[:, None]
    return State(position, torch.zeros(position.shape[:-1], dtype=torch.int32))


# --- the world --------------------------------------------------------------------------------------------------------


def test_a_step_by_hand():
    world = Navigation(dtype=torch.float64)
    state, step = world.step(goals([0.3, 0.4]), at([0.0, 0.0]), torch.tensor([[[0.05, 7.0]]], dtype=torch.float64))
    torch.testing.assert_close(state.position, torch.tensor([[[0.05, 0.1]]], dtype=torch.float64))
    assert step.reward.item() == pytest.approx(-math.hypot(0.25, 0.3), abs=1e-12)
    squared = Navigation(squared=True, dtype=torch.float64)
    _, step = squared.step(goals([0.3, 0.4]), at([0.0, 0.0]), torch.tensor([[[0.05, 7.0]]], dtype=torch.float64))
    assert step.reward.item() == pytest.approx(-(0.25**2 + 0.3**2), abs=1e-12)
    state, _ = world.step(goals([0.3, 0.4]), at([0.0, 0.0]), torch.tensor([[[-0.3, -0.1]]], dtype=torch.float64))
    assert state.position.flatten().tolist() == [-0.1, -0.1]


def test_an_episode_ends_where_both_coordinates_are_within_a_hundredth_of_the_goal():
    world, still = Navigation(dtype=torch.float64), torch.zeros(4, 1, 2)
    places = at([0.309, 0.191], [0.311, 0.2], [0.3, 0.189], [-0.3, -0.2])
    _, step = world.step(goals(*[[0.3, 0.2]] * 4), places, still)
    assert step.terminated.flatten().tolist() == [True, False, False, False]
    assert math.hypot(0.009, 0.009) > 0.01, "the first is not within 0.01 as the crow flies: the code's rule, not the paper's"


def test_the_clock_truncates_and_does_not_terminate():
    world = Navigation(max_steps=2)
    state, _ = world.reset(goals([0.4, 0.4]), 1, torch.Generator())
    flags = []
    for _ in range(2):
        state, step = world.step(goals([0.4, 0.4]), state, torch.zeros(1, 1, 2))
        flags.append((step.terminated.item(), step.truncated.item()))
    assert flags == [(False, False), (False, True)]


def test_a_point_that_stays_where_it_is_earns_minus_the_horizon_times_the_distance():
    """Which is why the published −40 before adaptation is a matter of distances and not of their squares."""
    world, task = Navigation(dtype=torch.float64), paper_goals(torch.float64)
    state, _ = world.reset(task, 1, torch.Generator())
    total = torch.zeros(40, dtype=torch.float64)
    for _ in range(100):
        state, step = world.step(task, state, torch.zeros(40, 1, 2))
        total += step.reward[:, 0]
    distance = np.hypot(*np.random.RandomState(1).uniform(-0.5, 0.5, (40, 2)).T)
    np.testing.assert_allclose(total, -100 * distance, rtol=1e-12)
    assert -42 < -100 * distance.mean() < -38 and -100 * (distance**2).mean() > -20


def test_a_task_is_untouched_by_another_and_a_state_is_not_written_to(generator):
    world = Navigation()
    task = world.sample_tasks(3, generator)
    state, observation = world.reset(task, 2, generator)
    action = 0.1 * torch.randn(3, 2, 2, generator=generator)
    _, step = world.step(task, state, action)
    other = Goal(torch.cat((task.position[:1], -task.position[1:])))
    _, changed = world.step(other, state, action)
    assert torch.equal(step.reward[0], changed.reward[0]) and not torch.isclose(step.reward[1:], changed.reward[1:]).any()
    assert (observation == 0).all() and (state.position == 0).all()


@pytest.mark.parametrize("squared", [False, True])
def test_no_one_earns_more_than_the_best_return_and_going_straight_earns_it(squared, generator):
    world = Navigation(squared=squared, dtype=torch.float64)
    task = Goal(torch.cat((paper_goals(torch.float64).position, world.sample_tasks(40, generator, "ood").position)))
    state, _ = world.reset(task, 1, generator)
    total, alive = torch.zeros(80, dtype=torch.float64), torch.ones(80, dtype=torch.bool)
    while alive.any():
        state, step = world.step(task, state, task.position[:, None] - state.position)
        total += step.reward[:, 0] * alive
        alive &= ~(step.terminated | step.truncated)[:, 0]
    torch.testing.assert_close(best_return(world, task), total, rtol=0, atol=1e-12)
    # By hand: 0.2 and 0.1 away, then 0.1 and 0, then there.
    power = 2 if squared else 1
    assert best_return(world, goals([0.2, -0.1])).item() == pytest.approx(-(0.1**power), abs=1e-12)
    by_hand = -sum(math.hypot(0.35 - 0.1 * t, max(0.15 - 0.1 * t, 0)) ** power for t in (1, 2, 3))
    assert best_return(world, goals([-0.35, 0.15])).item() == pytest.approx(by_hand, abs=1e-12)
    for slower in (0.5, 0.9):
        state, _ = world.reset(task, 1, generator)
        total, alive = torch.zeros(80, dtype=torch.float64), torch.ones(80, dtype=torch.bool)
        while alive.any():
            move = slower * (task.position[:, None] - state.position).clamp(-0.1, 0.1)
            state, step = world.step(task, state, move)
            total += step.reward[:, 0] * alive
            alive &= ~(step.terminated | step.truncated)[:, 0]
        assert (total < best_return(world, task)).all()


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_the_papers_goals():
    position = paper_goals(torch.float64).position
    assert position.shape == (40, 2) and position.dtype == torch.float64
    np.testing.assert_allclose(position[0], [-0.082977995297, 0.220324493442], atol=1e-12)


def test_train_validation_and_test_goals_are_disjoint_and_fill_the_square(generator):
    world = Navigation()
    splits = {s: world.sample_tasks(50_000, generator, s).position for s in ("train", "validation", "test")}
    strips = {s: (20 * (x[:, 0] + 0.5)).floor().int().unique().tolist() for s, x in splits.items()}
    assert sorted(sum(strips.values(), [])) == list(range(20))  # each strip belongs to one split
    assert {s: len(x) for s, x in strips.items()} == {"train": 12, "validation": 4, "test": 4}
    training = splits["train"][:, 0].sort().values.contiguous()
    for position in splits.values():
        assert position.abs().max() <= 0.5 and (position[:, 1].amin() < -0.499) and (position[:, 1].amax() > 0.499)
        assert position.mean(0).abs().max() < 0.15
    for held_out in (splits[s][:, 0].contiguous() for s in ("validation", "test")):
        right = torch.searchsorted(training, held_out).clamp(1, len(training) - 1)
        assert torch.minimum((training[right] - held_out).abs(), (held_out - training[right - 1]).abs()).min() > 0.004


def test_out_of_distribution_goals_are_outside_the_square_on_every_side(generator):
    position = Navigation().sample_tasks(20_000, generator, "ood").position
    furthest = position.abs().amax(-1)
    assert furthest.min() > 0.5 and 0.749 < furthest.max() <= 0.75
    for sign in (1, -1):
        for coordinate in (0, 1):
            assert 0.2 < (sign * position[:, coordinate] > 0.5).double().mean() < 0.4


def test_reproducible_by_generator():
    world = Navigation()
    one, again, other = (world.sample_tasks(5, torch.Generator().manual_seed(s)).position for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.isclose(one, other).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_respected(dtype, generator):
    world = Navigation(dtype=dtype)
    task = world.sample_tasks(3, generator)
    state, observation = world.reset(task, 2, generator)
    _, step = world.step(task, state, torch.zeros(3, 2, 2, dtype=dtype))
    assert {task.position.dtype, observation.dtype, step.observation.dtype, step.reward.dtype} == {dtype}
    assert {step.terminated.dtype, step.truncated.dtype} == {torch.bool}


def test_bad_input_is_one_clear_sentence(generator):
    world = Navigation()
    with pytest.raises(ValueError, match=r"^max_steps must be at least 1, got 0$"):
        Navigation(max_steps=0)
    with pytest.raises(ValueError, match=r"^n must be at least 1 task, got 0$"):
        world.sample_tasks(0, generator)
    with pytest.raises(ValueError, match=r"^unknown split 'eval'; there are train, validation, test, ood$"):
        world.sample_tasks(1, generator, "eval")
    task = world.sample_tasks(2, generator)
    with pytest.raises(ValueError, match=r"^n must be at least 1 episode, got 0$"):
        world.reset(task, 0, generator)
    with pytest.raises(ValueError, match=r"^action must be \[task, env, 2\], here \[2, 3, 2\], got \[2, 3\]$"):
        world.step(task, world.reset(task, 3, generator)[0], torch.zeros(2, 3))


# --- learning in it ---------------------------------------------------------------------------------------------------


def test_a_rollout_and_its_batch_hold_whole_actions(generator):
    world = Navigation(max_steps=20, dtype=torch.float64)
    task = goals([0.05, 0.3], [0.0, 0.0])
    policy = policy_for(world)
    params = policy.init(2, generator, torch.float64)
    rollout = collect(world, task, policy, params, 200, generator)
    assert rollout.actions.shape == (2, 200, rollout.rewards.shape[-1], 2) and rollout.actions.dtype == torch.float64
    moved = rollout.next_observations - rollout.observations
    torch.testing.assert_close(moved, rollout.actions.clamp(-0.1, 0.1), rtol=0, atol=1e-12)
    assert len(rollout.alive.sum(-1).unique()) > 4, "some episodes reach the goal and some do not"
    batch = to_batch(rollout, 0.99, 1.0)
    assert batch.actions.shape == (*batch.weights.shape, 2)
    torch.testing.assert_close(policy.log_prob(params, batch.observations, batch.actions), batch.log_probs, rtol=0, atol=1e-12)
    for i in range(2):
        kept = batch.weights[i] > 0
        torch.testing.assert_close(batch.actions[i, kept], rollout.actions[i][rollout.alive[i]])
        torch.testing.assert_close(batch.observations[i, kept], rollout.observations[i][rollout.alive[i]])


def test_adaptation_is_vmap_of_grad(generator):
    world = Navigation(max_steps=10, dtype=torch.float64)
    policy, task = policy_for(world), world.sample_tasks(3, generator)
    theta = policy.init(1, generator, torch.float64)
    batch = to_batch(collect(world, task, policy, theta, 4, generator), 0.99, 1.0)
    adapted = maml.adapt(policy, theta, 0.3, batch)
    for i in range(3):
        params = {name: p.clone().requires_grad_() for name, p in theta.items()}
        mean, log_std = policy.distribution(params, batch.observations[i : i + 1])
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(batch.actions[i : i + 1]).sum(-1)
        ratio = (log_prob - batch.log_probs[i]).exp()
        gradients = torch.autograd.grad((batch.weights[i] * ratio * batch.advantages[i]).sum(), list(params.values()))
        for (name, p), gradient in zip(params.items(), gradients, strict=True):
            torch.testing.assert_close(adapted[name][i], (p + 0.3 * gradient)[0].detach())
    assert (adapted["log_std"] != theta["log_std"]).any(), "the standard deviation adapts too"


def test_pretraining_walks_to_the_one_goal_there_is(generator):
    """With a single training goal there is nothing to adapt to: the policy learns to walk there."""

    class Fixed(Navigation):
        def sample_tasks(self, n, generator, split="train"):
            return Goal(torch.tensor([[0.3, -0.2]]).expand(n, 2))

    world = Fixed(max_steps=20)
    config = maml.Config(iterations=30, inner_steps=0, tasks=1, episodes=60, meta_step_size=1e-2)
    *_, log = maml.train(world, policy_for(world), config)
    best = float(best_return(world, world.sample_tasks(1, generator)))
    assert best == pytest.approx(-(math.hypot(0.2, 0.1) + 0.1), abs=1e-6)
    assert log.returns[0] > 5 * best, "a fresh policy earns about −7"


def test_later_steps_may_be_shorter(generator):
    world = Navigation(max_steps=5, dtype=torch.float64)
    policy, task = policy_for(world), world.sample_tasks(3, generator)
    theta = policy.init(1, generator, torch.float64)
    alpha = {name: torch.full((1, 1, 1), 0.4, dtype=torch.float64) for name in theta}

    def curve(step_sizes, later):
        return adaptation_curve(world, policy, theta, step_sizes, task, torch.Generator().manual_seed(1), 2, later=later)

    whole, none = curve(alpha, 1.0), curve(alpha, 0.0)
    assert torch.equal(whole[:2], none[:2]) and not torch.equal(whole[2], none[2])
    assert torch.equal(curve(0.4, 0.5), curve(alpha, 0.5))
