"""The weight gradient of narrow strided 1x1 convolutions, by a route that is right on every processor.

oneDNN's kernel for processors without AVX-512 writes past its workspace there: fewer than 8 input channels,
channels-last (https://github.com/uxlfoundation/oneDNN/issues/6035; torch 2.15). What follows is a crash, or a wrong
gradient without an error. Narrow ResNets have such convolutions in their shortcuts.

Importing this module registers a CPU kernel for `aten::convolution_backward`, so that no convolution can miss it: in a
network of ours or of a plug-in's, in a module or as `F.conv2d`, float or quantized. A strided 1x1 convolution reads
every s-th pixel only, so the gradients of its weight and bias are those of a stride-1 convolution over those pixels,
for the same MACs. Everything else goes to the kernel that torch has. It costs about 11 us for each convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SAFE_CHANNELS = 8
"""With this many input channels or more, the kernel stays within its workspace."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

_torch_s_own = torch.library.get_kernel("aten::convolution_backward", "CPU")


def _convolution_backward(
    keys: Any,
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients of input, weight and bias, each None unless `wanted`; see `aten::convolution_backward`."""
    settings = (bias_sizes, stride, padding, dilation, transposed, output_padding, groups)
    whole = not any(wanted[1:]) or not _is_unsafe(x, weight, stride, padding, transposed, groups)
    gradients: Gradients = (None, None, None)
    if whole or wanted[0]:
        here = wanted if whole else [True, False, False]
        gradients = _torch_s_own.call_boxed(keys, g, x, weight, *settings, here)
    if whole:
        return gradients
    read = x[:, :, :: stride[0], :: stride[1]].contiguous(memory_format=torch.channels_last)
    dense = (bias_sizes, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    of_weight: Gradients = _torch_s_own.call_boxed(keys, g, read, weight, *dense, [False, *wanted[1:]])
    return gradients[0], *of_weight[1:]


def _is_unsafe(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], transposed: bool, groups: int
) -> bool:
    return (
        weight.dim() == 4
        and tuple(weight.shape[2:]) == (1, 1)
        and max(stride) > 1
        and weight.shape[1] < _SAFE_CHANNELS
        and groups == 1
        and not transposed
        and not any(padding)
    )


def serves_the_cpu() -> bool:
    """Whether convolutions on the CPU take their gradients from here."""
    table: str = torch._C._dispatch_dump_table("aten::convolution_backward")
    return any(line.startswith("CPU:") and __file__ in line for line in table.splitlines())


_library = torch.library.Library("aten", "IMPL", "CPU")  # the kernel lives as long as this does
_library.impl("convolution_backward", _convolution_backward, with_keyset=True)
