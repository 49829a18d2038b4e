"""Activation functions that a quantizer behind them may take over, so that both are one pass over memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from methods.quantization.paths import kernels_for

ActivationName = Literal["none", "relu", "relu6", "hardswish"]


class _HardSwish(torch.autograd.Function):
    """torch's h-swish, with the second derivative that it lacks where a graph of the backward pass is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return F.hardswish(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grad: Tensor = torch.ops.aten.hardswish_backward(g, x)
            return grad
        return g * _HardSwish.slope(x)

    @staticmethod
    def slope(x: Tensor) -> Tensor:
        return torch.where(x.abs() < 3.0, (2.0 * x + 3.0) / 6.0, (x > 0).to(x.dtype))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * _HardSwish.slope(x)


class _Masked(torch.autograd.Function):
    """t where 0 < x < 6, else 0; torch's own takes four passes to be differentiated."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _masked(t, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _masked(g, x), None


class _MovingReLU6(torch.autograd.Function):
    """relu6 whose forward derivative, and the gradient of that, are one pass each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return F.relu6(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _masked(g, x)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        masked: Tensor = _Masked.apply(tangent, x)
        return masked


def _masked(t: Tensor, x: Tensor) -> Tensor:
    masked: Tensor = torch.ops.aten.hardtanh_backward(t, x, 0.0, 6.0)
    return masked


def _moves(x: Tensor) -> bool:
    """Whether forward-mode differentiation goes through `x`."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


def activate(x: Tensor, name: ActivationName) -> Tensor:
    """The activation `name` of `x`, twice differentiable almost everywhere; `none` gives `x`."""
    if name == "relu":
        return F.relu(x)
    out: Tensor = x
    if name == "relu6":
        out = _MovingReLU6.apply(x) if _moves(x) else F.relu6(x)
    elif name == "hardswish":
        # torch.compile breaks its graph at functions with a forward derivative, and needs no second derivative.
        out = F.hardswish(x) if torch.compiler.is_compiling() else _HardSwish.apply(x)
    return out


class Activation(nn.Module):
    """An activation function that leaves its work to the quantizers behind it, if only they read its output.

    readers: those quantizers; none if anything else reads it. If all of them are on and the kernels take the tensor, it
    is passed on unchanged and `owed` names the function that they must apply; else `owed` is `none`.
    """

    name: ActivationName
    readers: tuple[Any, ...] = ()
    owed: ActivationName = "none"

    def forward(self, input: Tensor) -> Tensor:  # named as torch names it, for those who call it by keyword
        x = input
        postponed = self.readers and all(reader.active for reader in self.readers) and kernels_for(x) is not None
        self.owed = self.name if postponed else "none"
        return x if postponed else activate(x, self.name)


class ReLU(Activation):
    name = "relu"


class ReLU6(Activation):
    name = "relu6"


class HardSwish(Activation):
    """x * relu6(x + 3) / 6, twice differentiable almost everywhere, as Hessian traces need it."""

    name = "hardswish"


class HardSigmoid(nn.Module):
    """relu6(x + 3) / 6; unlike torch's own it has a second derivative, which Hessian traces need."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input + 3.0) / 6.0
