"""Probabilistic MAML against exact answers: a linear-Gaussian model in closed form, torch.distributions, finite differences."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from test_supervised_maml import Bars, convolutional, init_convolutional
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from metarl_lib import checkpoint, pmaml, results, supervised_maml as maml
from metarl_lib.experiments import pmaml_ambiguous as experiment
from metarl_lib.sinusoids import Examples, SinusoidsOrLines
from metarl_lib.types import Params, index_tasks

WORLD = SinusoidsOrLines()
DOUBLE = SinusoidsOrLines(dtype=torch.float64)
TINY = pmaml.Config(iterations=3, learners=2, tasks=4, samples=2)
NOISE = 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def small_init(learners: int, draws: torch.Generator) -> Params:
    return pmaml.init(learners, draws, (1, 5, 6, 1), 3, torch.float64)


def theta_of(config: pmaml.Config, seed: int = 0) -> pmaml.Theta:
    """Θ of a small network, every leaf moved at random from where training starts, and differentiable."""
    theta = pmaml.initial(small_init(config.learners, generator(seed)), config)
    draws = generator(seed + 1)
    moved = (
        {name: (p + 0.2 * torch.randn(p.shape, generator=draws, dtype=p.dtype)).detach() for name, p in leaves.items()}
        for leaves in theta
    )
    return pmaml.Theta(*({name: p.requires_grad_() for name, p in leaves.items()} for leaves in moved))


def examples(tasks: int, seed: int = 0, shots: int = 3, queries: int = 5) -> tuple[Examples, Examples]:
    draws = generator(seed)
    return DOUBLE.support_and_query(DOUBLE.sample_tasks(tasks, draws), shots, queries, draws)


# --- a linear model with Gaussian noise, in closed form ---------------------------------------------------------------
#
# Predictions are A w, with fixed features A(x) = (1, x), so that all that probabilistic MAML does is linear in θ: an inner step
# is φ = θ − α ∇L(θ) = (I − α H) θ + α c, where H = AᵀA / (n s²) and c = Aᵀy / (n s²) of the support.


def features(x: Tensor) -> Tensor:
    return torch.cat((torch.ones_like(x), x), -1)


def linear(params: Params, x: Tensor) -> Tensor:
    return features(x) @ params["w"]


LINEAR = pmaml.Config(inner_steps=2, inner_step_size=0.02, prior_step_size=0.03, inference_step_size=0.05, samples=1)


def linear_theta(config: pmaml.Config, mean: tuple[float, float], std: tuple[float, float], q_std: tuple[float, float]):
    vector = lambda values: {"w": torch.tensor(values, dtype=torch.float64).reshape(1, 2, 1)}  # noqa: E731
    logs = lambda values: {name: p.log() for name, p in vector(values).items()}  # noqa: E731
    steps = pmaml.initial(vector(mean), config)[3:]
    return pmaml.Theta(vector(mean), logs(std), logs(q_std), *steps)


def tasks_on_a_line(n: int = 4) -> tuple[Examples, Examples]:
    x, w = 2 * normal(n, 7, 1, seed=1), normal(n, 2, 1, seed=2)
    y = features(x) @ w + NOISE * normal(n, 7, 1, seed=3)
    return Examples(x[:, :3], y[:, :3]), Examples(x[:, 3:], y[:, 3:])


def curvature(examples: Examples) -> tuple[Tensor, Tensor]:
    """H and c of one task's ∇L(w) = H w − c."""
    a = features(examples.x[0])
    return a.T @ a / (len(a) * NOISE**2), a.T @ examples.y[0] / (len(a) * NOISE**2)


def exactly(theta: pmaml.Theta, support: Examples, query: Examples, config: pmaml.Config) -> dict[str, Tensor]:
    """One task's p(θ | 𝒟), q(θ | 𝒟'), log p(𝒟' | 𝒟) and E_q[log p(𝒟' | φ)], by linear algebra."""
    mu, eye = theta.mean["w"][0], torch.eye(2, dtype=torch.float64)
    (h, c), (h_query, c_query) = curvature(support), curvature(query)
    p_mean = mu - config.prior_step_size * (h @ mu - c)
    q_mean = mu - config.inference_step_size * (h_query @ mu - c_query)
    p_cov, q_cov = (torch.diag((2 * s["w"].flatten()).exp()) for s in (theta.log_std, theta.log_inference_std))
    gain, shift = eye, torch.zeros_like(mu)  # φ = gain θ + shift
    for _ in range(config.inner_steps):
        step = eye - config.inner_step_size * h
        gain, shift = step @ gain, step @ shift + config.inner_step_size * c
    a, y = features(query.x[0]), query.y[0]
    design, rest = a @ gain, y - a @ shift
    noise = NOISE**2 * torch.eye(len(a), dtype=torch.float64)
    evidence = MultivariateNormal((design @ p_mean).flatten(), design @ p_cov @ design.T + noise).log_prob(rest.flatten())
    at_mean = MultivariateNormal((design @ q_mean).flatten(), noise).log_prob(rest.flatten())
    expected = at_mean - 0.5 * (design @ q_cov @ design.T).trace() / NOISE**2
    p, q = (MultivariateNormal(m.flatten(), v) for m, v in ((p_mean, p_cov), (q_mean, q_cov)))
    precision = p_cov.inverse() + design.T @ design / NOISE**2
    posterior = precision.inverse() @ (p_cov.inverse() @ p_mean + design.T @ rest / NOISE**2), precision.inverse()
    return {"evidence": evidence, "expected": expected, "kl": kl_divergence(q, p), "posterior": posterior, "p": p, "q": q}


def terms(theta: pmaml.Theta, support: Examples, query: Examples, config: pmaml.Config, seed: int = 5) -> pmaml.Bound:
    return pmaml.negative_bound(theta, support, query, config, generator(seed), linear, pmaml.gaussian_nll(NOISE))


def test_every_term_of_the_bound_is_that_of_linear_algebra():
    theta, (support, query) = linear_theta(LINEAR, (0.4, -0.2), (0.5, 0.7), (0.1, 0.05)), tasks_on_a_line()
    likelihood = pmaml.gaussian_nll(NOISE)
    p = pmaml.prior(theta, support, LINEAR, linear, likelihood)
    q = pmaml.inference(theta, query, LINEAR, linear, likelihood)
    samples = 40_000
    nll, kl = terms(theta, support, query, replace(LINEAR, samples=samples))
    assert nll.shape == kl.shape == (1, 4)
    for i in range(4):
        exact = exactly(theta, *(index_tasks(e, slice(i, i + 1)) for e in (support, query)), LINEAR)
        torch.testing.assert_close(p.mean["w"][i, :, 0], exact["p"].mean)
        torch.testing.assert_close(q.mean["w"][i, :, 0], exact["q"].mean)
        assert kl[0, i].item() == pytest.approx(exact["kl"].item(), rel=1e-10)
        assert -nll[0, i].item() == pytest.approx(exact["expected"].item(), rel=0.01)
        # E_q[log p(𝒟' | φ)] − KL is below the evidence by KL(q ‖ posterior), exactly.
        gap = kl_divergence(exact["q"], MultivariateNormal(exact["posterior"][0].flatten(), exact["posterior"][1]))
        assert (exact["evidence"] - (exact["expected"] - exact["kl"])).item() == pytest.approx(gap.item(), rel=1e-8)
        assert -(nll + kl)[0, i] < exact["evidence"] - 0.9 * gap


@pytest.mark.parametrize("steps", [0, 2])
def test_the_bound_is_the_evidence_where_q_is_the_posterior(steps):
    # One parameter, y = w x. The exact posterior of θ is a Gaussian whose mean some γ_q reaches from μ_θ; v_q is its variance.
    config = replace(LINEAR, inner_steps=steps, prior_step_size=0.01, samples=50)
    apply = lambda params, x: params["w"] * x  # noqa: E731
    single = lambda value: {"w": torch.full((1, 1, 1), value, dtype=torch.float64)}  # noqa: E731
    x, y = torch.tensor([[[1.0], [0.5]]], dtype=torch.float64), torch.tensor([[[1.3], [0.2]]], dtype=torch.float64)
    support = Examples(x, y)
    query = Examples(torch.tensor([[[2.0], [-1.0], [0.4]]], dtype=torch.float64), torch.tensor([[[1.9], [-0.8], [0.1]]]).double())
    mu, std, s2 = 0.2, 0.6, NOISE**2
    h, c = (x.square().mean() / s2).item(), ((x * y).mean() / s2).item()
    gain, shift = 1.0, 0.0
    for _ in range(steps):
        gain, shift = (
            (1 - config.inner_step_size * h) * gain,
            (1 - config.inner_step_size * h) * shift + config.inner_step_size * c,
        )
    p_mean = mu - config.prior_step_size * (h * mu - c)
    a, rest = gain * query.x[0, :, 0], query.y[0, :, 0] - shift * query.x[0, :, 0]
    variance = 1 / (1 / std**2 + (a.square().sum() / s2).item())
    mean = variance * (p_mean / std**2 + ((a * rest).sum() / s2).item())
    slope_at_mu = ((query.x.square() * mu - query.x * query.y).mean() / s2).item()
    gamma_q = (mu - mean) / slope_at_mu
    assert gamma_q > 0
    evidence = MultivariateNormal(a * p_mean, std**2 * torch.outer(a, a) + s2 * torch.eye(3).double()).log_prob(rest).item()
    logs = [single(math.log(v)) for v in (std, math.sqrt(variance), config.prior_step_size, gamma_q, config.inner_step_size)]
    theta = pmaml.Theta(single(mu), *logs)

    def bound(theta: pmaml.Theta, samples: int = 200_000) -> float:
        sampled = replace(config, samples=samples)
        nll, kl = pmaml.negative_bound(theta, support, query, sampled, generator(), apply, pmaml.gaussian_nll(NOISE))
        return -(nll + kl).item()

    assert bound(theta) == pytest.approx(evidence, abs=0.01)
    for worse in (
        theta._replace(log_inference_std=single(math.log(variance) / 2 + 0.5)),
        theta._replace(log_inference_step=single(math.log(gamma_q / 2))),
    ):
        assert bound(worse) < evidence - 0.1


def test_training_finds_the_hyperparameters_of_a_hierarchical_gaussian():
    # y = w + noise and w ~ N(3, 0.5²) anew for every task, whose support says nothing (y = w · 0): the prior over w must become
    # that Gaussian, as in empirical Bayes, q the exact posterior, and the bound the log evidence.
    class Offsets:
        def sample_tasks(self, n, draws):
            return 3 + 0.5 * torch.randn(n, 1, 1, generator=draws, dtype=torch.float64)

        def support_and_query(self, task, shots, queries, draws):
            noise = NOISE * torch.randn(len(task), shots + queries, 1, generator=draws, dtype=torch.float64)
            y = task + noise
            return Examples(0 * y[:, :shots], noise[:, :shots]), Examples(torch.ones_like(y[:, shots:]), y[:, shots:])

    steps = {"meta_step_size": 0.03, "log_step_size": 0.02, "inference_step_size": 0.05}
    config = pmaml.Config(900, inner_steps=0, samples=8, tasks=64, shots=1, queries=4, prior_std=0.2, inference_std=0.2, **steps)
    near = lambda learners, draws: {"w": torch.full((learners, 1, 1), 2.5, dtype=torch.float64)}  # noqa: E731
    product = lambda params, x: params["w"] * x  # noqa: E731
    logs = list(pmaml.train(Offsets(), config, near, product, pmaml.gaussian_nll(NOISE)))[-300:]
    mean, log_std, log_inference_std, _, log_inference_step, _ = (
        torch.stack([getattr(log.theta, field)["w"] for log in logs]).mean().item() for field in pmaml.Theta._fields
    )
    variance = 1 / (1 / 0.25 + 4 / NOISE**2)
    assert mean == pytest.approx(3, abs=0.05)
    assert math.exp(log_std) == pytest.approx(0.5, rel=0.05)
    assert math.exp(log_inference_std) == pytest.approx(math.sqrt(variance), rel=0.05)
    # ∇L, of a mean over four queries, is (w − mean y) / s²: a step of four posterior variances ends at the posterior's mean.
    assert math.exp(log_inference_step) == pytest.approx(4 * variance, rel=0.05)
    covariance = 0.25 * torch.ones(4, 4).double() + NOISE**2 * torch.eye(4).double()
    entropy = MultivariateNormal(torch.zeros(4).double(), covariance).entropy().item()
    assert torch.stack([log.loss for log in logs]).mean().item() == pytest.approx(entropy, abs=0.05)


# --- distributions over parameters ------------------------------------------------------------------------------------


def two_gaussians() -> tuple[pmaml.Gaussian, pmaml.Gaussian]:
    shapes = {"weight": (3, 2, 4), "bias": (3, 1, 4)}
    leaves = lambda seed: {name: normal(*shape, seed=seed + k) for k, (name, shape) in enumerate(shapes.items())}  # noqa: E731
    return pmaml.Gaussian(leaves(1), leaves(3)), pmaml.Gaussian(leaves(5), leaves(7))


def test_the_divergence_by_hand():
    # KL(N(1, 1) ‖ N(0, 2²)) = log 2 + (1 + 1) / 8 − 1/2, and five such parameters have five times that.
    leaf = lambda value: {"w": torch.full((1, 5, 1), value, dtype=torch.float64)}  # noqa: E731
    kl = pmaml.kl_divergence(pmaml.Gaussian(leaf(1.0), leaf(0.0)), pmaml.Gaussian(leaf(0.0), leaf(math.log(2))))
    assert kl.tolist() == pytest.approx([5 * (math.log(2) - 0.25)])


def test_the_divergence_is_that_of_torch_distributions_and_of_a_mean_over_draws():
    q, p = two_gaussians()
    kl = pmaml.kl_divergence(q, p)
    each = [kl_divergence(*(Normal(g.mean[name], g.log_std[name].exp()) for g in (q, p))).flatten(1).sum(1) for name in q.mean]
    torch.testing.assert_close(kl, sum(each))
    n = 100_000
    theta = pmaml.draw(q, n, generator(9))
    ratio = sum(
        (Normal(*(spread.unsqueeze(1) for spread in (q.mean[m], q.log_std[m].exp()))).log_prob(theta[m].unflatten(0, (3, n)))
         - Normal(*(spread.unsqueeze(1) for spread in (p.mean[m], p.log_std[m].exp()))).log_prob(theta[m].unflatten(0, (3, n))))
        .flatten(2).sum(2) for m in q.mean
    )  # fmt: skip
    error = ratio.std(1) / math.sqrt(n)
    assert ((ratio.mean(1) - kl).abs() < 4 * error).all() and (error < 0.01 * kl).all()
    assert pmaml.kl_divergence(q, q).abs().max() < 1e-12 and (kl > 0).all()


def test_draws_have_the_mean_and_the_spread_of_their_task():
    gaussian, n = two_gaussians()[0], 40_000
    for name, leaf in pmaml.draw(gaussian, n, generator()).items():
        values, std = leaf.unflatten(0, (3, n)), gaussian.log_std[name].exp()
        assert ((values.mean(1) - gaussian.mean[name]).abs() < 5 * std / math.sqrt(n)).all()
        torch.testing.assert_close(values.std(1), std, rtol=0.02, atol=0)
        assert torch.corrcoef(values[0].flatten(1).T).fill_diagonal_(0).abs().max() < 0.03


def test_the_prior_of_a_task_is_one_step_of_its_own_from_the_mean():
    theta, (support, _) = theta_of(TINY), examples(8)
    p = pmaml.prior(theta, support, TINY)
    for i in range(8):
        learner = slice(i // 4, i // 4 + 1)
        alone = {name: leaf[learner].detach() for name, leaf in theta.mean.items()}
        step = {name: leaf[learner].detach().exp() for name, leaf in theta.log_prior_step.items()}
        moved = maml.adapt(alone, step, index_tasks(support, slice(i, i + 1)), 1, apply=pmaml.apply, loss=pmaml.KNOWN_NOISE)
        for name in moved:
            torch.testing.assert_close(p.mean[name][i : i + 1], moved[name], rtol=1e-9, atol=1e-12)
            assert torch.equal(p.log_std[name][i : i + 1], theta.log_std[name][learner])


# --- the likelihoods --------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_torch_distributions():
    prediction, y = normal(3, 5, 2), normal(3, 5, 1, seed=1)
    known = pmaml.gaussian_nll(0.7)(prediction[..., :1], y)
    torch.testing.assert_close(known, -Normal(prediction[..., :1], 0.7).log_prob(y).mean((1, 2)))
    learned = pmaml.gaussian_nll()(prediction, y)
    torch.testing.assert_close(learned, -Normal(prediction[..., :1], prediction[..., 1:].exp()).log_prob(y).mean((1, 2)))
    wide = pmaml.gaussian_nll(0.7)(prediction, prediction + y)
    torch.testing.assert_close(wide, -Normal(0, 0.7).log_prob(y).mul(2).mean((1, 2))), "outputs are summed, examples averaged"
    with pytest.raises(ValueError, match=r"noise must be positive and finite, got 0\.0"):
        pmaml.gaussian_nll(0.0)


def test_the_context_is_appended_to_every_input():
    params, x = pmaml.init(2, generator(), (1, 4, 1), 2, torch.float64), normal(2, 3, 1)
    params["context"] = normal(2, 1, 2, seed=1)
    for i in range(2):
        h = torch.cat((x[i], params["context"][i].expand(3, 2)), 1) @ params["weight_0"][i] + params["bias_0"][i]
        torch.testing.assert_close(pmaml.apply(params, x)[i], h.tanh() @ params["weight_1"][i] + params["bias_1"][i])


# --- the gradient of the bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"inner_steps": 0}, {"step_sizes": "per_parameter", "adapted": ("context", "bias_2")}])
def test_the_gradient_agrees_with_finite_differences_under_the_same_draws(change):
    config = replace(TINY, inner_steps=2, tasks=3, **change) if "inner_steps" not in change else replace(TINY, tasks=3, **change)
    theta, data = theta_of(config), examples(6)
    names = [(k, name) for k, leaves in enumerate(theta) for name in leaves]
    weights = torch.tensor([1.0, 0.4], dtype=torch.float64)[:, None]

    def objective(leaves: list[Tensor]) -> Tensor:
        parts: list[Params] = [{} for _ in theta]
        for (k, name), p in zip(names, leaves, strict=True):
            parts[k][name] = p
        nll, kl = pmaml.negative_bound(pmaml.Theta(*parts), *data, config, generator(7))
        return (weights * (nll + 0.7 * kl)).sum()

    leaves = [theta[k][name] for k, name in names]
    gradients = torch.autograd.grad(objective(leaves), leaves, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)]
    draws = generator(1)
    for only in (None, *range(6)):  # all of Θ together, then each of its six parts
        direction = [
            torch.randn(p.shape, generator=draws, dtype=p.dtype) * (only in (None, k))
            for (k, _), p in zip(names, leaves, strict=True)
        ]
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        h, values = 1e-6, []
        for sign in (1, -1):
            moved = [(p.detach() + sign * h * d).requires_grad_() for p, d in zip(leaves, direction, strict=True)]
            values.append(objective(moved).item())
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert abs(expected) > 1e-3 or (only == 5 and not config.inner_steps), "every part of Θ matters"


def test_without_spread_and_prior_steps_it_is_maml():
    # γ_p, γ_q and both variances nearly zero: θ = μ_θ in every sample, and what is left is MAML's loss.
    config = replace(TINY, prior_step_size=1e-30, inference_step_size=1e-30, prior_std=1e-12, inference_std=1e-12)
    theta, (support, query) = pmaml.initial(small_init(2, generator()), config), examples(8)
    nll, kl = pmaml.negative_bound(theta, support, query, config, generator())
    likelihood = pmaml.gaussian_nll(NOISE)
    alpha = {name: p.exp() for name, p in theta.log_step.items()}
    steps = maml.Config(inner_steps=3, tasks=4)
    losses = maml.meta_loss(theta.mean, alpha, support, query, steps, pmaml.apply, likelihood)
    torch.testing.assert_close(nll, 5 * losses)
    assert kl.abs().max() < 1e-9
    leaves = list(theta.mean.values())
    for found, expected in zip(
        torch.autograd.grad(nll.sum(), leaves), torch.autograd.grad(5 * losses.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# --- training ---------------------------------------------------------------------------------------------------------


def last(config: pmaml.Config, **options) -> pmaml.Log:
    *_, log = pmaml.train(WORLD, config, **options)
    return log


def test_a_learner_is_untouched_by_the_others():
    def one_is_different(learners: int, draws: torch.Generator) -> Params:
        return {name: torch.cat((p[:1], 3 * p[1:] + 0.1)) for name, p in pmaml.init(learners, draws).items()}

    one, two = last(TINY), last(TINY, init=one_is_different)
    for leaves, others in zip(one.theta, two.theta, strict=True):
        assert all(torch.equal(leaf[0], others[name][0]) for name, leaf in leaves.items())
    assert one.loss[0] == two.loss[0] and one.loss[1] != two.loss[1]


def test_the_same_seed_gives_the_same_run_and_a_log_never_changes():
    logs, again, other = (list(pmaml.train(WORLD, config)) for config in (TINY, TINY, replace(TINY, seed=1)))
    assert [log.iteration for log in logs] == [1, 2, 3]
    first = next(iter(pmaml.train(WORLD, TINY)))
    for k, leaves in enumerate(first.theta):
        for name in leaves:
            assert torch.equal(leaves[name], logs[0].theta[k][name])
            assert torch.equal(logs[-1].theta[k][name], again[-1].theta[k][name])
            assert not torch.equal(logs[0].theta[k][name], logs[1].theta[k][name])
    assert not torch.equal(other[0].loss, logs[0].loss)
    torch.testing.assert_close(first.loss, first.nll + first.kl)
    assert list(pmaml.train(WORLD, replace(TINY, iterations=0))) == []


def test_the_first_update_is_adams_on_the_weighted_bound():
    config = replace(TINY, iterations=1, kl_weight=0.25)
    draws = generator(config.seed)
    before = pmaml.initial(pmaml.init(2, draws), config)
    data = WORLD.support_and_query(WORLD.sample_tasks(8, draws), 3, 10, draws)
    nll, kl = pmaml.negative_bound(before, *data, config, draws)
    (nll + 0.25 * kl).mean(1).sum().backward()
    log = last(config)
    torch.testing.assert_close(log.loss, (nll + 0.25 * kl).mean(1).detach())
    for k, leaves in enumerate(before):
        for name, p in leaves.items():
            rate = config.log_step_size if k else config.meta_step_size
            expected = p.detach() - rate * p.grad / (p.grad.abs() + 1e-8)  # Adam's first
            torch.testing.assert_close(log.theta[k][name], expected, rtol=1e-4, atol=1e-4 * rate)


def test_fixed_step_sizes_stay_and_the_others_are_learned():
    for kind in ("fixed", "per_tensor", "per_parameter"):
        theta = last(replace(TINY, step_sizes=kind, adapted=("context", "bias_2"))).theta
        for field, start in (("log_prior_step", 0.01), ("log_inference_step", 0.01), ("log_step", 0.01)):
            logs = getattr(theta, field)
            assert set(logs) == {"context", "bias_2"}
            for name, leaf in logs.items():
                assert leaf.shape == (theta.mean[name].shape if kind == "per_parameter" else (2, 1, 1))
                assert ((leaf - math.log(start)).abs().max() < 1e-6) == (kind == "fixed")


def test_it_starts_from_the_parameters_of_a_trained_maml():
    *_, trained = maml.train(WORLD, maml.Config(3, learners=2, tasks=4, shots=3), pmaml.init, pmaml.apply)
    kept = {name: p.clone() for name, p in trained.params.items()}
    log = last(replace(TINY, iterations=1), start=trained.params)
    for name, p in trained.params.items():
        assert torch.equal(p, kept[name])
        assert 0 < (log.theta.mean[name] - p).abs().max() <= 1.001 * TINY.meta_step_size
    with pytest.raises(ValueError, match=r"start must have the parameters weight_0 \[2, 21, 48\], .*, got w \[1\]"):
        last(TINY, start={"w": torch.zeros(1)})


def test_both_answers_are_found_where_the_examples_fit_two():
    # Every task is y = 2x² or y = −2x² with even odds, and shows one example at x = 0, which tells nothing. MAML says 0.
    class Parabolas:
        def sample_tasks(self, n, draws):
            return 2.0 * (2 * torch.randint(2, (n, 1, 1), generator=draws) - 1)

        def support_and_query(self, task, shots, queries, draws):
            x = 2 * torch.rand(len(task), queries, 1, generator=draws) - 1
            support = torch.zeros(len(task), shots, 1)
            return Examples(support, support), Examples(x, task * x.square() + NOISE * torch.randn(x.shape, generator=draws))

    init = lambda learners, draws: pmaml.init(learners, draws, (1, 16, 1), 4)  # noqa: E731
    std = {"prior_std": 0.2, "inference_std": 0.2}
    config = pmaml.Config(500, shots=1, queries=8, inner_steps=1, inner_step_size=1e-3, meta_step_size=2e-2, **std)
    *_, log = pmaml.train(Parabolas(), config, init)
    support, _ = Parabolas().support_and_query(torch.ones(1, 1, 1), 1, 1, generator())
    phi = pmaml.sample(log.theta, support, 400, config, generator(3))
    ends = pmaml.predict(phi, torch.tensor([[[-1.0], [1.0]]]))[0, :, :, 0]  # [sample, end]
    up, down = (sign * ends > 1 for sign in (1, -1))
    for answer in (up, down):
        assert 0.2 < answer.float().mean() < 0.5, "both are as probable, and what lies between is less so"
    opposed = (up[:, 0] & down[:, 1]) | (down[:, 0] & up[:, 1])
    assert opposed.float().mean() < 0.02, "a sample is one answer or the other, at both ends"


def test_a_network_with_convolutions_learns_to_classify_with_swapped_labels():
    config = pmaml.Config(200, 1, inner_steps=2, tasks=8, shots=2, queries=4, inner_step_size=0.5, meta_step_size=0.02)
    functions = {"apply": convolutional, "loss": maml.cross_entropy}
    *_, log = pmaml.train(Bars(), config, init_convolutional, **functions)
    draws = generator(5)
    support, query = Bars().support_and_query(Bars().sample_tasks(50, draws), 2, 10, draws)
    phi = pmaml.sample(log.theta, support, 4, config, generator(6), **functions)
    probability = pmaml.predict(phi, query.x, convolutional).softmax(-1).mean(1)
    assert (probability.argmax(-1) == query.y).float().mean() > 0.9


# --- meta-testing -----------------------------------------------------------------------------------------------------


def test_samples_are_draws_from_the_prior_adapted_one_by_one():
    theta, (support, query) = theta_of(TINY), examples(6)
    phi = pmaml.sample(theta, support, 3, TINY, generator(4))
    drawn = pmaml.draw(pmaml.prior(theta, support, TINY), 3, generator(4))
    predictions = pmaml.predict(phi, query.x)
    assert predictions.shape == (6, 3, 5, 1) and not any(p.requires_grad for p in (*phi.values(), predictions))
    for i in range(18):
        task, learner = i // 3, slice(i // 9, i // 9 + 1)
        step = {name: leaf[learner].detach().exp() for name, leaf in theta.log_step.items()}
        alone = {name: p[i : i + 1].detach() for name, p in drawn.items()}
        examples_of = index_tasks(support, slice(task, task + 1))
        adapted = maml.adapt(alone, step, examples_of, 3, apply=pmaml.apply, loss=pmaml.KNOWN_NOISE)
        for name in adapted:
            torch.testing.assert_close(phi[name][i : i + 1], adapted[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(predictions[task, i % 3], pmaml.apply(adapted, query.x[task : task + 1])[0])


# --- what must not pass unseen ----------------------------------------------------------------------------------------


class Broken(SinusoidsOrLines):
    """Curves whose third meta-batch holds NaN for the second learner."""

    calls = 0

    def support_and_query(self, task, shots, queries, generator):
        support, query = super().support_and_query(task, shots, queries, generator)
        type(self).calls += 1
        if type(self).calls == 3:
            query.y[4] = math.nan
        return support, query


def test_a_bound_that_is_not_a_number_stops_training_with_iteration_and_learner_named():
    Broken.calls = 0
    logs = pmaml.train(Broken(), replace(TINY, iterations=9))
    assert [log.iteration for log in islice(logs, 2)] == [1, 2]
    with pytest.raises(FloatingPointError, match="iteration 3: the bound of learner 1 or its gradient is NaN"):
        next(logs)


def test_a_variance_that_vanishes_stops_training():
    # Without its divergence the inference variance has nothing to keep it from falling; Adam's step makes that quick.
    config = replace(TINY, iterations=100, kl_weight=0.0, log_step_size=30.0, step_sizes="fixed", inference_std=1e-5)
    with pytest.raises(FloatingPointError, match=r"iteration \d+: the inference variance of \w+ of learner \d is 0 or infinite"):
        list(pmaml.train(WORLD, config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"learners": 0}, "learners must be at least 1, got 0"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, got -1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"prior_std": 0.0}, "prior_std must be positive and finite, got 0.0"),
        ({"inference_std": math.inf}, "inference_std must be positive and finite, got inf"),
        ({"prior_step_size": -1.0}, "prior_step_size must be positive and finite, got -1.0"),
        ({"meta_step_size": math.nan}, "meta_step_size must be positive and finite, got nan"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0 and finite, got -1.0"),
        ({"step_sizes": "per_layer"}, "unknown step_sizes 'per_layer'; there are fixed, per_tensor, per_parameter"),
        ({"adapted": ()}, "adapted must name at least one parameter, got none"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


# --- the full-size run, made small ------------------------------------------------------------------------------------


def test_the_experiment_gives_a_result_of_the_one_form_and_weights_that_predict(tmp_path, monkeypatch):
    kept = {}

    def run_here(work, pieces, *_):
        for piece in pieces:
            kept[piece[0]] = json.loads(json.dumps(work(*piece)))
        return [kept[piece[0]] | {"cpu_seconds": 1.0} for piece in pieces]

    monkeypatch.setattr(experiment, "run_pieces", run_here)
    result = json.loads(json.dumps(experiment.run(2, 0.0005, None), allow_nan=False))
    results.check(result)
    assert result["name"] == experiment.NAME and result["seeds"] == [0, 1]
    metrics = {label: metric["value"] for label, metric in result["metrics"].items()}
    for label in ("PMAML, 16 samples", "MAML", "four MAMLs", "MAML, trained longer", "MAML, noise predicted"):
        assert metrics["exact posterior · NLL"] < metrics[f"{label} · NLL"]
        assert metrics["exact posterior · squared error"] < metrics[f"{label} · squared error"]
        assert len(result["curves"][f"coverage · {label}"][0]) == len(result["curves"]["coverage · levels"])
    assert metrics["MAML · squared error of the best sample"] == metrics["MAML · squared error"]
    assert metrics["four MAMLs · squared error of the best sample"] < metrics["MAML · squared error"]
    assert metrics["MAML · both kinds covered"] == 0 < metrics["exact posterior · both kinds covered"]
    # Seed 0's weights, from disk, predict what they did.
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    experiment.save_weights(kept)
    saved, tasks = checkpoint.load(tmp_path / "pmaml-ambiguous.pt"), experiment.held_out("test", 0, 0.0005)
    theta, maml_weights = pmaml.Theta(**saved["PMAML"]), (saved["MAML"]["params"], saved["MAML"]["step_sizes"])
    for method, learned, label in (("PMAML", theta, "PMAML, 64 samples"), ("MAML", maml_weights, "MAML")):
        samples = experiment.predicted(method, learned, tasks, 64, 0)
        error = (samples.at_queries.mean(1) - WORLD.function(tasks.task, tasks.query.x)[..., 0]).square().mean().item()
        assert error == pytest.approx(kept[method]["rows"][0][label]["squared error"], rel=1e-3)


def test_in_an_ensemble_a_sample_is_a_learner_that_adapts_alone():
    draws = generator()
    params = pmaml.init(3, draws)
    step_sizes = {
        name: torch.full_like(p[:, :1, :1], 0.01) * (1 + torch.arange(3.0)[:, None, None]) for name, p in params.items()
    }
    tasks = experiment.held_out("test", 0, 0.06)
    found = experiment.predicted("MAML", (params, step_sizes), tasks, 0, 0)
    for learner in range(3):
        one = slice(learner, learner + 1)
        theta, alpha = ({name: p[one] for name, p in leaves.items()} for leaves in (params, step_sizes))
        phi = maml.adapt(maml.spread(theta, 30), alpha, tasks.support, 3, apply=pmaml.apply, loss=pmaml.KNOWN_NOISE)
        expected = pmaml.apply(phi, tasks.query.x)[..., 0].double()
        torch.testing.assert_close(found.at_queries[:, learner], expected, rtol=1e-4, atol=1e-4)


def test_the_noise_is_the_one_of_least_nll_on_validation_tasks():
    # Predictions that are off by 0.5 everywhere: of the grid's, the standard deviation that fits squared errors of 0.5² + 0.3².
    tasks = experiment.held_out("validation", 0)
    off = WORLD.function(tasks.task, tasks.query.x)[..., 0].double()[:, None] + 0.5
    assert experiment.chosen_noise(tasks, experiment.Samples(off, off, None)) == min(
        experiment.NOISES, key=lambda noise: math.log(noise) + (0.5**2 + 0.3**2) / (2 * noise**2)
    )
