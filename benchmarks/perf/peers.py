"""Other implementations of quantized training, for benchmarks.perf.step: same layers and bits, their quantizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BITS, EDGE_BITS = 4, 8

Quantize = Callable[[Tensor], Tensor]
Make = Callable[[int, int, int, int], nn.Module]
"""A quantizer for codes low..high of `channels` steps, where one step serves `count` values."""


class StraightThrough(nn.Module):
    """LSQ as commonly written with detached terms: five elementwise operations, each with its own backward pass."""

    def __init__(self, low: int, high: int, channels: int, count: int) -> None:
        super().__init__()
        self.low, self.high, self.factor = low, high, 1.0 / math.sqrt(count * high)
        self.step = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        step = (self.step - self.step * self.factor).detach() + self.step * self.factor
        step = step.reshape(-1, *[1] * (x.dim() - 1)) if step.numel() > 1 else step
        u = (x / step).clamp(self.low, self.high)
        return ((u.round() - u).detach() + u) * step


class TorchAO(nn.Module):
    """PyTorch's learnable fake-quantize operator, with a zero point fixed at 0."""

    zero: Tensor

    def __init__(self, low: int, high: int, channels: int, count: int) -> None:
        super().__init__()
        self.low, self.high, self.factor = low, high, 1.0 / math.sqrt(count * high)
        self.step = nn.Parameter(torch.full((channels,), 0.1))
        self.register_buffer("zero", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.step.numel() == 1:
            of_tensor: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
                x, self.step, self.zero, self.low, self.high, self.factor
            )
            return of_tensor
        of_channels: Tensor = torch._fake_quantize_learnable_per_channel_affine(
            x, self.step, self.zero, 0, self.low, self.high, self.factor
        )
        return of_channels


class Quantized(nn.Module):
    """A convolution or linear layer between a quantizer of its input and one of its weight."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, make: Make, bits: int, *, signed: bool) -> None:
        super().__init__()
        self.layer = layer
        high = 2 ** (bits - 1) - 1
        self.of_weight = make(-high, high, layer.weight.shape[0], layer.weight[0].numel())
        self.of_input = make(-high if signed else 0, high if signed else 2**bits - 1, 1, layer.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.of_input(x), self.of_weight(self.layer.weight)
        if isinstance(self.layer, nn.Conv2d):
            convolved: Tensor = self.layer._conv_forward(x, weight, self.layer.bias)
            return convolved
        return F.linear(x, weight, self.layer.bias)


def with_quantizers(model: nn.Module, make: Make, signed: dict[str, bool]) -> nn.Module:
    """Every layer of `signed` with quantizers from `make`; the first and last at 8 bits. signed: of its input."""
    names = list(signed)
    for name, is_signed in signed.items():
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        bits = EDGE_BITS if name in (names[0], names[-1]) else BITS
        setattr(model.get_submodule(parent), child, Quantized(layer, make, bits, signed=is_signed))
    return model


def brevitas(model: nn.Module, signed: dict[str, bool]) -> nn.Module:
    """Brevitas's layers: learned-scale integer weights per channel, learned-scale inputs per tensor.

    Inputs' scales come from percentiles of the first batch; Brevitas itself takes them from the first 300.
    """
    from brevitas import nn as qnn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant.scaled_int import (
        Int8ActPerTensorFloat,
        Int8WeightPerChannelFloat,
        Uint8ActPerTensorFloat,
    )

    names = list(signed)
    for name, is_signed in signed.items():
        parent, _, child = name.rpartition(".")
        layer: Any = model.get_submodule(name)
        bits = EDGE_BITS if name in (names[0], names[-1]) else BITS
        options = {
            "weight_quant": Int8WeightPerChannelFloat,
            "weight_bit_width": bits,
            "weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
            "input_quant": Int8ActPerTensorFloat if is_signed else Uint8ActPerTensorFloat,
            "input_bit_width": bits,
            "input_collect_stats_steps": 1,
            "bias": layer.bias is not None,
        }
        if isinstance(layer, nn.Conv2d):
            shape: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            own = qnn.QuantConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, **shape, **options)
        else:
            own = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
        setattr(model.get_submodule(parent), child, own)
    return model


def peers(signed: dict[str, bool]) -> Iterator[tuple[str, Callable[[nn.Module], nn.Module]]]:
    """Name -> what turns a float network into that peer's; Brevitas only where it is installed."""
    yield "straight-through idiom", lambda model: with_quantizers(model, StraightThrough, signed)
    yield "torch.ao learnable", lambda model: with_quantizers(model, TorchAO, signed)
    if find_spec("brevitas"):
        yield "brevitas", lambda model: brevitas(model, signed)
