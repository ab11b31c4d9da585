import pytest
import torch

from metarl_lib.returns import discounted_returns, gae


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


@pytest.fixture
def episodes():
    """Random data ``[2, 3, 11]`` in float64 with episodes that terminate, are truncated, do both, and run off the end."""
    generator = torch.Generator().manual_seed(3)
    rewards, values, next_values = torch.randn(3, 2, 3, 11, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, 2, 3, 11, generator=generator) < 0.2
    assert (terminated & ~truncated).any() and (truncated & ~terminated).any() and (terminated & truncated).any()
    assert not (terminated | truncated)[..., -1].all()
    return rewards, values, next_values, terminated, truncated


def test_returns_by_hand():
    # One episode of two steps, then one of three: 1 + 2/2 | 4 + 8/2 + 16/4.
    returns = discounted_returns(tensor(1, 2, 4, 8, 16), flags(0, 1, 0, 0, 1), 0.5)
    assert returns.tolist() == [2, 2, 12, 16, 16]


def test_returns_bootstrap_where_an_episode_is_cut():
    rewards, ended = tensor(1, 1, 1, 1), flags(0, 1, 0, 0)
    returns = discounted_returns(rewards, ended, 0.5, bootstrap=tensor(0, 4, 0, 10))
    assert returns.tolist() == [2.5, 3, 1 + 0.5 * 6, 6]
    assert discounted_returns(rewards, ended, 0.5).tolist() == [1.5, 1, 1.5, 1]


def test_gae_by_hand():
    # δ = r + γ V' − V, with γ = λ = 1/2; the third step terminates, so that its next value of 100 must not count.
    rewards, values, next_values = tensor(1, 1, 1), tensor(2, 4, 8), tensor(4, 8, 100)
    never = flags(0, 0, 0)
    third = 1 - 8
    second = 1 + 4 - 4 + third / 4
    first = 1 + 2 - 2 + second / 4
    assert gae(rewards, values, next_values, flags(0, 0, 1), never, 0.5, 0.5).tolist() == [first, second, third]


def test_truncation_bootstraps_and_termination_does_not():
    one, never, now = tensor(1.0), flags(0), flags(1)
    arguments = one, tensor(3.0), tensor(10.0)
    assert gae(*arguments, never, now, 0.9, 0.95).item() == pytest.approx(1 + 9 - 3)
    assert gae(*arguments, now, never, 0.9, 0.95).item() == pytest.approx(1 - 3)
    assert gae(*arguments, now, now, 0.9, 0.95).item() == pytest.approx(1 - 3)


def ends_before(ended, t):
    """Entries whose own episode ended before step t."""
    separated = torch.zeros_like(ended)
    for k in range(t):
        separated[..., k] = ended[..., k:t].any(-1)
    return separated


def test_the_advantage_of_the_next_episode_does_not_leak_backwards(episodes):
    rewards, values, next_values, terminated, truncated = episodes
    ended = terminated | truncated
    before = gae(*episodes, 0.9, 0.8), discounted_returns(rewards, ended, 0.9)
    t = 6
    changed = rewards.clone()
    changed[..., t:] += 100
    after = gae(changed, *episodes[1:], 0.9, 0.8), discounted_returns(changed, ended, 0.9)
    separated = ends_before(ended, t)
    assert separated.any() and not separated.all()
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[separated], new[separated])
        assert (old[~separated] - new[~separated]).abs().min() > 1


def test_lambda_0_is_the_temporal_difference(episodes):
    rewards, values, next_values, terminated, _ = episodes
    expected = rewards + 0.9 * torch.where(terminated, 0.0, next_values) - values
    assert torch.allclose(gae(*episodes, 0.9, 0.0), expected, rtol=0, atol=1e-14)


def test_lambda_1_is_the_return_minus_the_value(episodes):
    rewards, values, next_values, terminated, truncated = episodes
    # With V(s_{t+1}) the next step's own value, the sum of temporal differences telescopes within an episode.
    next_values = torch.where(terminated | truncated, next_values, values.roll(-1, -1))
    next_values[..., -1] = episodes[2][..., -1]
    cut = (truncated & ~terminated).clone()
    cut[..., -1] |= ~terminated[..., -1]
    returns = discounted_returns(rewards, terminated | truncated, 0.9, bootstrap=next_values * cut)
    advantages = gae(rewards, values, next_values, terminated, truncated, 0.9, 1.0)
    assert torch.allclose(advantages, returns - values, rtol=0, atol=1e-13)


def test_gae_equals_its_definition_as_a_double_sum(episodes):
    rewards, values, next_values, terminated, truncated = (x.reshape(-1, 11).tolist() for x in episodes)
    discount, lam = 0.97, 0.9
    expected = torch.zeros(6, 11, dtype=torch.float64)
    for i in range(6):
        for t in range(11):
            for k in range(t, 11):
                future = 0.0 if terminated[i][k] else next_values[i][k]
                expected[i, t] += (discount * lam) ** (k - t) * (rewards[i][k] + discount * future - values[i][k])
                if terminated[i][k] or truncated[i][k]:
                    break
    advantages = gae(*episodes, discount, lam)
    assert advantages.shape == (2, 3, 11)
    assert torch.allclose(advantages.reshape(6, 11), expected, rtol=0, atol=1e-13)


def test_returns_equal_their_definition_as_a_double_sum(episodes):
    rewards, _, _, terminated, truncated = episodes
    ended = terminated | truncated
    expected = torch.zeros_like(rewards)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(11)).tolist():
        i, j, t = index
        for k in range(t, 11):
            expected[i, j, t] += 0.97 ** (k - t) * rewards[i, j, k]
            if ended[i, j, k]:
                break
    assert torch.allclose(discounted_returns(rewards, ended, 0.97), expected, rtol=0, atol=1e-13)


def test_shapes_must_agree():
    x, flag = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 5\) and \(2, 4\)"):
        discounted_returns(x, flag[:, :4], 0.9)
    with pytest.raises(ValueError, match=r"one shape \[..., time\], got \[\(2, 4\), \(2, 5\)\]"):
        gae(x, x, x[:, :4], flag, flag, 0.9, 0.9)
