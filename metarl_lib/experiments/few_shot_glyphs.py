"""Letters of unseen alphabets after one or five examples: memory, prototypes and gradient steps beside one another.

For every seed each method is trained on the training alphabets and measured on letters of the test alphabets, 5 or 20 at a
time, from 1 or 5 pictures of each. All methods see the same test tasks and pictures; seeds see different ones. The network is
the same up to the embedding; MAML and Reptile put one linear layer on top, which starts at zero.

Every method may draw :data:`PICTURES` training pictures a seed, for all four cells together. They are divided equally among
the networks that it needs: Matching Networks and prototypes one for each number of shots, trained with 20 letters and used
with any number; Reptile one for each number of letters, since its head has as many outputs; MAML one for each cell.

Tuning comes first, and is the same effort for each method: four settings, :data:`TRIALS`, each with a fifth of the pictures
and two seeds that take no part in the result. The one with the highest accuracy on letters of the validation alphabets, with
one shot, 5-way and 20-way averaged, is the one that is trained. The number of gradient steps at test time is that of
:data:`STEPS` which is best on validation tasks.

Beside the four cells: the test alphabets in a typeface with serifs (*ood*), and a memory *for a lifetime*. There the one-shot
network with the cosine meets the test letters one by one. Each is written once; after each come questions about letters met so
far, some of which are popular and some not. A memory of bounded capacity forgets the least recently used, or, for comparison,
what was written first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import matching, reptile, results, supervised_maml as maml
from ..evaluate import interval
from ..glyphs import FONTS, Glyphs, letters
from ..sinusoids import Examples
from ..types import Params
from . import Progress, run_pieces

NAME = "few-shot-glyphs"
SEEDS, PICTURES = 5, 800_000
WAYS, SHOTS, QUERIES = (5, 20), (1, 5), 5
TEST_TASKS, VALIDATION_TASKS, CHECKPOINTS = 250, 40, 10
STEPS = {"MAML": (1, 2, 3, 5), "Reptile": (5, 10, 20, 50)}

NETWORK = matching.Config()
MATCHING = {
    "Matching, cosine": matching.Config(),
    "Matching, Euclidean": matching.Config(similarity="euclidean"),
    "prototypes": matching.Config(similarity="euclidean", memory="prototypes"),
}
MAML = maml.Config(inner_step_size=0.4, step_sizes="per_tensor")
METHODS = {**MATCHING, "MAML": MAML, "Reptile": reptile.Config(shots=10)}
TRIALS = {
    "Matching, cosine": [dict(step_size=s, temperature=t) for s in (3e-3, 1e-2) for t in (0.03, 0.1)],
    "Matching, Euclidean": [dict(step_size=s, temperature=t) for s in (3e-3, 1e-2) for t in (3.0, 30.0)],
    "prototypes": [dict(step_size=s, temperature=t) for s in (3e-3, 1e-2) for t in (3.0, 30.0)],
    "MAML": [dict(meta_step_size=s, inner_steps=k) for s in (1e-3, 3e-3) for k in (1, 2)],
    "Reptile": [dict(inner_step_size=a, inner_steps=k, minibatch=10 // k) for a in (0.2, 0.5) for k in (5, 10)],
}
PIXELS, LIFELONG = "nearest neighbour in pixels", "Matching, cosine"
PIECES = [  # a network each: method, letters and shots that it is trained for, 0 where it serves any
    (PIXELS, 0, 0),
    *((method, 0, shots) for method in MATCHING for shots in SHOTS),
    *(("MAML", way, shots) for way in WAYS for shots in SHOTS),
    *(("Reptile", way, 0) for way in WAYS),
]
TUNING_SEEDS, TUNING_SHARE = 2, 0.2
CAPACITIES, QUESTIONS = (20, 40, 80, 160), 10
RULES = ("least recently used", "first in, first out")
OMNIGLOT = {  # other data, other networks, far more training: for orientation alone
    "Matching Networks": "98.1, 98.9, 93.8, 98.5 (Vinyals et al. 2016)",
    "MAML": "98.7, 99.9, 95.8, 98.9 (Finn et al. 2017)",
    "Reptile": "95.39, 98.90, 88.14, 96.65 (Nichol et al. 2018), without transduction",
}


# --- the methods ------------------------------------------------------------------------------------------------------


def init(way: int, learners: int, generator: torch.Generator) -> Params:
    """The embedding of :mod:`metarl_lib.matching`, and a linear layer with ``way`` outputs that starts at zero."""
    params = matching.init(learners, generator, Glyphs().size, NETWORK)
    del params["log_temperature"]
    weight = torch.zeros(learners, NETWORK.embedding, way, device=generator.device)
    return params | {"weight_head": weight, "bias_head": weight[:, :1].clone()}


def classify(params: Params, x: Tensor) -> Tensor:
    """Logits ``[task, picture, way]`` of pictures ``[task, picture, pixel]``."""
    return torch.baddbmm(params["bias_head"], matching.embed(params, x).relu(), params["weight_head"])


Answer = Callable[[Examples, Tensor, int], Tensor]
"""``answer(support, query, way)``: labels ``[learner · task, query]``."""


def planned(method: str, config: Any, way: int, shots: int, learners: int, pictures: int, seed: int) -> Any:
    """``config`` for ``learners`` seeds, each of which draws ``pictures`` training pictures."""
    tasks = 2 if method in STEPS and way == 20 else 4
    each = config.shots if method == "Reptile" else shots + QUERIES  # pictures of each letter of a task
    config = replace(config, learners=learners, tasks=tasks, iterations=max(1, pictures // (tasks * way * each)), seed=seed)
    return config if method == "Reptile" else replace(config, shots=shots, queries=QUERIES)


def train(method: str, config: Any, way: int) -> Iterator[Any]:
    """Train on tasks of ``way`` letters."""
    if method not in STEPS:
        return matching.train(Glyphs(way), config)
    algorithm = maml if method == "MAML" else reptile
    return algorithm.train(Glyphs(way), config, partial(init, way), classify, maml.cross_entropy)


def answerer(method: str, config: Any, log: Any, steps: int) -> Answer:
    """What a trained network does with a task: read what it was shown, or first take ``steps`` gradient steps on it."""

    def by_reading(support: Examples, query: Tensor, way: int) -> Tensor:
        with torch.no_grad():
            return matching.predict(log.params, support, query, way, config).argmax(-1)

    def by_gradient(support: Examples, query: Tensor, way: int) -> Tensor:
        tasks = len(query) // len(log.params["weight_head"])
        theta = maml.spread(log.params, tasks)
        if method == "MAML":
            alpha = maml.spread(log.step_sizes, tasks)
            phi = maml.adapt(theta, alpha, support, steps, apply=classify, loss=maml.cross_entropy)
        else:
            whole = [support] * steps
            phi, _ = reptile.adapt(theta, config.inner_step_size, whole, config.optimizer, classify, maml.cross_entropy)
        with torch.no_grad():
            return classify(phi, query).argmax(-1)

    return by_gradient if method in STEPS else by_reading


# --- measuring --------------------------------------------------------------------------------------------------------


def accuracy(answer: Answer, way: int, shots: int, split: str, learners: int, tasks: int) -> list[float]:
    """Per cent right of every learner on ``tasks`` tasks of its own, ``[learner]``: the same ones for every method."""
    world, right = Glyphs(way), torch.zeros(learners, dtype=torch.float64)
    generator = torch.Generator().manual_seed({"validation": 10_000, "test": 20_000, "ood": 30_000}[split] + 10 * way + shots)
    for start in range(0, tasks, 25):
        task = world.sample_tasks(learners * min(25, tasks - start), generator, split)
        support, query = world.support_and_query(task, shots, QUERIES, generator)
        right += (answer(support, query.x, way) == query.y).double().mean(-1).reshape(learners, -1).sum(-1)
    return (100 * right / tasks).tolist()


def measure(method: str, choice: int, way: int, shots: int, learners: int, scale: float) -> dict[str, Any]:
    """Train one network for every seed, and measure it in the cells that it serves: one piece of the experiment.

    ``choice`` is the setting among the method's trials; ``way`` or ``shots`` is 0 where the network serves any.
    """
    ways, shot_counts = (way,) if way else WAYS, (shots,) if shots else SHOTS
    validation, test = (max(1, round(tasks * scale)) for tasks in (VALIDATION_TASKS, TEST_TASKS))
    if method == PIXELS:
        answers: dict[int, Answer] = {0: lambda support, query, way: matching.nearest_neighbour(support, query)}
        piece: dict[str, Any] = {}
    else:
        networks = sum(name == method for name, *_ in PIECES)
        setting, pictures = replace(METHODS[method], **TRIALS[method][choice]), round(PICTURES * scale / networks)
        config = planned(method, setting, way or 20, shots or 1, learners, pictures, seed=0)
        checkpoints, curve = torch.linspace(1, config.iterations, CHECKPOINTS).round().int().tolist(), []
        for log in train(method, config, way or 20):
            if log.iteration in checkpoints:
                answer = answerer(method, config, log, STEPS.get(method, (0,))[-1])
                curve.append(accuracy(answer, ways[0], shot_counts[0], "validation", learners, validation))
        answers = {k: answerer(method, config, log, k) for k in STEPS.get(method, (0,))}
        piece = {"curve": list(zip(*curve, strict=True)), "config": asdict(config)}  # [learner, checkpoint]
        if method == LIFELONG and shots == 1:
            piece["lifelong"] = {
                f"capacity {capacity} · {rule}": lifetime(log.params, config, capacity, rule)
                for capacity in CAPACITIES
                for rule in RULES
            }
    piece["cells"] = {}
    for w, k in ((w, k) for w in ways for k in shot_counts):
        on_validation = {steps: sum(accuracy(a, w, k, "validation", learners, validation)) for steps, a in answers.items()}
        steps = max(on_validation, key=on_validation.__getitem__)
        scores = {split: accuracy(answers[steps], w, k, split, learners, test) for split in ("test", "ood")}
        piece["cells"][f"{w}-way {k}-shot"] = scores | {"steps": steps}
    return piece


def lifetime(params: Params, config: matching.Config, capacity: int, rule: str) -> list[list[float]]:
    """Per cent of questions answered rightly after each letter, ``[learner, letter]``, by one memory of ``capacity`` slots."""
    learners, world = len(params["log_temperature"]), Glyphs()
    generator = torch.Generator().manual_seed(40_000)
    test = torch.tensor([i for i, letter in enumerate(letters()) if letter.split == "test"])
    order, rank = (torch.rand(learners, len(test), generator=generator).argsort(-1) for _ in range(2))
    met, popularity = test[order], 1 / (1 + rank)
    memory, right = matching.empty(learners, capacity, config.embedding), []
    for t in range(len(test)):
        asked = popularity[:, : t + 1].multinomial(QUESTIONS, replacement=True, generator=generator)
        pictures = world.draw(torch.cat((met[:, t : t + 1], met.gather(1, asked)), 1), generator).flatten(2)
        with torch.no_grad():
            embedded = matching.embed(params, pictures)
        memory = matching.write(memory, embedded[:, :1], torch.full((learners, 1), t))
        attention = matching.log_attention(memory, embedded[:, 1:], config.similarity)
        # There is one slot a letter, so that the label that is read is that of the slot with most attention.
        right.append((memory.labels.gather(1, attention.argmax(-1)) == asked).double().mean(-1))
        if rule == "least recently used":
            memory = matching.mark_read(memory, attention)
    return (100 * torch.stack(right, 1)).tolist()


def tune(method: str, choice: int, scale: float) -> dict[str, Any]:
    """Accuracy of one of ``TRIALS`` on validation letters with one shot, 5-way and 20-way averaged."""
    setting, networks = replace(METHODS[method], **TRIALS[method][choice]), sum(name == method for name, *_ in PIECES)
    pictures, tasks = round(PICTURES * scale * TUNING_SHARE / networks), max(1, round(VALIDATION_TASKS * scale))
    scores = []
    for ways in ((5,), (20,)) if method in STEPS else (WAYS,):
        config = planned(method, setting, ways[-1], 1, TUNING_SEEDS, pictures, seed=1000)
        *_, log = train(method, config, ways[-1])
        for way in ways:
            answers = (answerer(method, config, log, k) for k in STEPS.get(method, (0,)))
            scores.append(max(sum(accuracy(answer, way, 1, "validation", TUNING_SEEDS, tasks)) for answer in answers))
    return {"accuracy": sum(scores) / len(scores) / TUNING_SEEDS}


# --- the result -------------------------------------------------------------------------------------------------------


def run(seeds: int | None, scale: float, progress: Progress) -> dict[str, Any]:
    """The result, in the form of :mod:`metarl_lib.results`."""
    seeds = SEEDS if seeds is None else seeds
    digest = hashlib.sha256(repr((METHODS, TRIALS, PICTURES, TEST_TASKS, CAPACITIES)).encode()).hexdigest()[:8]
    folder = Path("runs") / f"{NAME}-{digest}"
    trials = [(method, choice, scale) for method in TRIALS for choice in range(len(TRIALS[method]))]
    tuned = dict(zip(trials, run_pieces(tune, trials, folder / "tuning", progress), strict=True))
    tuning = {m: [tuned[m, choice, scale]["accuracy"] for choice in range(len(TRIALS[m]))] for m in TRIALS}
    choices = {method: scores.index(max(scores)) for method, scores in tuning.items()} | {PIXELS: 0}
    pieces = [(method, choices[method], way, shots, seeds, scale) for method, way, shots in PIECES]
    done = dict(zip(PIECES, run_pieces(measure, pieces, folder, progress), strict=True))

    metrics, curves = {}, {}
    for (method, way, shots), piece in done.items():
        for cell, scores in piece["cells"].items():
            for split in ("test", "ood"):
                label = f"{cell} · {method}" if split == "test" else f"{split} · {cell} · {method}"
                metrics[label], curves[label] = metric(scores[split]), scores[split]
        if "curve" in piece:
            curves[f"validation through training · {method} · {way or 'any'}-way {shots or 'any'}-shot"] = piece["curve"]
        for label, right in piece.get("lifelong", {}).items():
            half = len(right[0]) // 2
            metrics[f"lifelong · {label}"] = metric([sum(of_one[half:]) / len(of_one[half:]) for of_one in right])
            curves[f"lifelong · {label}"] = right
    return {
        "name": NAME,
        "title": "Few-shot recognition of letters from unseen alphabets",
        "command": f"python -m metarl_lib reproduce {NAME}",
        "seeds": list(range(seeds)),
        "config": {
            "networks": {" ".join(map(str, key)): piece["config"] for key, piece in done.items() if "config" in piece},
            "training pictures a method and seed": PICTURES,
            "letters by split": {split: sum(letter.split == split for letter in letters()) for split in FONTS},
            "test tasks a cell and seed": TEST_TASKS,
            "gradient steps at test time": {
                f"{cell} · {key[0]}": scores["steps"]
                for key, piece in done.items()
                for cell, scores in piece["cells"].items()
                if key[0] in STEPS
            },
            "tuning": {
                method: {str(trial): score for trial, score in zip(TRIALS[method], scores, strict=True)}
                for method, scores in tuning.items()
            },
            "on Omniglot, other data, in per cent 5w1s, 5w5s, 20w1s, 20w5s": OMNIGLOT,
        },
        "versions": results.versions(),
        "hardware": results.hardware(),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in [*done.values(), *tuned.values()]),
        "metrics": dict(sorted(metrics.items(), key=lambda item: order_of(item[0]))),
        "curves": curves,
    }


def order_of(label: str) -> tuple[int, int]:
    """Cells first, by letters and shots and then by method; then the other typeface; then memories for a lifetime."""
    groups = [f"{split}{way}-way {shots}-shot" for split in ("", "ood · ") for way in WAYS for shots in SHOTS] + ["lifelong"]
    names = [PIXELS, *METHODS]
    name = label.split(" · ")[-1]
    return next(i for i, group in enumerate(groups) if label.startswith(group)), names.index(name) if name in names else 0


def metric(samples: list[float]) -> dict[str, Any]:
    """Mean and interval over seeds. On these letters nothing is in print."""
    mean, low, high = (float(x) for x in interval(samples))
    return {"value": mean, "low": low, "high": high, "n": len(samples), "unit": "% right", "published": None, "source": None}
