import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from metarl_lib import glyphs
from metarl_lib.glyphs import ALPHABETS, RESEMBLANCE, Glyphs, letters

STILL = Glyphs(size=glyphs.CANVAS, rotation=0, stretch=0, shear=0, shift=0, wobble=0, stroke=0)  # every picture is the drawing


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clean():
    """The drawings, as they come out of the public interface."""
    return STILL.draw(torch.arange(len(letters())), generator())


def indices(split):
    return [i for i, letter in enumerate(letters()) if letter.split == split]


# --- the letters ------------------------------------------------------------------------------------------------------


def test_whole_alphabets_are_held_out():
    train, validation, test = (set(ALPHABETS[split]) for split in ("train", "validation", "test"))
    assert not train & validation and not train & test and not validation & test
    assert set(ALPHABETS["ood"]) <= test
    for split, alphabets in ALPHABETS.items():
        assert {letter.alphabet for letter in letters() if letter.split == split} == set(alphabets)
    assert len(indices("train")) > 800 and len(indices("validation")) > 60 and len(indices("test")) > 150


def test_no_two_letters_look_alike_within_a_split_or_across_splits():
    # Blurred by scipy and compared in double precision: not the code that chose them.
    drawings = uniform_filter(clean().double().numpy(), size=(0, 3, 3), mode="constant").reshape(len(letters()), -1)
    drawings /= np.linalg.norm(drawings, axis=1, keepdims=True)
    cosines = drawings @ drawings.T
    np.fill_diagonal(cosines, 0)
    own = np.array([letter.split == "test" for letter in letters()])
    ood = np.array([letter.split == "ood" for letter in letters()])
    cosines[np.outer(own, ood) | np.outer(ood, own)] = 0  # the same letters in another typeface
    assert cosines.max() < RESEMBLANCE + 1e-5


@pytest.mark.parametrize(
    "taken, left_out",
    [("A", "ΑАꓮ"), ("O", "oΟОՕⵔᴼ"), ("S", "sЅՏꓢ"), ("I", "ΙІاᛁⵏ"), ("H", "ΗНᕼꓧ"), ("h", "һհ")],
)
def test_doubles_in_other_alphabets_are_left_out(taken, left_out):
    classes = "".join(letter.character for letter in letters() if letter.split != "ood")
    assert classes.count(taken) == 1
    assert not set(left_out) & set(classes)


def test_classes_are_letters_by_themselves():
    held = [letter.character for letter in letters() if letter.split != "ood"]
    assert len(set(held)) == len(held)
    assert all(character.isalpha() for character in held)
    assert not set("éÅﬁﷲ") & set(held)


def test_a_drawing_is_centred_and_fills_its_box():
    ink = clean() > 0.5
    for axis in (1, 2):
        filled = ink.any(axis)
        first = filled.int().argmax(1)
        last = glyphs.CANVAS - 1 - filled.flip(1).int().argmax(1)
        assert (first + last - (glyphs.CANVAS - 1)).abs().max() <= 3
        assert (last - first + 1).max() <= glyphs.LETTER
    bar = next(i for i, letter in enumerate(letters()) if letter.character == "I")
    rows, columns = (clean()[bar] > 0.5).any(1).sum(), (clean()[bar] > 0.5).any(0).sum()
    assert rows == glyphs.LETTER and columns < 6


def test_the_ood_split_has_serifs():
    test, ood = ({letters()[i].character: i for i in indices(split)} for split in ("test", "ood"))
    both = sorted(set(test) & set(ood))
    assert len(both) > 100
    drawings = clean().flatten(1)
    difference = (drawings[[test[c] for c in both]] - drawings[[ood[c] for c in both]]).abs().mean(1)
    assert difference.min() > 0.005


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_without_perturbations_a_picture_is_the_drawing():
    _, drawings = glyphs._collect()
    torch.testing.assert_close(clean(), drawings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pictures_are_grey_and_of_the_size_and_type_asked_for(dtype):
    world = Glyphs(way=7, size=15, dtype=dtype)
    examples = world.sample(world.sample_tasks(3, generator()), 2, generator())
    assert examples.x.shape == (3, 14, 225) and examples.x.dtype == dtype and world.input_size == 225
    assert examples.y.shape == (3, 14) and examples.y.dtype == torch.int64
    assert float(examples.x.min()) >= 0 and 0.9 < float(examples.x.max()) <= 1 + 1e-6


def affine(world, n=2000):
    return world._affine(n, dict(generator=generator(), dtype=torch.float64))


def test_a_rotation_alone_is_a_rotation_of_at_most_the_angle():
    maps = affine(replace(STILL, rotation=30.0))
    linear = maps[:, :, :2]
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2, dtype=torch.float64).expand(2000, 2, 2))
    angles = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    assert angles.min() < -29 and angles.max() > 29 and angles.abs().max() <= 30
    assert not maps[:, :, 2].any()


def test_stretch_is_of_the_axes_and_shear_and_rotation_keep_the_area():
    linear = affine(replace(STILL, stretch=0.2))[:, :, :2]
    assert not linear[:, 0, 1].any() and not linear[:, 1, 0].any()
    logs = linear.diagonal(dim1=1, dim2=2).log()
    assert logs.abs().max() <= 0.2 and logs.min() < -0.19 and logs.max() > 0.19
    kept = affine(replace(STILL, rotation=50.0, shear=0.4))[:, :, :2]
    torch.testing.assert_close(kept.det(), torch.ones(2000, dtype=torch.float64))
    sheared = affine(replace(STILL, shear=0.4))[:, :, :2]
    assert 0.39 < sheared[:, 0, 1].abs().max() <= 0.4
    torch.testing.assert_close(sheared.diagonal(dim1=1, dim2=2), torch.ones(2000, 2, dtype=torch.float64))


def test_a_shift_moves_the_centre_of_the_ink_by_at_most_that():
    world = replace(STILL, shift=0.2)
    maps = affine(world)
    assert 0.19 < maps[:, :, 2].abs().max() <= 0.2
    index = torch.full((200,), indices("train")[0])
    pictures = world.draw(index, generator())
    columns = torch.arange(glyphs.CANVAS, dtype=torch.float32) - (glyphs.CANVAS - 1) / 2
    where = lambda p: (p.sum(1) * columns).sum(-1) / p.sum((1, 2))  # noqa: E731
    moved = where(pictures) - where(STILL.draw(index, generator()))
    assert 0.18 * glyphs.CANVAS / 2 < moved.abs().max() <= 0.2 * glyphs.CANVAS / 2 + 0.01


def test_strokes_get_thinner_and_thicker_around_the_regular_one():
    index = torch.tensor(indices("train")[:1]).expand(300)
    regular = STILL.draw(index, generator())
    ink = replace(STILL, stroke=1.0).draw(index, generator()) - regular
    thicker, thinner = ink.amin((1, 2)) >= -1e-6, ink.amax((1, 2)) <= 1e-6
    assert (thicker ^ thinner).all() and 100 < thicker.sum() < 200
    assert ink[thicker].sum((1, 2)).max() > 20 and ink[thinner].sum((1, 2)).min() < -20


def test_a_wobble_moves_ink_but_makes_none():
    index = torch.tensor(indices("train"))
    wobbly, still = replace(STILL, wobble=0.05).draw(index, generator()), STILL.draw(index, generator())
    assert (wobbly - still).abs().mean() > 0.01
    assert abs(float(wobbly.sum() / still.sum()) - 1) < 0.1


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", list(ALPHABETS))
def test_tasks_hold_different_letters_of_their_split_in_any_order(split):
    task = Glyphs(way=20).sample_tasks(200, generator(), split)
    assert task.letters.shape == (200, 20)
    assert set(task.letters.flatten().tolist()) <= set(indices(split))
    assert all(len(set(row)) == 20 for row in task.letters.tolist())
    assert len(set(task.letters[:, 0].tolist())) > 40  # label 0 is not always the same


def test_labels_tell_which_letter_and_come_in_rounds():
    world = replace(STILL, way=5)
    task = world.sample_tasks(4, generator())
    x, y = world.sample(task, 3, generator())
    assert y.tolist() == [[0, 1, 2, 3, 4] * 3] * 4
    expected = STILL.draw(task.letters.gather(1, y), generator())
    assert torch.equal(x, expected.flatten(2))


def test_support_and_query_are_different_pictures():
    world = Glyphs(way=5)
    support, query = world.support_and_query(world.sample_tasks(10, generator()), 3, 4, generator())
    assert support.x.shape == (10, 15, 400) and query.x.shape == (10, 20, 400)
    together = torch.cat((support.x, query.x), 1).flatten(0, 1)
    assert len(together.unique(dim=0)) == len(together)


def test_the_same_generator_gives_the_same_pictures_and_the_next_call_others():
    world, same = Glyphs(), generator(1)
    first = world.sample(world.sample_tasks(2, generator(1)), 2, same)
    again = world.sample(world.sample_tasks(2, generator(1)), 2, generator(1))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(world.sample(world.sample_tasks(2, generator(1)), 2, same).x, first.x)


def test_labels_belong_to_their_pictures():
    # Barely perturbed, pictures are nearest to the drawing of their own letter.
    world = Glyphs(20, glyphs.CANVAS, rotation=3, stretch=0.03, shear=0.03, shift=0.02, wobble=0.01, stroke=0.2)
    task = world.sample_tasks(20, generator(), "test")
    x, y = world.sample(task, 2, generator())
    drawings = STILL.draw(task.letters, generator()).flatten(2)
    assert float((torch.cdist(x, drawings).argmin(-1) == y).double().mean()) > 0.97


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"way": 1}, "way must be at least 2, got 1"),
        ({"size": 3}, "size must be at least 4, got 3"),
        ({"rotation": -1.0}, "rotation must be at least 0 and finite, got -1"),
        ({"wobble": math.inf}, "wobble must be at least 0 and finite, got inf"),
        ({"stroke": 1.5}, "stroke must be at most 1, got 1.5"),
    ],
)
def test_a_bad_setting_is_named(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Glyphs(**change)


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="unknown split 'dev'; there are train, validation, test, ood"):
        Glyphs().sample_tasks(1, generator(), "dev")
    with pytest.raises(ValueError, match="n must be at least 1 task, got 0"):
        Glyphs().sample_tasks(0, generator())
    with pytest.raises(ValueError, match=rf"way must be at most {len(indices('validation'))}, the letters of the split"):
        Glyphs(way=100).sample_tasks(1, generator(), "validation")
    with pytest.raises(ValueError, match="shots and queries must be at least 1, got 0"):
        Glyphs().sample(Glyphs().sample_tasks(1, generator()), 0, generator())
