import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from metarl_lib import omniglot
from metarl_lib.omniglot import DRAWINGS, Drawings, Omniglot, download, load

SIDE = 12
CONTENTS = {"images_background": {"Alpha": 3, "Beta": 2, "Gamma": 2}, "images_evaluation": {"Delta": 3, "Epsilon": 2}}
CHARACTERS = 12


def drawing(character, drawer):
    """A picture that says what it is: in binary, the character in its first row and the drawer in its second."""
    ink = np.zeros((SIDE, SIDE), dtype=bool)
    ink[0, :6] = [character >> bit & 1 for bit in range(6)]
    ink[1, :6] = [drawer >> bit & 1 for bit in range(6)]
    ink[2, 0] = True
    return ink


def read_back(pictures):
    """Character and drawer of pictures ``[..., pixel]``."""
    rows = (pictures.reshape(*pictures.shape[:-1], SIDE, SIDE)[..., :2, :6] > 0.5).long()
    return (rows * 2 ** torch.arange(6)).sum(-1).unbind(-1)


def png(ink):
    file = io.BytesIO()
    Image.fromarray(~ink).save(file, "png")  # as in Omniglot: one bit, black ink on white paper
    return file.getvalue()


@pytest.fixture
def source(tmp_path):
    """A folder with two small archives of the same structure as the real ones."""
    folder, character = tmp_path / "source", 0
    folder.mkdir()
    for name, alphabets in CONTENTS.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}/", "")
            for alphabet, count in alphabets.items():
                for i in range(count):
                    for drawer in range(DRAWINGS):
                        path = f"{name}/{alphabet}/character{i + 1:02}/{character:04}_{drawer + 1:02}.png"
                        archive.writestr(path, png(drawing(character, drawer)))
                    character += 1
    return folder


def checksums(source):
    return {path.stem: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in sorted(source.glob("*.zip"))}


@pytest.fixture
def folder(source, tmp_path):
    download(tmp_path / "data", source, checksums(source), progress=False)
    return str(tmp_path / "data")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- getting the data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [False, True], ids=["a folder", "an address"])
def test_archives_are_fetched_checked_and_unpacked(source, tmp_path, address, capsys):
    data = tmp_path / "data"
    download(data, source.as_uri() if address else source, checksums(source))
    assert sorted(path.name for path in data.iterdir()) == sorted(CONTENTS)
    assert len(list(data.glob("*/*/*/*.png"))) == CHARACTERS * DRAWINGS
    assert "images_background.zip: 100%" in capsys.readouterr().err


def test_what_is_there_is_not_fetched_again(folder, source, tmp_path):
    for path in source.iterdir():
        path.unlink()
    download(folder, source, dict.fromkeys(CONTENTS, "-"), progress=False)


def test_a_first_archive_that_was_good_stays_when_the_second_is_missing(source, tmp_path):
    sums = checksums(source)
    (source / "images_evaluation.zip").unlink()
    with pytest.raises(OSError, match=r"images_evaluation\.zip cannot be had .*without a network, put the archives in a folder"):
        download(tmp_path / "data", source, sums, progress=False)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["images_background"]


def test_the_real_archives_checksums_are_asked_for_unless_others_are_given(source, tmp_path):
    found = checksums(source)["images_background"]
    with pytest.raises(
        ValueError, match=f"images_background.zip is damaged or incomplete: its MD5 checksum is {found}, expected 68d2"
    ):
        download(tmp_path / "data", source, progress=False)
    assert not list((tmp_path / "data").iterdir())


def cut_short(data):
    return data[: len(data) // 2]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 400]) + data[middle + 400 :]


@pytest.mark.parametrize("damage", [cut_short, flipped, lambda data: b"", lambda data: b"<html>not found</html>"])
def test_a_damaged_archive_leaves_nothing_behind(source, tmp_path, damage):
    path = source / "images_background.zip"
    sums = checksums(source)
    path.write_bytes(damage(path.read_bytes()))
    for expected in (sums, checksums(source)):  # found by its checksum, and where that is right, by reading it
        with pytest.raises(ValueError, match=r"images_background\.zip is damaged or incomplete"):
            download(tmp_path / "data", source, expected, progress=False)
        assert not everything(tmp_path / "data")


@pytest.mark.parametrize(
    "name", ["../evil.png", "images_background/../../evil.png", "/evil.png", "evil.png", "a\\..\\..\\evil.png"]
)
def test_an_archive_writes_nothing_outside_of_its_folder(source, tmp_path, name):
    with zipfile.ZipFile(source / "images_background.zip", "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(ValueError, match=r"images_background\.zip holds .*evil\.png', which is outside of its folder"):
        download(tmp_path / "data", source, checksums(source), progress=False)
    assert not everything(tmp_path / "data")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_source_must_be_an_address_or_a_folder(tmp_path):
    with pytest.raises(ValueError, match="source must be a web address or an existing folder, got nowhere"):
        download(tmp_path / "data", "nowhere")
    with pytest.raises(ValueError, match="source must be a web address"):
        download(tmp_path / "data", "ftp://host/folder")


# --- reading it -------------------------------------------------------------------------------------------------------


def test_every_drawing_is_read_in_order_and_ink_is_one(folder):
    images, alphabets, background = load(folder, SIDE)
    assert images.shape == (CHARACTERS, DRAWINGS, SIDE, SIDE) and images.dtype == torch.uint8
    character, drawer = read_back(images.flatten(2) / 255)
    assert character.tolist() == [[i] * DRAWINGS for i in range(CHARACTERS)]
    assert drawer.tolist() == [list(range(DRAWINGS))] * CHARACTERS
    assert alphabets == ("Alpha",) * 3 + ("Beta",) * 2 + ("Gamma",) * 2 + ("Delta",) * 3 + ("Epsilon",) * 2
    assert background == (True,) * 7 + (False,) * 5


def test_shrinking_averages(folder):
    assert load(folder, SIDE // 2).images.shape == (CHARACTERS, DRAWINGS, 6, 6)
    ramp = (torch.arange(12.0) / 11).expand(1, 12, 12)
    half = omniglot._shrink(ramp, 6)[0, 2].float() / 255
    # Of a straight line, away from the margin, the average is its value in the middle.
    torch.testing.assert_close(half[1:-1], (2 * torch.arange(6) + 0.5)[1:-1] / 11, rtol=0, atol=0.5 / 255 + 1e-6)


def test_missing_or_damaged_drawings_are_named(folder, tmp_path):
    some = next((tmp_path / "data").glob("images_evaluation/Delta/character01/*.png"))
    some.write_bytes(some.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"character01.*\.png is not a picture that can be read"):
        load(folder, SIDE - 1)
    some.unlink()
    with pytest.raises(
        ValueError, match="character01 must hold 20 drawings, got 19: delete images_evaluation and fetch it again"
    ):
        load(folder, SIDE - 1)
    with pytest.raises(
        ValueError, match=r"there is no Omniglot in .*elsewhere: images_background is missing or empty; .*download"
    ):
        load(str(tmp_path / "elsewhere"), SIDE)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_divided_by_alphabets_the_evaluation_set_is_for_testing(folder):
    world = Omniglot(folder, size=SIDE, division="alphabets")
    assert world.characters("train") == [0, 1, 2, 3, 4]
    assert world.characters("validation") == [5, 6]
    assert world.characters("test") == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("division, sizes", [("characters", (1100, 100, 423)), ("alphabets", (800, 164, 659))])
def test_the_real_sizes(monkeypatch, division, sizes):
    # 964 background characters of 30 alphabets, the last five of which hold 164 here, and 659 characters of 20.
    names = tuple(f"{min(i // 32, 29):02}" for i in range(800)) + tuple(f"{25 + i % 5:02}" for i in range(164))
    known = Drawings(torch.empty(0), names + ("evaluation",) * 659, (True,) * 964 + (False,) * 659)
    monkeypatch.setattr(omniglot, "load", lambda folder, size: known)
    parts = [Omniglot("anywhere", division=division).characters(split) for split in omniglot.SPLITS]
    assert tuple(map(len, parts)) == sizes
    assert sorted(sum(parts, [])) == list(range(1623))


def test_support_and_query_share_no_drawing_and_labels_are_right(folder):
    world = Omniglot(folder, way=4, size=SIDE, division="alphabets")
    task = world.sample_tasks(30, generator(), "train")
    assert all(len(set(row)) == 4 for row in task.characters.tolist())
    support, query = world.support_and_query(task, 5, 15, generator())
    assert support.x.shape == (30, 20, SIDE**2) and query.x.shape == (30, 60, SIDE**2) and support.x.dtype == torch.float32
    assert support.y.tolist() == [[0, 1, 2, 3] * 5] * 30 and query.y.tolist() == [[0, 1, 2, 3] * 15] * 30
    character, drawer = read_back(torch.cat((support.x, query.x), 1))
    assert torch.equal(character, task.characters.gather(1, torch.cat((support.y, query.y), 1)))
    for characters, drawers in zip(character.tolist(), drawer.tolist(), strict=True):
        assert len(set(zip(characters, drawers, strict=True))) == 80


def test_a_turned_character_is_a_class_of_its_own(folder):
    world = Omniglot(folder, way=20, size=SIDE, division="alphabets", rotations=True)  # five characters, four ways up
    task = world.sample_tasks(10, generator())
    classes = torch.stack((task.characters, task.quarter_turns), -1)
    assert all(len(set(map(tuple, row))) == 20 for row in classes.tolist())
    x, y = world.sample(task, 1, generator())
    pictures, turns = x.reshape(10, 20, SIDE, SIDE), task.quarter_turns
    upright = torch.stack(
        [torch.rot90(p, -int(t)) for p, t in zip(pictures.flatten(0, 1), turns.flatten(), strict=True)]
    ).reshape(10, 20, -1)
    assert torch.equal(read_back(upright)[0], task.characters)
    assert sorted(turns.unique().tolist()) == [0, 1, 2, 3]
    assert not Omniglot(folder, size=SIDE).sample_tasks(10, generator()).quarter_turns.any()


def test_the_same_generator_gives_the_same_tasks_and_drawings(folder):
    world = Omniglot(folder, way=3, size=SIDE)
    first, again, other = (world.sample(world.sample_tasks(5, generator(seed)), 3, generator(seed)).x for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_requests_are_named(folder):
    world = Omniglot(folder, way=3, size=SIDE)
    task = world.sample_tasks(2, generator())
    with pytest.raises(ValueError, match="shots and queries must be at least 1 and together at most 20, got 21"):
        world.support_and_query(task, 6, 15, generator())
    with pytest.raises(ValueError, match="shots and queries must be at least 1, got 0 and 15"):
        world.support_and_query(task, 0, 15, generator())
    with pytest.raises(ValueError, match="unknown split 'ood'; there are train, validation, test"):
        world.sample_tasks(1, generator(), "ood")
    with pytest.raises(ValueError, match="n must be at least 1 task, got 0"):
        world.sample_tasks(0, generator())
    with pytest.raises(ValueError, match="way must be at most 8, the classes of the split 'train'; got 9"):
        Omniglot(folder, way=9, size=SIDE).sample_tasks(1, generator())
    for change, sentence in [
        ({"way": 1}, "way must be at least 2, got 1"),
        ({"size": 2}, "size must be at least 4, got 2"),
        ({"division": "drawers"}, "unknown division 'drawers'; there are alphabets, characters"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Omniglot(folder, **change)
