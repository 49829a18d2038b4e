"""The deterministic, resumable stream of batches, and the named random streams that everything draws from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data import AUGMENTATION_DRAWS, Split, counted_generator, permutation
from benchmarks.messages import SuiteError
from methods.contract import Batch, MicroBatch

_ORDER, _AUGMENTATION = 0, 1


def stream_seed(seed: int, name: str) -> int:
    """The seed of a named stream, such as `finetune` or `search/select`; streams do not overlap in practice.

    >>> stream_seed(0, "finetune") == stream_seed(0, "finetune") != stream_seed(1, "finetune")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def torch_stream(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, name))


@dataclass
class Stream:
    """Batches of a split in an order that hangs on (seed, epoch) alone; augmentation on (seed, epoch, image) alone.

    position: batches already taken. An epoch's last, incomplete batch is dropped.
    """

    split: Split
    seed: int
    batch_size: int
    micro_batch: int
    augment: bool
    device: torch.device
    position: int = 0

    def __post_init__(self) -> None:
        if len(self.split) < self.batch_size:
            raise SuiteError(
                f"recipe.batch_size {self.batch_size} exceeds the {len(self.split)} images there are; lower it"
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.split) // self.batch_size

    def next(self) -> Batch:
        epoch, index = divmod(self.position, self.steps_per_epoch)
        self.position += 1
        order, draws = self._epoch(epoch)
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        images, labels = self.split.load(chosen, None if draws is None else draws[chosen])
        parts = zip(images.split(self.micro_batch), labels.split(self.micro_batch), strict=True)
        return [MicroBatch(part.to(self.device), targets.to(self.device)) for part, targets in parts]

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        if self._kept is None or self._kept[0] != epoch:
            order = permutation(self.seed, _ORDER, epoch, count=len(self.split))
            shape = (len(self.split), AUGMENTATION_DRAWS)
            draws = counted_generator(self.seed, _AUGMENTATION, epoch).random(shape) if self.augment else None
            self._kept = (epoch, order, draws)
        return self._kept[1], self._kept[2]

    _kept: tuple[int, NDArray[np.int64], NDArray[np.float64] | None] | None = None
