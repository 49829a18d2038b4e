"""Fake quantization in one pass over memory, forward and backward; compiled by numba, run by torch's own threads.

`methods.quantization.fake_quant` has the formulas and the plain path; codes and outputs here equal its to the bit, sums
over elements to rounding. Tensors are float32 in dense memory, seen as rows that share a step: output channels, or
blocks of BLOCK elements where one step serves all. Rows are fixed, so results do not hang on the number of threads.
The compiled code is kept beside this file, or in numba's own cache where this folder cannot be written.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 13
"""Elements that share a row where one step serves all: three such float32 rows fit a core's first caches."""

_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "hardswish": 3}

_LOW, _HIGH, _SHIFT, _OFFSET, _WEIGHT = range(5)
"""Columns of a branch's constants."""

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


class Branches(NamedTuple):
    """The quantizers that a tensor is mixed from. steps: (branches, 1 or channels); constants: (branches, 5)."""

    steps: Tensor
    constants: NDArray[np.float32]


def branches(steps: Tensor, constants: Sequence[Sequence[float]]) -> Branches:
    """steps: (branches, 1 or channels), float32. constants: low, high, shift, offset and weight of each branch."""
    return Branches(steps.contiguous(), np.array(constants, np.float32))


def fits(x: Tensor) -> bool:
    """Whether the kernels take this tensor: float32 on the CPU, dense in one of torch's memory formats, not empty."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x.device.type == "cpu" and x.dtype == torch.float32 and dense and x.numel() > 0


def forward(x: Tensor, found: Branches, activation: str) -> Tensor:
    """sum_k weight_k * Q_k(activation(x)), like `x`; a single branch is not weighted."""
    out = torch.empty_like(x)
    length, rows = _rows(x, found)
    _run(_forward_task, rows, x, x, out, None, found, length, activation)
    return out


def backward(x: Tensor, g: Tensor, found: Branches, activation: str) -> tuple[Tensor, Tensor]:
    """The gradient of `x`, and per branch and row of `found.steps` the sums that others follow from.

    g: the output's gradient. Sums, float64, shape (branches, 1 or channels, 3): of g * (r - u inside, r outside), for
    the step; of g outside, for the offset; of g * Q_k(x), for the weight (0 where there is one branch).
    """
    if g.stride() != x.stride() or g.dtype != x.dtype:
        g = torch.empty_like(x).copy_(g)
    grad = torch.empty_like(x)
    length, rows = _rows(x, found)
    sums = torch.empty(len(found.constants), rows, 3)
    _run(_backward_task, rows, x, g, grad, sums, found, length, activation)
    total = sums.double()
    return grad, total if found.steps.shape[1] > 1 else total.sum(1, keepdim=True)


def _rows(x: Tensor, found: Branches) -> tuple[int, int]:
    """Elements in a row, and rows."""
    channels = found.steps.shape[1]
    return (x.numel() // channels, channels) if channels > 1 else (BLOCK, -(-x.numel() // BLOCK))


# What is compiled. `fastmath` would break NaN and the comparisons; sums alone may be reordered, into vector lanes.


@numba.njit(fastmath={"reassoc", "nsz"})
def _plus(a: Any, b: Any) -> Any:
    return a + b


@_jit
def _activate(x: Any, y: Any, activation: Any) -> None:
    zero, three, six = np.float32(0), np.float32(3), np.float32(6)
    for i in range(x.size):
        v = x[i]
        if activation == 3:
            gate = v + three
            gate = zero if gate < zero else gate
            gate = six if gate > six else gate
            y[i] = v * gate / six
        else:
            v = zero if v < zero else v
            y[i] = six if activation == 2 and v > six else v


@_jit
def _chain(x: Any, grad: Any, activation: Any) -> None:
    """Multiplies gradients by the activation's slope at `x`, in place."""
    zero, three, six = np.float32(0), np.float32(3), np.float32(6)
    for i in range(x.size):
        v = x[i]
        if activation == 1:
            grad[i] = zero if v <= zero else grad[i]
        elif activation == 2:
            grad[i] = zero if v <= zero or v >= six else grad[i]
        else:
            slope = (v + v + three) / six if -three < v < three else (zero if v <= -three else np.float32(1))
            grad[i] = grad[i] * slope


@_jit
def _forward_row(x: Any, out: Any, steps: Any, constants: Any) -> None:
    for k in range(len(constants)):
        step, low, high = steps[k], constants[k, _LOW], constants[k, _HIGH]
        shift, offset, weight = constants[k, _SHIFT], constants[k, _OFFSET], constants[k, _WEIGHT]
        if len(constants) == 1:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                u = low if u < low else u
                u = high if u > high else u
                out[i] = np.rint(u) * step + offset - shift
        else:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                u = low if u < low else u
                u = high if u > high else u
                value = (np.rint(u) * step + offset - shift) * weight
                out[i] = out[i] + value if k else value


@_jit
def _backward_row(x: Any, g: Any, grad: Any, sums: Any, steps: Any, constants: Any) -> None:
    zero = np.float32(0)
    for k in range(len(constants)):
        step, low, high = steps[k], constants[k, _LOW], constants[k, _HIGH]
        shift, offset, weight = constants[k, _SHIFT], constants[k, _OFFSET], constants[k, _WEIGHT]
        of_step, of_offset, of_weight = zero, zero, zero
        if len(constants) == 1:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                v = low if u < low else u
                v = high if v > high else v
                inside = v == u
                grad[i] = g[i] if inside else zero
                of_step = _plus(of_step, (np.rint(v) - (u if inside else zero)) * g[i])
                of_offset = _plus(of_offset, zero if inside else g[i])
        else:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                v = low if u < low else u
                v = high if v > high else v
                inside = v == u
                r = np.rint(v)
                passed = g[i] * weight if inside else zero
                grad[i] = grad[i] + passed if k else passed
                of_step = _plus(of_step, (r - (u if inside else zero)) * g[i])
                of_offset = _plus(of_offset, zero if inside else g[i])
                of_weight = _plus(of_weight, g[i] * (r * step + offset - shift))
        sums[k, 0], sums[k, 1], sums[k, 2] = of_step, of_offset, of_weight


# How threads share the rows: each takes the next few until none is left.

_COUNTER, _ROWS, _LENGTH, _SIZE, _BRANCHES, _CHANNELS, _ACTIVATION, _X, _G, _OUT, _SUMS, _STEPS, _CONSTANTS = range(13)
"""Fields of a task: integers, and addresses of arrays."""

_SHARE = 1 << 15
"""Elements that a thread takes at a time, at the least."""


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def _fetch_and_add(_context: Any, counter: Any, count: Any) -> Any:
    """The 64-bit integer at `counter` before `count` was added to it, in one step for all threads."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        integer = context.get_value_type(types.int64).as_pointer()
        return builder.atomic_rmw("add", builder.bitcast(values[0], integer), values[1], "seq_cst")

    return types.int64(types.voidptr, types.int64), generate


@_jit
def _work(task: Any, gradients: Any) -> None:
    size, length, rows, count = task[_SIZE], task[_LENGTH], task[_ROWS], task[_BRANCHES]
    channels, activation = task[_CHANNELS], task[_ACTIVATION]
    x = carray(_pointer(task[_X]), size, np.float32)
    g = carray(_pointer(task[_G]), size, np.float32)
    out = carray(_pointer(task[_OUT]), size, np.float32)
    sums = carray(_pointer(task[_SUMS]), (count, rows, 3), np.float32)
    steps = carray(_pointer(task[_STEPS]), (count, channels), np.float32)
    constants = carray(_pointer(task[_CONSTANTS]), (count, 5), np.float32)
    buffer = np.empty(length if activation else 0, np.float32)
    share = max(1, _SHARE // length)
    while True:
        first = _fetch_and_add(_pointer(task[_COUNTER]), share)
        if first >= rows:
            return
        for row in range(first, min(first + share, rows)):
            begin, end = row * length, min((row + 1) * length, size)
            own, values = steps[:, row if channels > 1 else 0], x[begin:end]
            if activation:
                values = buffer[: end - begin]
                _activate(x[begin:end], values, activation)
            if gradients:
                _backward_row(values, g[begin:end], out[begin:end], sums[:, row], own, constants)
                if activation:
                    _chain(x[begin:end], out[begin:end], activation)
            else:
                _forward_row(values, out[begin:end], own, constants)


@numba.cfunc("void(voidptr)", cache=True)
def _forward_task(task: Any) -> None:
    _work(carray(task, 13, np.int64), False)


@numba.cfunc("void(voidptr)", cache=True)
def _backward_task(task: Any) -> None:
    _work(carray(task, 13, np.int64), True)


def _run(
    task: Any,
    rows: int,
    x: Tensor,
    g: Tensor,
    out: Tensor,
    sums: Tensor | None,
    found: Branches,
    length: int,
    activation: str,
) -> None:
    counter = ctypes.c_int64(0)
    fields = (ctypes.c_int64 * 13)(
        ctypes.addressof(counter),
        rows,
        length,
        x.numel(),
        *found.steps.shape,
        _ACTIVATIONS[activation],
        x.data_ptr(),
        g.data_ptr(),
        out.data_ptr(),
        0 if sums is None else sums.data_ptr(),
        found.steps.data_ptr(),
        found.constants.ctypes.data,
    )
    threads = min(torch.get_num_threads(), -(-x.numel() // _SHARE), rows)
    parallel = _openmp() if threads > 1 else None
    if parallel is None:
        task.ctypes(ctypes.addressof(fields))
    else:
        parallel(task.address, ctypes.addressof(fields), threads, 0)


@cache
def _openmp() -> Any:
    """GOMP_parallel of the OpenMP runtime that torch has loaded, so that its threads do the work; None without one.

    Threads of our own would compete with torch's, which spin for a while after each of its operations.
    """
    maps = Path("/proc/self/maps")
    loaded = re.search(r"/\S*lib(?:gomp|iomp5|omp)\b\S*\.so\S*", maps.read_text()) if maps.exists() else None
    if loaded is None:
        return None
    parallel = ctypes.CDLL(loaded.group(0)).GOMP_parallel
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel
