"""The processes that train one trial together, and the sums that make them one computation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

PATIENCE = timedelta(days=2)
"""How long ranks wait for one another: long, as a float start may take hours; a rank's death is noticed at once."""


GONE = "another process of this trial has gone"


class RankLostError(OSError):
    """Another process of this trial has gone; the trial is lost and can go on from its checkpoint."""


class RanksDifferError(RuntimeError):
    """Processes that should hold the same values do not; the trial is lost, not failed."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among those of its trial, and how many they are. Alone, every operation is the identity."""

    rank: int = 0
    count: int = 1

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over the ranks, in place. All ranks name the same tensors in the same order."""
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for alike in kinds.values():
            flat = _flatten_dense_tensors(alike)
            with _together():
                dist.all_reduce(flat)
            for tensor, summed in zip(alike, _unflatten_dense_tensors(flat, alike), strict=True):
                tensor.copy_(summed)

    def average(self, values: Tensor) -> Tensor:
        if self.count == 1:
            return values
        total = values.clone()
        with _together():
            dist.all_reduce(total)
        return total / self.count

    def averages(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The mean over ranks of each number; a NaN anywhere is one everywhere."""
        if self.count == 1:
            return dict(numbers)
        means = self.average(torch.tensor(list(numbers.values()), dtype=torch.float64))
        return dict(zip(numbers, means.tolist(), strict=True))

    def common(self, values: Tensor) -> Tensor:
        """Rank 0's values, on every rank."""
        if self.count == 1:
            return values
        shared = values.clone()
        with _together():
            dist.broadcast(shared, 0)
        return shared

    def decided(self, choice: bool) -> bool:
        """Rank 0's choice, on every rank."""
        return bool(self.common(torch.tensor(int(choice))))

    def agree(self, what: str, digest: str) -> None:
        """Raises RanksDifferError unless all ranks have the same digest, in hexadecimal."""
        if self.count == 1:
            return
        own = torch.tensor([int(digest[at : at + 8], 16) for at in range(0, 64, 8)])
        found = [torch.empty_like(own) for _ in range(self.count)]
        with _together():
            dist.all_gather(found, own)
        if any(not torch.equal(other, found[0]) for other in found):
            raise RanksDifferError(f"the trial's {self.count} processes differ in {what}")


ALONE = Ranks()

_FIRST_SECONDS = 20.0
"""How long a rank that has failed waits for the note that rank 0 writes if it fails in the same way."""
_POLL_SECONDS = 0.1


def comes(there: Callable[[], bool]) -> bool:
    """Whether something is there, or appears within the time that the first rank needs to write it."""
    until = time.monotonic() + _FIRST_SECONDS
    while not (found := there()) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    return found


@contextmanager
def _together() -> Iterator[None]:
    """Turns torch's RuntimeErrors, which it raises when another rank does not answer, into RankLostError."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"{GONE}: {error}") from error


def backend_for(device: str) -> str:
    """torch's name of the backend between ranks; gloo too with a GPU, as flags and numbers lie on the CPU."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


def join(rank: int, count: int, meeting: Path, backend: str) -> None:
    """Meet the other ranks of this machine at a file, which must not exist yet; they use the loopback device only."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    dist.init_process_group(
        backend, init_method=f"file://{meeting.resolve()}", rank=rank, world_size=count, timeout=PATIENCE
    )


@contextmanager
def joined(rank: int, count: int, meeting: Path, device: str) -> Iterator[Ranks]:
    """Join the other ranks of this machine, as `join` does, and leave at the end."""
    join(rank, count, meeting, backend_for(device))
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()
