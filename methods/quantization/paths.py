"""Which code quantizes: kernels of ours on the CPU, plain PyTorch elsewhere. Both give the same codes.

QUANTIZER_PATH=plain in the environment has plain PyTorch do it everywhere.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

PathName = Literal["fused", "plain"]

_plain_only: ContextVar[bool] = ContextVar("plain_only", default=os.environ.get("QUANTIZER_PATH") == "plain")


@cache
def _kernels() -> ModuleType | None:
    try:
        from methods.quantization import kernels
    except Exception as error:  # noqa: BLE001 (no numba, no folder for its cache, or a damaged one: it may raise anything)
        advice = "install numba, or delete the *.nbi and *.nbc files of methods/quantization/__pycache__"
        what = f"{type(error).__name__}: {error}"
        warnings.warn(f"quantization runs in plain PyTorch, at about twice the time ({what}); {advice}", stacklevel=2)
        return None
    return kernels


def kernels_for(x: Tensor) -> ModuleType | None:
    """methods.quantization.kernels where they take `x`; None where plain PyTorch is used."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or _plain_only.get():
        return None
    kernels = _kernels()
    return kernels if kernels is not None and kernels.fits(x) else None


def path_on(device: str) -> PathName:
    """The path that quantizes float32 tensors on `device`; every record names it."""
    fused = device.startswith("cpu") and not _plain_only.get() and _kernels() is not None
    return "fused" if fused else "plain"


@contextmanager
def plain_path() -> Iterator[None]:
    """Inside, plain PyTorch quantizes every tensor: to compare the two paths."""
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)
