import pytest
import torch

from metarl_lib.replay import Replay, Transitions


def step_of(time, learners=2, envs=1):
    """Transitions that say in every field where they are from: learner, environment and time."""
    learner = torch.arange(learners)[:, None].expand(learners, envs)
    env = torch.arange(envs).expand(learners, envs)
    stamp = 10_000 * learner + 100 * time + env
    observation = torch.stack((stamp, stamp + 0.25), -1)
    return Transitions(observation, stamp, stamp + 0.5, observation + 100, stamp % 3 == 0, stamp % 5)


def stamps(replay, learner):
    """The actions that a learner's memory holds, oldest first."""
    return replay.latest(len(replay)).action[learner].tolist()


def test_the_oldest_make_room():
    replay = Replay(2, 5, 2)
    for time in range(3):
        replay.add(*step_of(time, envs=2))
        assert len(replay) == min(2 * (time + 1), 5)
    # The third step went into slots 4 and 0; the first transition of all is gone, and of both learners alike.
    assert stamps(replay, 0) == [1, 100, 101, 200, 201]
    assert stamps(replay, 1) == [10001, 10100, 10101, 10200, 10201]
    for time in range(3, 50):
        replay.add(*step_of(time, envs=2))
        newest = [100 * t + env for t in range(time + 1) for env in (0, 1)][-5:]
        assert stamps(replay, 0) == newest
    assert replay.latest(3).action[0].tolist() == newest[-3:]


def test_a_memory_of_exactly_one_step():
    replay = Replay(2, 3, 2)
    for time in range(4):
        replay.add(*step_of(time, envs=3))
        assert stamps(replay, 1) == [10_000 + 100 * time + env for env in range(3)]


def test_the_fields_of_a_transition_stay_together():
    replay, generator = Replay(3, 7, 2), torch.Generator().manual_seed(0)
    for time in range(9):
        replay.add(*step_of(time, learners=3, envs=2))
    drawn = replay.sample(500, generator)
    assert [tuple(leaf.shape) for leaf in drawn] == [(3, 500, 2), (3, 500), (3, 500), (3, 500, 2), (3, 500), (3, 500)]
    stamp = drawn.action
    assert torch.equal(stamp // 10_000, torch.arange(3)[:, None].expand(3, 500))  # every learner its own
    assert torch.equal(drawn.observation, torch.stack((stamp, stamp + 0.25), -1))
    assert torch.equal(drawn.next_observation, drawn.observation + 100)
    assert torch.equal(drawn.reward, stamp + 0.5)
    assert torch.equal(drawn.steps, stamp % 5)
    assert torch.equal(drawn.terminated, stamp % 3 == 0) and drawn.terminated.dtype == torch.bool


def test_only_what_was_stored_is_drawn_and_all_of_it_equally_often():
    replay, generator, n = Replay(2, 100, 2), torch.Generator().manual_seed(0), 40_000
    for time in range(4):
        replay.add(*step_of(time))
    drawn = replay.sample(n, generator).action
    for learner in range(2):
        values, counts = drawn[learner].unique(return_counts=True)
        assert values.tolist() == [10_000 * learner + 100 * time for time in range(4)]
        standard_error = (n * 0.25 * 0.75) ** 0.5
        assert ((counts - n / 4).abs() < 4 * standard_error).all()


def test_learners_draw_independently():
    replay, generator, n = Replay(2, 10, 2), torch.Generator().manual_seed(0), 50_000
    for time in range(10):
        replay.add(*step_of(time))
    first, second = replay.sample(n, generator).action // 100 % 100
    together = torch.zeros(10, 10).index_put_((first, second), torch.ones(n), accumulate=True) / n
    assert (together - 0.01).abs().max() < 5 * (0.01 * 0.99 / n) ** 0.5  # of all hundred pairs, equally many


def test_memory_is_a_copy():
    replay, step = Replay(2, 4, 2), step_of(0)
    replay.add(*step)
    step.observation.fill_(-1)
    drawn = replay.latest(1)
    assert drawn.observation[0, 0].tolist() == [0, 0.25]
    drawn.observation.fill_(-2)
    assert replay.latest(1).observation[0, 0].tolist() == [0, 0.25]


def test_continuous_actions_and_types():
    replay = Replay(2, 4, 3, (2,), torch.float64, dtype=torch.float64)
    actions = torch.rand(2, 1, 2, dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(2, 1, dtype=torch.float64)
    replay.add(torch.zeros(2, 1, 3), actions, nothing, torch.ones(2, 1, 3), nothing.bool())
    drawn = replay.sample(6, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.action, actions.detach().expand(2, 6, 2)) and not drawn.action.requires_grad
    assert torch.equal(drawn.steps, torch.ones(2, 6, dtype=torch.int64))
    assert drawn.action.dtype == drawn.observation.dtype == drawn.reward.dtype == torch.float64


def test_the_generator_decides():
    replay = Replay(2, 50, 2)
    for time in range(50):
        replay.add(*step_of(time))
    first, again, other = (replay.sample(20, torch.Generator().manual_seed(seed)).action for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": torch.zeros(2, 1, 3)}, r"observation must have shape \(2, 1, 2\), got \(2, 1, 3\)"),
        ({"action": torch.zeros(2, 1, 1)}, r"action must have shape \(2, 1\), got \(2, 1, 1\)"),
        ({"reward": torch.zeros(1, 1)}, r"reward must have shape \(2, 1\), got \(1, 1\)"),
        ({"next_observation": torch.zeros(2, 2)}, r"next_observation must have shape \(2, 1, 2\), got \(2, 2\)"),
        ({"terminated": torch.zeros(2, 2, dtype=torch.bool)}, r"terminated must have shape \(2, 1\), got \(2, 2\)"),
    ],
)
def test_a_wrong_shape_is_refused(change, message):
    replay = Replay(2, 4, 2)
    with pytest.raises(ValueError, match=message):
        replay.add(*step_of(0)._replace(**change))
    assert len(replay) == 0


def test_bad_input():
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        Replay(2, 0, 2)
    with pytest.raises(ValueError, match="learners must be at least 1, got 0"):
        Replay(0, 2, 2)
    replay, generator = Replay(2, 4, 2), torch.Generator()
    with pytest.raises(ValueError, match=r"nothing to sample before the first add\(\)"):
        replay.sample(3, generator)
    with pytest.raises(ValueError, match="capacity must hold the 5 transitions that are added at once, got 4"):
        replay.add(*step_of(0, envs=5))
    replay.add(*step_of(0, envs=2))
    with pytest.raises(ValueError, match="n must be between 1 and the 2 transitions stored, got 3"):
        replay.latest(3)
