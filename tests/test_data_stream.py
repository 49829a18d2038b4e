"""Datasets and the stream over them: what an image, an epoch and a batch depend on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.data import AUGMENTATION_DRAWS, Split, Subset
from benchmarks.data.folders import DataError
from benchmarks.data.imagefolder import DEVIATION, MEAN
from benchmarks.data.opening import load_dataset
from benchmarks.data.stream import Stream, stream_seed, torch_stream
from benchmarks.data.tree import write_tree
from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec

DIGITS = DataSpec(dataset="digits", image_size=8, classes=10)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Told:
    """A split whose images say which they are and with which draws they were asked for."""

    count: int

    def __len__(self) -> int:
        return self.count

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        told = np.zeros((len(indices), AUGMENTATION_DRAWS)) if draws is None else draws
        return torch.from_numpy(told), torch.from_numpy(indices.copy())


def stream(count: int, *, seed: int = 0, batch: int = 4, micro: int = 2, augment: bool = True, at: int = 0) -> Stream:
    return Stream(Told(count), seed, batch, micro, augment, CPU, at)


def take(source: Stream, batches: int) -> list[tuple[list[int], Tensor]]:
    """Indices and draws of the next global batches."""
    found = [source.next() for _ in range(batches)]
    return [
        (torch.cat([micro.labels for micro in batch]).tolist(), torch.cat([micro.images for micro in batch]))
        for batch in found
    ]


# 4..30 images in batches of 4: epochs of 1 to 7 batches with every remainder; 20 batches are several epochs.
counts, seeds = st.integers(4, 30), st.integers(0, 2**56 - 1)


@given(counts, seeds, st.integers(0, 20))
def test_a_stream_can_be_taken_up_anywhere(count, seed, position):
    whole = take(stream(count, seed=seed), position + 3)
    resumed = take(stream(count, seed=seed, at=position), 3)
    for (indices, draws), (expected, expected_draws) in zip(resumed, whole[position:], strict=True):
        assert indices == expected
        assert torch.equal(draws, expected_draws)


@given(counts, seeds)
def test_an_epoch_shows_an_image_at_most_once_and_epochs_differ(count, seed):
    steps = count // 4
    batches = take(stream(count, seed=seed), 2 * steps)
    for epoch in (batches[:steps], batches[steps:]):
        shown = [index for indices, _ in epoch for index in indices]
        assert len(set(shown)) == len(shown) == 4 * steps


def test_order_and_augmentation_change_from_epoch_to_epoch():
    (first, draws), (second, other) = take(stream(8, batch=8, micro=8), 2)
    assert first != second
    assert sorted(first) == sorted(second)
    assert not torch.equal(draws[np.argsort(first)], other[np.argsort(second)])


@given(counts, seeds, st.sampled_from([1, 2, 4]))
def test_micro_batches_make_up_the_global_batch(count, seed, micro):
    whole = take(stream(count, seed=seed, micro=4), 5)
    parts = take(stream(count, seed=seed, micro=micro), 5)
    assert [indices for indices, _ in parts] == [indices for indices, _ in whole]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(parts, whole, strict=True))
    assert [len(part.labels) for part in stream(count, micro=micro).next()] == [micro] * (4 // micro)


@given(counts, seeds)
def test_augmentation_hangs_on_seed_epoch_and_image_alone(count, seed):
    # Other batch sizes meet the images in other batches; what an image gets in an epoch stays the same.
    def by_image(batch: int) -> dict[int, list[float]]:
        found = take(stream(count, seed=seed, batch=batch, micro=batch), count // batch)
        return {i: row.tolist() for indices, draws in found for i, row in zip(indices, draws, strict=True)}

    fours, twos = by_image(4), by_image(2)
    assert fours.items() <= twos.items()


def test_seeds_have_orders_of_their_own_and_none_without_augmentation():
    assert take(stream(30, seed=1), 3)[0][0] != take(stream(30, seed=2), 3)[0][0]
    assert all(not draws.any() for _, draws in take(stream(8, augment=False), 4))


def test_named_streams_are_their_own():
    names = ("split", "pretrain", "search/probe", "finetune", "finetune/dropout")
    assert len({stream_seed(seed, name) for seed in (0, 1, 11) for name in names}) == 3 * len(names)
    assert torch_stream(0, "a").initial_seed() == stream_seed(0, "a") < 2**56


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(SuiteError, match="batch_size 4 exceeds the 3 images"):
        stream(3)


def test_digits_are_split_once_and_for_all():
    data = load_dataset(DIGITS, None)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [960, 237, 600]
    assert data.digest == DIGEST
    assert load_dataset(DIGITS.model_copy(update={"image_size": 12}), None).digest == DIGEST  # of images as they come


DIGEST = "c451099603710f9f404b0259e604629fc9713d3fd066f962ccb68e393677cde3"


def test_the_splits_of_digits_are_disjoint():
    data = load_dataset(DIGITS, None)
    rows = [
        {image.numpy().tobytes() for image in part.load(np.arange(len(part)), None)[0]}
        for part in (data.train, data.validation, data.test)
    ]
    # scikit-learn's digits hold no image twice, so equal bytes would be a shared image.
    assert sum(len(part) for part in rows) == 1797
    assert len(set().union(*rows)) == 1797


def test_no_split_of_digits_reaches_another_s_memory():
    data = load_dataset(DIGITS, None)
    splits = (data.train, data.validation, data.test)
    storages = [{t.untyped_storage().data_ptr() for t in (split.images, split.labels)} for split in splits]
    assert len(set.union(*storages)) == 2 * len(splits)
    for split in splits:
        assert split.images.untyped_storage().nbytes() == split.images.numel() * 4
        assert split.labels.untyped_storage().nbytes() == split.labels.numel() * 8


def test_digits_are_normalized_over_train_and_have_every_class():
    data = load_dataset(DIGITS, None)
    images, labels = data.train.load(np.arange(960), None)
    assert images.shape == (960, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])
    # Sums of 61,440 float32 values: relative rounding far below 1e-5 by pairwise summation.
    assert float(images[:, 0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(images[:, 0].std()) == pytest.approx(1, abs=1e-5)
    assert set(labels.tolist()) == set(range(10))


def test_draws_of_one_half_leave_a_digit_alone():
    split = load_dataset(DIGITS, None).train
    indices = np.arange(4)
    plain, _ = split.load(indices, None)
    middle, _ = split.load(indices, np.full((4, AUGMENTATION_DRAWS), 0.5))
    # The grid's own coordinates are rounded: a few ulps of 8 pixels times the largest slope between pixels, about 4.
    assert torch.allclose(plain, middle, atol=1e-4)
    moved, _ = split.load(indices, np.full((4, AUGMENTATION_DRAWS), 0.9))
    assert float((plain - moved).abs().max()) > 0.1


def test_an_image_is_augmented_the_same_in_any_company():
    split = load_dataset(DIGITS, None).train
    draws = np.random.default_rng(0).random((6, AUGMENTATION_DRAWS))
    together, _ = split.load(np.arange(6), draws)
    alone = [split.load(np.array([k]), draws[k : k + 1])[0][0] for k in range(6)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, alone, strict=True))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of 10 train and 3 val images: JPEGs and a grey PNG, each of its own colour and size."""
    for part, count in (("train", 10), ("val", 3)):
        for label in range(2):
            folder = tmp_path / part / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                size = (17 + index, 24 - index)
                if index == 1:
                    Image.new("L", size, 100).save(folder / f"{index}.png")
                else:
                    Image.new("RGB", size, (20 * index, 120 * label, 7)).save(folder / f"{index}.jpeg")
            (folder / "notes.txt").write_text("not an image")
    return tmp_path


FOLDER = DataSpec(dataset="imagefolder", image_size=16, classes=2)


def test_a_folder_is_split_into_train_validation_and_test(tree):
    data = load_dataset(FOLDER, tree)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 6]
    images, labels = data.test.load(np.arange(6), None)
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def paths_of(part: Split) -> list[str]:
    """Files of a split of a folder, in its order."""
    files, indices = (part.split, part.indices) if isinstance(part, Subset) else (part, np.arange(len(part)))
    return [str(files._path(index).relative_to(files.folder)) for index in indices]  # type: ignore[attr-defined]


def test_the_splits_of_a_folder_are_disjoint_and_make_up_the_tree(tree):
    data = load_dataset(FOLDER, tree)
    train, validation, test = (paths_of(part) for part in (data.train, data.validation, data.test))
    images = [str(path.relative_to(tree)) for path in tree.rglob("*.*") if path.suffix != ".txt"]
    assert sorted([*train, *validation, *test]) == sorted(images)
    assert {path.partition("/")[0] for path in [*train, *validation]} == {"train"}
    assert {path.partition("/")[0] for path in test} == {"val"}


@pytest.mark.parametrize("share", [None, 0.5])
def test_the_first_images_of_a_folder_are_of_all_classes(tmp_path, share):
    write_tree(tmp_path, classes=5, train=40, val=1)
    data = load_dataset(DataSpec(dataset="imagefolder", image_size=16, classes=5, share=share), tmp_path)
    assert (len(data.train), len(data.validation)) == (180 if share is None else 90, 20)
    for part in (data.train, data.validation):
        _, labels = part.load(np.arange(len(part) // 2), None)
        assert set(labels.tolist()) == set(range(5))  # in order of class the first half has three at most


def test_a_grey_image_has_three_equal_channels(tree):
    images, _ = load_dataset(FOLDER, tree).test.load(np.array([1]), None)
    value = images[0] * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(value, torch.full_like(value, 100 / 255), atol=1e-5)


def test_an_augmented_crop_lies_in_the_image_for_all_draws(tree):
    split = load_dataset(FOLDER, tree).train
    corners = np.array(
        [
            [a, b, c, d, e, 0, 0, 0]
            for a in (0, 0.999)
            for b in (0, 0.999)
            for c in (0, 0.999)
            for d in (0, 0.999)
            for e in (0, 1)
        ]
    )
    images, _ = split.load(np.zeros(len(corners), np.int64), corners)
    assert images.shape == (32, 3, 16, 16)
    plain, _ = split.load(np.array([0]), None)
    # One colour all over (JPEG of one colour is exact to a level or two): a crop outside would bring black.
    assert float((images - plain.mean((2, 3), keepdim=True)).abs().max()) < 3 / 255 / min(DEVIATION)


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_loading_is_the_same_in_any_order(seed):
    split = load_dataset(DIGITS, None).validation
    order = np.random.default_rng(seed).permutation(len(split))[:16]
    images, labels = split.load(order, None)
    for place, index in enumerate(order):
        image, label = split.load(np.array([index]), None)
        assert torch.equal(images[place], image[0])
        assert labels[place] == label[0]


def test_the_digest_of_a_folder_follows_its_files_not_its_place(tree, tmp_path):
    before = load_dataset(FOLDER, tree).digest
    moved = tmp_path / "moved"
    moved.mkdir()
    for part in ("train", "val"):
        (tree / part).rename(moved / part)
    assert load_dataset(FOLDER, moved).digest == before
    (moved / "val" / "class0" / "0.jpeg").unlink()
    assert load_dataset(FOLDER, moved).digest != before


def test_a_class_without_images_or_of_another_split_is_refused(tree):
    (tree / "val" / "stranger").mkdir()
    with pytest.raises(DataError, match="stranger"):
        load_dataset(FOLDER, tree)
    (tree / "val" / "stranger").rmdir()
    for path in (tree / "val" / "class1").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no images in .*class1"):
        load_dataset(FOLDER, tree)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: path.write_bytes(b"\xff\xd8 half"), "it is no image of a known kind"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "it is no file, or a link to none"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is no file, or a link to none"),
    ],
    ids=["half", "link", "pipe"],
)
def test_an_unreadable_image_is_named_when_it_is_needed(tree, harm, why):
    harm(tree / "val" / "class0" / "0.jpeg")
    data = load_dataset(FOLDER, tree)
    with pytest.raises(DataError, match=rf"0\.jpeg: {why}; replace or remove it"):
        data.test.load(np.arange(2), None)


def test_how_many_images_there_are_is_known_without_them():
    assert DIGITS.train_images == len(load_dataset(DIGITS, None).train)
    assert FOLDER.train_images is None


def test_the_number_of_classes_must_fit(tree):
    with pytest.raises(SuiteError, match="has 2 classes, the suite says 3"):
        load_dataset(FOLDER.model_copy(update={"classes": 3}), tree)
    with pytest.raises(SuiteError, match="10 classes"):
        load_dataset(DIGITS.model_copy(update={"classes": 9}), None)
