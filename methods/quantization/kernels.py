"""Fake quantization in one pass over memory, forward and backward; compiled by numba, run by torch's own threads.

`methods.quantization.fake_quant` has the formulas and the plain path; codes and outputs equal its bit for bit, sums
over elements up to rounding. Tensors are float32 in dense memory, seen as rows that share a step: output channels, or
blocks of BLOCK elements where one step serves all. Rows are fixed, so results do not depend on the number of threads.
The compiled code is kept beside this file, or in numba's own cache where this folder cannot be written.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.quantization.grid import Grid

BLOCK = 1 << 13
"""Elements that share a row where one step serves all: three such float32 rows fit a core's first caches."""

_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "hardswish": 3}

_LOW, _HIGH, _SHIFT, _OFFSET, _WEIGHT, _SCALE, _LEARNS_OFFSET = range(7)
"""Columns of a branch's constants. scale: the factor on the gradients of its step and its offset."""

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


class Constants(NamedTuple):
    """float32, shape (branches, 7), and its address."""

    values: NDArray[np.float32]
    address: int


def constants(
    grids: Sequence[Grid], offsets: Sequence[float | None], weights: Sequence[float], scales: Sequence[float]
) -> Constants:
    """The constants of each branch; an offset of None is 0 and is not learned."""
    rows = [
        (grid.low, grid.high, grid.shift, offset or 0.0, weight, scale, offset is not None)
        for grid, offset, weight, scale in zip(grids, offsets, weights, scales, strict=True)
    ]
    values = np.array(rows, np.float32)
    return Constants(values, values.ctypes.data)


@lru_cache(maxsize=4096)
def constants_of_one(grid: Grid, scale: float) -> Constants:
    """The constants of a single quantizer without an offset, cached because every step asks for them."""
    return constants((grid,), (None,), (1.0,), (scale,))


def fits(x: Tensor) -> bool:
    """Whether the kernels take this tensor: float32 on the CPU, dense in one of torch's memory formats, not empty.

    Subclasses are left alone: those of torch's own tracing have no memory to read.
    """
    if type(x) not in (Tensor, nn.Parameter):
        return False
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return False
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


class Operand(NamedTuple):
    """A tensor and what quantizes it. steps: contiguous, (branches, 1 or channels), or any shape for one branch."""

    x: Tensor
    steps: Tensor
    found: Constants
    activation: str = "none"


class Launch:
    """The tasks of quantizing some tensors, in memory as the kernels read them: one forward, then its backwards.

    Each call gets its tensors anew, as autograd hands them out, with the shapes and layouts of the operands.
    """

    def __init__(self, operands: Sequence[Operand]) -> None:
        self.found = [operand.found for operand in operands]  # `memory` has their addresses
        fields = [_fields(operand) for operand in operands]
        self.memory = array("q", [len(fields), *chain.from_iterable(fields)])
        self.address = self.memory.buffer_info()[0]
        shares = sum(min(task[_ROWS], -(-task[_SIZE] // _SHARE)) for task in fields)
        # All of torch's threads or one: OpenMP's runtime ends threads that a smaller team leaves idle.
        self.threads = torch.get_num_threads() if shares > 1 else 1

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """sum_k weight_k * Q_k(activation(x)) of each, like its `x`; a single branch is not weighted."""
        outs = [torch.empty_like(x) for x in xs]
        for first, out in zip(self._firsts(), outs, strict=True):
            self.memory[first + _OUT] = out.data_ptr()
        self._run(_forward_task)
        return outs

    def backward(
        self, xs: Sequence[Tensor], steps: Sequence[Tensor], gs: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor] | None]:
        """The gradients of each `x`, and those of steps, offsets and weights: float32, 3 x branches x (1 or channels).

        gs: the outputs' gradients; None for an output that has none. A weight's is split over the channels, and 0
        where there is one branch.
        """
        memory, found = self.memory, list[tuple[Tensor, Tensor] | None]()
        kept = list[Tensor]()  # until the kernels have read them
        for first, x, step, g in zip(self._firsts(), xs, steps, gs, strict=True):
            memory[first + _COUNTER] = memory[first + _DONE] = 0
            if g is None:
                memory[first + _COUNTER] = memory[first + _ROWS]  # as if all its rows were taken
                found.append(None)
                continue
            if g.dtype != x.dtype or not _same_layout(g, x):
                g = torch.empty_like(x).copy_(g)
            sums, totals = memory[first + _ROWS] * memory[first + _BRANCHES], step.numel()
            grad = torch.empty_like(x)
            room = torch.empty(3 * (sums + totals), dtype=torch.float32, device="cpu")  # whatever torch's defaults are
            address = room.data_ptr()
            memory[first + _X], memory[first + _STEPS] = x.data_ptr(), step.data_ptr()
            memory[first + _G], memory[first + _OUT] = g.data_ptr(), grad.data_ptr()
            memory[first + _SUMS], memory[first + _TOTALS] = address, address + 12 * sums
            found.append((grad, room[3 * sums :]))
            kept.append(g)
        self._run(_backward_task)
        return found

    def _firsts(self) -> range:
        """Where in `memory` each task begins."""
        return range(1, len(self.memory), _FIELDS)

    def _run(self, function: _Compiled) -> None:
        """The tasks one after the other, each by all of torch's threads."""
        if self.threads > 1 and (parallel := _openmp()):
            parallel(function.address, self.address, self.threads, 0)
        else:
            function.call(self.address)


def _fields(operand: Operand) -> tuple[int, ...]:
    """The fields of a task that the forward needs, except its output."""
    size, branches = operand.x.numel(), len(operand.found.values)
    channels = operand.steps.numel() // branches
    if channels not in (1, operand.x.shape[0] if operand.x.dim() else 1) or not operand.steps.is_contiguous():
        raise ValueError(f"steps of shape {tuple(operand.steps.shape)} do not fit a tensor of {tuple(operand.x.shape)}")
    length, rows = (size // channels, channels) if channels > 1 else (BLOCK, -(-size // BLOCK))
    return (
        0, rows, length, size, branches, channels, _ACTIVATIONS[operand.activation], operand.x.data_ptr(), 0, 0, 0, 0,
        operand.steps.data_ptr(), operand.found.address, 0,
    )  # fmt: skip


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether both have their elements in the same order in memory; strides of dimensions of size 1 do not matter."""
    first, second = a.stride(), b.stride()
    return first == second or all(i == j for i, j, size in zip(first, second, b.shape, strict=True) if size > 1)


# What is compiled. No `fastmath`: it would break NaN and comparisons, and leave the order of sums to the compiler,
# which decides by the processor and by what it finds in its cache.


@_jit
def _total(terms: Any) -> Any:
    """The sum of `terms`, which it overwrites: halves are added elementwise until one is left."""
    count = terms.size
    while count > 1:
        half = (count + 1) // 2
        for i in range(count - half):
            terms[i] += terms[i + half]
        count = half
    return terms[0]


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
def _backward_row(x: Any, g: Any, grad: Any, sums: Any, terms: Any, steps: Any, constants: Any) -> None:
    """terms: room for x.size numbers."""
    zero = np.float32(0)
    for k in range(len(constants)):
        step, low, high = steps[k], constants[k, _LOW], constants[k, _HIGH]
        shift, offset, weight = constants[k, _SHIFT], constants[k, _OFFSET], constants[k, _WEIGHT]
        if len(constants) == 1:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                v = low if u < low else u
                v = high if v > high else v
                inside = v == u
                grad[i] = g[i] if inside else zero
                terms[i] = (np.rint(v) - (u if inside else zero)) * g[i]
        else:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                v = low if u < low else u
                v = high if v > high else v
                inside = v == u
                passed = g[i] * weight if inside else zero
                grad[i] = grad[i] + passed if k else passed
                terms[i] = (np.rint(v) - (u if inside else zero)) * g[i]
        sums[k, 0], sums[k, 1], sums[k, 2] = _total(terms), zero, zero
        if constants[k, _LEARNS_OFFSET]:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                terms[i] = zero if low <= u <= high else g[i]
            sums[k, 1] = _total(terms)
        if len(constants) > 1:
            for i in range(x.size):
                u = (x[i] + shift - offset) / step
                u = low if u < low else u
                u = high if u > high else u
                terms[i] = g[i] * (np.rint(u) * step + offset - shift)
            sums[k, 2] = _total(terms)


# How threads share the rows: each takes the next few until none is left.

(
    _COUNTER, _ROWS, _LENGTH, _SIZE, _BRANCHES, _CHANNELS, _ACTIVATION,
    _X, _G, _OUT, _SUMS, _TOTALS, _STEPS, _CONSTANTS, _DONE,
) = range(15)  # fmt: skip
"""Fields of a task: integers, and addresses of arrays. counter: rows taken by threads; done: rows finished."""

_FIELDS = 15

_SHARE = 1 << 15
"""The fewest elements that a thread takes at a time."""


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
def _work_all(pointer: Any, gradients: Any) -> None:
    """pointer: to the number of tasks, and the tasks behind it."""
    count = carray(pointer, 1, np.int64)[0]
    tasks = carray(pointer, 1 + count * _FIELDS, np.int64)
    for k in range(count):
        _work(tasks[1 + k * _FIELDS : 1 + (k + 1) * _FIELDS], gradients)


@_jit
def _add_rows(task: Any) -> None:
    """Rows' sums, added in order and in float64, become gradients: by the thread that finishes a task's last row."""
    rows, count, channels = task[_ROWS], task[_BRANCHES], task[_CHANNELS]
    sums = carray(_pointer(task[_SUMS]), (count, rows, 3), np.float32)
    totals = carray(_pointer(task[_TOTALS]), (3, count, channels), np.float32)
    constants = carray(_pointer(task[_CONSTANTS]), (count, 7), np.float32)
    for k in range(count):
        share = np.float64(constants[k, _WEIGHT]) * np.float64(constants[k, _SCALE])
        for column in range(3):
            factor = share if column < 2 else 1.0
            if channels > 1:
                for row in range(rows):
                    totals[column, k, row] = sums[k, row, column] * factor
            else:
                total = 0.0
                for row in range(rows):
                    total += sums[k, row, column]
                totals[column, k, 0] = total * factor


@_jit
def _work(task: Any, gradients: Any) -> None:
    size, length, rows, count = task[_SIZE], task[_LENGTH], task[_ROWS], task[_BRANCHES]
    channels, activation = task[_CHANNELS], task[_ACTIVATION]
    x = carray(_pointer(task[_X]), size, np.float32)
    g = carray(_pointer(task[_G]), size, np.float32)
    out = carray(_pointer(task[_OUT]), size, np.float32)
    sums = carray(_pointer(task[_SUMS]), (count, rows, 3), np.float32)
    steps = carray(_pointer(task[_STEPS]), (count, channels), np.float32)
    constants = carray(_pointer(task[_CONSTANTS]), (count, 7), np.float32)
    buffer = np.empty(length if activation else 0, np.float32)
    terms = np.empty(length if gradients else 0, np.float32)
    share = max(1, _SHARE // length)
    while True:
        first = _fetch_and_add(_pointer(task.ctypes.data), share)
        if first >= rows:
            return
        for row in range(first, min(first + share, rows)):
            begin, end = row * length, min((row + 1) * length, size)
            own, values = steps[:, row if channels > 1 else 0], x[begin:end]
            if activation:
                values = buffer[: end - begin]
                _activate(x[begin:end], values, activation)
            if gradients:
                _backward_row(values, g[begin:end], out[begin:end], sums[:, row], terms[: end - begin], own, constants)
                if activation:
                    _chain(x[begin:end], out[begin:end], activation)
            else:
                _forward_row(values, out[begin:end], own, constants)
        if gradients:
            taken = min(share, rows - first)
            if _fetch_and_add(_pointer(task.ctypes.data + 8 * _DONE), taken) + taken == rows:
                _add_rows(task)


def _forward_rows(pointer: Any) -> None:
    _work_all(pointer, False)


def _backward_rows(pointer: Any) -> None:
    _work_all(pointer, True)


class _Compiled:
    """A compiled function of one pointer: its address, and how to call it."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.compiled = numba.cfunc("void(voidptr)", cache=True)(function)
        self.address: int = self.compiled.address or 0
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)


_forward_task, _backward_task = _Compiled(_forward_rows), _Compiled(_backward_rows)


@cache
def _openmp() -> Any:
    """GOMP_parallel of the OpenMP runtime that torch is linked to, so that its threads do the work; None without one.

    Threads of our own, or another runtime's, would compete with torch's, which spin for a while after each operation.
    """
    try:
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # searched only in the libraries that torch loads
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel
