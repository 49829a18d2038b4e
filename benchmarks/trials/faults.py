"""Which errors are the machine's and which the method's, and what a record keeps of one.

The machine's leave no record: the trial is lost, and the same command runs it again.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from benchmarks.addresses import without_secrets
from benchmarks.data.folders import DataError
from benchmarks.messages import SuiteError
from benchmarks.ranks import RankLostError, RanksDifferError
from benchmarks.trials.checkpoint import CheckpointError, UnfitError


class DeviceLostError(OSError):
    """This process can no longer use its GPU; another process can, and continues from the checkpoint."""


INFRASTRUCTURE = (
    OSError,
    MemoryError,
    torch.OutOfMemoryError,
    torch.AcceleratorError,
    torch.distributed.DistError,
    CheckpointError,
    DataError,
    SuiteError,
    RankLostError,
    RanksDifferError,
)
"""Kinds of error that say nothing about a method."""

_MACHINE = (
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN's words where memory is short
    "could not create a memory object",
    "DataLoader worker",
    "Pin memory thread exited unexpectedly",
    "unable to open shared memory object",
    "Too many open files",
    "CUDA error",
    "CUDA driver error",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "unable to find an engine to execute this computation",
    "cuDNN error",
    "CUDNN_STATUS_",
    "CUBLAS_STATUS_",
    "NCCL",
)

_COMPILER = "torch._dynamo.exc.BackendCompilerFailed"
"""Base class of a compiler's errors; by its name, as importing it takes seconds."""


def machine_s_fault(error: Exception) -> bool:
    """Whether an error says nothing about a method.

    That includes torch's RuntimeErrors about short memory, about a GPU, its libraries or a compiler, and about a killed
    process that loads images. The last is raised by a signal handler, anywhere in a trial.
    """
    if isinstance(error, INFRASTRUCTURE):
        return True
    if any(f"{kind.__module__}.{kind.__qualname__}" == _COMPILER for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MACHINE)


@contextmanager
def resuming() -> Iterator[None]:
    """Around the loading of a checkpoint's state: turns any error of a state that does not fit into UnfitError.

    So such a state is the machine's fault, whether network, optimizer or method refuses it.
    """
    try:
        yield
    except Exception as error:
        if machine_s_fault(error):
            raise
        said = " ".join(str(error).split())
        raise UnfitError(f"does not fit this trial ({type(error).__name__}: {said[:200]})") from error


def require_device(device: str, error: Exception) -> None:
    """Raises DeviceLostError if this process's later work on a GPU would fail too: some errors are permanent."""
    if not device.startswith("cuda"):
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        said = str(error).partition("\n")[0]
        raise DeviceLostError(f"the GPU is lost to this process ({said})") from error


def traceback_of(error: BaseException) -> str:
    """An error's traceback as records keep it: short paths, home as `~`, no secrets of addresses."""
    text = without_secrets("".join(traceback.format_exception(error)))
    project = Path(__file__).parents[2]
    for folder in (Path(sys.prefix), Path(sys.base_prefix), project, project.resolve()):  # .venv is in the project
        text = _renamed(text, folder, "")
    with suppress(RuntimeError):  # no home folder, as in some containers
        text = _renamed(text, Path.home(), "~/")
    return text


def _renamed(text: str, folder: Path, name: str) -> str:
    """The text with whole paths into a folder, other than the root, shortened."""
    return text if folder == Path("/") else re.sub(rf"(?<![\w./-]){re.escape(str(folder))}/", name, text)
