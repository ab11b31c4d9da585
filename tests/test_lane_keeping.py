"""The car: against a second implementation, on roads whose solution is known, and with a driver who knows it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gymnasium.utils.env_checker import check_env

from metarl_lib import maml, results, rl2
from metarl_lib.cartpole import SPLITS
from metarl_lib.collect import collect
from metarl_lib.experiments import lane_keeping as experiment
from metarl_lib.gymnasium_bridge import WorldEnv
from metarl_lib.lane_keeping import (
    DISTRIBUTIONS,
    HALF_LANE,
    LEVELS,
    MAX_CURVATURE,
    MAX_DELAY,
    MAX_STEER,
    SPEED,
    TIME_STEP,
    LaneKeeping,
    State,
    Vehicle,
    curvature,
    drive,
    steer,
    turning,
)
from metarl_lib.nets import PolicyNet
from metarl_lib.stream import Stream

RIGHT, STRAIGHT, HALF_LEFT, LEFT = 0, 2, 3, 4


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def world():
    return LaneKeeping(dtype=torch.float64)


def vehicle(wheelbase=3.0, gain=1.0, grip=6.0, delay=0):
    return Vehicle(*(torch.tensor([x], dtype=torch.float64) for x in (wheelbase, gain, grip)), torch.tensor([delay]))


def start(kappa=0.0, offset=0.0, heading=0.0):
    """One car, its wheels straight, on a road of constant curvature."""
    wave = torch.tensor([[0.0, 0.0], [math.acos(kappa / MAX_CURVATURE)] * 2], dtype=torch.float64)
    body = torch.tensor([0.0, offset, heading], dtype=torch.float64)
    commands = torch.zeros(1, 1, MAX_DELAY + 1, dtype=torch.float64)
    return State(body[None, None], commands, wave[None, None], torch.zeros(1, 1, dtype=torch.int32))


def roll(world, task, state, actions):
    """Bodies ``[frame, 3]`` of one car under ``actions``, its first one included."""
    bodies = [state.body[0, 0]]
    for action in actions:
        state, _ = world.step(task, state, torch.tensor([[action]]))
        bodies.append(state.body[0, 0])
    return torch.stack(bodies)


# --- dynamics ---------------------------------------------------------------------------------------------------------


def scalar_step(car, body, road, commands):
    """The equations of the module's docstring for one car, in Python's floats."""
    wheelbase, gain, grip, delay = car
    s, y, psi = body

    def kappa(at):
        return sum(0.01 * math.cos(number * at + phase) for number, phase in road)

    yaw_rate = 10 * math.tan(gain * 0.25 * commands[-1 - delay]) / wheelbase
    yaw_rate = min(max(yaw_rate, -grip / 10), grip / 10)
    s_rate = 10 * math.cos(psi) / (1 - kappa(s) * y)
    after = s + 0.1 * s_rate, y + 0.1 * 10 * math.sin(psi), psi + 0.1 * (yaw_rate - kappa(s) * s_rate)
    reward = 1 - 0.9 * min(1, abs(after[1]) / 1.75) ** 2 - 0.1 * commands[-1] ** 2
    seen = [after[1], 10 * after[2], *(100 * kappa(after[0] + ahead) for ahead in (0, 5, 10, 20))]
    return after, seen, reward, abs(after[1]) > 1.75


@pytest.mark.parametrize("split", SPLITS)
def test_equal_to_a_scalar_implementation(split, world, generator):
    task = world.sample_tasks(8, generator, split)
    state, observation = world.reset(task, 3, generator)
    actions = torch.randint(5, (30, 8, 3), generator=generator)
    bodies = {(i, j): state.body[i, j].tolist() for i in range(8) for j in range(3)}
    ended = 0
    for t in range(30):
        state, step = world.step(task, state, actions[t])
        for (i, j), body in bodies.items():
            commands = [0.0] * 6 + [(k - 2) / 2 for k in actions[: t + 1, i, j].tolist()]
            car = [leaf[i].item() for leaf in task]
            body, seen, reward, left = scalar_step(car, body, state.waves[i, j].T.tolist(), commands)
            assert state.body[i, j].tolist() == pytest.approx(body, abs=1e-11)
            assert step.observation[i, j].tolist() == pytest.approx(seen, abs=1e-10)
            assert step.reward[i, j].item() == pytest.approx(reward, abs=1e-11)
            assert step.terminated[i, j].item() == left
            bodies[i, j], ended = body, ended + left
    assert 24 < ended < 24 * 30  # both sides of the edge were seen


def test_a_straight_road_and_a_straight_car_change_nothing(world):
    bodies = roll(world, vehicle(), start(offset=0.3), [STRAIGHT] * 50)
    assert torch.allclose(bodies[:, 1:], torch.tensor([0.3, 0.0], dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(bodies[:, 0], torch.arange(51, dtype=torch.float64))  # 10 m/s for 0.1 s


@pytest.mark.parametrize("offset", [0.0, -1.2, 1.2])
def test_in_a_bend_the_car_that_turns_at_its_own_radius_stays_where_it_is(offset, world):
    """The centre line has a radius of 100 m; a car y metres inside it needs tan δ / L = 1 / (100 − y)."""
    gain = math.atan(3 / (100 - offset)) / (MAX_STEER * LEVELS[HALF_LEFT])
    bodies = roll(world, vehicle(gain=gain), start(0.01, offset), [HALF_LEFT] * 100)
    assert torch.allclose(bodies[:, 1:], torch.tensor([offset, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert bodies[-1, 0].item() == pytest.approx(100 * 100 / (100 - offset))  # the inner lane is shorter


def test_a_held_wheel_draws_a_circle_of_radius_wheelbase_by_tan_steer(world):
    """On a straight road s and y are Cartesian. Euler's circle is a polygon with sides v Δt, turned by v Δt / R each."""
    radius = 3 / math.tan(MAX_STEER / 2)
    side = SPEED * TIME_STEP
    steps = round(2 * math.pi * radius / side)
    bodies = roll(world, vehicle(grip=100.0), start(), [HALF_LEFT] * steps)
    assert bodies[-1, 2].item() == pytest.approx(steps * side / radius, rel=1e-12)
    circumradius = side / (2 * math.sin(side / radius / 2))
    middle = torch.tensor([side / 2, circumradius * math.cos(side / radius / 2)], dtype=torch.float64)
    assert torch.allclose((bodies[:, :2] - middle).norm(dim=-1), torch.tensor(circumradius, dtype=torch.float64))
    assert circumradius == pytest.approx(radius, rel=1e-3)


def test_beyond_its_grip_a_car_turns_no_faster(world):
    task = vehicle(grip=5.0)
    needed = SPEED**2 * math.tan(MAX_STEER) / 3
    assert needed > 5
    bodies = roll(world, task, start(), [LEFT])
    assert SPEED * bodies[1, 2].item() / TIME_STEP == pytest.approx(5.0)
    assert turning(task, torch.tensor([[[-1.0, 0.1]]]))[0, 0].tolist() == pytest.approx([-0.05, math.tan(0.025) / 3])


@pytest.mark.parametrize("delay", range(MAX_DELAY + 1))
def test_a_command_is_obeyed_exactly_delay_steps_late(delay, world):
    bodies = roll(world, vehicle(delay=delay), start(), [LEFT] + [STRAIGHT] * 7)
    turned = bodies[:, 2].diff().abs() > 1e-12  # cos(π/2) is 6e-17, so that the road is straight to that
    assert turned.nonzero()[:, 0].tolist() == [delay]


def test_a_reversed_car_is_the_mirror_image_of_the_actions(world, generator):
    task = world.sample_tasks(6, generator)
    state, first = world.reset(task, 4, generator)
    mirrored = task._replace(gain=-task.gain)
    actions = torch.randint(5, (6, 4), generator=generator)
    late = torch.zeros_like(task.delay)
    ours = world.step(task._replace(delay=late), state, actions)[1].observation
    theirs = world.step(mirrored._replace(delay=late), state, 4 - actions)[1].observation
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, world.step(mirrored._replace(delay=late), state, actions)[1].observation)
    assert torch.equal(world._observe(mirrored, state), first)  # what is seen does not tell the two apart


def test_the_reward_by_hand(world):
    """Off by half of half a lane costs 0.225; a wheel at full lock costs 0.1; off the lane costs no more than its edge."""
    task = vehicle(delay=5)

    def reward(offset, action):
        return world.step(task, start(offset=offset), torch.tensor([[action]]))[1].reward.item()

    cases = [(0.0, STRAIGHT, 1.0), (HALF_LANE / 2, STRAIGHT, 0.775), (0.0, RIGHT, 0.9), (0.0, HALF_LEFT, 0.975)]
    for offset, action, expected in [*cases, (-HALF_LANE, LEFT, 0.0), (9.0, LEFT, 0.0)]:
        assert reward(offset, action) == pytest.approx(expected, abs=1e-12)


def test_leaving_the_lane_and_the_clock_are_kept_apart():
    short, edge = LaneKeeping(max_steps=3, dtype=torch.float64), HALF_LANE
    for offset, heading, left in ((edge - 0.01, 0.0, False), (edge - 0.01, 0.02, True), (0.01 - edge, -0.02, True)):
        for before in range(3):
            state = start(offset=offset, heading=heading)
            state = state._replace(steps=state.steps + before)
            _, step = short.step(vehicle(), state, torch.tensor([[STRAIGHT]]))
            assert (step.terminated.item(), step.truncated.item()) == (left, before == 2)


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_the_road_is_smooth_and_seen_ahead(world, generator):
    task = world.sample_tasks(50, generator)
    state, observation = world.reset(task, 4, generator)
    along = torch.arange(0.0, 200.0, 0.5, dtype=torch.float64).expand(50, 4, -1)
    kappa = curvature(state.waves, along)
    assert MAX_CURVATURE * 0.9 < kappa.abs().max() <= MAX_CURVATURE
    assert kappa.diff().abs().max() / 0.5 <= MAX_CURVATURE * 2 * math.pi / 50
    assert torch.allclose(observation[..., 2:], 100 * kappa[..., [0, 10, 20, 40]])
    assert (state.body[..., 1].abs() <= 0.5).all() and (state.body[..., 2].abs() <= 0.05).all()
    assert state.body[..., 1].std() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)


def test_the_actuator_gives_the_sign_away(generator):
    """After any turn of the wheel that was obeyed, yaw rate times that command has the sign of the gain."""
    world = LaneKeeping(observe_actuator=True, dtype=torch.float64)
    task = world.sample_tasks(40, generator)
    state, observation = world.reset(task, 1, generator)
    assert observation.shape[-1] == world.observation_size == 13 and (observation[..., 6:] == 0).all()
    for t in range(6):
        state, step = world.step(task, state, torch.full((40, 1), LEFT if t == 0 else STRAIGHT))
        commands, yaw_rate = step.observation[:, 0, 6:12], step.observation[:, 0, 12]
        assert (commands[:, t] == 1).all() and commands.sum() == 40
        obeyed = task.delay == t
        assert torch.equal(yaw_rate[obeyed].sign(), task.gain[obeyed].sign()) and (yaw_rate[~obeyed] == 0).all()
        expected = 10 * SPEED * turning(task, torch.ones(40, 1, dtype=torch.float64))[:, 0]
        assert torch.allclose(yaw_rate[obeyed], expected[obeyed])


def test_observe_task_appends_the_scaled_vehicle(generator):
    world = LaneKeeping(observe_task=True)
    task = world.sample_tasks(500, generator)
    _, observation = world.reset(task, 2, generator)
    features = observation[:, 0, 6:]
    assert observation.shape[-1] == world.observation_size == 10 and torch.equal(features, observation[:, 1, 6:])
    assert features.abs().max() <= 1.3 and features.abs().amax(0).min() > 0.95
    assert torch.allclose(features[:, 3], (task.delay - 1.5) / 1.5)


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["varied", "reversed"])
def test_splits_are_disjoint_and_out_of_distribution_is_outside(distribution, generator):
    world, ranges = LaneKeeping(distribution, dtype=torch.float64), DISTRIBUTIONS[distribution]
    tasks = {split: world.sample_tasks(20_000, generator, split) for split in SPLITS}
    low, high = ranges.wheelbase
    slices = {s: set((20 * (t.wheelbase - low) / (high - low)).floor().int().tolist()) for s, t in tasks.items() if s != "ood"}
    assert sorted(i for held in slices.values() for i in held) == list(range(20))
    for split, task in tasks.items():
        for name in ("wheelbase", "gain", "grip"):
            low, high = getattr(ranges, name)
            x = getattr(task, name).abs()
            if split == "ood":
                assert ((x < low) | (x > high)).all() and x.min() >= 0.75 * low and x.max() <= 1.5 * high
                assert 0.45 < (x < low).double().mean() < 0.55
            else:
                assert low <= x.min() < low + 0.25 * (high - low) and high - 0.25 * (high - low) < x.max() <= high
        assert task.delay.unique().tolist() == ([4, 5] if split == "ood" else [0, 1, 2, 3])
        assert (task.gain < 0).sum() == (10_000 if ranges.flip else 0)


def test_the_nominal_vehicle_is_one(generator):
    task = LaneKeeping("nominal").sample_tasks(3, generator, "ood")
    assert [leaf.tolist() for leaf in task] == [[3.0] * 3, [1.0] * 3, [6.0] * 3, [1] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_respected_and_randomness_is_the_generators(dtype):
    world = LaneKeeping(observe_task=True, observe_actuator=True, dtype=dtype)

    def made(seed):
        generator = torch.Generator().manual_seed(seed)
        task = world.sample_tasks(4, generator)
        state, observation = world.reset(task, 2, generator)
        return task, observation, world.step(task, state, torch.ones(4, 2, dtype=torch.int64))[1]

    before = torch.random.get_rng_state()
    (task, observation, step), (same, again, _), (other, *_) = made(1), made(1), made(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {observation.dtype, step.observation.dtype, step.reward.dtype, *(leaf.dtype for leaf in task[:3])} == {dtype}
    assert (step.terminated.dtype, step.truncated.dtype, task.delay.dtype) == (torch.bool, torch.bool, torch.int64)
    assert torch.equal(observation, again) and all(torch.equal(a, b) for a, b in zip(task, same, strict=True))
    assert not torch.isclose(task.wheelbase, other.wheelbase).any()


# --- drivers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_who_knows_the_car_stays_in_lane_and_who_does_not_loses_the_reversed_half(split, generator):
    world = LaneKeeping()
    task = world.sample_tasks(100, generator, split)
    nominal = LaneKeeping("nominal").sample_tasks(100, generator)
    knows = drive(world, task, lambda _, state: steer(task, state), 3, torch.Generator().manual_seed(1))
    assert not knows.left.any() and (knows.frames == 201).all()
    assert knows.returns.mean() > 195
    guesses = drive(world, task, lambda _, state: steer(nominal, state), 3, torch.Generator().manual_seed(1))
    assert torch.equal(guesses.waves, knows.waves) and torch.equal(guesses.bodies[:, :, 0], knows.bodies[:, :, 0])
    assert guesses.left[task.gain < 0].all() and guesses.returns[task.gain < 0].mean() < 25
    if split != "ood":  # there, whoever does not know the delay is too late
        assert not guesses.left[task.gain > 0].any() and guesses.returns[task.gain > 0].mean() > 190


def test_the_driver_foresees_what_was_already_asked_for(world):
    """The car is about to obey a turn to the left that it does not need: who knows it counters it at once."""
    state = start()
    state.commands[..., 0] = 1.0
    assert steer(vehicle(delay=0), state).item() == STRAIGHT  # that turn has been made
    assert steer(vehicle(delay=1), state).item() < STRAIGHT  # it is still to come
    assert steer(vehicle(delay=1, gain=-1.0), state).item() < STRAIGHT  # a reversed car is about to turn right


def test_a_drive_is_what_collect_makes_of_the_same_policy(generator):
    world = LaneKeeping(max_steps=60)
    policy = PolicyNet(world.observation_size, world.actions)
    params = policy.init(1, generator)
    params["weight_2"] = params["weight_2"] * 100
    task = world.sample_tasks(5, generator)
    rollout = collect(world, task, policy, params, 4, torch.Generator().manual_seed(3), greedy=True)
    got = drive(world, task, lambda x, _: policy.act(params, x, None)[0], 4, torch.Generator().manual_seed(3))
    assert torch.allclose(got.returns, rollout.returns) and torch.equal(got.frames, rollout.alive.sum(-1) + 1)
    assert torch.equal(got.left, (rollout.terminated & rollout.alive).any(-1)) and got.left.any()
    length = rollout.next_observations.shape[2]
    offsets = torch.where(rollout.alive, rollout.next_observations[..., 0], 0)
    assert torch.allclose(torch.where(rollout.alive, got.bodies[:, :, 1 : length + 1, 1], 0), offsets)
    last = got.bodies.take_along_dim((got.frames - 1)[..., None, None].long().expand(-1, -1, 1, 3), 2)
    assert torch.equal(got.bodies[:, :, -1:], last)


def test_the_algorithms_of_the_book_take_it(generator):
    world = LaneKeeping(max_steps=12)
    policy = PolicyNet(world.observation_size, world.actions)
    (log,) = maml.train(world, policy, maml.Config(iterations=1, tasks=2, episodes=2))
    assert len(log.returns) == 2 and all(math.isfinite(r) and 0 < r <= 12 for r in log.returns)
    (log,) = rl2.train(world, rl2.Config(iterations=1, trials=4, trial_steps=30, width=8, minibatches=2))
    assert log.env_steps == 120 and 0 < log.reward <= 30
    check_env(WorldEnv(world), skip_render_check=True)
    stream = Stream(world, 2, 3, generator)
    ends = [(stream.step(torch.full((2, 3), LEFT)), stream.state.steps.clone()) for _ in range(40)]
    assert all(((steps == 0) == (step.terminated | step.truncated)).all() for step, steps in ends)
    assert any(step.terminated.any() for step, _ in ends) and all((steps < 12).all() for _, steps in ends)


def test_bad_input_is_one_clear_sentence(world, generator):
    with pytest.raises(ValueError, match="^unknown distribution 'reverse'; there are nominal, varied, reversed$"):
        LaneKeeping("reverse")
    with pytest.raises(ValueError, match="^max_steps must be at least 1, got 0$"):
        LaneKeeping(max_steps=0)
    with pytest.raises(ValueError, match="^n must be at least 1 task, got 0$"):
        world.sample_tasks(0, generator)
    with pytest.raises(ValueError, match="^unknown split 'eval'; there are train, validation, test, ood$"):
        world.sample_tasks(1, generator, "eval")
    with pytest.raises(ValueError, match="^n must be at least 1 episode, got 0$"):
        world.reset(world.sample_tasks(1, generator), 0, generator)


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_an_episode_after_experience_starts_anew_with_the_memory_kept(generator):
    """A policy whose only action is to hold the wheel straight earns what the road gives, whatever it remembers."""
    world, config = LaneKeeping(max_steps=40), rl2.Config(trials=4, trial_steps=20, width=8)
    policy, task = rl2.Policy(world, config, generator), world.sample_tasks(50, generator)
    with torch.no_grad():
        policy.logits.bias[STRAIGHT] = 50.0
    straight = drive(world, task, lambda x, _: torch.full(x.shape[:-1], STRAIGHT), 1, torch.Generator().manual_seed(1))
    got = experiment.return_after(world, policy, task, 0, torch.Generator().manual_seed(1))
    assert torch.allclose(got, straight.returns[:, 0])
    later = experiment.return_after(world, policy, task, 30, torch.Generator().manual_seed(1))
    assert later.shape == (50,) and (later > 0).all() and later.mean() == pytest.approx(got.mean().item(), rel=0.25)


@pytest.mark.slow
def test_the_experiment_runs_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"RL²": dict(trials=8, trial_steps=20, minibatches=2)}
    methods = {k: replace(c, **small.get(k, dict(tasks=4, episodes=4))) for k, c in experiment.METHODS.items()}
    monkeypatch.setattr(experiment, "METHODS", methods)
    monkeypatch.setattr(
        experiment, "run_pieces", lambda work, pieces, folder, progress: [work(*p) | {"cpu_seconds": 1.0} for p in pieces]
    )
    monkeypatch.setattr(experiment, "STEP_SIZES", (0.1, 10.0))
    monkeypatch.setattr(experiment, "VALIDATION_TASKS", 4)
    result = experiment.run(2, 0.05, lambda *_: None)
    results.check(result)
    metrics = result["metrics"]
    assert metrics["test · driver who knows the car · after 0"]["value"] > 195
    assert metrics["ood · driver who does not · after 0"]["value"] < 150
    assert {k for k in metrics if k.startswith("test · MAML")} == {f"test · MAML · after {k}" for k in range(4)}
    assert "test · RL² · after 1" in metrics and "test · oracle · after 1" not in metrics
    assert len(result["config"]["step sizes chosen after 1, 2, 3 steps"]["random init"]) == 2
