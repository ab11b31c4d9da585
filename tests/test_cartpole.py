import math

import gymnasium
import numpy as np
import pytest
import torch

from metarl_lib.cartpole import ANGLE_LIMIT, DISTRIBUTIONS, SPLITS, X_LIMIT, CartPole, Physics, State

HELD_OUT = ("validation", "test")
VARYING = [name for name, ranges in DISTRIBUTIONS.items() if ranges.half_length[0] < ranges.half_length[1]]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def physics(gravity=9.8, cart_mass=1.0, pole_mass=0.1, half_length=0.5, force=10.0, wind=0.0):
    return Physics(*(torch.tensor([v], dtype=torch.float64) for v in (gravity, cart_mass, pole_mass, half_length, force, wind)))


def random_state(generator, *shape):
    spread = torch.tensor([2.0, 2.0, 0.2, 2.0], dtype=torch.float64)
    body = (2 * torch.rand(*shape, 4, generator=generator, dtype=torch.float64) - 1) * spread
    return State(body, torch.zeros(shape, dtype=torch.int32))


# --- against Gymnasium ------------------------------------------------------------------------------------------------


def play_beside_gymnasium(env, world, task, controller, seed):
    """One episode of both, with every step compared. Returns its length and how it ended.

    Each step starts from Gymnasium's state: an upright pole is unstable, so that over hundreds of steps a difference in the
    last digit would grow to any size. The clock is ours throughout.
    """

    def body():
        return torch.from_numpy(env.unwrapped.state.copy()).reshape(1, 1, 4)

    observation, _ = env.reset(seed=seed)
    state, ended = State(body(), torch.zeros(1, 1, dtype=torch.int32)), False
    while not ended:
        action = controller(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        state, step = world.step(task, state, torch.tensor([[action]]))
        assert torch.allclose(step.observation, body(), rtol=0, atol=1e-13)
        assert (step.reward.item(), step.terminated.item(), step.truncated.item()) == (reward, terminated, truncated)
        state, ended = state._replace(body=body()), terminated or truncated
    x, _, angle, _ = env.unwrapped.state
    return state.steps.item(), terminated, truncated, abs(x) > X_LIMIT, abs(angle) > ANGLE_LIMIT


def linear(*gains):
    return lambda observation: int(np.dot(gains, observation) > 0)


@pytest.fixture
def world():
    return CartPole("default", max_steps=500, dtype=torch.float64)


def test_equal_to_gymnasium_under_random_actions(world):
    env, random = gymnasium.make("CartPole-v1"), np.random.default_rng(0)
    task = world.sample_tasks(1, torch.Generator())
    endings = [play_beside_gymnasium(env, world, task, lambda _: int(random.integers(2)), seed) for seed in range(150)]
    assert sum(t for t, *_ in endings) > 3000
    assert all(terminated and not truncated for _, terminated, truncated, *_ in endings)


@pytest.mark.parametrize(
    ("gains", "ending"),
    [
        ((0.05, 0.1, 1.0, 0.3), (False, True, False, False)),  # balances: truncated at 500
        ((0.0, 0.0, 0.0, 0.0), (True, False, False, True)),  # always pushes left: terminated by the angle
        ((-0.05, 0.0, 1.0, 0.2), (True, False, True, False)),  # keeps the pole up but runs away: by the position
    ],
)
def test_equal_to_gymnasium_until_every_kind_of_end(world, gains, ending):
    env, task = gymnasium.make("CartPole-v1"), world.sample_tasks(1, torch.Generator())
    endings = [play_beside_gymnasium(env, world, task, linear(*gains), seed) for seed in (0, 4)]
    assert [e[1:] for e in endings] == [ending] * 2
    assert ending[0] or all(t == 500 for t, *_ in endings)


def test_an_episode_may_terminate_and_be_truncated_at_once():
    length = play_beside_gymnasium(
        gymnasium.make("CartPole-v1"),
        CartPole("default", max_steps=500, dtype=torch.float64),
        physics(),
        linear(0, 0, 0, 0),
        seed=0,
    )[0]
    env = gymnasium.make("CartPole-v1", max_episode_steps=length)
    world = CartPole("default", max_steps=length, dtype=torch.float64)
    assert play_beside_gymnasium(env, world, physics(), linear(0, 0, 0, 0), seed=0)[:3] == (length, True, True)


@pytest.mark.parametrize("distribution", ["mild", "flipwide"])
def test_equal_to_gymnasium_with_other_physics(distribution, generator):
    world = CartPole(distribution, max_steps=500, dtype=torch.float64)
    tasks, random = world.sample_tasks(20, generator), np.random.default_rng(0)
    for i in range(20):
        task = Physics(*(leaf[i : i + 1] for leaf in tasks))
        env = gymnasium.make("CartPole-v1")
        inner = env.unwrapped
        inner.gravity, inner.masscart, inner.masspole, inner.length, inner.force_mag = (leaf.item() for leaf in task[:5])
        inner.total_mass, inner.polemass_length = inner.masscart + inner.masspole, inner.masspole * inner.length
        for seed in range(3):
            play_beside_gymnasium(env, world, task, lambda _: int(random.integers(2)), seed)


# --- force and wind ---------------------------------------------------------------------------------------------------


def test_a_flipped_motor_swaps_the_actions_exactly(world, generator):
    state, actions = random_state(generator, 1, 100), torch.randint(2, (1, 100), generator=generator)
    _, flipped = world.step(physics(force=-10.0), state, actions)
    _, swapped = world.step(physics(force=10.0), state, 1 - actions)
    _, unswapped = world.step(physics(force=10.0), state, actions)
    assert torch.equal(flipped.observation, swapped.observation)
    assert not torch.isclose(flipped.observation[..., 1], unswapped.observation[..., 1]).any()


def test_wind_adds_to_the_force(world, generator):
    state = random_state(generator, 1, 100)
    right, left = torch.ones(1, 100, dtype=torch.int64), torch.zeros(1, 100, dtype=torch.int64)
    windy = physics(force=10.0, wind=3.0)
    for action, force in ((right, 13.0), (left, 7.0)):
        _, step = world.step(windy, state, action)
        assert torch.equal(step.observation, world.step(physics(force=force), state, action)[1].observation)


def test_mirrored_worlds_have_mirrored_dynamics(world, generator):
    state, actions = random_state(generator, 1, 100), torch.randint(2, (1, 100), generator=generator)
    _, step = world.step(physics(wind=3.0), state, actions)
    _, mirrored = world.step(physics(wind=-3.0), State(-state.body, state.steps), 1 - actions)
    assert torch.allclose(mirrored.observation, -step.observation, rtol=0, atol=1e-13)


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_reset_starts_near_upright_and_the_clock_at_zero(generator):
    world = CartPole("wide")
    state, observation = world.reset(world.sample_tasks(50, generator), 40, generator)
    assert observation.shape == (50, 40, 4) and torch.equal(observation, state.body)
    assert 0.0499 < observation.abs().max() <= 0.05 and observation.mean().abs() < 1e-3
    assert (state.steps == 0).all()


def test_a_task_is_untouched_by_another(generator):
    world = CartPole("flipwide", dtype=torch.float64)
    tasks = world.sample_tasks(3, generator)
    state, actions = random_state(generator, 3, 10), torch.randint(2, (3, 10), generator=generator)
    others = Physics(*(torch.cat((leaf[:1], leaf[1:] * 1.1)) for leaf in tasks))
    before, after = world.step(tasks, state, actions)[1].observation, world.step(others, state, actions)[1].observation
    assert torch.equal(before[0], after[0]) and (before[1:, :, 1] != after[1:, :, 1]).all()
    alone = world.step(Physics(*(leaf[1:2] for leaf in tasks)), State(state.body[1:2], state.steps[1:2]), actions[1:2])
    assert torch.equal(alone[1].observation[0], before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_respected(dtype, generator):
    world = CartPole("flipwide", observe_task=True, dtype=dtype)
    for split in SPLITS:
        assert {leaf.dtype for leaf in world.sample_tasks(3, generator, split)} == {dtype}
    task = world.sample_tasks(3, generator)
    state, observation = world.reset(task, 2, generator)
    _, step = world.step(task, state, torch.ones(3, 2, dtype=torch.int64))
    assert {observation.dtype, step.observation.dtype, step.reward.dtype} == {dtype}
    assert {step.terminated.dtype, step.truncated.dtype} == {torch.bool}


def test_observe_task_appends_the_scaled_physics(generator):
    world, plain = CartPole("flipwide", observe_task=True), CartPole("flipwide")
    task = world.sample_tasks(1000, generator)
    state, observation = world.reset(task, 2, generator)
    _, step = world.step(task, state, torch.ones(1000, 2, dtype=torch.int64))
    assert observation.shape == step.observation.shape == (1000, 2, world.observation_size)
    assert torch.equal(observation[..., :4], state.body)
    assert torch.equal(step.observation[..., :4], plain.step(task, state, torch.ones(1000, 2))[1].observation)
    features = observation[:, 0, 4:]
    assert torch.equal(features, observation[:, 1, 4:]) and torch.equal(features, step.observation[:, 0, 4:])
    assert features.abs().max() <= 1.4  # a force of 15 N is 1.36
    for i, leaf in enumerate(task):
        if leaf.std() > 0:
            assert torch.corrcoef(torch.stack((features[:, i], leaf)))[0, 1] > 0.9999
    assert features[:, :4].abs().amax(0).min() > 0.9


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("split", ["train", *HELD_OUT])
def test_sampled_tasks_fill_their_ranges_and_never_leave_them(distribution, split, generator):
    task = CartPole(distribution, dtype=torch.float64).sample_tasks(20_000, generator, split)
    for name, leaf in task._asdict().items():
        low, high = getattr(DISTRIBUTIONS[distribution], name)
        magnitude = leaf.abs()
        assert leaf.shape == (20_000,)
        assert magnitude.min() >= low and magnitude.max() <= high
        slack = (high - low) * (0.21 if name == "half_length" else 0.01)  # a split holds some slices of the length only
        assert magnitude.min() <= low + slack and magnitude.max() >= high - slack
        if name not in ("force", "wind"):
            assert (leaf > 0).all()


@pytest.mark.parametrize("distribution", VARYING)
def test_train_validation_and_test_tasks_are_disjoint(distribution, generator):
    world = CartPole(distribution)
    low, high = DISTRIBUTIONS[distribution].half_length
    lengths = {s: world.sample_tasks(100_000, generator, s).half_length for s in ("train", *HELD_OUT)}
    slices = {s: (20 * (x - low) / (high - low)).floor().int().unique().tolist() for s, x in lengths.items()}
    assert sorted(sum(slices.values(), [])) == list(range(20))  # each slice belongs to one split
    assert {s: len(x) for s, x in slices.items()} == {"train": 12, "validation": 4, "test": 4}
    held_out, training = torch.cat([lengths[s] for s in HELD_OUT]), lengths["train"].sort().values
    right = torch.searchsorted(training, held_out).clamp(1, len(training) - 1)
    nearest = torch.minimum((training[right] - held_out).abs(), (held_out - training[right - 1]).abs()).min()
    assert nearest > 0.004 * (high - low)  # a tenth of a slice lies between them


@pytest.mark.parametrize("distribution", VARYING)
def test_out_of_distribution_every_varied_parameter_is_outside(distribution, generator):
    task = CartPole(distribution).sample_tasks(10_000, generator, "ood")
    for name, leaf in task._asdict().items():
        low, high = getattr(DISTRIBUTIONS[distribution], name)
        magnitude = leaf.abs()
        if low == high:
            assert torch.allclose(magnitude, torch.tensor(low))
            continue
        below, above = magnitude < low, magnitude > high
        assert (below | above).all()
        assert magnitude.min() >= (low if low == 0 else low * 2 / 3 - 1e-6) and magnitude.max() <= high * 1.5 + 1e-6
        assert 0.45 < above.double().mean() < 0.55 if low > 0 else above.all()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("n", [1, 2, 7, 20, 101])
def test_half_of_the_motors_are_backwards(split, n, generator):
    world = CartPole("flip")
    for _ in range(10):
        assert abs(int(world.sample_tasks(n, generator, split).force.sign().sum())) == n % 2
    assert (CartPole("wide").sample_tasks(n, generator, split).force > 0).all()


def test_the_odd_motor_out_is_drawn_by_a_coin_and_its_place_at_random(generator):
    world = CartPole("flip")
    alone = torch.cat([world.sample_tasks(1, generator).force for _ in range(400)]).sign()
    firsts = torch.stack([world.sample_tasks(4, generator).force for _ in range(400)]).sign()[:, 0]
    for signs in (alone, firsts):
        assert signs.mean().abs() < 4 / math.sqrt(400)


def test_wind_blows_from_either_side(generator):
    wind = CartPole("windy").sample_tasks(1000, generator).wind
    assert (wind > 0).sum() == 500


def test_reproducible_by_generator():
    world = CartPole("flipwide")

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        task = world.sample_tasks(5, generator)
        return (*task, world.reset(task, 3, generator)[1])

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not torch.isclose(draw(1)[0], draw(2)[0]).any() and not torch.isclose(draw(1)[-1], draw(2)[-1]).all()


def test_bad_input_is_one_clear_sentence(generator):
    world = CartPole("mild")
    with pytest.raises(ValueError, match=r"^unknown distribution 'milld'; there are default, mild, .*flipwide$"):
        CartPole("milld")
    with pytest.raises(ValueError, match=r"^max_steps must be at least 1, got 0$"):
        CartPole(max_steps=0)
    with pytest.raises(ValueError, match=r"^n must be at least 1 task, got 0$"):
        world.sample_tasks(0, generator)
    with pytest.raises(ValueError, match=r"^unknown split 'eval'; there are train, validation, test, ood$"):
        world.sample_tasks(1, generator, "eval")
    with pytest.raises(ValueError, match=r"^n must be at least 1 episode, got 0$"):
        world.reset(world.sample_tasks(1, generator), 0, generator)
