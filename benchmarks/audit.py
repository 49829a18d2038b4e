"""Bits promised == codes found, in the tensors that reach convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from methods.quantization.cost import Ledger, with_pins
from methods.quantization.fake_quant import spread
from methods.quantization.grid import make_grid
from methods.quantization.modules import quant_layers
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
    captured: dict[tuple[str, str], Tensor] = {}
    layers = quant_layers(model)
    handles = [
        getattr(layer, f"{tensor}_quantizer").register_forward_hook(_keep(captured, name, tensor))
        for name, layer in layers.items()
        for tensor in ("weight", "input")
    ]
    was_training = model.training
    try:
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
            value, (step, offset) = captured[name, tensor], quantizer.scale_and_offset(bits)
            # With an offset codes count from 0, whatever the kind.
            kind = "unsigned" if offset is not None else "signed" if tensor == "weight" else kinds[name]
            grid = make_grid(kind, bits, narrow=narrow)
            found = (value + grid.shift - (0.0 if offset is None else offset)) / spread(step, value)
            rows.append({"layer": name, "tensor": tensor, "bits": bits, **_levels(found, grid.low, grid.high, name)})
    return rows


def _keep(captured: dict[tuple[str, str], Tensor], name: str, tensor: str) -> Any:
    def hook(_quantizer: nn.Module, _inputs: Any, output: Tensor) -> None:
        # A tied quantizer runs once per layer that shares it; each layer's hook sees every run, and all are alike.
        captured[name, tensor] = output

    return hook


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
