"""Curves to regress: the published distribution, disjoint splits, and an exact posterior against numerical integration."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from metarl_lib.sinusoids import Curve, Examples, Sinusoid, Sinusoids, SinusoidsOrLines, interleaved
from metarl_lib.types import index_tasks

DOUBLE = Sinusoids(dtype=torch.float64)
CURVES = SinusoidsOrLines(dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_have_no_slice_in_common_and_gaps_between_them():
    position = {split: interleaved(200_000, generator(), split) * 1000 for split in ("train", "validation", "test")}
    slices = {split: set(x.floor().long().tolist()) for split, x in position.items()}
    assert {split: len(found) for split, found in slices.items()} == {"train": 600, "validation": 200, "test": 200}
    assert not slices["train"] & slices["test"] and not slices["train"] & slices["validation"]
    assert not slices["validation"] & slices["test"]
    for x in position.values():
        assert ((x % 1 > 0.049) & (x % 1 < 0.951)).all()


@pytest.mark.parametrize("split", ["train", "validation", "test", "iid"])
def test_each_split_is_uniform_to_half_a_per_cent(split):
    u = interleaved(400_000, generator(1), split).sort().values
    steps = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
    # 0.005 from the slices, and the sampling error at the level of one in ten thousand.
    assert (steps - u).abs().max() < (0.005 if split != "iid" else 0) + 2.23 / math.sqrt(len(u))


@pytest.mark.parametrize(
    ("world", "held"), [(Sinusoids(), "phase"), (SinusoidsOrLines(), "phase"), (SinusoidsOrLines(), "slope")]
)
def test_no_held_out_task_equals_a_training_task(world, held):
    drawn = {split: getattr(world.sample_tasks(50_000, generator(), split), held) for split in ("train", "validation", "test")}
    seen = {split: set(values.tolist()) for split, values in drawn.items()}
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"] and not seen["test"] & seen["validation"]


@pytest.mark.parametrize("split", ["train", "test", "iid"])
def test_tasks_have_the_published_ranges(split):
    task = DOUBLE.sample_tasks(20_000, generator(), split)
    for leaf, low, high in ((task.amplitude, 0.1, 5.0), (task.phase, 0.0, math.pi)):
        assert leaf.min() >= low and leaf.max() <= high
        assert leaf.mean().item() == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * len(leaf)))
    assert abs(torch.corrcoef(torch.stack(tuple(task)))[0, 1]) < 4 / math.sqrt(len(task.phase))


def test_out_of_distribution_tasks_lie_beyond_every_range():
    task = DOUBLE.sample_tasks(1000, generator(), "ood")
    assert 5 < task.amplitude.min() and task.amplitude.max() <= 7.5
    assert math.pi < task.phase.min() and task.phase.max() <= 1.5 * math.pi
    curve = CURVES.sample_tasks(1000, generator(), "ood")
    assert 3 < curve.amplitude.min() and curve.amplitude.max() <= 4.5
    assert math.pi < curve.phase.min() and curve.phase.max() <= 1.5 * math.pi
    for leaf in (curve.slope, curve.intercept):
        assert 1 < leaf.abs().min() and leaf.abs().max() <= 1.5
        assert 0.4 < (leaf > 0).double().mean() < 0.6


# --- sinusoids --------------------------------------------------------------------------------------------------------


def test_the_function_by_hand():
    task = Sinusoid(torch.tensor([2.0, 0.5]), torch.tensor([0.0, math.pi / 2]))
    x = torch.tensor([math.pi / 2, math.pi]).expand(2, 2)[..., None]
    torch.testing.assert_close(Sinusoids().function(task, x)[..., 0], torch.tensor([[2.0, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(Sinusoids().function(task, x[..., 0]), torch.tensor([[2.0, 0.0], [0.0, 0.5]]))


def test_examples_lie_on_their_own_curve_with_inputs_over_the_whole_range():
    task = DOUBLE.sample_tasks(500, generator())
    x, y = DOUBLE.sample(task, 40, generator(1))
    assert x.shape == y.shape == (500, 40, 1)
    expected = [task.amplitude[i] * torch.sin(x[i] - task.phase[i]) for i in range(500)]
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert stats.kstest(x.flatten(), stats.uniform(-5, 10).cdf).pvalue > 1e-4
    half = DOUBLE.sample(task, 40, generator(1), x_range=(0.0, 5.0)).x
    assert half.min() >= 0 and half.max() <= 5


def test_two_examples_and_the_family_determine_the_curve():
    # A sin(x − φ) = a sin x + b cos x: for an oracle that knows the family, two examples are enough.
    task = DOUBLE.sample_tasks(100, generator())
    support, query = DOUBLE.support_and_query(task, 2, 50, generator(1))
    features = [torch.cat((torch.sin(x), torch.cos(x)), -1) for x in (support.x, query.x)]
    predicted = features[1] @ torch.linalg.solve(features[0], support.y)
    torch.testing.assert_close(predicted, query.y, rtol=0, atol=1e-7)


def test_support_and_query_have_no_example_in_common():
    for world in (Sinusoids(), SinusoidsOrLines()):
        support, query = world.support_and_query(world.sample_tasks(200, generator()), 5, 10, generator(1))
        assert support.x.shape == (200, 5, 1) and query.y.shape == (200, 10, 1)
        assert not (support.x == query.x.transpose(1, 2)).any()


def test_an_oracle_is_shown_amplitude_and_phase_and_the_same_curves():
    blind, oracle = Sinusoids(), Sinusoids(observe_task=True)
    task = blind.sample_tasks(7, generator())
    x, y = oracle.sample(task, 3, generator(1))
    seen = blind.sample(task, 3, generator(1))
    assert oracle.input_size == x.shape[-1] == 3 and blind.input_size == seen.x.shape[-1] == 1
    assert torch.equal(x[..., :1], seen.x) and torch.equal(y, seen.y)
    assert torch.equal(x[:, 2, 1], task.amplitude) and torch.equal(x[:, 0, 2], task.phase)


def test_the_generator_decides_everything():
    task = Sinusoids().sample_tasks(10, generator(3))
    again = Sinusoids().sample_tasks(10, generator(3))
    assert torch.equal(task.amplitude, again.amplitude) and torch.equal(task.phase, again.phase)
    assert not torch.equal(task.phase, Sinusoids().sample_tasks(10, generator(4)).phase)


# --- sinusoids or lines -----------------------------------------------------------------------------------------------


def test_a_curve_is_a_line_or_a_sinusoid():
    two = torch.tensor([2.0, 2.0], dtype=torch.float64)
    task = Curve(torch.tensor([True, False]), two, 0 * two, two / 4, two / 2)
    x = torch.tensor([3.0, -1.0], dtype=torch.float64).expand(2, 2)[..., None]
    expected = torch.tensor([[2.5, 0.5], [2 * math.sin(3), 2 * math.sin(-1)]], dtype=torch.float64)
    torch.testing.assert_close(CURVES.function(task, x)[..., 0], expected)


def test_noise_window_and_odds_are_as_they_should_be():
    task = CURVES.sample_tasks(20_000, generator())
    assert task.line.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20_000))
    support, query = CURVES.support_and_query(task, 3, 5, generator(1))
    assert (support.x.amax(1) - support.x.amin(1)).max() <= 4
    assert (support.x.amax(1) - support.x.amin(1)).mean().item() == pytest.approx(2, abs=0.05)  # of three in a window of 4
    assert support.x.min() >= -5 and support.x.max() <= 5 and support.x.abs().max() > 4.9
    assert stats.kstest(query.x.flatten(), stats.uniform(-5, 10).cdf).pvalue > 1e-4
    for examples in (support, query):
        error = (examples.y - CURVES.function(task, examples.x)).flatten()
        assert stats.kstest(error / 0.3, "norm").pvalue > 1e-4


def evidence(x: torch.Tensor, y: torch.Tensor, line: bool) -> float:
    """p(y | x, kind of curve): the likelihood integrated over the two parameters of one kind, by adaptive quadrature."""
    points = list(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))

    def likelihood(b: float, a: float) -> float:
        mean = (lambda x: a * x + b) if line else (lambda x: a * math.sin(x - b))
        return math.prod(math.exp(-0.5 * ((y - mean(x)) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi)) for x, y in points)

    a, b = ((-1, 1), (-1, 1)) if line else ((0.5, 3), (0, math.pi))
    volume = (a[1] - a[0]) * (b[1] - b[0])
    return integrate.dblquad(likelihood, *a, *b, epsabs=1e-9, epsrel=1e-7)[0] / volume


def test_posterior_and_predictive_are_those_of_numerical_integration():
    # Tasks by hand, so that some are settled and others in doubt: y near a line, near a sinusoid, and near both.
    x = torch.tensor([[-1.0, 0.5, 1.5], [-1.0, 1.0, 3.0], [-0.5, 0.0, 0.6]], dtype=torch.float64)[..., None]
    y = torch.tensor([[-0.8, 0.5, 1.4], [-1.8, 1.7, 0.3], [-0.6, 0.1, 0.5]], dtype=torch.float64)[..., None]
    query_y = torch.tensor([[1.3, 2.6], [1.7, -0.5], [0.8, 1.9]], dtype=torch.float64)[..., None]
    query = Examples(x[:, :2] + 2.5, query_y)
    posterior = CURVES.posterior(Examples(x, y), points=200)
    log_predictive, lines = CURVES.log_predictive(posterior, query), []
    for i in range(3):
        both = [evidence(x[i], y[i], line) for line in (True, False)]
        lines.append(both[0] / sum(both))
        for j in range(2):
            joint = (torch.cat((leaf[i], more[i, j : j + 1])) for leaf, more in zip((x, y), query, strict=True))
            joint = list(joint)
            expected = math.log(sum(evidence(*joint, line) for line in (True, False)) / sum(both))
            assert log_predictive[i, j].item() == pytest.approx(expected, abs=4e-4)
    torch.testing.assert_close(posterior.line, torch.tensor(lines, dtype=torch.float64), rtol=0, atol=4e-4)
    assert min(lines) < 0.05 and 0.2 < sorted(lines)[1] < 0.9


def test_the_grid_is_fine_enough():
    task = CURVES.sample_tasks(40, generator(), "test")
    support, query = CURVES.support_and_query(task, 3, 20, generator(1))
    coarse, fine = (CURVES.log_predictive(CURVES.posterior(support, n), query) for n in (48, 120))
    assert (coarse - fine).abs().mean() < 1e-3


def test_predictive_mean_and_samples_are_those_of_the_predictive_density():
    support, query = CURVES.support_and_query(CURVES.sample_tasks(3, generator(5)), 3, 1, generator(6))
    posterior = CURVES.posterior(support, 32)
    mean = CURVES.predictive_mean(posterior, query.x)
    y = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    for i in range(3):
        density = CURVES.log_predictive(
            posterior._replace(log_weights=posterior.log_weights[i : i + 1]),
            Examples(query.x[i : i + 1].expand(1, 4001, 1), y[None, :, None]),
        ).exp()[0]
        assert torch.trapezoid(density, y).item() == pytest.approx(1, abs=1e-9)
        assert torch.trapezoid(density * y, y).item() == pytest.approx(mean[i, 0, 0].item(), abs=1e-9)
    curves = posterior.sample(20_000, generator(7))
    assert curves.line.unflatten(0, (3, -1)).double().mean(1).tolist() == pytest.approx(posterior.line.tolist(), abs=0.02)
    values = CURVES.function(curves, query.x.repeat_interleave(20_000, 0)).unflatten(0, (3, -1)).mean((1, 2, 3))
    assert values.tolist() == pytest.approx(mean.flatten().tolist(), abs=0.06)


def test_no_predictor_does_better_than_the_posterior():
    # A density that knows the truth's kind is better; one that has been told the wrong prior is worse.
    task = CURVES.sample_tasks(400, generator(8))
    support, query = CURVES.support_and_query(task, 3, 10, generator(9))
    posterior = CURVES.posterior(support, 32)
    exact = CURVES.log_predictive(posterior, query).mean()
    told = posterior.log_weights + torch.where(posterior.curves.line == task.line[:, None], 0.0, -torch.inf)
    skewed = posterior.log_weights + posterior.curves.line * 2.0
    blind = torch.full_like(posterior.log_weights, -math.log(posterior.log_weights.shape[1]))
    scores = [
        CURVES.log_predictive(posterior._replace(log_weights=w.log_softmax(-1)), query).mean() for w in (told, skewed, blind)
    ]
    assert scores[0] > exact > scores[1] > scores[2]


def test_many_examples_settle_the_question():
    task = CURVES.sample_tasks(100, generator(10))
    support = CURVES.observe(task, torch.linspace(-5, 5, 40, dtype=torch.float64).expand(100, 40)[..., None], generator(11))
    line = CURVES.posterior(support).line
    assert torch.equal(line > 0.999, task.line) and torch.equal(line < 0.001, ~task.line)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [Sinusoids(), SinusoidsOrLines()])
def test_bad_input_is_named_in_one_sentence(world):
    with pytest.raises(ValueError, match="n must be at least 1 task, got 0"):
        world.sample_tasks(0, generator())
    with pytest.raises(ValueError, match="unknown split 'tests'; there are train, validation, test, iid, ood"):
        world.sample_tasks(1, generator(), "tests")
    with pytest.raises(ValueError, match="shots and queries must be at least 1, got 0"):
        world.sample(world.sample_tasks(1, generator()), 0, generator())
    for change in ({"noise": 0.0}, {"noise": math.inf}, {"window": 11.0}, {"window": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be .*, got {next(iter(change.values()))}"):
            SinusoidsOrLines(**change)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        CURVES.posterior(index_tasks(CURVES.sample(CURVES.sample_tasks(1, generator()), 3, generator()), slice(0, 1)), 0)
