"""The book's figures: one style, and one look per algorithm wherever it appears.

The seven colours are four of Okabe and Ito's, a grey, a brown and a violet. Each stands out from both white and near-black
(contrast at least 3), and they stay apart for readers who are colour-blind; line style and marker tell the algorithms
apart without any colour. Algorithms that share a colour never meet in one figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .evaluate import interval

BLUE, VERMILLION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY, BROWN, VIOLET = "#666666", "#A0522D", "#8F6BE8"


class Look(NamedTuple):
    """How an algorithm is drawn, and what a legend calls it."""

    label: str
    colour: str
    linestyle: Any
    marker: str


_DOT_DOT_DASH = (0, (6, 1.5, 1, 1.5, 1, 1.5))

LOOKS = {
    # in every chapter
    "oracle": Look("oracle", GREEN, "--", "*"),
    "random": Look("random", GREY, ":", "x"),
    # adapting to a task
    "maml": Look("MAML", BLUE, "-", "o"),
    "domain-randomised": Look("domain-randomised", VERMILLION, "--", "s"),
    "first-order": Look("first-order MAML", PINK, "-.", "^"),
    "naive": Look("MAML, log-probability surrogate", BROWN, _DOT_DOT_DASH, "v"),
    "reptile": Look("Reptile", VIOLET, "-.", "D"),
    "rl2": Look("RL²", BROWN, "-", "P"),
    "rl2-attention": Look("RL² with attention", VIOLET, ":", "3"),
    "posterior-sampling": Look("posterior sampling", BLUE, ":", "4"),
    "matching-networks": Look("Matching Networks", PINK, "-", "h"),
    "pmaml": Look("probabilistic MAML", VIOLET, "-", "d"),
    # one task
    "q-learning": Look("Q-learning", BLUE, "--", "<"),
    "sarsa": Look("SARSA", VERMILLION, "-", ">"),
    "expected-sarsa": Look("Expected SARSA", PINK, "--", "8"),
    "reinforce": Look("REINFORCE", BROWN, "--", "p"),
    "actor-critic": Look("actor-critic", VIOLET, "--", "X"),
    "dqn": Look("DQN", BLUE, "-.", "H"),
    "ppo": Look("PPO", VERMILLION, "-.", "1"),
    "sac": Look("SAC", PINK, ":", "2"),
}


def look(algorithm: str) -> Look:
    """The look of an algorithm by its name in :data:`LOOKS`."""
    if algorithm not in LOOKS:
        raise ValueError(f"unknown algorithm {algorithm!r}; there are {', '.join(LOOKS)}")
    return LOOKS[algorithm]


def use_style() -> None:
    """Set matplotlib's defaults for the book.

    The ground is white on purpose: a transparent figure is readable in one theme or the other, and in every viewer
    that ignores the theme this one still is.
    """
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 144,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 144,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "errorbar.capsize": 3,
            "legend.edgecolor": "none",
        }
    )


def curve(ax: Axes, x: Any, samples: Any, algorithm: str, label: str | None = None) -> None:
    """Draw the mean of ``samples`` ``[seed, x]`` over ``x`` ``[x]``, with a band for its 95% interval.

    With a single seed there is no interval, and no band. Label the axes yourself, with units.
    """
    x, samples = np.asarray(x), _samples(samples, len(x))
    style = look(algorithm)
    mean = samples.mean(0)
    ax.plot(x, mean, color=style.colour, linestyle=style.linestyle, label=style.label if label is None else label)
    if len(samples) > 1:
        _, low, high = interval(samples)
        ax.fill_between(x, low, high, color=style.colour, alpha=0.2, linewidth=0)


def adaptation(ax: Axes, curves: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Draw return against the number of inner gradient steps, with 95% intervals.

    ``curves`` maps an algorithm's name to its returns, ``[seed, step]`` from step 0; ``labels`` renames some of them.
    Points of one step stand a little apart, so that their intervals can be told from one another.
    """
    labels = labels or {}
    for i, (algorithm, samples) in enumerate(curves.items()):
        samples, style = _samples(samples), look(algorithm)
        steps = np.arange(samples.shape[1]) + 0.05 * (i - (len(curves) - 1) / 2)
        mean = samples.mean(0)
        error = interval(samples).high - mean if len(samples) > 1 else None
        ax.errorbar(
            steps,
            mean,
            yerr=error,
            color=style.colour,
            linestyle=style.linestyle,
            marker=style.marker,
            label=labels.get(algorithm, style.label),
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("inner gradient steps")
    ax.set_ylabel("return")


def _samples(samples: Any, length: int | None = None) -> np.ndarray:
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 2 or samples.size == 0 or (length is not None and samples.shape[1] != length):
        raise ValueError(f"samples must be [seed, {'step' if length is None else length}], got shape {samples.shape}")
    return samples
