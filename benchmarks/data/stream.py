"""The deterministic, resumable stream of batches, and the named random streams that everything draws from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import overload

import torch
from torch import Tensor

from benchmarks.data import AUGMENTATION_DRAWS, Split, counted_generator, permutation
from benchmarks.data.loading import Request, fetched
from benchmarks.messages import SuiteError
from benchmarks.ranks import ALONE, Ranks
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


@dataclass(frozen=True)
class OwnDraws(Sequence[MicroBatch]):
    """A batch whose micro-batches, except the global batch's first, draw from torch's generators by their own seeds.

    Dropout then draws the same whichever process a micro-batch is in. The first uses the generators as they are.
    """

    micro_batches: Sequence[MicroBatch]
    _passes: Iterator[int] = field(default_factory=count, repr=False)

    def __len__(self) -> int:
        return len(self.micro_batches)

    @overload
    def __getitem__(self, at: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[MicroBatch]: ...
    def __getitem__(self, at: int | slice) -> MicroBatch | Sequence[MicroBatch]:
        return self.micro_batches[at]

    def __iter__(self) -> Iterator[MicroBatch]:
        before = next(self._passes)
        for micro in self.micro_batches:
            if micro.place == 0:
                yield micro
                continue
            with torch.random.fork_rng(devices=[micro.images.device] if micro.images.is_cuda else []):
                torch.manual_seed(micro.seed + before)
                yield micro


@dataclass
class Stream:
    """Batches of a split in an order that depends on (seed, epoch) only; augmentation on (seed, epoch, image).

    position: batches already taken. loaders: processes that load ahead. ranks: each has its share of a batch's
    micro-batches, the first ones rank 0. An epoch's last, incomplete batch is dropped.
    """

    split: Split
    seed: int
    batch_size: int
    micro_batch: int
    augment: bool
    device: torch.device
    position: int = 0
    loaders: int = 0
    ranks: Ranks = ALONE
    _micro_batches: Iterator[tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.split) < self.batch_size:
            raise SuiteError(
                f"recipe.batch_size {self.batch_size} exceeds the {len(self.split)} images of the split; lower it"
            )
        if self.batch_size % (self.micro_batch * self.ranks.count):
            raise SuiteError(
                f"{self.ranks.count} processes cannot share batches of {self.batch_size} by {self.micro_batch}"
            )
        requests = self._requests(self.position)
        self._micro_batches = fetched(self.split, requests, loaders=self.loaders, device=self.device)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.split) // self.batch_size

    @property
    def _own(self) -> range:
        """Indices of this rank's micro-batches."""
        each = self.batch_size // self.micro_batch // self.ranks.count
        return range(self.ranks.rank * each, (self.ranks.rank + 1) * each)

    def next(self) -> Batch:
        seeds = [stream_seed(self.seed, f"{self.position}/{index}") for index in self._own]
        self.position += 1
        parts = islice(self._micro_batches, len(self._own))
        return OwnDraws([MicroBatch(*part, *place) for part, *place in zip(parts, self._own, seeds, strict=True)])

    def _requests(self, position: int) -> Iterator[Request]:
        """This rank's micro-batches from the `position`-th batch on, without end."""
        epoch, first = divmod(position, self.steps_per_epoch)
        while True:
            order = permutation(self.seed, _ORDER, epoch, count=len(self.split))
            shape = (len(self.split), AUGMENTATION_DRAWS)
            draws = counted_generator(self.seed, _AUGMENTATION, epoch).random(shape) if self.augment else None
            for batch in range(first, self.steps_per_epoch):
                for index in self._own:
                    start = batch * self.batch_size + index * self.micro_batch
                    chosen = order[start : start + self.micro_batch]
                    yield Request(chosen, None if draws is None else draws[chosen])
            epoch, first = epoch + 1, 0
