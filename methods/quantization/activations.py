"""Activation functions that a quantizer behind them may take over, so that both are one pass over memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.quantization.paths import kernels_for

ActivationName = Literal["none", "relu", "relu6", "hardswish"]


class _HardSwish(torch.autograd.Function):
    """torch's own h-swish, which has no second derivative, with one where a graph of the backward pass is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.hardswish(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grad: Tensor = torch.ops.aten.hardswish_backward(g, x)
            return grad
        slope = torch.where(x.abs() < 3.0, (2.0 * x + 3.0) / 6.0, (x > 0).to(x.dtype))
        return g * slope


def activate(x: Tensor, name: ActivationName) -> Tensor:
    """The activation `name` of `x`, twice differentiable almost everywhere; `none` gives `x`."""
    if name == "relu":
        return F.relu(x)
    if name == "relu6":
        return F.relu6(x)
    if name == "hardswish":
        out: Tensor = _HardSwish.apply(x)
        return out
    return x


class Activation(nn.Module):
    """An activation function that leaves its work to the quantizers behind it, where these are all that read it.

    readers: those quantizers, if they may do so. Where all of them are on and the kernels take the tensor, it is
    passed on as it came and `owed` names what is still to be done to it; else `owed` is `none`.
    """

    name: ActivationName
    readers: tuple[Any, ...] = ()
    owed: ActivationName = "none"

    def forward(self, x: Tensor) -> Tensor:
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

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3.0) / 6.0
