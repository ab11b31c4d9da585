"""Measures of mixtures of predictions, against numbers worked out by hand and against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from metarl_lib import mixtures
from metarl_lib.sinusoids import Curve, Posterior, SinusoidsOrLines


def tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_density_and_cumulative_are_those_of_torchs_mixtures():
    draws = torch.Generator().manual_seed(0)
    predictions, y = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in ((3, 5, 4), (3, 4)))
    for noise in (0.4, torch.rand(3, 5, 4, generator=draws, dtype=torch.float64) + 0.1):
        scale = torch.as_tensor(noise, dtype=torch.float64).expand(3, 5, 4).transpose(1, 2)
        mixture = MixtureSameFamily(Categorical(torch.ones(3, 4, 5).double()), Normal(predictions.transpose(1, 2), scale))
        torch.testing.assert_close(mixtures.log_density(predictions, y, noise), mixture.log_prob(y))
        torch.testing.assert_close(mixtures.cumulative(predictions, y, noise), mixture.cdf(y))


def test_two_modes_by_hand():
    # Two samples at ±1 and noise 1. At y = 1: density (φ(0) + φ(2)) / 2. At y = 0 half of the mass is below.
    predictions, y = tensor([[[1.0, 1.0], [-1.0, -1.0]]]), tensor([[1.0, 0.0]])
    by_hand = [math.log((1 + math.exp(-2)) / 2 / math.sqrt(2 * math.pi)), math.log(math.exp(-0.5) / math.sqrt(2 * math.pi))]
    assert mixtures.log_density(predictions, y, 1.0)[0].tolist() == pytest.approx(by_hand)
    assert mixtures.cumulative(predictions, y, 1.0)[0].tolist() == pytest.approx([(0.5 + 0.9772499) / 2, 0.5])


def test_coverage_and_calibration_by_hand():
    # |2 u − 1| is 0, 0.5, 0.8 and 1: the central 40% hold one of four, the central 50% two, 90% three.
    u = tensor([[0.5, 0.25], [0.9, 0.0]])
    levels = (0.4, 0.5, 0.9)
    assert mixtures.coverage(u, levels).tolist() == [0.25, 0.5, 0.75]
    assert mixtures.calibration_error(u, levels) == pytest.approx((0.15 + 0 + 0.15) / 3)


def test_what_is_calibrated_has_no_error_and_what_is_too_sure_or_unsure_has():
    draws = torch.Generator().manual_seed(1)
    predictions = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64).expand(20_000, 2, 1)
    centre = predictions[:, 0] * (2 * torch.randint(2, (20_000, 1), generator=draws) - 1)
    y = centre + 0.3 * torch.randn(20_000, 1, generator=draws, dtype=torch.float64)
    error = {noise: mixtures.calibration_error(mixtures.cumulative(predictions, y, noise)) for noise in (0.3, 0.1, 1.0)}
    assert error[0.3] < 0.01 and error[0.1] > 0.1 and error[1.0] > 0.05
    one = mixtures.cumulative(predictions[:, :1], y, 0.3)  # one mode of the two
    assert mixtures.calibration_error(one) > 0.25


def test_the_best_sample_by_hand():
    predictions = tensor([[[0.0, 0.0], [1.0, 3.0]], [[5.0, 5.0], [0.0, 2.0]]])
    assert mixtures.best_of(predictions, tensor([[0.0, 1.0], [1.0, 2.0]])).tolist() == [0.5, 0.5]
    assert mixtures.best_of(predictions[:, :1], tensor([[0.0, 1.0], [1.0, 2.0]])).tolist() == [0.5, 12.5]


def test_kinds_covered_by_hand():
    # Four curves: the lines y = x and y = −x, the sinusoids 2 sin(x) and 2 sin(x − π/2). For the first task −x and 2 sin(x − π/2)
    # are out of the question, for the second all four are as probable.
    curves = Curve(
        line=torch.tensor([True, True, False, False]),
        amplitude=tensor([0, 0, 2, 2]),
        phase=tensor([0, 0, 0, math.pi / 2]),
        slope=tensor([1, -1, 0, 0]),
        intercept=tensor([0, 0, 0, 0]),
    )
    posterior = Posterior(curves, tensor([[-1, -50, -8, -70], [-1.4, -1.4, -1.4, -1.4]]))
    x = torch.linspace(-5, 5, 50, dtype=torch.float64)
    line, other_line, wave, other_wave = x, -x, 2 * torch.sin(x), 2 * torch.sin(x - math.pi / 2)

    def covered(*samples: torch.Tensor) -> list[list[bool]]:
        both = torch.stack(samples).expand(2, -1, -1)
        return mixtures.kinds_covered(SinusoidsOrLines(), posterior, both, x).tolist()

    assert covered(line, wave) == [[True, True], [True, True]]
    assert covered(line, line + 0.4) == [[True, False], [True, False]]
    assert covered(line + 0.6, wave) == [[False, True], [False, True]], "0.6 from any curve is further than 0.5"
    assert covered(other_line, other_wave) == [[False, False], [True, True]]
    assert covered((line + wave) / 2) == [[False, False], [False, False]], "what lies between two answers is neither"
