"""Images fetched ahead of their use, in processes of their own; without any, fetched when they are asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Fetched

from benchmarks.data import AHEAD, Split
from benchmarks.data.folders import DataError


class Request(NamedTuple):
    """Arguments of `Split.load`."""

    indices: NDArray[np.int64]
    draws: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Asked(Fetched[tuple[Tensor, Tensor]]):
    split: Split

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor]:
        return self.split.load(request.indices, request.draws)


def fetched(
    split: Split, requests: Iterable[Request], *, loaders: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `split.load` gives for each request, in order, on the device; the same with any number of loaders.

    There are no more loaders than cores. requests may be endless. Raises DataError if a loading process is killed, and
    whatever `load` raises.
    """
    loaders = min(loaders, len(os.sched_getaffinity(0)))
    ready = _ahead(split, requests, loaders, device) if loaders else (split.load(*request) for request in requests)
    for images, labels in ready:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _ahead(
    split: Split, requests: Iterable[Request], loaders: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        _Asked(split),
        batch_size=None,
        sampler=requests,
        num_workers=loaders,
        prefetch_factor=AHEAD,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # without one of its own it draws from the stream of dropout
        worker_init_fn=_apart,
    )
    batches = iter(loader)
    try:
        yield from batches
    except (RuntimeError, EOFError, OSError) as error:  # the last two if it died while handing something over
        if isinstance(error, RuntimeError) and "worker" not in str(error):
            raise
        raise DataError(
            f"a worker that loads images has gone ({error!r}); is memory short? "
            "resources.loaders=0 loads in the trial's own process"
        ) from error
    finally:
        # Now, not when the iterator is collected: till then torch would report this worker's end whenever a child ends.
        batches._shutdown_workers()  # type: ignore[attr-defined]
        for worker in batches._workers:  # type: ignore[attr-defined]
            if worker.is_alive():  # stuck in a library that lets no other thread run, not even the one for SIGTERM
                worker.kill()


def _apart(_worker: int) -> None:
    """Let only the trial end this loader.

    On a signal to its process group, or SIGTERM to every process, the trial saves itself, and still needs images for
    that. So a loader leaves the group, and ends by SIGTERM only if its parent sent it.
    """
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
