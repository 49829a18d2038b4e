"""CIFAR through torchvision: generated files in its layout stand in for the real ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from benchmarks.data.cifar import DEVIATION, MEAN
from benchmarks.data.folders import DataError
from benchmarks.data.opening import load_dataset
from benchmarks.messages import SuiteError
from benchmarks.suites.spec import DataSpec
from tests.harness import cli

CIFAR = DataSpec(dataset="cifar10", image_size=32, classes=10, augment="crop-flip")
PER_FILE = 1_100


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six files in CIFAR-10's layout, whose digests torchvision is told in place of the real ones."""
    place = tmp_path / CIFAR10.base_folder
    place.mkdir()
    noise = np.random.default_rng(0)

    def write(name: str, content: Any) -> tuple[str, str]:
        data = pickle.dumps(content)
        (place / name).write_bytes(data)
        return name, hashlib.md5(data).hexdigest()

    def images(name: str) -> tuple[str, str]:
        pixels = noise.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": noise.integers(0, 10, PER_FILE).tolist()})

    monkeypatch.setattr(CIFAR10, "train_list", [images(f"data_batch_{k}") for k in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [images("test_batch")])
    name, digest = write("batches.meta", {"label_names": [str(k) for k in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


def test_validation_is_carved_from_train_and_test_is_its_own(folder):
    data = load_dataset(CIFAR, folder)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [500, 5_000, PER_FILE]
    shown = torch.cat([part.load(np.arange(len(part)), None)[0] for part in (data.train, data.validation)])
    assert len(torch.unique(shown.flatten(1), dim=0)) == 5 * PER_FILE


def test_pixels_are_normalized_and_augmented_by_their_own_draws(folder):
    data = load_dataset(CIFAR, folder)
    images, labels = data.test.load(np.arange(4), None)
    assert images.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.int64
    value = images * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert float(value.min()) >= -1e-6
    assert float(value.max()) <= 1 + 1e-6
    middle = np.full((4, 8), 0.5)  # the crop of the middle, not flipped: the image itself
    assert torch.equal(data.test.load(np.arange(4), middle)[0], images)
    flipped = np.where(np.arange(8) == 2, 0.1, middle)
    assert torch.equal(data.test.load(np.arange(4), flipped)[0], images.flip(-1))
    corner = np.where(np.arange(8) == 0, 0.0, middle)
    moved = data.test.load(np.arange(4), corner)[0]
    assert torch.equal(moved[:, :, 4:], images[:, :, :-4])


def test_randaugment_is_repeatable(folder):
    split = load_dataset(CIFAR.model_copy(update={"augment": "randaugment"}), folder).train
    draws = np.random.default_rng(1).random((6, 8))
    together = split.load(np.arange(6), draws)[0]
    assert torch.equal(split.load(np.array([3]), draws[3:4])[0][0], together[3])
    assert not torch.equal(load_dataset(CIFAR, folder).train.load(np.arange(6), draws)[0], together)


def test_a_file_with_another_digest_is_not_unpickled(folder):
    class Boom:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "pwned",))

    (folder / CIFAR10.base_folder / "data_batch_3").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(DataError, match=r"no whole cifar10 .*prepare"):
        load_dataset(CIFAR, folder)
    assert not (folder / "pwned").exists()


def test_what_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = cli("--suite", "cifar10", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "python runner.py prepare --suite cifar10" in ran.err


def test_another_size_or_number_of_classes_is_refused(folder):
    with pytest.raises(SuiteError, match="10 classes and 32 pixels, the suite says 100 classes"):
        load_dataset(CIFAR.model_copy(update={"classes": 100}), folder)
    with pytest.raises(SuiteError, match="and 64 pixels"):
        load_dataset(CIFAR.model_copy(update={"image_size": 64}), folder)
