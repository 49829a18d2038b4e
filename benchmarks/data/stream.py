"""The deterministic, resumable stream of batches, and the named random streams that everything draws from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from benchmarks.data import AUGMENTATION_DRAWS, Split, counted_generator, permutation
from benchmarks.data.loading import Request, fetched
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

    position: batches already taken. loaders: processes that load ahead. An epoch's last, incomplete batch is dropped.
    """

    split: Split
    seed: int
    batch_size: int
    micro_batch: int
    augment: bool
    device: torch.device
    position: int = 0
    loaders: int = 0
    _micro_batches: Iterator[tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.split) < self.batch_size:
            raise SuiteError(
                f"recipe.batch_size {self.batch_size} exceeds the {len(self.split)} images there are; lower it"
            )
        requests = self._requests(self.position)
        self._micro_batches = fetched(self.split, requests, loaders=self.loaders, device=self.device)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.split) // self.batch_size

    def next(self) -> Batch:
        self.position += 1
        parts = islice(self._micro_batches, self.batch_size // self.micro_batch)
        return [MicroBatch(images, labels) for images, labels in parts]

    def _requests(self, position: int) -> Iterator[Request]:
        """Micro-batches from the `position`-th batch on, without end."""
        epoch, first = divmod(position, self.steps_per_epoch)
        while True:
            order = permutation(self.seed, _ORDER, epoch, count=len(self.split))
            shape = (len(self.split), AUGMENTATION_DRAWS)
            draws = counted_generator(self.seed, _AUGMENTATION, epoch).random(shape) if self.augment else None
            start, end = first * self.batch_size, self.steps_per_epoch * self.batch_size
            for at in range(start, end, self.micro_batch):
                chosen = order[at : at + self.micro_batch]
                yield Request(chosen, None if draws is None else draws[chosen])
            epoch, first = epoch + 1, 0
