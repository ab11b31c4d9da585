import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from metarl_lib.cartpole import DISTRIBUTIONS, CartPole, Physics, State
from metarl_lib.collect import collect
from metarl_lib.gymnasium_bridge import GymnasiumWorld, Nothing, WorldEnv, WorldVectorEnv
from metarl_lib.navigation import Goal, Navigation
from metarl_lib.nets import PolicyNet
from metarl_lib.pendulum import Pendulum
from metarl_lib.random_mdps import RandomMDPs

FLIPPED = Physics(9.8, 1.0, 0.1, 0.5, -10.0, 0.0)
FLIPWIDE = "metarl/CartPole-flipwide-v0"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def episode(env, actions, **reset):
    """What an environment returns to a reset and to ``actions``, until the episode's end."""
    observation, _ = env.reset(**reset)
    steps = [observation]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        steps.append((*observation.tolist(), reward, terminated, truncated))
        if terminated or truncated:
            break
    return np.concatenate([np.ravel(step) for step in steps])


# --- ours as Gymnasium's ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observe_task", [False, True])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gymnasiums_own_check_passes_without_a_warning(distribution, observe_task):
    # Warnings are errors in this suite.
    check_env(gymnasium.make(f"metarl/CartPole-{distribution}-v0", observe_task=observe_task).unwrapped)


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_a_vector_environment_keeps_to_its_spaces(mode):
    envs = gymnasium.make_vec(FLIPWIDE, num_envs=5, vectorization_mode=mode)
    envs.action_space.seed(0)
    assert envs.num_envs == 5 and envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, info = envs.reset(seed=1)
    for _ in range(40):
        assert observation in envs.observation_space and info == {}
        observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert {x.shape for x in (reward, terminated, truncated)} == {(5,)}
        assert terminated.dtype == truncated.dtype == bool and np.issubdtype(reward.dtype, np.floating)
    envs.close()


def test_the_vector_environment_agrees_with_single_ones():
    """Both kinds of environment from the same states with the same tasks, over many resets of either kind."""
    vector = gymnasium.make_vec(FLIPWIDE, num_envs=6, max_episode_steps=25)
    singles = gymnasium.make_vec(FLIPWIDE, num_envs=6, max_episode_steps=25, vectorization_mode="sync")
    vector.reset(seed=0)
    singles.reset(seed=0)
    inside = [env.unwrapped._episodes for env in singles.envs]
    for i, episodes in enumerate(inside):
        episodes.fix(Physics(*(leaf[i] for leaf in vector.task)))

    random, fresh, ends = np.random.default_rng(0), np.ones(6, dtype=bool), {"terminated": 0, "truncated": 0}
    for _ in range(200):
        for i in np.flatnonzero(fresh):
            inside[i].state = State(*(leaf[i : i + 1] for leaf in vector._episodes.state))
        actions = random.integers(2, size=6)
        ours, theirs = vector.step(actions)[:4], singles.step(actions)[:4]
        fresh = ours[1] == 0  # an automatic reset, to a first state of each one's own
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a[~fresh], b[~fresh], rtol=0, atol=1e-6)
            assert a.shape == b.shape
        for a in (ours, theirs):
            assert np.abs(a[0][fresh]).max(initial=0) <= 0.05
            assert not a[1][fresh].any() and not a[2][fresh].any() and not a[3][fresh].any()
        ends["terminated"] += ours[2].sum()
        ends["truncated"] += ours[3].sum()
    assert ends["terminated"] > 10 and ends["truncated"] > 5


def test_a_step_after_the_end_begins_the_next_episode():
    envs = WorldVectorEnv(CartPole("default", max_steps=4), num_envs=2)
    envs.reset(seed=0)
    first = [envs.step(np.array([0, 1])) for _ in range(4)]
    assert [step[3].all() for step in first] == [False, False, False, True]
    observation, reward, terminated, truncated, _ = envs.step(np.array([0, 1]))
    assert (reward == 0).all() and not terminated.any() and not truncated.any()
    assert np.abs(observation).max() <= 0.05 and np.abs(first[-1][0]).max() > 0.1
    again = [envs.step(np.array([0, 1])) for _ in range(4)]
    assert [step[3].all() for step in again] == [False, False, False, True]  # the clock began anew, too


def test_the_default_distribution_is_gymnasiums_cartpole():
    ours, theirs = gymnasium.make("metarl/CartPole-default-v0", max_episode_steps=500), gymnasium.make("CartPole-v1")
    random = np.random.default_rng(0)
    for seed in range(20):
        ours.reset(seed=seed)
        theirs.reset(seed=seed)
        body = torch.tensor(theirs.unwrapped.state, dtype=torch.float32).reshape(1, 1, 4)
        ours.unwrapped._episodes.state = State(body, torch.zeros(1, 1, dtype=torch.int32))
        ended = False
        while not ended:
            action = random.integers(2)
            mine, other = ours.step(action), theirs.step(action)
            np.testing.assert_allclose(mine[0], other[0], rtol=0, atol=1e-5)
            assert mine[1:] == other[1:]
            ended = mine[2] or mine[3]


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
@pytest.mark.parametrize("limit", [None, 7, 250])
def test_an_episode_is_truncated_once_and_where_gymnasium_says(mode, limit):
    settings = {} if limit is None else {"max_episode_steps": limit}
    envs = gymnasium.make_vec("metarl/CartPole-default-v0", num_envs=1, vectorization_mode=mode, **settings)
    observation, _ = envs.reset(seed=0)
    steps, truncated = 0, np.array([False])
    while not truncated.any():
        action = (observation @ np.array([0.05, 0.1, 1.0, 0.3]) > 0).astype(np.int64)  # balances
        observation, _, terminated, truncated, _ = envs.step(action)
        assert not terminated.any()
        steps += 1
    assert steps == (limit or 200)


def test_the_registered_limit_is_the_books():
    assert gymnasium.spec(FLIPWIDE).max_episode_steps == CartPole().max_steps
    assert gymnasium.make(FLIPWIDE).spec.max_episode_steps == 200
    assert gymnasium.make("metarl_lib.gymnasium_bridge:" + FLIPWIDE).spec.id == FLIPWIDE


def test_a_seed_determines_the_task_and_the_episode():
    actions = np.random.default_rng(0).integers(2, size=200)
    one, two = gymnasium.make(FLIPWIDE), gymnasium.make(FLIPWIDE)
    one.reset(seed=5)  # what was played before must not matter
    np.testing.assert_array_equal(episode(one, actions, seed=3), episode(two, actions, seed=3))
    assert one.unwrapped.task == two.unwrapped.task
    two.reset(seed=4)
    assert one.unwrapped.task.gravity != two.unwrapped.task.gravity


def test_no_other_reset_changes_the_task():
    env, envs = gymnasium.make(FLIPWIDE), gymnasium.make_vec(FLIPWIDE, num_envs=4)
    for each in (env, envs):
        assert each.unwrapped.task is None
        first, _ = each.reset()
        task = each.unwrapped.task
        again, _ = each.reset()
        assert each.unwrapped.task is task and not np.isclose(first, again).all()
    assert len(envs.task.gravity.unique()) == 4  # one for each environment
    assert envs.task.force.sign().sum() == 0
    for _ in range(300):
        envs.step(envs.action_space.sample())
    assert envs.task is task


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_a_task_can_be_fixed(mode, generator):
    def gravities(envs):
        tasks = [envs.task] if mode == "vector_entry_point" else envs.get_attr("task")
        return [g for task in tasks for g in task.gravity.tolist()]

    drawn = CartPole("flipwide").sample_tasks(1, generator)
    envs = gymnasium.make_vec(FLIPWIDE, num_envs=3, vectorization_mode=mode, task=drawn)
    for seed in (None, 0, 1):
        envs.reset(seed=seed)
        assert gravities(envs) == drawn.gravity.tolist() * 3
    envs.reset(seed=2, options={"task": FLIPPED._replace(gravity=7.0)})
    assert gravities(envs) == [7.0] * 3
    envs.reset(seed=3)
    assert gravities(envs) == [7.0] * 3


def test_each_environment_can_be_given_its_own_task(generator):
    tasks = CartPole("flipwide").sample_tasks(3, generator)
    envs = gymnasium.make_vec(FLIPWIDE, num_envs=3, task=tasks)
    envs.reset(seed=0)
    assert all(torch.equal(a, b) for a, b in zip(envs.task, tasks, strict=True))


def test_a_flipped_motor_runs_backwards():
    actions = np.random.default_rng(0).integers(2, size=200)
    flipped, plain = gymnasium.make(FLIPWIDE, task=FLIPPED), gymnasium.make(FLIPWIDE, task=FLIPPED._replace(force=10.0))
    np.testing.assert_array_equal(episode(flipped, actions, seed=0), episode(plain, 1 - actions, seed=0))


def test_held_out_tasks_and_the_oracles_observation():
    env = gymnasium.make(FLIPWIDE, split="ood", observe_task=True)
    observation, _ = env.reset(seed=0)
    assert not 6 <= env.unwrapped.task.gravity <= 14
    assert observation.shape == (10,) and env.observation_space.contains(observation)


def test_what_is_returned_is_the_callers_own():
    env = WorldEnv(CartPole("default"), FLIPPED)
    twin = WorldEnv(CartPole("default"), FLIPPED)
    for each in (env, twin):
        observation, _ = each.reset(seed=0)
        if each is env:
            observation[:] = 100
    np.testing.assert_array_equal(env.step(1)[0], twin.step(1)[0])


def test_wrong_use_of_our_environments_is_one_clear_sentence():
    with pytest.raises(gymnasium.error.NameNotFound, match="Environment `CartPole-flipwider` doesn't exist in namespace metarl"):
        gymnasium.make("metarl/CartPole-flipwider-v0")
    with pytest.raises(TypeError, match="^task must be a Physics, got dict"):
        gymnasium.make(FLIPWIDE, task={"gravity": 9.8})
    with pytest.raises(ValueError, match=r"^task must hold 1 or 3 tasks, got gravity of shape \(2,\)"):
        WorldVectorEnv(CartPole(), 3, task=FLIPPED._replace(gravity=torch.tensor([9.8, 9.8])))
    with pytest.raises(ValueError, match="unknown split 'tset'; there are train, validation, test, ood"):
        gymnasium.make(FLIPWIDE, split="tset")
    with pytest.raises(ValueError, match="^num_envs must be at least 1, got 0$"):
        WorldVectorEnv(CartPole(), 0)
    env, envs = WorldEnv(CartPole()), WorldVectorEnv(CartPole(), 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\) before the first step\(\)"):
        envs.step(np.array([0, 1]))
    with pytest.raises(ValueError, match=r"^unknown reset option 'low'; there is 'task'$"):
        env.reset(options={"low": -0.1})
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action must be in Discrete\(2\), got 2$"):
        env.step(2)
    with pytest.raises(ValueError, match=r"^actions must be in MultiDiscrete\(\[2 2\]\), got array\(\[0\]\)$"):
        envs.step(np.array([0]))
    walker = WorldEnv(Navigation())
    walker.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action must be in Box\(-0\.1, 0\.1, \(2,\), float32\), got array\(\[0\.2, 0\. \]"):
        walker.step(np.array([0.2, 0], np.float32))


def test_continuous_actions():
    """Navigation as Gymnasium has it: its checks, an episode by hand, and many environments as one."""
    check_env(gymnasium.make("metarl/Navigation-v0").unwrapped)
    env = gymnasium.make("metarl/Navigation-v0", task=Goal([0.15, -0.1]))
    steps = episode(env, [np.array([0.1, -0.1], np.float32), np.array([0.05, 0.0], np.float32)], seed=0)
    np.testing.assert_allclose(steps, [0, 0, 0.1, -0.1, -0.05, 0, 0, 0.15, -0.1, 0, 1, 0], rtol=0, atol=1e-6)
    vector = gymnasium.make_vec("metarl/Navigation-v0", num_envs=3, max_episode_steps=2, task=Goal([0.15, -0.1]))
    vector.reset(seed=0)
    for t in range(2):
        observation, reward, terminated, truncated, _ = vector.step(np.full((3, 2), -0.1, np.float32))
        np.testing.assert_allclose(observation, np.full((3, 2), -0.1 * (t + 1)), rtol=0, atol=1e-6)
        np.testing.assert_allclose(reward, np.full(3, -np.hypot(0.15 + 0.1 * (t + 1), 0.1 * t)), rtol=0, atol=1e-6)
        assert not terminated.any() and truncated.tolist() == [t == 1] * 3


def test_our_pendulum_as_gymnasiums_is_gymnasiums(generator):
    ours, theirs = WorldEnv(Pendulum()), gymnasium.make("Pendulum-v1")
    ours.reset(seed=0)
    theirs.reset(seed=0)
    theirs.unwrapped.state = ours._episodes.state.body[0, 0].double().numpy()
    for torque in np.random.default_rng(0).uniform(-2, 2, (50, 1)).astype(np.float32):
        mine, other = ours.step(torque), theirs.step(torque)
        np.testing.assert_allclose(mine[0], other[0], rtol=0, atol=2e-4)
        assert mine[1] == pytest.approx(other[1], abs=2e-3)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_an_action_may_be_an_integer_of_any_kind(kind):
    env, envs = WorldEnv(RandomMDPs()), WorldVectorEnv(RandomMDPs(), 2)
    for one, action in ((env, kind(1)), (envs, np.array([1, 2], kind))):
        twin = copy.deepcopy(one)
        one.reset(seed=0)
        twin.reset(seed=0)
        for got, expected in zip(one.step(action), twin.step(action.astype(np.int64)), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_stable_baselines3_trains_on_one_of_our_tasks():
    sb3 = pytest.importorskip("stable_baselines3", reason="installed for the benchmarks only")
    from stable_baselines3.common.env_checker import check_env as sb3_check_env
    from stable_baselines3.common.env_util import make_vec_env

    sb3_check_env(gymnasium.make(FLIPWIDE, task=FLIPPED))
    envs = make_vec_env(FLIPWIDE, n_envs=2, seed=0, env_kwargs={"task": FLIPPED})
    model = sb3.PPO("MlpPolicy", envs, n_steps=128, batch_size=64, n_epochs=4, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(512)
    assert model.num_timesteps == 512 and len(model.ep_info_buffer) > 10  # whole episodes were played
    assert not all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


# --- Gymnasium's as ours ----------------------------------------------------------------------------------------------

WAYS = [("vector_entry_point", None), *(("sync", mode) for mode in AutoresetMode)]


def make(env_id, num_envs, way, **settings):
    vectorization, autoreset = way
    vector_kwargs = None if autoreset is None else {"autoreset_mode": autoreset}
    return gymnasium.make_vec(env_id, num_envs, vectorization, vector_kwargs=vector_kwargs, **settings)


def linear_policy(size, generator, *gains):
    """A policy without hidden layers whose action 1 is preferred by ``gains · observation``."""
    policy = PolicyNet(size, 2, hidden=())
    params = policy.init(1, generator)
    params["weight_0"] = torch.stack((torch.zeros(size), torch.tensor(gains)), -1)[None]
    return policy, params


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_collecting_equals_episodes_played_one_by_one(way, generator):
    """CartPole-v1 in all modes of automatic reset, against single environments stepped by hand."""
    world, n = GymnasiumWorld(make("CartPole-v1", 5, way)), 5
    policy, params = linear_policy(4, generator, 1.0, 1.0, 4.0, 2.0)
    rollout = collect(world, world.sample_tasks(1, generator), policy, params, n, generator)
    assert rollout.rewards.shape[:2] == (1, n)
    lengths = rollout.alive[0].sum(-1)
    assert len(lengths.unique()) > 1
    env = gymnasium.make("CartPole-v1")
    for j in range(n):
        env.reset(seed=0)
        for t in range(lengths[j]):
            env.unwrapped.state = rollout.observations[0, j, t].double().numpy()
            observation, reward, terminated, truncated, _ = env.step(rollout.actions[0, j, t].item())
            np.testing.assert_allclose(rollout.next_observations[0, j, t].numpy(), observation, rtol=0, atol=1e-6)
            assert rollout.rewards[0, j, t].item() == reward
            assert (rollout.terminated[0, j, t].item(), rollout.truncated[0, j, t].item()) == (terminated, truncated)
            if t + 1 < lengths[j]:
                assert torch.equal(rollout.observations[0, j, t + 1], rollout.next_observations[0, j, t])
        assert terminated or truncated
        assert not rollout.alive[0, j, lengths[j] :].any()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_last_observation_is_the_one_before_any_reset(way, generator):
    world = GymnasiumWorld(make("CartPole-v1", 5, way))
    policy, params = linear_policy(4, generator, 0.0, 0.0, 0.0, 0.0)
    rollout = collect(world, Nothing(), policy, params, 5, generator)
    last = rollout.alive & (rollout.terminated | rollout.truncated)
    assert torch.equal(last.sum(-1), torch.ones(1, 5, dtype=torch.int64))
    x, _, angle, _ = rollout.next_observations[last].unbind(-1)
    assert ((x.abs() > 2.4) | (angle.abs() > 0.2095)).all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_collecting_is_reproducible_by_its_generator(way):
    def draw(seed, world):
        generator = torch.Generator().manual_seed(seed)
        policy, params = linear_policy(4, generator, 1.0, 1.0, 4.0, 2.0)
        rollout = collect(world, Nothing(), policy, params, 4, generator)
        return [x[rollout.alive] for x in rollout]

    world = GymnasiumWorld(make("CartPole-v1", 4, way))
    first, other, again = draw(1, world), draw(2, world), draw(1, world)
    fresh = draw(1, GymnasiumWorld(make("CartPole-v1", 4, way)))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, fresh, strict=True))
    assert len(first[0]) != len(other[0]) or not torch.equal(first[0], other[0])


@pytest.mark.parametrize("mode", AutoresetMode)
def test_acrobot(mode, generator):
    world = GymnasiumWorld(make("Acrobot-v1", 3, ("sync", mode), max_episode_steps=60))
    policy = PolicyNet(world.observation_size, world.actions)
    rollout = collect(world, Nothing(), policy, policy.init(1, generator), 3, generator)
    assert (world.observation_size, world.actions, world.max_steps) == (6, 3, 60)
    assert rollout.alive.all() and rollout.rewards.shape == (1, 3, 60)
    assert (rollout.truncated.sum(-1) == 1).all() and rollout.truncated[..., -1].all() and not rollout.terminated.any()
    assert (rollout.returns == -60).all()
    assert len(rollout.actions.unique()) == 3


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_max_steps_truncates_before_the_environment_does(way, generator):
    world = GymnasiumWorld(make("CartPole-v1", 3, way), max_steps=20)
    rollout = collect(world, Nothing(), *linear_policy(4, generator, 5.0, 10.0, 100.0, 30.0), 3, generator, greedy=True)
    assert rollout.alive.all() and rollout.rewards.shape == (1, 3, 20)
    assert rollout.truncated[..., -1].all() and not rollout.truncated[..., :-1].any() and not rollout.terminated.any()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_same_actions_from_the_same_states_give_the_same_rollout_as_our_cartpole(way, generator):
    theirs = GymnasiumWorld(make("CartPole-v1", 4, way), dtype=torch.float64)
    ours = CartPole("default", max_steps=500, dtype=torch.float64)
    policy, params = linear_policy(4, generator, 0.0, 0.0, 0.0, 0.0)  # the noise alone decides
    params = {name: p.double() for name, p in params.items()}
    noise = policy.noise((500, 1, 4), generator, torch.float64)
    initial = theirs.reset(Nothing(), 4, generator)
    inner = theirs.env.unwrapped
    states = inner.state.T if way[1] is None else np.stack([env.unwrapped.state for env in inner.envs])
    body = torch.from_numpy(states.copy())[None]

    other = collect(theirs, Nothing(), policy, params, 4, generator, initial=initial, noise=noise)
    initial = State(body, torch.zeros(1, 4, dtype=torch.int32)), body
    mine = collect(ours, ours.sample_tasks(1, generator), policy, params, 4, generator, initial=initial, noise=noise)
    assert torch.equal(mine.alive, other.alive) and torch.equal(mine.returns, other.returns)
    for a, b in zip(mine, other, strict=True):  # Gymnasium rounds its observations to float32
        assert torch.allclose(a[mine.alive].double(), b[mine.alive].double(), rtol=0, atol=1e-6)
    assert len(mine.returns.unique()) > 2


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_balanced_episode_is_cut_at_the_limit_and_each_of_its_transitions_is_ours(way, generator):
    theirs = GymnasiumWorld(make("CartPole-v1", 2, way), dtype=torch.float64)
    policy, params = linear_policy(4, generator, 0.05, 0.1, 1.0, 0.3)
    params = {name: p.double() for name, p in params.items()}
    rollout = collect(theirs, Nothing(), policy, params, 2, generator, greedy=True)
    assert rollout.alive.all() and (rollout.returns == 500).all()
    ours = CartPole("default", max_steps=500, dtype=torch.float64)
    steps = torch.arange(500, dtype=torch.int32).expand(1, 2, 500).flatten(1)
    state = State(rollout.observations.flatten(1, 2), steps)
    _, step = ours.step(ours.sample_tasks(1, generator), state, rollout.actions.flatten(1))
    assert torch.allclose(step.observation, rollout.next_observations.flatten(1, 2), rtol=0, atol=1e-6)
    assert torch.equal(step.terminated, rollout.terminated.flatten(1))
    assert torch.equal(step.truncated, rollout.truncated.flatten(1))


def test_both_bridges_in_a_row_change_nothing(generator):
    """Our world, registered with Gymnasium, brought back as a world, is our world."""
    ours = CartPole("flipwide")
    tasks = ours.sample_tasks(6, generator)
    envs = gymnasium.make_vec(FLIPWIDE, num_envs=6, task=tasks)
    back = GymnasiumWorld(envs)
    policy, params = linear_policy(4, generator, 1.0, 1.0, 4.0, 2.0)
    noise = policy.noise((200, 1, 6), generator)
    state, observation = back.reset(Nothing(), 6, generator)
    body = envs._episodes.state.body.clone()
    there = collect(back, Nothing(), policy, params, 6, generator, initial=(state, observation), noise=noise)
    initial = State(body, torch.zeros(6, 1, dtype=torch.int32)), body
    here = collect(ours, tasks, policy, params, 1, generator, initial=initial, noise=noise.transpose(1, 2))
    assert torch.equal(here.alive[:, 0], there.alive[0])
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(a[:, 0][here.alive[:, 0]].double(), b[0][there.alive[0]].double(), rtol=0, atol=1e-6)


def test_observations_of_any_shape_and_actions_that_do_not_start_at_zero(generator):
    class Grid(gymnasium.Env):
        """The observation is a 2×3 picture filled with the last action; three steps."""

        observation_space = gymnasium.spaces.Box(-9, 9, (2, 3))
        action_space = gymnasium.spaces.Discrete(2, start=7)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return np.zeros((2, 3), np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.time += 1
            return np.full((2, 3), action, np.float32), float(action), self.time == 3, False, {}

    world = GymnasiumWorld(SyncVectorEnv([Grid] * 4), max_steps=5)
    policy = PolicyNet(world.observation_size, world.actions)
    rollout = collect(world, Nothing(), policy, policy.init(1, generator), 4, generator)
    assert rollout.observations.shape == (1, 4, 3, 6)
    assert torch.equal(rollout.rewards, rollout.actions + 7.0)
    assert torch.equal(rollout.next_observations, (rollout.actions + 7.0)[..., None].expand(1, 4, 3, 6))
    assert set(rollout.actions.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_discrete_observation_comes_flattened_by_gymnasiums_own_wrapper(mode, generator):
    with pytest.raises(ValueError, match=r"^env must have Box observations, got Discrete\(16\); .*FlattenObservation$"):
        GymnasiumWorld(make("FrozenLake-v1", 4, ("sync", mode)))
    world = GymnasiumWorld(make("FrozenLake-v1", 4, ("sync", mode), wrappers=[gymnasium.wrappers.FlattenObservation]))
    policy = PolicyNet(world.observation_size, world.actions)
    rollout = collect(world, Nothing(), policy, policy.init(1, generator), 4, generator)
    assert world.observation_size == 16
    next_observations = rollout.next_observations[rollout.alive]
    assert torch.equal(next_observations.sum(-1), torch.ones(len(next_observations)))
    last = rollout.next_observations[rollout.alive & rollout.terminated].argmax(-1)
    assert set(last.tolist()) <= {5, 7, 11, 12, 15}  # holes and the goal: where an episode can end


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_where_no_episode_ended_none_is_restarted(mode, generator):
    """On an accelerator a stream does not know whether one did: it asks for a restart after every step."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode=mode)
    world = GymnasiumWorld(envs)
    state, _ = world.reset(Nothing(), 2, generator)
    state, step = world.step(Nothing(), state, torch.zeros(1, 2, dtype=torch.int64))
    _, observation = world.restart(state, step.observation, step.terminated)
    assert not step.terminated.any() and torch.equal(observation, step.observation)
    envs.close()


class Unbounded(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Box(-np.inf, np.inf, (1,))


def test_wrong_use_of_gymnasiums_environments_is_one_clear_sentence(generator):
    with pytest.raises(gymnasium.error.NameNotFound, match="Environment `Cartpoole` doesn't exist"):
        gymnasium.make_vec("Cartpoole-v1", num_envs=2)
    with pytest.raises(TypeError, match=r"^env must be a vector environment, as gymnasium.make_vec.* got <.*CartPole"):
        GymnasiumWorld(gymnasium.make("CartPole-v1"))
    unbounded = SyncVectorEnv([Unbounded] * 2)
    with pytest.raises(ValueError, match=r"^env must have Discrete actions, or a bounded Box of one dimension, got Box\(-inf"):
        GymnasiumWorld(unbounded, max_steps=5)
    with pytest.raises(ValueError, match=r"^learners must divide env.num_envs, which is 4, got 3$"):
        GymnasiumWorld(gymnasium.make_vec("CartPole-v1", num_envs=4), learners=3)
    by_hand = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    with pytest.raises(ValueError, match=r"^max_steps must be at least 1, or be known from env.spec, got None$"):
        GymnasiumWorld(by_hand)
    del by_hand.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match=r"^env must name its AutoresetMode in metadata\['autoreset_mode'\]"):
        GymnasiumWorld(by_hand, max_steps=500)
    world = GymnasiumWorld(gymnasium.make_vec("CartPole-v1", num_envs=2))
    policy = PolicyNet(4, 2)
    with pytest.raises(ValueError, match=r"^n must be 2, the environments of each learner, got 3$"):
        collect(world, Nothing(), policy, policy.init(1, generator), 3, generator)
    with pytest.raises(ValueError, match=r"^n must be 1, the learners that this Gymnasium environment was shared out to, got 3$"):
        world.sample_tasks(3, generator)
