"""Bits promised == codes found, in the tensors that reach convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from methods.quantization.cost import Ledger, with_pins
from methods.quantization.fake_quant import spread
from methods.quantization.grid import make_grid
from methods.quantization.modules import QuantConv2d, quant_layers
from methods.quantization.policy import LayerBits

# step * code is rounded once and divided by step once: codes come back to within a few float32 ulps of 255; a shifted
# grid also subtracts 3/8, which costs an ulp of 3/8 over the step. 1e-2 is far above both and far below half a code.
_CODE_TOLERANCE = 1e-2


class AuditError(Exception):
    """A tensor with more levels than promised, or values off its grid."""


@torch.no_grad()
def audit_codes(
    model: nn.Module, ledger: Ledger, policy: Mapping[str, LayerBits], images: Tensor, *, narrow: bool
) -> list[dict[str, Any]]:
    """One row per layer and tensor: bits promised, levels found, smallest and largest code.

    Raises AuditError if a tensor's values are no integer codes inside its promised range, or if it was never
    quantized. images: what the network is run on, in eval mode.
    """
    layers, operands = quant_layers(model), _Operands()
    handles = [layer.register_forward_pre_hook(operands.entering(name)) for name, layer in layers.items()]
    was_training = model.training
    try:
        with operands:
            model.eval()(images)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    kinds = {layer.name: layer.kind for layer in ledger}
    promised = with_pins(ledger, policy)
    rows = []
    for name, layer in layers.items():
        for tensor, bits in (("weight", promised[name].weight), ("input", promised[name].activation)):
            quantizer = getattr(layer, f"{tensor}_quantizer")
            if quantizer.bits != bits:
                raise AuditError(f"{name}: the {tensor} runs at {quantizer.bits} bits, {bits} were promised")
            value, (step, offset) = operands.seen[name, tensor], quantizer.scale_and_offset(bits)
            # With an offset codes count from 0, whatever the kind.
            kind = "unsigned" if offset is not None else "signed" if tensor == "weight" else kinds[name]
            grid = make_grid(kind, bits, narrow=narrow)
            found = (value + grid.shift - (0.0 if offset is None else offset)) / spread(step, value)
            if tensor == "input" and isinstance(layer, QuantConv2d) and layer.recentres:
                found = value / step + quantizer.codes(torch.zeros((), device=value.device))
            rows.append({"layer": name, "tensor": tensor, "bits": bits, **_levels(found, grid.low, grid.high, name)})
    return rows


class _Operands(TorchFunctionMode):
    """What the network's convolutions and matrix products are given, by layer; whoever quantized it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""
        self.seen: dict[tuple[str, str], Tensor] = {}

    def entering(self, name: str) -> Any:
        """A hook before that layer's forward."""

        def hook(_layer: nn.Module, _inputs: Any) -> None:
            self.layer = name

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.linear):
            self.seen[self.layer, "input"], self.seen[self.layer, "weight"] = args[:2]
        return func(*args, **(kwargs or {}))


def _levels(found: Tensor, low: int, high: int, name: str) -> dict[str, int]:
    codes = found.round()
    off = float((found - codes).abs().max())
    if not off <= _CODE_TOLERANCE:
        raise AuditError(f"{name}: values lie {off:.3g} codes off the grid")
    levels = torch.unique(codes)
    smallest, largest = int(levels[0]), int(levels[-1])
    if smallest < low or largest > high:
        raise AuditError(f"{name}: codes {smallest}..{largest} were found, {low}..{high} were promised")
    return {"levels": len(levels), "low": smallest, "high": largest}
