"""Generated images on disk and in the stream: drawn once, checked, shared, redrawn when damaged, augmented."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data import AUGMENTATION_DRAWS
from benchmarks.data.drawn import images_path, is_pinned, open_images, preset_of
from benchmarks.data.folders import DATA_VARIABLE, DataError, find_folder
from benchmarks.data.opening import load_dataset
from benchmarks.data.procedural import MAX_SHIFT, DrawnSplit
from benchmarks.drawing.presets import PRESETS, SPLITS
from benchmarks.drawing.scene import draw
from benchmarks.suites.spec import ProceduralSpec
from tests.harness import cli, start, write_suite

FEW = ProceduralSpec.model_validate(
    {"dataset": "procedural", "preset": "procedural-20", "train": 60, "validation": 20, "test": 40}
)
WHOLE = ProceduralSpec.model_validate({"dataset": "procedural", "preset": "procedural-20"})


class Heard(list[str]):
    """Keeps what it is told."""

    def __call__(self, message: str) -> None:
        self.append(message)


def test_splits_hold_what_is_drawn(tmp_path):
    data = load_dataset(FEW, tmp_path)
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        images, labels = split.load(np.arange(len(split)), None)
        pixels = draw(PRESETS["procedural-20"], name, np.arange(len(split)))
        assert images.shape == (len(split), 3, 32, 32)
        assert np.array_equal((images * 64 + 128).permute(0, 2, 3, 1).numpy(), pixels)
        assert labels.tolist() == [index % 20 for index in range(len(split))]
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 20, 40)


def test_images_are_mapped_not_read(tmp_path):
    images, digest = open_images(FEW, "train", tmp_path)
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert digest == hashlib.sha256(draw(PRESETS["procedural-20"], "train", np.arange(60)).tobytes()).hexdigest()


def test_they_are_drawn_once(tmp_path):
    told: list[int] = []
    open_images(FEW, "train", tmp_path, told.append)
    assert sum(told) == 60
    with mock.patch("benchmarks.data.drawn._write", side_effect=AssertionError("drawn again")):
        open_images(FEW, "train", tmp_path)


def flip_a_bit(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, empty])
def test_a_damaged_file_is_named_and_drawn_again(tmp_path, damage):
    before, digest = open_images(FEW, "test", tmp_path)
    kept, path = np.array(before), images_path(FEW, "test", tmp_path)
    damage(path)
    heard = Heard()
    images, found = open_images(FEW, "test", tmp_path, warn=heard)
    assert heard == [f"{path} is damaged; its images are drawn again"]
    assert found == digest
    assert np.array_equal(images, kept)
    assert load_dataset(FEW, tmp_path).digest == load_dataset(FEW, tmp_path).digest


def fill(folder: Path, drawn: Path) -> None:
    """Open every split; `drawn` gets a byte for every image that is drawn here."""
    with drawn.open("ab") as file:
        for split in SPLITS:
            open_images(FEW, split, folder, lambda count: file.write(b"." * count))


def test_processes_that_fill_a_folder_at_once_end_with_one_good_file_each_split(tmp_path):
    images, drawn = tmp_path / "images", tmp_path / "drawn"
    processes = [start(fill, images, drawn) for _ in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    files = sorted(path.name for path in images.iterdir() if path.suffix != ".lock")
    assert files == sorted(images_path(FEW, split, images).name for split in SPLITS)
    assert drawn.stat().st_size == 120  # each image by one of them
    with mock.patch("benchmarks.data.drawn._write", side_effect=AssertionError("a file was no good")):
        load_dataset(FEW, images)


def test_a_process_killed_while_drawing_leaves_nothing_that_is_taken_for_images(tmp_path):
    slow = FEW.model_copy(update={"train": 10_000})
    process = start(load_dataset, slow, tmp_path)
    while not any(path.name.endswith(".images") or ".images." in path.name for path in tmp_path.iterdir()):
        assert process.is_alive()
    process.kill()
    process.join(60)
    assert not images_path(slow, "train", tmp_path).exists()
    assert len(load_dataset(FEW, tmp_path).train) == 60


def test_a_machine_that_draws_other_images_is_found_out(tmp_path):
    small = replace(PRESETS["procedural-20"], validation=20, digests={"validation": "0" * 64})
    with (
        mock.patch.dict(PRESETS, {"procedural-20": small}),
        pytest.raises(DataError, match=r"draws other images.*numpy is"),
    ):
        open_images(FEW, "validation", tmp_path)


def test_a_whole_file_of_other_images_than_the_preset_s_is_drawn_again(tmp_path):
    """Its own digest is right: only the preset's tells."""
    path, heard = images_path(FEW, "validation", tmp_path), Heard()
    images, digest = open_images(FEW, "validation", tmp_path)
    expected, other = np.array(images), bytearray(path.read_bytes())
    other[1000] ^= 1
    other[:32] = hashlib.sha256(other[32:]).digest()
    path.write_bytes(other)
    small = replace(PRESETS["procedural-20"], validation=20, digests={"validation": digest})
    with mock.patch.dict(PRESETS, {"procedural-20": small}):
        found, again = open_images(FEW, "validation", tmp_path, warn=heard)
    assert (again, heard) == (digest, [f"{path} is damaged; its images are drawn again"])
    assert np.array_equal(found, expected)


def test_digests_are_pinned_for_whole_splits_of_a_preset():
    assert all(is_pinned(WHOLE, split) and len(preset_of(WHOLE).digests[split]) == 64 for split in SPLITS)
    assert not any(is_pinned(WHOLE.model_copy(update={"classes": 10}), split) for split in SPLITS)
    assert [is_pinned(FEW, split) for split in SPLITS] == [False] * 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"cannot keep generated images in .*taken.*--data"):
        load_dataset(FEW, tmp_path / "taken")


def test_a_full_disk_is_said_and_leaves_no_half_file(tmp_path):
    with (
        mock.patch(
            "benchmarks.data.drawn.draw",
            side_effect=[draw(PRESETS["procedural-20"], "train", np.arange(8)), OSError(28, "No space left on device")],
        ),
        pytest.raises(DataError, match="No space left"),
    ):
        open_images(FEW, "train", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_where_images_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert find_folder("procedural", None) == Path("data/procedural")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert find_folder("procedural", None) == tmp_path / "procedural"
    assert find_folder("procedural", tmp_path / "new") == tmp_path / "new"


# Augmentation.

NUMBERED = DrawnSplit(
    # Every pixel of an image says where it is, so that what augmentation does to it can be read off.
    np.stack(np.broadcast_arrays(np.arange(32)[:, None], np.arange(32), np.zeros((32, 32))), -1)[None].astype(np.uint8),
    np.zeros(1, np.int64),
)


def places(down: float, right: float, flip: float) -> tuple[list[int], list[int]]:
    """Rows and columns of the original that an augmented image shows."""
    draws = np.zeros((1, AUGMENTATION_DRAWS))
    draws[0, :3] = down, right, flip
    image = (NUMBERED.load(np.zeros(1, np.int64), draws)[0][0] * 64 + 128).round().int()
    return image[0, :, 5].tolist(), image[1, 5].tolist()


def test_the_middle_draw_moves_nothing_and_ends_move_an_eighth():
    assert places(0.5, 0.5, 0.9) == (list(range(32)), list(range(32)))
    rows, columns = places(0.0, 0.999, 0.9)
    assert rows == [4, 3, 2, 1, *range(28)]
    assert columns == [*range(4, 32), 30, 29, 28, 27]


def test_a_flip_mirrors_columns_only():
    assert places(0.5, 0.5, 0.4) == (list(range(32)), list(range(31, -1, -1)))


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
def test_every_draw_shows_mostly_the_image(draws):
    rows, columns = places(*draws)
    for shown in (rows, columns):
        assert min(shown) >= 0
        assert max(shown) <= 31
        assert len(set(shown)) >= 32 - 32 // MAX_SHIFT


def test_an_image_is_augmented_the_same_in_any_company(tmp_path):
    split = load_dataset(FEW, tmp_path).train
    draws = np.random.default_rng(0).random((6, AUGMENTATION_DRAWS))
    together, _ = split.load(np.arange(6), draws)
    alone = [split.load(np.array([k]), draws[k : k + 1])[0][0] for k in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together, split.load(np.arange(6), None)[0])


# The command line.

SHORT = {
    "data": {**FEW.model_dump(), "augment": "crop-flip"},
    "methods": ["uniform-lsq"],
    "pretraining": {
        "epochs": 1,
        "recipe": {"optimizer": {"name": "adam", "lr": 0.003}, "batch_size": 30, "micro_batch": 30},
    },
    "compute": {"epochs": 1},
}


def test_a_run_draws_its_images_and_later_finds_them(tmp_path):
    suite = write_suite(tmp_path, **SHORT)
    arguments = ("--suite", suite, "--engine", "local", "--out", tmp_path / "out", "--data", tmp_path / "images")
    ran = cli(*arguments)
    assert ran.code == 0, ran
    assert f"drawing 120 images of procedural-20 into {tmp_path / 'images'}" in ran.out.replace("\n", "")
    again = cli(*arguments, "--seeds", "1")
    assert again.code == 0, again
    assert "drawing" not in again.out


def test_the_doctor_says_where_images_will_be(tmp_path):
    suite = write_suite(tmp_path, **SHORT)
    said = cli("doctor", "--suite", suite, "--out", tmp_path, "--data", tmp_path / "images").out
    assert f"procedural-20, drawn on first use and kept in {tmp_path / 'images'}" in said.replace("\n", "")
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.preset=procedural-21", "unknown preset 'procedural-21'; known: procedural-100, procedural-20"),
        ("data.classes=126", "data.classes"),
        ("data.image_size=8", "data.image_size"),
        ("data.trian=100", "unknown key 'trian'"),
        ("data.augment=affine", "data.augment: unknown value 'affine'; known: none, crop-flip"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, change, message):
    ran = cli("plan", "--suite", write_suite(tmp_path, **SHORT), "--set", change)
    assert ran.code == 2
    assert message in ran.err
