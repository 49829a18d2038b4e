"""Loaders: processes that fetch images ahead change nothing but the time it takes, and their deaths clear errors."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.data.folders import DataError
from benchmarks.data.loading import Request, _apart, fetched
from benchmarks.data.opening import load_dataset
from benchmarks.data.stream import Stream
from benchmarks.suites.spec import DataSpec
from benchmarks.trials.faults import machine_s_fault

CPU = torch.device("cpu")
DIGITS = DataSpec(dataset="digits", image_size=8, classes=10, augment="affine")


@dataclass(frozen=True)
class Poisoned:
    """Ten images, of which the seventh is told to do `harm`."""

    harm: str

    def __len__(self) -> int:
        return 10

    def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
        if 7 in indices and self.harm == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if 7 in indices and self.harm == "raise":
            raise DataError("cannot read the image seven")
        if 7 in indices and self.harm == "stick":
            time.sleep(0.5)  # the image before is handed over meanwhile
            ctypes.PyDLL(None).sleep(30)  # as a library's code that keeps the interpreter to itself
        return torch.from_numpy(indices.astype(np.float32)), torch.from_numpy(indices)


def step_that_loses(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)
    time.sleep(20)


def one_by_one() -> list[Request]:
    return [Request(np.array([index]), None) for index in range(10)]


@pytest.mark.parametrize("loaders", [1, 2])
def test_batches_are_the_same_with_any_number_of_loaders(loaders):
    train = load_dataset(DIGITS, None).train
    alone, ahead = (Stream(train, 0, 64, 32, True, CPU, position=13, loaders=n) for n in (0, loaders))
    for _ in range(4):  # 15 batches an epoch: the second epoch begins among them
        for here, there in zip(alone.next(), ahead.next(), strict=True):
            assert torch.equal(here.images, there.images)
            assert torch.equal(here.labels, there.labels)


def test_loaders_draw_nothing_from_the_stream_of_dropout():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    list(fetched(load_dataset(DIGITS, None).test, one_by_one(), loaders=2, device=CPU))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("loaders", [0, 2])
def test_what_cannot_be_read_is_said_as_without_loaders(loaders):
    ready = fetched(Poisoned("raise"), one_by_one(), loaders=loaders, device=CPU)
    assert [labels.item() for _, labels in islice(ready, 7)] == list(range(7))
    with pytest.raises(DataError, match="image seven"):
        next(ready)


def test_a_loader_that_is_killed_during_a_step_is_no_fault_of_the_method_either():
    """torch says it by a signal, wherever the main thread is."""
    others = set(multiprocessing.active_children())
    ready = fetched(Poisoned("none"), one_by_one(), loaders=1, device=CPU)
    next(ready)
    (worker,) = set(multiprocessing.active_children()) - others
    with pytest.raises(RuntimeError) as caught:
        step_that_loses(worker.pid)
    ready.close()  # type: ignore[attr-defined]
    assert machine_s_fault(caught.value)


def test_a_loader_ends_by_sigterm_from_the_trial_alone():
    """torch ends by it, when a trial ends, what has not ended by itself; a scheduler means the trial."""
    loader = multiprocessing.get_context("fork").Process(target=stand_by)
    loader.start()
    while not blocked(loader.pid or 0) >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.01)
    subprocess.run(["kill", str(loader.pid)], check=True)
    loader.join(0.5)
    assert loader.is_alive()
    loader.terminate()
    loader.join(10)
    assert loader.exitcode == 0


def blocked(pid: int) -> int:
    """Signals that a process does not take, a bit each."""
    (said,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    return int(said.split()[1], 16)


def stand_by() -> None:
    _apart(0)
    time.sleep(60)


def test_a_loader_stuck_where_nothing_else_runs_is_ended_with_its_stream(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # how long torch waits for it, twice
    others = set(multiprocessing.active_children())
    ready = fetched(Poisoned("stick"), one_by_one()[6:], loaders=1, device=CPU)
    next(ready)
    (worker,) = set(multiprocessing.active_children()) - others
    time.sleep(1.5)  # it is stuck by then
    ready.close()  # type: ignore[attr-defined]
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


def test_a_loader_that_is_killed_is_no_fault_of_the_method():
    with pytest.raises(DataError, match=r"worker.*resources\.loaders=0"):
        list(fetched(Poisoned("die"), one_by_one(), loaders=1, device=CPU))
