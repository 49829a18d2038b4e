"""Checks that tensors reaching convolutions and linear layers hold no more codes than their bits allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.quantization.cost import Ledger, with_pins
from methods.quantization.fake_quant import spread
from methods.quantization.graph import training_flags_kept
from methods.quantization.grid import make_grid
from methods.quantization.macs import FloatWork, Watch, float_work, undeclared
from methods.quantization.modules import QuantConv2d, quant_layers
from methods.quantization.policy import LayerBits

# step * code is rounded once and divided by step once: codes come back to within a few float32 ulps of 255; a shifted
# grid also subtracts 3/8, which costs an ulp of 3/8 over the step. 1e-2 is far above both and far below half a code.
_CODE_TOLERANCE = 1e-2


class AuditError(Exception):
    """A tensor with more levels than promised, or values off its grid."""


@torch.no_grad()
def audit_codes(
    model: nn.Module,
    ledger: Ledger,
    policy: Mapping[str, LayerBits],
    images: Tensor,
    *,
    narrow: bool,
    stays_float: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row per layer and tensor: bits promised, levels found, smallest and largest code.

    Raises AuditError if a tensor's values are no integer codes inside its promised range, or if it was never
    quantized, or if there are products outside of layers that `stays_float` does not name. images: what the network
    is run on, in eval mode.
    """
    layers = quant_layers(model)
    operands = _Operands(model, layers)
    with training_flags_kept(model):
        work = float_work(model.eval(), layers, lambda: model(images), operands)
    if outside := undeclared(work, stays_float):
        raise AuditError(f"float numbers are multiplied outside of layers, by {operands.blame(outside[0])}")
    kinds = {layer.name: layer.kind for layer in ledger}
    promised = with_pins(ledger, policy)
    rows = []
    for name, layer in layers.items():
        for tensor, bits in (("weight", promised[name].weight), ("input", promised[name].activation)):
            quantizer = getattr(layer, f"{tensor}_quantizer")
            if quantizer.bits != bits:
                raise AuditError(f"{name}: the {tensor} runs at {quantizer.bits} bits, {bits} were promised")
            if (value := operands.seen.get((name, tensor))) is None:
                raise AuditError(f"{name} gave no {tensor} to a convolution or a matrix product when the network ran")
            step, offset = quantizer.scale_and_offset(bits)
            # With an offset codes count from 0, whatever the kind.
            kind = "unsigned" if offset is not None else "signed" if tensor == "weight" else kinds[name]
            grid = make_grid(kind, bits, narrow=narrow)
            found = (value + grid.shift - (0.0 if offset is None else offset)) / spread(step, value)
            if tensor == "input" and isinstance(layer, QuantConv2d) and layer.recentres:
                found = value / step + quantizer.codes(torch.zeros((), device=value.device))
            rows.append({"layer": name, "tensor": tensor, "bits": bits, **_levels(found, grid.low, grid.high, name)})
    return rows


class _Operands(Watch):
    """The tensors that layers give to convolutions and matrix products while they run, by layer."""

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__(model)
        self.layers = set(layers)
        self.seen: dict[tuple[str, str], Tensor] = {}
        self.borrowed: dict[tuple[str, str], str] = {}
        """(module, operation) outside of layers -> the names of the parameters that it multiplies by."""
        self.owners = {id(parameter): name for name, parameter in model.named_parameters()}

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if self.module not in self.layers:
            if names := [self.owners[id(value)] for value in given if id(value) in self.owners]:
                self.borrowed.setdefault((self.module, self.operation), " and ".join(names))
        elif func in (F.conv2d, F.linear):
            self.seen[self.module, "input"], self.seen[self.module, "weight"] = given[:2]
        return func(*args, **kwargs)

    def blame(self, work: FloatWork) -> str:
        """The operation and module that do that work, and with which parameter, as far as it is known."""
        with_what = self.borrowed.get((work.module, work.operation))
        place = f" of {work.module}" if work.module else " of the network's own forward"
        return (
            f"{work.operation}{place}{f' ({work.where})' if work.where else ''}, "
            f"{f'with {with_what}' if with_what else 'with no parameter of the network'}"
        )


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
