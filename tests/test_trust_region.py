"""The trust region against direct solves, an explicit Hessian of the KL divergence, and a bandit with a known best arm."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from metarl_lib import maml, trust_region
from metarl_lib.navigation import Navigation, policy_for
from metarl_lib.nets import GaussianPolicyNet, PolicyNet
from metarl_lib.types import Batch

TINY = maml.Config(iterations=2, tasks=4, episodes=4, group=3, outer="trust_region", clip=0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# --- conjugate gradients ----------------------------------------------------------------------------------------------


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_unknowns(generator):
    root = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(7), torch.randn(7, generator=generator, dtype=torch.float64)
    solution = trust_region.conjugate_gradient(matrix.mv, target, 7, tolerance=0)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)
    early = trust_region.conjugate_gradient(matrix.mv, target, 3)
    assert (early - solution).norm() > 1e-3, "three steps are not enough, so the seven were needed"


def test_conjugate_gradients_need_one_step_for_each_distinct_eigenvalue():
    products = []

    def product(v):
        products.append(v)
        return torch.tensor([2.0, 2.0, 5.0, 5.0], dtype=torch.float64) * v

    solution = trust_region.conjugate_gradient(product, torch.tensor([2.0, 4.0, 5.0, 15.0], dtype=torch.float64), 10)
    torch.testing.assert_close(solution, torch.tensor([1.0, 2.0, 1.0, 3.0], dtype=torch.float64))
    assert len(products) == 2


def test_a_gradient_of_zero_takes_no_step():
    assert trust_region.conjugate_gradient(lambda v: v, torch.zeros(3), 10).tolist() == [0, 0, 0]


# --- the divergence's curvature, through the adaptation ---------------------------------------------------------------

DISCRETE, CONTINUOUS = PolicyNet(2, 3, hidden=(3,)), GaussianPolicyNet(2, 2, hidden=(3,), initial_std=0.7)


def problem(policy, generator, tasks=2, samples=6):
    """θ away from its tame beginning, a support batch for one inner step and a query batch."""
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    theta = {name: p + 0.4 * draw(*p.shape) for name, p in policy.init(1, generator, torch.float64).items()}

    def batch():
        observations = draw(tasks, samples, 2)
        with torch.no_grad():
            actions, log_probs = policy.act(theta, observations, policy.noise((tasks, samples), generator, torch.float64))
        weights = draw(tasks, samples).abs()
        return Batch(observations, actions, log_probs, draw(tasks, samples), weights / weights.sum(-1, keepdim=True))

    return theta, batch(), batch()


def kl_from(policy, theta, support, query, config):
    """θ, flat, to the mean KL divergence of the adapted policies from those that ``theta`` adapts to."""
    step_sizes = {name: torch.tensor(0.3, dtype=torch.float64) for name in theta}

    def adapted(flat):
        shares = flat.split([p.numel() for p in theta.values()])
        params = {name: share.view_as(p) for (name, p), share in zip(theta.items(), shares, strict=True)}
        return maml.adapt_on(policy, params, step_sizes, [support], config)

    flat = torch.cat([p.flatten() for p in theta.values()]).requires_grad_()
    before = {name: p.detach() for name, p in adapted(flat).items()}
    return flat, lambda x: (query.weights * policy.kl(before, adapted(x), query.observations)).sum(-1).mean()


@pytest.mark.parametrize("policy", [DISCRETE, CONTINUOUS], ids=["softmax", "gaussian"])
def test_the_fisher_vector_product_is_the_hessian_of_the_kl_divergence_times_the_vector(policy, generator):
    theta, support, query = problem(policy, generator)
    flat, kl = kl_from(policy, theta, support, query, TINY)
    slope = trust_region.flat_gradient(kl(flat), [flat], differentiable=True)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)

    # Column by column, by differences of first derivatives: no second or third derivative is taken.
    h, columns = 1e-5, []
    for i in range(len(flat)):
        shift = torch.zeros_like(flat)
        shift[i] = h
        sides = [(flat + sign * shift).detach().requires_grad_() for sign in (1, -1)]
        up, down = (torch.autograd.grad(kl(x), x)[0] for x in sides)
        columns.append((up - down) / (2 * h))
    hessian = torch.stack(columns, 1)
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-7)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-7 and hessian.norm() > 1e-2
    for _ in range(3):
        v = torch.randn(len(flat), generator=generator, dtype=torch.float64)
        torch.testing.assert_close(trust_region.flat_gradient(slope @ v, [flat]), hessian @ v, rtol=1e-5, atol=1e-7)

    # It is Jᵀ F J, with J the adaptation's Jacobian and F the Fisher information of the adapted policies.
    first_order = kl_from(policy, theta, support, query, replace(TINY, first_order=True))[1]
    other = torch.autograd.functional.hessian(first_order, flat.detach())
    assert (other - hessian).norm() > 0.01 * hessian.norm(), "the adaptation's own derivative is not negligible here"


# --- the step ---------------------------------------------------------------------------------------------------------


def test_a_step_in_a_quadratic_world_is_the_formula():
    """Objective gᵀx, divergence ½ xᵀFx: the step is √(2δ/gᵀF⁻¹g) F⁻¹g, and it ends on the edge of the region."""
    fisher = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    leaves = [torch.zeros(1, 2, dtype=torch.float64).requires_grad_(), torch.zeros(1, dtype=torch.float64).requires_grad_()]

    def part(share):
        def evaluate():
            x = torch.cat([leaf.flatten() for leaf in leaves])
            return share * slope @ x, share * 0.5 * x @ fisher @ x

        return evaluate

    outcome = trust_region.step(leaves, [part(0.3), part(0.7)], radius=0.02 * (1 + 1e-9), damping=0.0)
    newton = torch.linalg.solve(fisher, slope)
    expected = (2 * 0.02 / (slope @ newton)).sqrt() * newton
    torch.testing.assert_close(torch.cat([leaf.detach().flatten() for leaf in leaves]), expected)
    assert outcome.length == 1 and outcome.divergence == pytest.approx(0.02)
    assert outcome.gain == pytest.approx(float(slope @ expected))


def test_curvature_from_some_of_the_parts_is_scaled_to_all_of_them():
    """Of four parts the first and the third are seen, whose curvatures 1 and 3 stand for all: F is 8, and not 1 + 9 + 3 + 9."""
    x = torch.zeros(1, dtype=torch.float64).requires_grad_()
    parts = [lambda c=c: (x.sum() / 4, c * 0.5 * x.square().sum()) for c in (1, 9, 3, 9)]
    outcome = trust_region.step([x], parts, radius=0.02, damping=0.0, every=2)
    full = (2 * 0.02 / 8) ** 0.5
    assert x.item() == pytest.approx(outcome.length * full) and outcome.length == pytest.approx(0.8**3)
    assert outcome.divergence == pytest.approx(22 * 0.5 * x.item() ** 2) and outcome.divergence <= 0.02


def test_the_line_search_shortens_a_step_that_goes_too_far():
    x = torch.zeros(1, dtype=torch.float64).requires_grad_()
    cubic = lambda: (x.sum(), (0.5 * x.square() + 10 * x.abs() ** 3).sum())  # noqa: E731
    outcome = trust_region.step([x], [cubic], radius=0.02, damping=0.0)
    full = (2 * 0.02) ** 0.5
    lengths = [0.8**k for k in range(15)]
    longest = next(k for k in lengths if 0.5 * (k * full) ** 2 + 10 * (k * full) ** 3 <= 0.02)
    assert 0.2 < longest < 1 and outcome.length == longest
    assert x.item() == pytest.approx(longest * full)


def test_where_no_step_helps_everything_stays_exactly_as_it_was():
    x = torch.full((1,), 0.3).requires_grad_()
    liar = lambda: ((2 * x.detach() - x).sum() * -1, 0.5 * (x - 0.3).square().sum())  # noqa: E731
    assert trust_region.step([x], [liar], radius=0.02) == (0.0, 0.0, 0.0)
    assert torch.equal(x.detach(), torch.full((1,), 0.3))


def test_a_gradient_that_is_not_finite_is_refused():
    x = torch.zeros(1).requires_grad_()
    with pytest.raises(FloatingPointError, match=r"^the meta-gradient is not finite \(NaN or infinity\)$"):
        trust_region.step([x], [lambda: (x.sqrt().sum(), 0.5 * x.square().sum())], radius=0.02)


# --- as MAML's outer step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [DISCRETE, CONTINUOUS], ids=["softmax", "gaussian"])
@pytest.mark.parametrize("step_sizes", ["fixed", "per_tensor"])
def test_the_adapted_policies_gain_within_the_radius(policy, step_sizes, generator):
    theta, support, query = problem(policy, generator, tasks=4, samples=60)
    config = replace(TINY, radius=0.003, step_sizes=step_sizes)
    theta = {name: p.requires_grad_() for name, p in theta.items()}
    log_alpha = {name: torch.full((1, 1, 1), -1.0, dtype=torch.float64).requires_grad_() for name in theta}

    def now():
        alpha = {name: p.exp() for name, p in log_alpha.items()}
        phi = {name: p.detach() for name, p in maml.adapt_on(policy, theta, alpha, [support], config).items()}
        return phi, maml.meta_objective(policy, theta, alpha, [support], query, config).mean().item()

    (before, value), start = now(), log_alpha["weight_0"].detach().clone()
    maml.trust_region_step(policy, theta, log_alpha, [support, query], config)
    after, higher = now()
    divergence = (query.weights * policy.kl(before, after, query.observations)).sum(-1).mean().item()
    assert higher > value + 1e-3
    assert 0.001 < divergence <= 0.003
    assert torch.equal(start, log_alpha["weight_0"].detach()) == (step_sizes == "fixed")


def test_it_finds_the_best_arm(generator):
    """No observation, two arms: repeated steps move all probability to the arm that pays, each by at most the radius."""
    policy = PolicyNet(1, 2, hidden=())
    theta = {name: p.requires_grad_() for name, p in policy.init(1, generator, torch.float64).items()}
    seen, arms = torch.zeros(1, 2, 1, dtype=torch.float64), torch.tensor([[0, 1]])
    paid = []
    for _ in range(120):
        log_probs = policy.log_prob(theta, seen, arms).detach()
        paid.append(log_probs.exp()[0, 1].item())
        batch = Batch(seen, arms, log_probs, torch.tensor([[0.0, 1.0]], dtype=torch.float64), log_probs.exp())
        maml.trust_region_step(policy, theta, {}, [batch], replace(TINY, tasks=1, inner_steps=0, step_sizes="fixed"))
    assert paid[0] == pytest.approx(0.5, abs=0.01) and paid[-1] > 0.99
    assert all(b > a for a, b in zip(paid, paid[1:], strict=False) if a < 0.99)
    # Near one half KL is 2 (p − ½)², so that a radius of 0.01 allows a change of 0.0707, less what the line search takes.
    assert 0.05 < paid[1] - paid[0] < 0.0708


def test_training_with_it_is_reproducible_and_resumes_bit_for_bit():
    world = Navigation(max_steps=10)
    run = lambda **changes: list(maml.train(world, policy_for(world), replace(TINY, iterations=3), **changes))  # noqa: E731
    whole, again = run(), run()
    resumed = run(resume=whole[0].state)
    for name, p in whole[-1].params.items():
        assert torch.equal(p, again[-1].params[name]) and torch.equal(p, resumed[-1].params[name])
    assert not torch.equal(whole[0].params["weight_0"], whole[1].params["weight_0"])
    alpha = whole[-1].step_sizes
    assert any((alpha[name] != 0.5).all() for name in alpha), "step sizes are learned by the same step"


def test_how_tasks_are_grouped_does_not_matter(monkeypatch):
    """With one product in place of conjugate gradients, which on a matrix as singular as this make much of the last digit."""
    monkeypatch.setattr(trust_region, "conjugate_gradient", lambda product, target, iterations: product(target))
    world = Navigation(max_steps=10, dtype=torch.float64)
    ends = []
    for group in (1, 3, 4):
        (log,) = islice(maml.train(world, policy_for(world), replace(TINY, group=group)), 1)
        ends.append(log.params)
    for name in ends[0]:
        for other in ends[1:]:
            torch.testing.assert_close(ends[0][name], other[name], rtol=1e-5, atol=1e-8)


def test_a_bad_setting_is_named_in_one_sentence():
    with pytest.raises(ValueError, match=r"^unknown outer 'adam'; there are clipped, trust_region$"):
        replace(TINY, outer="adam")
    with pytest.raises(ValueError, match=r"^radius must be positive and finite, got 0.0$"):
        replace(TINY, radius=0.0)
