import math

import pytest
import scipy.stats
import torch
from torch import nn

from metarl_lib.dqn import QNet
from metarl_lib.nets import GaussianPolicyNet, PolicyNet, ValueNet, init_mlp, mlp, to_module


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def policy():
    return PolicyNet(3, 4, hidden=(8, 5), observation_scale=(1.0, 5.0, 0.5))


def random_params(policy, learners, generator):
    """Float64 parameters far from the nearly uniform policy that ``init`` gives, biases included."""
    params = policy.init(learners, generator, torch.float64)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}


@pytest.mark.parametrize("axes", [(), (7,), (2, 7)])
def test_mlp_equals_a_loop_over_learners(generator, axes):
    params = random_params(PolicyNet(3, 4, hidden=(8, 5)), 6, generator)
    x = torch.randn(6, *axes, 3, generator=generator, dtype=torch.float64)
    expected = []
    for i in range(6):
        h = x[i]
        for layer in range(3):
            h = nn.functional.linear(h, params[f"weight_{layer}"][i].T, params[f"bias_{layer}"][i, 0])
            h = torch.tanh(h) if layer < 2 else h
        expected.append(h)
    assert torch.allclose(mlp(params, x), torch.stack(expected), rtol=0, atol=1e-12)


def test_a_leading_axis_of_one_is_shared_by_all_learners(generator, policy):
    params = random_params(policy, 1, generator)
    x = torch.randn(6, 2, 7, 3, generator=generator, dtype=torch.float64)
    copies = {name: p.expand(6, *p.shape[1:]) for name, p in params.items()}
    assert torch.allclose(policy.logits(params, x), policy.logits(copies, x), rtol=0, atol=1e-12)


def test_a_learner_is_untouched_by_another_learners_parameters_and_data(generator, policy):
    params = random_params(policy, 3, generator)
    x = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    before = policy.logits(params, x)
    changed, y = {name: p.clone() for name, p in params.items()}, x.clone()
    y[1] += 1
    for p in changed.values():
        p[1] += 1
    after = policy.logits(changed, y)
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.isclose(before[1], after[1]).any()


def test_to_module_is_the_policy_of_one_learner(generator, policy):
    params = random_params(policy, 3, generator)
    x = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    logits = policy.logits(params, x)
    for learner in range(3):
        module = to_module(policy, params, learner)
        assert torch.allclose(module(x[learner]), logits[learner], rtol=0, atol=1e-12)
        assert torch.allclose(module(x[learner, 0]), logits[learner, 0], rtol=0, atol=1e-12)
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert torch.equal(policy.logits(params, x), logits)  # the module's parameters are its own


def test_gumbel_noise_samples_the_softmax(generator):
    policy = PolicyNet(2, 4, hidden=())
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    params = {"weight_0": torch.zeros(1, 2, 4, dtype=torch.float64), "bias_0": probabilities.log()[None, None] + 3}
    n = 20_000
    noise = policy.noise((1, n), generator, torch.float64)
    actions, log_probs = policy.act(params, torch.zeros(1, n, 2, dtype=torch.float64), noise)
    counts = torch.bincount(actions.flatten(), minlength=4)
    assert scipy.stats.chisquare(counts, n * probabilities).pvalue > 0.01
    slightly_wrong = torch.tensor([0.48, 0.3, 0.17, 0.05], dtype=torch.float64)
    assert scipy.stats.chisquare(counts, n * slightly_wrong).pvalue < 1e-6  # the test would notice
    assert torch.allclose(log_probs.exp(), probabilities[actions], rtol=0, atol=1e-12)


def test_without_noise_the_most_probable_action_is_taken(generator, policy):
    params = random_params(policy, 3, generator)
    x = torch.randn(3, 50, 3, generator=generator, dtype=torch.float64)
    actions, log_probs = policy.act(params, x, None)
    assert torch.equal(actions, policy.logits(params, x).argmax(-1))
    assert torch.equal(log_probs, policy.log_prob(params, x, actions))
    assert len(actions.unique()) > 1


def test_log_prob_is_the_logarithm_of_a_distribution(generator, policy):
    params = random_params(policy, 3, generator)
    x = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    every = torch.stack([policy.log_prob(params, x, torch.full((3, 7), a)) for a in range(4)], -1)
    reference = torch.distributions.Categorical(logits=policy.logits(params, x))
    assert torch.allclose(every.exp().sum(-1), torch.ones(3, 7, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(every[..., 2], reference.log_prob(torch.tensor(2)), rtol=0, atol=1e-12)


def test_kl_of_softmax_policies_is_a_sum_over_actions(generator, policy):
    p, q = random_params(policy, 3, generator), random_params(policy, 3, generator)
    x = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    reference = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=policy.logits(w, x)) for w in (p, q)))
    assert torch.allclose(policy.kl(p, q, x), reference, rtol=0, atol=1e-12) and reference.min() > 1e-3
    assert torch.allclose(policy.kl(p, p, x), torch.zeros(3, 7, dtype=torch.float64), rtol=0, atol=1e-12)


GAUSSIAN = GaussianPolicyNet(3, 2, hidden=(5,), observation_scale=(1.0, 5.0, 0.5), action_scale=0.1, initial_std=0.5)


def gaussian_params(learners, generator):
    params = random_params(GAUSSIAN, learners, generator)
    return params | {"log_std": params["log_std"] - 1}


def reference_normal(params, x, i):
    """Learner i's distribution by torch's own classes and a plain loop over layers."""
    h = torch.tanh(x[i] * torch.tensor([1.0, 5.0, 0.5], dtype=x.dtype) @ params["weight_0"][i] + params["bias_0"][i, 0])
    mean = 0.1 * (h @ params["weight_1"][i] + params["bias_1"][i, 0])
    return torch.distributions.Independent(torch.distributions.Normal(mean, 0.1 * params["log_std"][i, 0].exp()), 1)


@pytest.mark.parametrize("axes", [(), (7,), (4, 7)])
def test_a_gaussian_policys_log_prob_and_kl_are_those_of_independent_normals_summed_over_dimensions(generator, axes):
    p, q = gaussian_params(3, generator), gaussian_params(3, generator)
    x = torch.randn(3, *axes, 3, generator=generator, dtype=torch.float64)
    actions, log_probs = GAUSSIAN.act(p, x, GAUSSIAN.noise((3, *axes), generator, torch.float64))
    assert actions.shape == (3, *axes, 2) and log_probs.shape == (3, *axes)
    for i in range(3):
        expected = reference_normal(p, x, i).log_prob(actions[i])
        assert torch.allclose(log_probs[i], expected, rtol=0, atol=1e-10)
        assert torch.allclose(GAUSSIAN.log_prob(p, x, actions)[i], expected, rtol=0, atol=1e-10)
        divergence = torch.distributions.kl_divergence(reference_normal(p, x, i), reference_normal(q, x, i))
        assert torch.allclose(GAUSSIAN.kl(p, q, x)[i], divergence, rtol=1e-10, atol=1e-10)


def test_a_gaussian_log_prob_by_hand():
    policy = GaussianPolicyNet(1, 2, hidden=(), initial_std=2.0)
    params = policy.init(1, torch.Generator(), torch.float64)
    params["weight_0"] = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    seen, action = torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([[5.0, -3.0]], dtype=torch.float64)
    # Mean (3, −3), standard deviation 2: the first coordinate is one deviation off and the second is not at all.
    expected = -0.5 - 2 * math.log(2 * math.sqrt(2 * math.pi))
    assert policy.log_prob(params, seen, action).item() == pytest.approx(expected, abs=1e-12)
    greedy, log_prob = policy.act(params, seen, None)
    assert greedy.tolist() == [[3.0, -3.0]] and log_prob.item() == pytest.approx(expected + 0.5, abs=1e-12)


def test_gaussian_noise_samples_the_normal(generator):
    params = {name: p[:1] for name, p in gaussian_params(1, generator).items()}
    x = torch.zeros(1, 20_000, 3, dtype=torch.float64)
    actions, _ = GAUSSIAN.act(params, x, GAUSSIAN.noise((1, 20_000), generator, torch.float64))
    normal = reference_normal(params, x[:, :1], 0).base_dist
    for d in range(2):
        mean, std = normal.mean[0, d].item(), normal.stddev[0, d].item()
        assert scipy.stats.kstest(actions[0, :, d], "norm", (mean, std)).pvalue > 0.01
        assert scipy.stats.kstest(actions[0, :, d], "norm", (mean, 1.1 * std)).pvalue < 1e-3  # the test would notice


def test_the_standard_deviation_has_a_floor_at_which_it_has_no_gradient(generator):
    policy = GaussianPolicyNet(1, 1, hidden=(), action_scale=10.0, min_std=0.5)
    params = policy.init(2, generator, torch.float64)
    params["log_std"] = torch.tensor([[[-3.0]], [[-0.5]]], dtype=torch.float64).requires_grad_()
    _, log_std = policy.distribution(params, torch.zeros(2, 1, dtype=torch.float64))
    assert log_std.exp().flatten().tolist() == pytest.approx([5.0, 10 * math.exp(-0.5)])
    policy.log_prob(params, torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)).sum().backward()
    assert params["log_std"].grad[0] == 0 and params["log_std"].grad[1] != 0


def test_a_fresh_gaussian_policy(generator):
    params = GAUSSIAN.init(4, generator, torch.float64)
    assert params["log_std"].shape == (4, 1, 2) and params["log_std"].exp().flatten().tolist() == pytest.approx([0.5] * 8)
    mean, log_std = GAUSSIAN.distribution(params, torch.randn(4, 9, 3, generator=generator, dtype=torch.float64))
    assert mean.abs().max() < 0.01 and log_std.exp().flatten().tolist() == pytest.approx([0.05] * 8)
    shared = {name: p[:1] for name, p in params.items()}
    x = torch.randn(4, 9, 3, generator=generator, dtype=torch.float64)
    copies = {name: p.expand(4, *p.shape[1:]) for name, p in shared.items()}
    assert torch.allclose(GAUSSIAN.distribution(shared, x)[0], GAUSSIAN.distribution(copies, x)[0], rtol=0, atol=1e-12)


def test_a_gaussian_policy_refuses_what_does_not_fit(generator):
    with pytest.raises(ValueError, match=r"^min_std must be positive and finite, got 0.0$"):
        GaussianPolicyNet(3, 2, min_std=0.0)
    with pytest.raises(ValueError, match=r"^initial_std must be at least min_std, 0.5, got 0.1$"):
        GaussianPolicyNet(3, 2, min_std=0.5, initial_std=0.1)
    with pytest.raises(ValueError, match=r"^observations have size 5, the policy expects 3$"):
        GAUSSIAN.distribution(GAUSSIAN.init(2, generator), torch.zeros(2, 7, 5))


def test_initial_parameters(generator):
    params = init_mlp((40, 300, 20), 5, generator, output_gain=0.5)
    assert {name: tuple(p.shape) for name, p in params.items()} == {
        "weight_0": (5, 40, 300),
        "bias_0": (5, 1, 300),
        "weight_1": (5, 300, 20),
        "bias_1": (5, 1, 20),
    }
    for name, bound in (("weight_0", (6 / 340) ** 0.5), ("weight_1", 0.5 * (6 / 320) ** 0.5)):
        weight = params[name]
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert weight.mean().abs() < 0.02 * bound
    assert all((params[f"bias_{i}"] == 0).all() for i in range(2))
    assert not torch.isclose(params["weight_0"][0], params["weight_0"][1]).all()  # every learner draws its own


def test_a_fresh_policy_is_nearly_uniform_and_reproducible(generator):
    policy = PolicyNet(4, 2)
    params = policy.init(3, generator, torch.float64)
    log_probs = policy.log_prob(params, torch.randn(3, 9, 4, generator=generator, dtype=torch.float64), torch.zeros(3, 9).long())
    assert (log_probs.exp() - 0.5).abs().max() < 0.02
    again = policy.init(3, torch.Generator().manual_seed(0), torch.float64)
    assert all(torch.equal(params[name], again[name]) and params[name].dtype == torch.float64 for name in params)


def test_a_policy_first_used_in_inference_mode_can_be_differentiated_afterwards(generator):
    policy = PolicyNet(3, 4, observation_scale=(1.0, 5.0, 0.123))  # a scale that no other test has used
    params = policy.init(1, generator)
    x = torch.ones(1, 3)
    with torch.inference_mode():
        policy.logits(params, x)
    x.requires_grad_()
    policy.logits(params, x)[0, 0].backward()
    assert x.grad.abs().min() > 0


def test_shapes_must_agree(generator, policy):
    params = policy.init(2, generator)
    with pytest.raises(ValueError, match="x has 3 learners on its first axis, params have 2"):
        policy.logits(params, torch.zeros(3, 7, 3))
    with pytest.raises(ValueError, match="observations have size 5, the policy expects 3"):
        policy.logits(params, torch.zeros(2, 7, 5))
    with pytest.raises(ValueError, match="observation_scale has 1 entries, observations have 3"):
        PolicyNet(3, 4, observation_scale=(1.0,))


def test_a_scale_may_be_a_list_as_it_comes_from_json(generator):
    """``lru_cache`` takes nothing that cannot be hashed."""
    x = torch.randn(2, 5, 3, generator=generator)

    def outputs(scale):
        policy, value, q = PolicyNet(3, 4, (8,), scale), ValueNet(3, (8,), scale), QNet(3, 4, (8,), scale)
        generator.manual_seed(0)
        actor, critic, theta = (net.init(2, generator) for net in (policy, value, q))
        return policy.logits(actor, x), value.value(critic, x), q.values(theta, x), to_module(policy, actor)(x[0])

    for one, other in zip(outputs([1.0, 5.0, 0.25]), outputs((1.0, 5.0, 0.25)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [lambda scale: PolicyNet(4, 2, observation_scale=scale), lambda scale: ValueNet(4, (8,), scale)])
def test_a_scale_that_does_not_fit_is_refused_by_every_network(make):
    with pytest.raises(ValueError, match="^observation_scale has 2 entries, observations have 4$"):
        make((1.0, 2.0))
