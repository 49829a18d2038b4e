"""Multiply-accumulates of running code, counted by operation; and which modules do those outside of layers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

_HERE = Path(__file__).parent


def _convolution_backward(
    grad_out_shape: list[int],
    x_shape: list[int],
    w_shape: list[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: list[bool],
    out_shape: Any = None,
) -> int:
    """FLOPs of a convolution's backward: as many as its forward for the input's gradient, again for the weight's.

    Deviation: torch's own formula forgets groups and counts a depthwise backward as a dense one (20x on MobileNetV2).
    """
    positions = x_shape[2:] if transposed else grad_out_shape[2:]
    forward = 2 * x_shape[0] * prod(positions) * prod(w_shape)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


class MacCounter(TorchDispatchMode):
    """Multiply-accumulates of what runs inside: torch's own FLOP formulas, summed and halved. May be nested.

    Deviation: not torch's FlopCounterMode, whose module tracker refuses autograd.grad with respect to parameters that
    pass through a module, as quantized weights do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.formulas = {**flop_registry, torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward)}

    @property
    def macs(self) -> int:
        macs: int = self.flops // 2
        return macs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # composite operations count as what they are made of
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.add(int(formula(*args, **kwargs, out_val=out)))
        return out

    def add(self, flops: int) -> None:
        self.flops += flops


def _of_operands(count: Callable[..., int]) -> Callable[..., int]:
    """A formula for FlopCounter's registry from one over the operands."""
    return lambda *args, out_val=None, **kwargs: 2 * count(*args, out_val)


_MORE_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _of_operands(lambda matrix, _vector, _out: matrix.numel()),
    torch.ops.aten.addmv: _of_operands(lambda _bias, matrix, _vector, _out: matrix.numel()),
    torch.ops.aten.dot: _of_operands(lambda a, _b, _out: a.numel()),
    torch.ops.aten.vdot: _of_operands(lambda a, _b, _out: a.numel()),
    torch.ops.aten.addbmm: _of_operands(lambda _bias, a, b, _out: a.numel() * b.shape[-1]),
    torch.ops.aten._trilinear: _of_operands(lambda a, b, c, *_rest: a.shape[0] * b.numel()),
    torch.ops.aten.mkldnn_rnn_layer: _of_operands(
        lambda x, w_input, w_hidden, *_rest: x.shape[0] * x.shape[1] * (w_input.numel() + w_hidden.numel())
    ),
    torch.ops.aten.conv_tbc: _of_operands(lambda _x, weight, *rest: rest[-1].numel() * weight[..., 0].numel()),
    torch.ops.aten._euclidean_dist: _of_operands(lambda a, b, _out: a.numel() * b.shape[-2]),
    torch.ops.aten._cdist_forward: _of_operands(lambda a, b, *_rest: a.numel() * b.shape[-2]),
    torch.ops.aten._sparse_addmm: _of_operands(lambda _bias, a, b, *_rest: a.shape[0] * b.numel()),
}
"""Formulas for products that torch has none for. Only for a forward: steps are counted by torch's own formulas."""


@dataclass(frozen=True)
class FloatWork:
    """MACs of one image that no layer of the ledger does, so that they stay float and are in no BOPs.

    module: the module in whose forward they are done, empty for the network's own; operation: torch's function;
    where: file and line of the call, if it is in the network's own code.
    """

    module: str
    operation: str
    macs: int
    where: str = ""

    def __str__(self) -> str:
        place = f" of {self.module}" if self.module else ""
        return f"{self.operation}{place}{f' ({self.where})' if self.where else ''}: {self.macs:,} MACs"

    def is_named(self, name: str) -> bool:
        """By its module, one around it, its operation, or both joined by a point."""
        full = f"{self.module}.{self.operation}".lstrip(".")
        return name in (self.operation, full) or f"{self.module}.".startswith(f"{name}.")


class Watch(TorchFunctionMode):
    """Follows a network's forward: which module runs, and by which of torch's functions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.path, self.operation, self.where = model, [""], "", ""

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, modules report when their forward begins and ends."""
        handles = [hook for name, module in self.model.named_modules() if name for hook in self._follow(name, module)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _follow(self, name: str, module: nn.Module) -> Sequence[Any]:
        def enter(_module: nn.Module, _inputs: Any) -> None:
            self.path.append(name)

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self.path.pop()

        return (
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        )

    @property
    def module(self) -> str:
        return self.path[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outer, self.operation = self.operation, getattr(func, "__name__", str(func))
        try:
            return self.called(func, args, kwargs or {})
        finally:
            self.operation = outer

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


def _with_in_place_forms(formulas: dict[Any, Any]) -> dict[Any, Any]:
    """Those of `x.addmm_(a, b)` and the like are those of `addmm`."""
    in_place = {form: getattr(torch.ops.aten, f"{form.__name__}_", None) for form in formulas}
    return formulas | {twin: formulas[form] for form, twin in in_place.items() if twin is not None}


class _WorkCounter(MacCounter):
    """Counts MACs by the module and operation that do them."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.formulas = _with_in_place_forms({**self.formulas, **_MORE_FORMULAS})
        self.watch = watch
        self.found: dict[tuple[str, str, str], int] = {}

    def add(self, flops: int) -> None:
        key = self.watch.module, self.watch.operation, _calling_line()
        self.found[key] = self.found.get(key, 0) + flops // 2


def _calling_line() -> str:
    """File and line of the network's own code that is running."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and Path(frame.filename).parent != _HERE:
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return ""


@torch.no_grad()
def float_work(
    model: nn.Module, layers: Collection[str], run: Callable[[], object], watch: Watch | None = None
) -> list[FloatWork]:
    """The MACs that `run`, a forward of one image, does outside of the named layers, in order of execution."""
    watch = watch or Watch(model)
    counter = _WorkCounter(watch)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernels cannot be counted as operations
    try:
        with watch.hooked(), counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    inside = set(layers)
    return [
        FloatWork(module, operation, macs, where)
        for (module, operation, where), macs in counter.found.items()
        if module not in inside and macs
    ]


def undeclared(work: Sequence[FloatWork], declared: Sequence[str]) -> list[FloatWork]:
    return [each for each in work if not any(each.is_named(name) for name in declared)]
