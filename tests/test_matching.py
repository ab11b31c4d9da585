import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from metarl_lib import matching, results
from metarl_lib.experiments import few_shot_glyphs as experiment
from metarl_lib.glyphs import Glyphs
from metarl_lib.matching import Config, consolidate, empty, log_attention, log_read, mark_read, read, write
from metarl_lib.sinusoids import Examples

TINY = Config(iterations=3, learners=2, tasks=2, shots=1, queries=2, channels=(4, 6), embedding=5)
WORLD = Glyphs(way=3, size=8)
KINDS = matching.SIMILARITIES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def filled(keys, labels):
    return write(empty(len(keys), keys.shape[1], keys.shape[2], dtype=keys.dtype), keys, labels)


def some_memory(learners=2, items=6, size=4, classes=3, seed=0):
    labels = torch.arange(items).remainder(classes).expand(learners, items)
    return filled(draw(learners, items, size, seed=seed), labels)


# --- reading ----------------------------------------------------------------------------------------------------------


def similarity_by_hand(a, b, kind):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if kind == "cosine":
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
    return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("kind", KINDS)
def test_reading_is_attention_worked_out_by_hand(kind, temperature):
    memory, query = some_memory(), draw(2, 5, 4, seed=1)
    found, attention = read(memory, query, 3, kind, temperature), log_attention(memory, query, kind, temperature).exp()
    for learner in range(2):
        for q in range(5):
            s = [similarity_by_hand(query[learner, q].tolist(), key, kind) for key in memory.keys[learner].tolist()]
            e = [math.exp(x / temperature) for x in s]
            a = [x / sum(e) for x in e]
            by_label = [
                sum(x for x, label in zip(a, memory.labels[learner].tolist(), strict=True) if label == c) for c in range(3)
            ]
            assert attention[learner, q].tolist() == pytest.approx(a, abs=1e-12)
            assert found[learner, q].tolist() == pytest.approx(by_label, abs=1e-12)


def test_two_items_at_a_known_distance():
    # Distances² 0 and 4, τ = 2: probabilities 1 : e⁻². Cosines 1 and 0, τ = ½: 1 : e⁻².
    memory = filled(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 1]]))
    expected = pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))], abs=1e-6)
    assert read(memory, torch.tensor([[[2.0, 0.0]]]), 2, "euclidean", 2.0)[0, 0].tolist() == expected
    memory = filled(torch.tensor([[[3.0, 0.0], [0.0, 0.1]]]), torch.tensor([[0, 1]]))
    assert read(memory, torch.tensor([[[7.0, 0.0]]]), 2, "cosine", 0.5)[0, 0].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_that_is_written_is_what_is_read(kind):
    memory = write(empty(1, 4, 3, dtype=torch.float64), draw(1, 1, 3), torch.tensor([[2]]))
    probabilities = read(memory, 10 * draw(1, 7, 3, seed=1), 5, kind, 0.1)
    assert torch.equal(probabilities, torch.eye(5, dtype=torch.float64)[2].expand(1, 7, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_sum_to_one_and_classes_that_are_not_in_memory_have_none(kind):
    probabilities = read(some_memory(), draw(2, 5, 4, seed=1), 9, kind)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not probabilities[..., 3:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_writing_does_not_matter(kind):
    keys, labels, query = draw(2, 6, 4), torch.tensor([[0, 1, 2, 2, 1, 0]] * 2), draw(2, 5, 4, seed=1)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    once = write(empty(2, 6, 4, dtype=torch.float64), keys[:, order], labels[:, order])
    in_parts = empty(2, 10, 4, dtype=torch.float64)
    for i in range(6):
        in_parts = write(in_parts, keys[:, i : i + 1], labels[:, i : i + 1])
    expected = read(filled(keys, labels), query, 3, kind)
    for memory in (once, in_parts):
        torch.testing.assert_close(read(memory, query, 3, kind), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_renaming_labels_renames_the_prediction(kind):
    keys, labels, query = draw(2, 6, 4), torch.tensor([[0, 1, 2, 2, 1, 0]] * 2), draw(2, 5, 4, seed=1)
    renamed = torch.tensor([2, 0, 1])
    assert torch.equal(
        read(filled(keys, renamed[labels]), query, 3, kind)[..., renamed], read(filled(keys, labels), query, 3, kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_temperature_falls_reading_becomes_the_nearest_neighbour(kind):
    memory, query = some_memory(items=12), draw(2, 50, 4, seed=1)
    if kind == "cosine":
        nearest = torch.cosine_similarity(query[:, :, None], memory.keys[:, None], dim=-1).argmax(-1)
    else:
        nearest = torch.cdist(query, memory.keys).argmin(-1)
    labels = memory.labels.gather(1, nearest)
    cold = read(memory, query, 3, kind, 1e-9)
    torch.testing.assert_close(cold, nn.functional.one_hot(labels, 3).double(), rtol=0, atol=1e-12)
    hot = read(memory, query, 3, kind, 1e12)
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 3), rtol=0, atol=1e-9)
    assert float((read(memory, query, 3, kind, 1.0).argmax(-1) == labels).double().mean()) < 1, "in between it is neither"


def test_the_cosine_knows_no_length_and_the_distance_does():
    memory, query = some_memory(), draw(2, 5, 4, seed=1)
    torch.testing.assert_close(read(memory, 3 * query, 3, "cosine"), read(memory, query, 3, "cosine"))
    assert (read(memory, 3 * query, 3, "euclidean") - read(memory, query, 3, "euclidean")).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_reading_agree_with_finite_differences(kind):
    labels = torch.tensor([[0, 1, 2, 1]] * 2)

    def function(keys, query, log_temperature):
        return log_read(filled(keys, labels), query, 3, kind, log_temperature.exp())

    inputs = (draw(2, 4, 3), draw(2, 5, 3, seed=1), draw(2, 1, 1, seed=2))
    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs])


def test_a_hopeless_label_still_has_a_gradient():
    keys = torch.tensor([[[0.0], [100.0]]], requires_grad=True)
    loss = -log_read(filled(keys, torch.tensor([[0, 1]])), torch.zeros(1, 1, 1), 2, "euclidean")[0, 0, 1]
    assert float(loss.detach()) == pytest.approx(1e4)  # its probability is 0 in single precision
    (gradient,) = torch.autograd.grad(loss, keys)
    assert gradient.flatten().tolist() == pytest.approx([0.0, 200.0])


# --- writing, and forgetting ------------------------------------------------------------------------------------------


def put(memory, *items):
    """Write one-dimensional keys under labels of the same number."""
    numbers = torch.tensor([list(items)])
    return write(memory, numbers[..., None].double(), numbers)


def held(memory):
    return [
        label if used >= 0 else None for label, used in zip(memory.labels[0].tolist(), memory.last_used[0].tolist(), strict=True)
    ]


def look_up(memory, *items):
    query = torch.tensor([list(items)])[..., None].double()
    return mark_read(memory, log_attention(memory, query, "euclidean"))


def test_what_was_least_recently_used_is_forgotten():
    memory = put(empty(1, 3, 1, dtype=torch.float64), 10)
    assert held(memory) == [10, None, None]
    memory = put(put(memory, 20), 30)
    assert held(memory) == [10, 20, 30]
    assert held(put(memory, 40)) == [40, 20, 30], "unread, the oldest goes"
    read_10 = look_up(memory, 11)  # the nearest to 11 is 10
    assert held(put(read_10, 40)) == [10, 40, 30]
    assert held(put(put(read_10, 40), 50)) == [10, 40, 50]
    assert held(put(put(put(read_10, 40), 50), 60)) == [60, 40, 50], "a reading counts once, not for ever"
    assert held(put(look_up(memory, 11, 29), 40)) == [10, 40, 30]
    assert held(put(memory, 40, 50)) == [40, 50, 30]
    assert memory.clock.tolist() == [3] and read_10.clock.tolist() == [4]


def test_writing_leaves_the_old_memory_as_it_was():
    memory = put(empty(1, 2, 1, dtype=torch.float64), 10, 20)
    before = [leaf.clone() for leaf in memory]
    put(look_up(memory, 10), 30)
    assert all(torch.equal(a, b) for a, b in zip(memory, before, strict=True))


def test_a_memory_for_life_outlives_the_task():
    # Ten tasks with two classes of their own, one after the other; then questions about all of them.
    keys, memory = 10 * draw(20, 8), empty(1, 20, 8, dtype=torch.float64)
    for task in range(10):
        labels = torch.tensor([[2 * task, 2 * task + 1]])
        memory = write(memory, keys[labels], labels)
    query = (keys + 0.1 * draw(20, 8, seed=1))[None]
    assert read(memory, query, 20, "euclidean").argmax(-1)[0].tolist() == list(range(20))
    # With room for half of them the first tasks are forgotten, except for those that were asked about all the time.
    memory = empty(1, 10, 8, dtype=torch.float64)
    for task in range(10):
        labels = torch.tensor([[2 * task, 2 * task + 1]])
        memory = write(memory, keys[labels], labels)
        memory = mark_read(memory, log_attention(memory, query[:, :2], "euclidean"))
    right = read(memory, query, 20, "euclidean").argmax(-1)[0] == torch.arange(20)
    assert right.tolist() == [True] * 2 + [False] * 10 + [True] * 8


def test_a_learners_memory_is_its_own():
    memory = some_memory()
    changed = memory.keys.clone()
    changed[1] += 1
    query = draw(2, 5, 4, seed=1)
    before, after = read(memory, query, 3), read(memory._replace(keys=changed), query, 3)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    one = log_attention(memory, query).clone()
    one[1] = one[1].roll(1, -1)
    marked, also = mark_read(memory, log_attention(memory, query)), mark_read(memory, one)
    assert torch.equal(marked.last_used[0], also.last_used[0]) and not torch.equal(marked.last_used[1], also.last_used[1])


def test_memories_that_are_misused_say_so():
    memory = empty(2, 3, 4)
    with pytest.raises(ValueError, match="the memory of at least one learner is empty: write to it before it is read"):
        read(memory, torch.zeros(2, 1, 4), 3)
    with pytest.raises(ValueError, match="keys holds 5 items, and the memory has only 3 slots"):
        write(memory, torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"keys must be .* like the memory's \[2, 3, 4\].* got \[2, 1, 5\] and \[2, 1\]"):
        write(memory, torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown similarity 'dot'; there are cosine, euclidean"):
        read(some_memory(), draw(2, 1, 4), 3, "dot")
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        empty(1, 0, 4)


# --- prototypes -------------------------------------------------------------------------------------------------------


def test_a_prototype_is_the_mean_of_its_class():
    keys = torch.tensor([[[1.0, 0.0], [5.0, 6.0], [3.0, 2.0]]])
    memory = write(empty(1, 4, 2), keys, torch.tensor([[0, 2, 0]]))
    prototypes = consolidate(memory, 3)
    assert prototypes.labels.tolist() == [[0, 1, 2]] and prototypes.last_used.tolist() == [[1, -1, 1]]
    assert prototypes.keys[0, 0].tolist() == [2.0, 1.0] and prototypes.keys[0, 2].tolist() == [5.0, 6.0]
    assert read(prototypes, torch.zeros(1, 1, 2), 3, "euclidean")[0, 0, 1] == 0


def test_prototypes_are_a_linear_classifier():
    # −|x − c|² = 2 c·x − |c|² − |x|²: a linear layer with weights 2c and biases −|c|², up to what all classes share.
    memory, query = some_memory(), draw(2, 5, 4, seed=1)
    centres = torch.stack([memory.keys[:, c::3].mean(1) for c in range(3)], 1)
    logits = query @ (2 * centres).mT - centres.square().sum(-1)[:, None]
    torch.testing.assert_close(read(consolidate(memory, 3), query, 3, "euclidean"), logits.softmax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_with_one_example_a_class_prototypes_are_the_examples(kind):
    memory, query = some_memory(items=3), draw(2, 5, 4, seed=1)
    torch.testing.assert_close(read(consolidate(memory, 3), query, 3, kind), read(memory, query, 3, kind), rtol=0, atol=1e-12)


# --- the embedding ----------------------------------------------------------------------------------------------------


def parameters(config=TINY, side=8, seed=0):
    params = matching.init(config.learners, generator(seed), side, config, torch.float64)
    return {name: p + 0.1 * draw(*p.shape, seed=7) if name.startswith("bias") else p for name, p in params.items()}


def test_each_learners_embedding_is_an_ordinary_network():
    params, x = parameters(side=7), draw(2, 5, 49)
    found = matching.embed(params, x)
    assert found.shape == (2, 5, 5)
    for learner in range(2):
        first, second = nn.Conv2d(1, 4, 3, 2, 1, dtype=torch.float64), nn.Conv2d(4, 6, 3, 2, 1, dtype=torch.float64)
        for i, layer in enumerate((first, second)):
            layer.weight.data, layer.bias.data = params[f"weight_{i}"][learner], params[f"bias_{i}"][learner]
        h = second(first(x[learner].reshape(5, 1, 7, 7)).relu()).relu()
        expected = h.flatten(1) @ params["weight_embedding"][learner]
        torch.testing.assert_close(found[learner], expected, rtol=0, atol=1e-12)


def test_a_query_does_not_depend_on_the_queries_beside_it():
    config = replace(TINY, learners=1)
    params = parameters(config)
    support, query = Examples(draw(1, 3, 64), torch.arange(3)[None]), draw(1, 9, 64, seed=1)
    together = matching.predict(params, support, query, 3, config)
    alone = torch.cat([matching.predict(params, support, query[:, i : i + 1], 3, config) for i in range(9)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_pictures_must_be_square():
    with pytest.raises(ValueError, match="x must hold square pictures, got 63 pixels each"):
        matching.embed(parameters(), draw(2, 1, 63))


# --- full-context embeddings ------------------------------------------------------------------------------------------

CONTEXT = replace(TINY, full_context=True, reading_steps=3)


def test_an_lstm_step_is_torchs():
    params = parameters(CONTEXT)
    x, hidden, cell = draw(2, 7, 5), draw(2, 7, 5, seed=1), draw(2, 7, 5, seed=2)
    found = matching.lstm(params, "forward", x, hidden, cell)
    for learner in range(2):
        reference = nn.LSTMCell(5, 5, dtype=torch.float64)
        weight, bias = params["weight_forward"][learner].T, params["bias_forward"][learner, 0]
        order = torch.cat([torch.arange(5) + 5 * gate for gate in (0, 1, 3, 2)])  # torch's: in, forget, cell, out
        reference.weight_ih.data, reference.weight_hh.data = weight[order, :5], weight[order, 5:]
        reference.bias_ih.data, reference.bias_hh.data = bias[order], torch.zeros_like(bias)
        expected = reference(x[learner], (hidden[learner], cell[learner]))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[learner], b, rtol=0, atol=1e-12)


def test_the_supports_context_is_a_bidirectional_lstm_added_to_the_embedding():
    params, keys = parameters(CONTEXT), draw(2, 4, 5)
    found = matching.support_in_context(params, keys)
    for learner in range(2):
        reference = nn.LSTM(5, 5, bidirectional=True, dtype=torch.float64)
        order = torch.cat([torch.arange(5) + 5 * gate for gate in (0, 1, 3, 2)])
        for name, suffix in {"forward": "", "backward": "_reverse"}.items():
            weight, bias = params[f"weight_{name}"][learner].T[order], params[f"bias_{name}"][learner, 0][order]
            getattr(reference, f"weight_ih_l0{suffix}").data = weight[:, :5].contiguous()
            getattr(reference, f"weight_hh_l0{suffix}").data = weight[:, 5:].contiguous()
            getattr(reference, f"bias_ih_l0{suffix}").data = bias
            getattr(reference, f"bias_hh_l0{suffix}").data = torch.zeros_like(bias)
        output, _ = reference(keys[learner])
        torch.testing.assert_close(found[learner], keys[learner] + output[:, :5] + output[:, 5:], rtol=0, atol=1e-12)


def test_the_querys_context_is_the_papers_recursion():
    params, keys, query = parameters(CONTEXT), draw(2, 4, 5), draw(2, 3, 5, seed=1)
    found = matching.query_in_context(params, query, keys, 3)
    for learner in range(2):
        g, weight, bias = keys[learner], params["weight_reading"][learner], params["bias_reading"][learner, 0]
        for q in range(3):
            x, h, r, c = query[learner, q], torch.zeros(5).double(), torch.zeros(5).double(), torch.zeros(5).double()
            for _ in range(3):
                gates = torch.cat((x, h, r)) @ weight + bias
                c = gates[5:10].sigmoid() * c + gates[:5].sigmoid() * gates[15:].tanh()
                h = gates[10:15].sigmoid() * c.tanh() + x
                r = (g @ h).softmax(0) @ g
            torch.testing.assert_close(found[learner, q], h, rtol=0, atol=1e-12)


def test_only_with_full_context_does_the_order_of_the_support_matter():
    support, query, order = (
        Examples(draw(4, 3, 64), torch.arange(3).expand(4, 3)),
        draw(4, 2, 64, seed=1),
        torch.tensor([2, 0, 1]),
    )
    shuffled = Examples(support.x[:, order], support.y[:, order])
    for config, matters in ((TINY, False), (CONTEXT, True)):
        params = parameters(config)
        change = matching.predict(params, support, query, 3, config) - matching.predict(params, shuffled, query, 3, config)
        assert (float(change.abs().max()) > 1e-3) == matters
        assert matters or float(change.abs().max()) < 1e-12


# --- training ---------------------------------------------------------------------------------------------------------


def loss_of(params, config, seed=0):
    world = replace(WORLD, dtype=torch.float64)
    task = world.sample_tasks(config.learners * config.tasks, generator(seed))
    support, query = world.support_and_query(task, config.shots, config.queries, generator(seed))
    log_probs = matching.predict(params, support, query.x, world.way, config)
    return -log_probs.gather(-1, query.y[..., None]).reshape(config.learners, -1).mean(1)


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, similarity="euclidean"), replace(TINY, memory="prototypes", shots=2, similarity="euclidean"), CONTEXT],
    ids=["cosine", "euclidean", "prototypes", "full context"],
)
def test_the_gradient_of_the_loss_agrees_with_finite_differences(config):
    params = {name: p.requires_grad_() for name, p in parameters(config).items()}
    gradients = torch.autograd.grad(loss_of(params, config).sum(), list(params.values()))
    for seed in range(3):
        direction = {name: draw(*p.shape, seed=100 * seed + i) for i, (name, p) in enumerate(params.items())}
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction.values(), strict=True))
        h = 1e-6
        moved = [{name: p.detach() + sign * h * direction[name] for name, p in params.items()} for sign in (1, -1)]
        difference = float(loss_of(moved[0], config).sum() - loss_of(moved[1], config).sum()) / (2 * h)
        assert difference == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_no_learner_has_a_part_in_anothers_loss():
    params = {name: p.requires_grad_() for name, p in parameters().items()}
    gradients = torch.autograd.grad(loss_of(params, TINY)[0], list(params.values()))
    assert all(g[0].any() and not g[1].any() for g in gradients)


@pytest.mark.parametrize(
    "change", [{}, {"similarity": "euclidean"}, {"similarity": "euclidean", "memory": "prototypes"}, {"full_context": True}]
)
def test_a_short_training_beats_pixels_on_alphabets_it_has_not_seen(change):
    config = Config(iterations=60, tasks=8, shots=1, channels=(8, 16), embedding=16, step_size=1e-2, **change)
    world = Glyphs(way=5, size=12)
    *_, last = matching.train(world, config)
    task = world.sample_tasks(100, generator(), "test")
    support, query = world.support_and_query(task, 1, 5, generator())
    learned = float(matching.accuracy(last.params, support, query, 5, config).mean())
    pixels = float((matching.nearest_neighbour(support, query.x) == query.y).double().mean())
    fresh = matching.init(1, generator(), 12, config)
    unlearned = float(matching.accuracy(fresh, support, query, 5, config).mean())
    assert learned > pixels + 0.1 and learned > unlearned + 0.1, (learned, pixels, unlearned)


def test_the_nearest_neighbour_in_pixels():
    support = Examples(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [4.0, 0.0]]]), torch.tensor([[2, 0, 1]]))
    query = torch.tensor([[[0.4, 0.4], [0.6, 0.6], [3.0, 0.0]]])
    assert matching.nearest_neighbour(support, query).tolist() == [[2, 0, 1]]


def test_accuracy_is_the_share_of_right_labels():
    world, config = replace(WORLD, dtype=torch.float64), replace(TINY, learners=1)
    support, query = world.support_and_query(world.sample_tasks(4, generator()), 1, 5, generator())
    found = matching.accuracy(parameters(config), support, query, 3, config)
    best = matching.predict(parameters(config), support, query.x, 3, config).argmax(-1)
    assert found.tolist() == [sum(a == b for a, b in zip(*row, strict=True)) / 15 for row in zip(best.tolist(), query.y.tolist())]  # noqa: B905


def test_the_same_seed_gives_the_same_run_and_records_do_not_change():
    def run(config):
        return list(matching.train(WORLD, config))

    first, again, other = run(TINY), run(TINY), run(replace(TINY, seed=1))
    assert [log.iteration for log in first] == [1, 2, 3]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.loss, b.loss) and all(torch.equal(p, b.params[name]) for name, p in a.params.items())
    assert not torch.equal(first[0].loss, other[0].loss)
    (stopped,) = islice(matching.train(WORLD, TINY), 1)
    assert all(torch.equal(p, first[0].params[name]) for name, p in stopped.params.items())
    assert all(not torch.equal(p, first[2].params[name]) for name, p in first[0].params.items())
    assert first[0].loss.shape == first[0].accuracy.shape == (2,)


def test_training_stops_at_a_picture_that_is_not_a_number():
    class Broken(Glyphs):
        calls = 0

        def draw(self, letters: Tensor, generator: torch.Generator) -> Tensor:
            type(self).calls += 1
            pictures = super().draw(letters, generator)
            pictures[len(pictures) // 2 :] *= math.nan if type(self).calls > 4 else 1.0
            return pictures

    with pytest.raises(FloatingPointError, match="iteration 3: the loss of learner 1 or its gradient is NaN or infinite"):
        list(matching.train(Broken(way=3, size=8), replace(TINY, iterations=9)))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"tasks": 0}, "tasks must be at least 1, got 0"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"similarity": "dot"}, "unknown similarity 'dot'; there are cosine, euclidean"),
        ({"memory": "none"}, "unknown memory 'none'; there are examples, prototypes"),
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"step_size": None}, "step_size must be positive and finite, got None"),
        ({"temperature": math.nan}, "temperature must be positive and finite, got nan"),
        ({"memory": "prototypes", "full_context": True}, "full_context reads single examples"),
    ],
)
def test_a_bad_setting_is_named(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(TINY, **change)


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_every_method_draws_the_same_number_of_training_pictures(monkeypatch):
    drawn = []

    class Counted(Glyphs):
        def draw(self, letters: Tensor, generator: torch.Generator) -> Tensor:
            drawn[-1] += letters.numel()
            return super().draw(letters, generator)

    monkeypatch.setattr(experiment, "Glyphs", Counted)
    for method, config in experiment.METHODS.items():
        networks, total = [(way or 20, shots or 1) for name, way, shots in experiment.PIECES if name == method], 0
        for way, shots in networks:
            planned = experiment.planned(method, config, way, shots, 1, experiment.PICTURES // len(networks), seed=0)
            drawn.append(0)
            next(experiment.train(method, planned, way))
            total += drawn[-1] * planned.iterations
        assert 0.995 * experiment.PICTURES < total <= experiment.PICTURES, (method, total)


def test_a_head_that_starts_at_zero_prefers_no_label():
    params = experiment.init(5, 2, generator())
    assert not experiment.classify(params, draw(2, 3, 400, dtype=torch.float32)).any()


def test_accuracy_is_measured_on_the_same_tasks_for_every_method():
    asked = []

    def answer(support, query, way):
        asked.append(query)
        return torch.zeros(query.shape[:2], dtype=torch.int64)

    for _ in range(2):
        assert experiment.accuracy(answer, 5, 1, "test", learners=2, tasks=30) == [20.0, 20.0]
    assert [len(query) for query in asked] == [50, 10, 50, 10]
    assert torch.equal(asked[0], asked[2]) and torch.equal(asked[1], asked[3])


def test_a_memory_with_room_for_all_forgets_nothing_whatever_the_rule():
    config = matching.Config()
    params = matching.init(2, generator(), 20, config)
    lives = {
        (capacity, rule): torch.tensor(experiment.lifetime(params, config, capacity, rule))
        for capacity in (20, 200)
        for rule in experiment.RULES
    }
    least_recent, first = (lives[200, rule] for rule in experiment.RULES)
    assert torch.equal(least_recent, first)
    for rule in experiment.RULES:
        small = lives[20, rule]
        assert torch.equal(small[:, :20], first[:, :20]), "until it is full nothing is forgotten"
        assert small[:, 60:].mean() < first[:, 60:].mean()
    assert first[:, 0].tolist() == [100, 100], "the only letter it knows"


def test_the_experiment_runs_small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"PICTURES": 4000, "TEST_TASKS": 2, "VALIDATION_TASKS": 2, "CHECKPOINTS": 2, "CAPACITIES": (20,)}.items():
        monkeypatch.setattr(experiment, name, value)
    monkeypatch.setattr(experiment, "STEPS", {"MAML": (1, 2), "Reptile": (5,)})
    monkeypatch.setattr(experiment, "TRIALS", {method: settings[:1] for method, settings in experiment.TRIALS.items()})

    def in_this_process(work, pieces, folder, progress):
        return [work(*piece) | {"cpu_seconds": 1.0} for piece in pieces]

    monkeypatch.setattr(experiment, "run_pieces", in_this_process)
    result = experiment.run(2, 1.0, lambda done, total, what: None)
    results.save(result, tmp_path / f"{experiment.NAME}.json")
    methods = [experiment.PIXELS, *experiment.METHODS]
    cells = [f"{way}-way {shots}-shot" for way in (5, 20) for shots in (1, 5)]
    expected = [f"{split}{cell} · {method}" for split in ("", "ood · ") for cell in cells for method in methods]
    assert list(result["metrics"]) == [*expected, *(f"lifelong · capacity 20 · {rule}" for rule in experiment.RULES)]
    assert all(0 <= metric["value"] <= 100 and metric["n"] == 2 for metric in result["metrics"].values())
    assert set(result["config"]["gradient steps at test time"]) == {f"{c} · {m}" for c in cells for m in ("MAML", "Reptile")}
