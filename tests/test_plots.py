import itertools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from metarl_lib import plots
from metarl_lib.evaluate import interval

# Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113, severity 1: what a colour-blind eye receives, linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
COLOURS = sorted({look.colour for look in plots.LOOKS.values()})

# What is drawn in one figure somewhere in the book.
FIGURES = [
    ["maml", "domain-randomised", "first-order", "naive", "random", "oracle"],
    ["maml", "reptile", "rl2", "matching-networks", "random", "oracle"],
    ["maml", "pmaml", "random", "oracle"],
    ["rl2", "rl2-attention", "posterior-sampling", "random", "oracle"],
    ["q-learning", "sarsa", "expected-sarsa", "random", "oracle"],
    ["reinforce", "actor-critic", "random", "oracle"],
    ["dqn", "ppo", "sac", "random"],
]


def linear(colour):
    c = np.array(mpl.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    f = np.cbrt(TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a, b):
    light, dark = sorted((TO_XYZ[1] @ linear(c) for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture
def ax():
    return Figure().add_subplot()


def test_contrast_is_that_of_wcag():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("ground", ["#FFFFFF", "#121212"])
def test_colours_are_legible_in_both_themes(colour, ground):
    assert contrast(colour, ground) >= 3


@pytest.mark.parametrize("eye", EYES)
def test_colours_stay_apart_for_every_eye(eye):
    # A difference of 2.3 is the smallest that is noticed.
    apart = {
        (a, b): np.linalg.norm(lab(EYES[eye] @ linear(a)) - lab(EYES[eye] @ linear(b)))
        for a, b in itertools.combinations(COLOURS, 2)
    }
    assert min(apart.values()) > 15, min(apart, key=apart.get)


@pytest.mark.parametrize("figure", FIGURES)
def test_algorithms_that_meet_differ_in_colour_and_in_line_and_marker(figure):
    looks = [plots.look(name) for name in figure]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(looks)


def test_no_two_algorithms_look_the_same():
    names = set(itertools.chain(*FIGURES))
    assert names == set(plots.LOOKS)
    for field in ("label", "marker"):
        assert len({getattr(look, field) for look in plots.LOOKS.values()}) == len(plots.LOOKS)
    assert len({(look.colour, str(look.linestyle)) for look in plots.LOOKS.values()}) == len(plots.LOOKS)


def test_unknown_algorithm():
    with pytest.raises(ValueError, match="unknown algorithm 'maml2'; there are oracle, random, maml"):
        plots.look("maml2")


def test_curve_draws_the_mean_and_its_interval(ax):
    samples = np.random.default_rng(0).normal(size=(10, 4))
    plots.curve(ax, [0, 10, 20, 30], torch.tensor(samples), "maml")
    (line,), (band,) = ax.lines, ax.collections
    np.testing.assert_allclose(line.get_ydata(), samples.mean(0))
    assert (line.get_color(), line.get_label()) == (plots.BLUE, "MAML")
    _, low, high = interval(samples)
    corners = band.get_paths()[0].vertices
    for x, a, b in zip([0, 10, 20, 30], low, high, strict=True):
        at_x = corners[corners[:, 0] == x, 1]
        assert (at_x.min(), at_x.max()) == (pytest.approx(a), pytest.approx(b))


def test_a_single_seed_has_no_band(ax):
    plots.curve(ax, [0, 1], [[1.0, 2.0]], "oracle", label="knows the task")
    assert len(ax.lines) == 1
    assert not ax.collections
    assert ax.lines[0].get_label() == "knows the task"


def test_adaptation_draws_every_algorithm_with_error_bars(ax):
    maml, random = np.random.default_rng(0).normal(size=(2, 10, 4))
    plots.adaptation(ax, {"maml": maml, "random": random}, labels={"random": "random init"})
    handles, labels = ax.get_legend_handles_labels()
    assert labels == ["MAML", "random init"]
    for handle, samples, shift in zip(handles, (maml, random), (-0.025, 0.025), strict=True):
        line, _, (bars,) = handle
        np.testing.assert_allclose(line.get_xdata(), np.arange(4) + shift)
        np.testing.assert_allclose(line.get_ydata(), samples.mean(0))
        _, low, high = interval(samples)
        np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], np.stack((low, high), 1))


@pytest.mark.parametrize("samples", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [[[1.0, 2.0]]], np.zeros((0, 2))])
def test_samples_of_the_wrong_shape(ax, samples):
    with pytest.raises(ValueError, match=r"samples must be \[seed, 2\], got shape"):
        plots.curve(ax, [0, 1], samples, "maml")


def test_style_is_sharp_and_small(tmp_path):
    with mpl.rc_context():
        plots.use_style()
        fig = Figure()
        ax = fig.add_subplot()
        rng = np.random.default_rng(0)
        for algorithm in FIGURES[0]:
            plots.curve(ax, range(20), rng.normal(size=(10, 20)).cumsum(1), algorithm)
        ax.legend()
        fig.savefig(tmp_path / "figure.png")
        assert fig.dpi == 144
    assert (tmp_path / "figure.png").stat().st_size < 120_000
