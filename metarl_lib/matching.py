"""Matching Networks: an external memory that is read by attention :cite:p:`vinyals2016matching`.

What a task shows is written down, not trained on. A memory holds pairs of an embedding and a label, (g(x_i), y_i). The label
of a new input is read from it by attention, the softmax of how similar the input's embedding is to each that is stored:

.. math::
    P(y \\mid \\hat x, S) = \\sum_i a(\\hat x, x_i) \\, [y = y_i], \\qquad
    a(\\hat x, x_i) = \\frac{\\exp(s(f(\\hat x), g(x_i)) / \\tau)}{\\sum_j \\exp(s(f(\\hat x), g(x_j)) / \\tau)}

What is learned, over many tasks, is the embedding, so that on a new task nothing has to be. With ``memory="prototypes"`` the
embeddings of a class are replaced by their mean before they are read: prototypical networks :cite:p:`snell2017prototypical`.
:func:`write`, :func:`read` and :func:`mark_read` also make a memory for a lifetime: of bounded capacity, kept from task to task.

Where this departs from the paper:

- s is the cosine, as there, or the negative squared Euclidean distance; either is divided by a temperature τ that is learned.
  The paper's τ of 1 bounds the ratio of two attentions by e², which many stored examples drown out.
- The network is smaller, and has no batch normalisation. That would compute one input's embedding from the others of its
  batch: a query's answer would depend on which queries are asked together (the network is then *transductive*), and
  accuracies with and without it do not compare.
- Full-context embeddings, which are an option, are those of the paper's appendix. The support is passed over in the order in
  which it is stored: with them, and only with them, a prediction depends on that order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .sinusoids import Examples
from .supervised_maml import spread
from .types import Params

SIMILARITIES = ("cosine", "euclidean")
MEMORIES = ("examples", "prototypes")


@dataclass(frozen=True)
class Config:
    """What :func:`train` does, and how much of it."""

    iterations: int = 500
    learners: int = 1
    tasks: int = 4  # in a batch of one learner
    shots: int = 5  # support examples of each class of a task
    queries: int = 5  # likewise
    similarity: str = "cosine"  # or "euclidean", the negative squared distance
    memory: str = "examples"  # or "prototypes", their mean by class
    full_context: bool = False  # embeddings that depend on the whole support
    reading_steps: int = 5  # of the LSTM over a query, with full_context
    channels: tuple[int, ...] = (16, 32, 32)  # of the convolutional layers, each of which halves the picture
    embedding: int = 64
    temperature: float | None = None  # τ, where it starts; 0.1 for the cosine and 30 for distances if None
    step_size: float = 1e-2  # of Adam, falling linearly to a tenth over the iterations
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"iterations": 0, "learners": 1, "tasks": 1, "shots": 1, "queries": 1, "embedding": 1, "reading_steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name, allowed in {"similarity": SIMILARITIES, "memory": MEMORIES}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; there are {', '.join(allowed)}")
        for name in ("step_size", "temperature"):
            value = getattr(self, name)
            if not (0 < value < math.inf if value is not None else name == "temperature"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if self.full_context and self.memory == "prototypes":
            raise ValueError("full_context reads single examples: it needs memory='examples', got 'prototypes'")


class Log(NamedTuple):
    """What one iteration of :func:`train` did. Nothing in it changes later."""

    iteration: int  # counted from 1
    loss: Tensor  # [learner], of the queries in nats, before the update
    accuracy: Tensor  # [learner], likewise
    params: Params  # after it, leaves [learner, ...]
    seconds: float  # of this iteration


# --- the memory -------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """What has been written, and when it was last of use."""

    keys: Tensor  # [learner, slot, embedding]
    labels: Tensor  # [learner, slot] int64
    last_used: Tensor  # [learner, slot] int64: the clock when it was written or last read, −1 in an empty slot
    clock: Tensor  # [learner] int64: writings and readings so far


def empty(learners: int, slots: int, size: int, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Memory:
    """A memory of ``slots`` empty slots for embeddings of ``size`` numbers."""
    for name, value in {"learners": learners, "slots": slots, "size": size}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    labels = torch.zeros(learners, slots, dtype=torch.int64, device=device)
    return Memory(torch.zeros(learners, slots, size, device=device, dtype=dtype), labels, labels - 1, labels[:, 0])


def write(memory: Memory, keys: Tensor, labels: Tensor) -> Memory:
    """Store ``keys [learner, item, embedding]`` under ``labels [learner, item]`` in empty slots or, when these run out, in
    place of what was least recently used.

    An item is used when it is written, and when :func:`mark_read` says that a reading relied on it. Among equals the first
    slot goes first. ``memory`` itself is left as it was; the new one is differentiable with respect to ``keys``.
    """
    items, slots = labels.shape[-1], memory.labels.shape[-1]
    if keys.shape != (*labels.shape, memory.keys.shape[-1]) or len(keys) != len(memory.keys):
        raise ValueError(
            f"keys must be [learner, item, embedding] like the memory's {list(memory.keys.shape)} and labels [learner, item]; "
            f"got {list(keys.shape)} and {list(labels.shape)}"
        )
    if items > slots:
        raise ValueError(f"keys holds {items} items, and the memory has only {slots} slots")
    slot = memory.last_used.argsort(dim=-1, stable=True)[:, :items]
    clock = memory.clock + 1
    return Memory(
        keys=memory.keys.scatter(1, slot[..., None].expand_as(keys), keys),
        labels=memory.labels.scatter(1, slot, labels),
        last_used=memory.last_used.scatter(1, slot, clock[:, None].expand_as(slot)),
        clock=clock,
    )


def similarities(query: Tensor, keys: Tensor, kind: str) -> Tensor:
    """s of every query and key, ``[learner, query, slot]``: their cosine, or minus their squared distance."""
    if kind == "cosine":
        return functional.normalize(query, dim=-1) @ functional.normalize(keys, dim=-1).transpose(-1, -2)
    squared = query.square().sum(-1)[..., :, None] + keys.square().sum(-1)[..., None, :]
    return 2 * query @ keys.transpose(-1, -2) - squared


def log_attention(memory: Memory, query: Tensor, similarity: str = "cosine", temperature: Tensor | float = 1.0) -> Tensor:
    """log a of every slot for every query, ``[learner, query, slot]``: very low for empty slots.

    ``query`` is ``[learner, query, embedding]``; ``temperature`` is a number or ``[learner, 1, 1]``.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"unknown similarity {similarity!r}; there are {', '.join(SIMILARITIES)}")
    written = memory.last_used >= 0
    if not written.any(-1).all():
        raise ValueError("the memory of at least one learner is empty: write to it before it is read")
    scores = similarities(query, memory.keys, similarity) / temperature
    return scores.masked_fill(~written[:, None], _floor(scores)).log_softmax(-1)


def log_read(
    memory: Memory, query: Tensor, classes: int, similarity: str = "cosine", temperature: Tensor | float = 1.0
) -> Tensor:
    """log P(y | query, memory), ``[learner, query, class]``; very low for classes that are not in memory.

    The sum over a label's slots is taken in log space, so that an improbable label still has a gradient.
    """
    attention = log_attention(memory, query, similarity, temperature)
    of_class = memory.labels[:, None, :] == torch.arange(classes, device=query.device)[:, None]  # [learner, class, slot]
    return attention[:, :, None].masked_fill(~of_class[:, None], _floor(attention)).logsumexp(-1)


def read(memory: Memory, query: Tensor, classes: int, similarity: str = "cosine", temperature: Tensor | float = 1.0) -> Tensor:
    """P(y | query, memory), ``[learner, query, class]``: attention, summed over the slots that hold each label."""
    return log_read(memory, query, classes, similarity, temperature).exp()


def mark_read(memory: Memory, log_attention: Tensor) -> Memory:
    """The memory after a reading: of use was, for every query, the one slot that got most attention."""
    clock = memory.clock + 1
    slot = log_attention.argmax(-1)
    return memory._replace(last_used=memory.last_used.scatter(1, slot, clock[:, None].expand_as(slot)), clock=clock)


def consolidate(memory: Memory, classes: int) -> Memory:
    """A memory of one slot per class, which holds the mean of the class's embeddings: its prototype."""
    written = memory.last_used >= 0
    of_class = (memory.labels[:, None, :] == torch.arange(classes, device=written.device)[:, None]) & written[:, None]
    weights = of_class.to(memory.keys.dtype)
    keys = weights @ memory.keys / weights.sum(-1, keepdim=True).clamp(min=1)
    labels = torch.arange(classes, device=written.device).expand(len(keys), classes)
    last_used = memory.last_used[:, None, :].expand_as(of_class).masked_fill(~of_class, -1).amax(-1)
    return Memory(keys, labels, last_used, memory.clock)


def _floor(x: Tensor) -> float:
    # A logarithm of nothing that, unlike −inf, leaves no NaN in a gradient.
    return torch.finfo(x.dtype).min / 4


# --- the embedding ----------------------------------------------------------------------------------------------------


def init(learners: int, generator: torch.Generator, side: int, config: Config, dtype: torch.dtype = torch.float32) -> Params:
    """Fresh parameters for pictures of ``side`` × ``side`` pixels, leaves ``[learner, ...]``.

    Weights are normal, scaled for rectified linear units, and biases are zero.
    """
    params: Params = {}

    def layer(name: str, fan_in: int, gain: float, *shape: int) -> None:
        weight = torch.randn(learners, *shape, generator=generator, device=generator.device, dtype=dtype)
        params[f"weight_{name}"] = weight * (gain / fan_in) ** 0.5

    channels = 1
    for i, wider in enumerate(config.channels):
        layer(f"{i}", 9 * channels, 2.0, wider, channels, 3, 3)
        params[f"bias_{i}"] = torch.zeros(learners, wider, device=generator.device, dtype=dtype)
        channels, side = wider, (side + 1) // 2
    size = config.embedding
    layer("embedding", channels * side**2, 1.0, channels * side**2, size)
    if config.full_context:
        for name, hidden in {"forward": size, "backward": size, "reading": 2 * size}.items():
            layer(name, size + hidden, 1.0, size + hidden, 4 * size)
            params[f"bias_{name}"] = torch.zeros(learners, 1, 4 * size, device=generator.device, dtype=dtype)
    temperature = config.temperature or {"cosine": 0.1, "euclidean": 30.0}[config.similarity]
    params["log_temperature"] = torch.full((learners, 1, 1), math.log(temperature), device=generator.device, dtype=dtype)
    return params


def embed(params: Params, x: Tensor) -> Tensor:
    """Pictures ``[learner, picture, pixel]`` to embeddings ``[learner, picture, embedding]``.

    A few convolutions of 3 × 3 pixels and stride 2, each with a rectified linear unit, and a linear layer. The learners'
    convolutions are one convolution in groups.
    """
    learners, pictures, pixels = x.shape
    side = math.isqrt(pixels)
    if side**2 != pixels:
        raise ValueError(f"x must hold square pictures, got {pixels} pixels each")
    h = x.reshape(learners, pictures, side, side).transpose(0, 1)
    for i in range(sum(name.startswith("bias_") and name[5:].isdigit() for name in params)):
        weight, bias = params[f"weight_{i}"].flatten(0, 1), params[f"bias_{i}"].flatten()
        h = functional.conv2d(h, weight, bias, stride=2, padding=1, groups=learners).relu()
    return h.reshape(pictures, learners, -1).transpose(0, 1) @ params["weight_embedding"]


def lstm(params: Params, name: str, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a long short-term memory: output and cell state, both ``[task, n, width]``.

    ``x`` is ``[task, n, in]``; ``hidden`` is the previous output, with whatever else shall be fed back.
    """
    gates = torch.baddbmm(params[f"bias_{name}"], torch.cat((x, hidden), -1), params[f"weight_{name}"])
    enter, forget, leave, candidate = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def support_in_context(params: Params, keys: Tensor) -> Tensor:
    """g(x_i, S) of every support example, ``[task, item, embedding]``: its embedding and the two states of a bidirectional
    LSTM that has passed over the support in the order in which it is stored.
    """
    total = keys
    for name, order in {"forward": 1, "backward": -1}.items():
        steps = range(keys.shape[1])[::order]
        hidden = cell = torch.zeros_like(keys[:, :1])
        states = {}
        for i in steps:
            hidden, cell = lstm(params, name, keys[:, i : i + 1], hidden, cell)
            states[i] = hidden
        total = total + torch.cat([states[i] for i in range(keys.shape[1])], 1)
    return total


def query_in_context(params: Params, query: Tensor, keys: Tensor, steps: int) -> Tensor:
    """f(x̂, S) of every query, ``[task, query, embedding]``: an LSTM that attends to the support ``keys`` for some ``steps``.

    At each step its output and the embedding make h, and with h it reads the support; both are fed back.
    """
    h = cell = torch.zeros_like(query)
    context = torch.zeros_like(query)
    for _ in range(steps):
        output, cell = lstm(params, "reading", query, torch.cat((h, context), -1), cell)
        h = output + query
        context = (h @ keys.transpose(-1, -2)).softmax(-1) @ keys
    return h


# --- the loss, and training -------------------------------------------------------------------------------------------


def predict(params: Params, support: Examples, query: Tensor, classes: int, config: Config) -> Tensor:
    """log P(y | query, support), ``[learner · task, query, class]``: write the support, read with the queries.

    Leaves of ``params`` are ``[learner, ...]``, ``support`` and ``query`` are ``[learner · task, example, ...]``.
    """
    learners = len(params["log_temperature"])
    tasks, shown = len(query) // learners, support.x.shape[1]
    pictures = torch.cat((support.x, query), 1)
    embedded = embed(params, pictures.reshape(learners, -1, pictures.shape[-1])).reshape(*pictures.shape[:2], -1)
    keys, asked = embedded[:, :shown], embedded[:, shown:]
    if config.full_context:
        per_task = spread(params, tasks)
        keys = support_in_context(per_task, keys)
        asked = query_in_context(per_task, asked, keys, config.reading_steps)
    memory = write(empty(*keys.shape, keys.device, keys.dtype), keys, support.y)
    if config.memory == "prototypes":
        memory = consolidate(memory, classes)
    temperature = params["log_temperature"].exp().repeat_interleave(tasks, 0)
    return log_read(memory, asked, classes, config.similarity, temperature)


def train(tasks: Any, config: Config) -> Iterator[Log]:
    """Train the embedding on the training tasks of ``tasks``, yielding a :class:`Log` after every iteration.

    ``tasks`` is a distribution of classification tasks such as :class:`metarl_lib.glyphs.Glyphs`. All randomness comes
    from ``config.seed``, and no learner's affects another's. Raises ``FloatingPointError`` as soon as a loss or a gradient
    is not finite.
    """
    generator = torch.Generator(config.device).manual_seed(config.seed)
    params = init(config.learners, generator, math.isqrt(tasks.input_size), config, tasks.dtype)
    params = {name: p.requires_grad_() for name, p in params.items()}
    optimizer = torch.optim.Adam(params.values(), config.step_size, fused=True)

    for iteration in range(1, config.iterations + 1):
        started = time.perf_counter()
        optimizer.param_groups[0]["lr"] = config.step_size * (1 - 0.9 * (iteration - 1) / config.iterations)
        task = tasks.sample_tasks(config.learners * config.tasks, generator)
        support, query = tasks.support_and_query(task, config.shots, config.queries, generator)
        log_probs = predict(params, support, query.x, tasks.way, config)
        losses = -log_probs.gather(-1, query.y[..., None]).reshape(config.learners, -1).mean(1)
        optimizer.zero_grad()
        losses.sum().backward()
        _check_finite(iteration, losses, params)
        optimizer.step()
        yield Log(
            iteration=iteration,
            loss=losses.detach(),
            accuracy=(log_probs.argmax(-1) == query.y).reshape(config.learners, -1).to(tasks.dtype).mean(1),
            params={name: p.detach().clone() for name, p in params.items()},
            seconds=time.perf_counter() - started,
        )


def _check_finite(iteration: int, losses: Tensor, params: Params) -> None:
    # A sum is finite only if all of its terms are.
    bad = ~torch.isfinite(losses.detach() + sum(p.grad.flatten(1).sum(1) for p in params.values()))
    if bad.any():
        learner = int(bad.nonzero()[0])
        raise FloatingPointError(f"iteration {iteration}: the loss of learner {learner} or its gradient is NaN or infinite")


# --- how well it does -------------------------------------------------------------------------------------------------


def accuracy(params: Params, support: Examples, query: Examples, classes: int, config: Config) -> Tensor:
    """The share of every task's queries whose most probable label is right, ``[learner · task]``."""
    with torch.no_grad():
        return (predict(params, support, query.x, classes, config).argmax(-1) == query.y).double().mean(-1)


def nearest_neighbour(support: Examples, query: Tensor) -> Tensor:
    """The label of the support picture whose pixels are closest to each query's, ``[task, query]``: nothing is learned."""
    memory = write(empty(*support.x.shape, support.x.device, support.x.dtype), support.x, support.y)
    return memory.labels.gather(-1, log_attention(memory, query, "euclidean").argmax(-1))
