"""Save and restore a trial so that a killed run equals an unkilled one."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch

from benchmarks.events import Progress
from benchmarks.files import forget_unfinished, write_atomic
from benchmarks.seals import SealError, sealed, unsealed
from benchmarks.stopping import StoppedError, asked

SCHEMA = 4
_DEAREST = 50
"""The least ratio of the time between two saves to the time that a save takes."""

Result = TypeVar("Result")


class CheckpointError(Exception):
    """A file that is truncated, altered, or of another trial or schema; the message names it."""


class UnfitError(CheckpointError):
    """A whole checkpoint that a trial cannot go on from."""


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_suffix(".previous.pt")


def save_checkpoint(path: Path, trial_id: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values); whole or not at all. The one before stays beside it."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, "state": state}, buffer)
    with suppress(FileNotFoundError):
        path.replace(previous(path))
    write_atomic(path, lambda file: file.write(sealed(buffer.getvalue(), trial_id)))


def going_on(
    path: Path, trial_id: str, run: Callable[[dict[str, Any] | None], Generator[Progress, None, Result]]
) -> Generator[Progress, None, Result]:
    """Run from the checkpoint, or from the beginning, with a note where a checkpoint cannot be used.

    run: gets the checkpoint's state, or None. It raises UnfitError if it cannot use that, see `faults.resuming`.
    """
    doubts: list[str] = []
    try:
        saved = load_checkpoint(path, trial_id, doubts.append)
    except CheckpointError as error:
        doubts.append(f"{error}; it starts from its beginning")
        discard_checkpoint(path)
        saved = None
    for doubt in doubts:
        yield Progress.noting(doubt)
    if saved is None:
        return (yield from run(None))
    try:
        return (yield from run(saved))
    except UnfitError as error:
        yield Progress.noting(f"{path} {error}; it starts from its beginning")
        discard_checkpoint(path)
    return (yield from run(None))


def load_checkpoint(path: Path, trial_id: str, tell: Callable[[str], object] = str) -> dict[str, Any] | None:
    """The state saved last for a trial, or the one before if that cannot be trusted; None if there is none.

    Its tensors are on the CPU, wherever they were. A last checkpoint that cannot be trusted is removed if the one
    before can be, as the next save would put it in that one's place. Raises CheckpointError if there are files and none
    can be trusted. tell: called with a line about a last checkpoint that cannot be trusted.
    """
    forget_unfinished(path)
    found: CheckpointError | None = None
    for file in (path, previous(path)):
        try:
            state = parse_checkpoint(file.read_bytes(), str(file), trial_id)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            found = found or error
            continue
        if found:
            tell(f"{found}; it goes on from the checkpoint before")
            path.unlink(missing_ok=True)  # another rank may have removed it
        return state
    if found:
        raise found
    return None


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's own generators that work on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `random_state` gave; a GPU's generator only where the state is of one."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def discard_checkpoint(path: Path) -> None:
    for file in (path, previous(path)):
        file.unlink(missing_ok=True)


def parse_checkpoint(data: bytes, path: str, trial_id: str) -> dict[str, Any]:
    """The state in a file's content; `path` is for messages. Raises CheckpointError if it cannot be trusted."""
    saved = _loaded(data, path, trial_id)
    if not isinstance(saved, dict) or saved.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: no checkpoint of schema {SCHEMA}")
    state: dict[str, Any] = saved["state"]
    return state


def _loaded(data: bytes, path: str, name: str) -> Any:
    """What torch reads from a sealed file's content. Raises CheckpointError."""
    try:
        return torch.load(io.BytesIO(unsealed(data, name)), weights_only=True, map_location="cpu")
    except SealError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__})") from error


@dataclass
class Saver:
    """Calls `save` at most every `seconds`, and never for more than a fiftieth of the time; 0 saves at every tick.

    Asked to stop, it saves and raises StoppedError.
    """

    seconds: float
    save: Callable[[], None]
    last: float = field(default_factory=time.monotonic)
    cost: float = 0.0

    def tick(self) -> None:
        stop = asked()
        if stop or self.due:
            self.now()
        if stop:
            raise StoppedError

    @property
    def due(self) -> bool:
        wait = max(self.seconds, _DEAREST * self.cost) if self.seconds else 0.0
        return time.monotonic() - self.last >= wait

    def now(self) -> None:
        begun = time.monotonic()
        self.save()
        self.last = time.monotonic()
        self.cost = self.last - begun


def save_network(path: Path, state: dict[str, torch.Tensor]) -> None:
    """A network's state dict, whole or not at all. Raises OSError where there is no room."""
    buffer = io.BytesIO()  # on a full disk torch itself would raise a RuntimeError
    torch.save(state, buffer)
    write_atomic(path, lambda file: file.write(sealed(buffer.getvalue(), path.stem)))


def load_network(path: Path) -> dict[str, torch.Tensor]:
    """The state dict that `save_network` wrote here. Raises FileNotFoundError, CheckpointError for any other file."""
    state: dict[str, torch.Tensor] = _loaded(path.read_bytes(), str(path), path.stem)
    return state


def network_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of a state dict, in its order."""
    total = hashlib.sha256()
    for name, tensor in state.items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
