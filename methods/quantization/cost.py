"""What a quantized network costs at inference: MACs, bit-operations and weight bytes per layer. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from methods.quantization.grid import GridKind
from methods.quantization.policy import LayerBits

PINNED_BITS = LayerBits(8, 8)
"""First and last layer, in every suite."""


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a network, as costs and searches see it.

    macs: multiply-accumulates of one image; weights: number of weights (no bias); kind: grid of its input;
    pinned: first or last layer, held at 8x8; tie: layers with one tie (not None) share their input's grid, so
    they get the same activation bits.
    """

    name: str
    type: Literal["conv", "depthwise", "linear"]
    macs: int
    weights: int
    kind: GridKind
    pinned: bool = False
    tie: str | None = None


Ledger = tuple[Layer, ...]
"""A network's layers in graph order."""


def ledger_to_json(ledger: Ledger) -> str:
    rows = ",\n ".join(json.dumps(asdict(layer)) for layer in ledger)
    return f"[\n {rows}\n]\n"


def ledger_from_json(text: str) -> Ledger:
    rows: list[dict[str, Any]] = json.loads(text)
    return tuple(Layer(**row) for row in rows)


def _edges8(layer: Layer, bits: LayerBits) -> int:
    return layer.macs * bits.weight * bits.activation


def _inner(layer: Layer, bits: LayerBits) -> int:
    return 0 if layer.pinned else _edges8(layer, bits)


def _edges4(layer: Layer, bits: LayerBits) -> int:
    return layer.macs * 16 if layer.pinned else _edges8(layer, bits)


def _edges32(layer: Layer, bits: LayerBits) -> int:
    return layer.macs * 1024 if layer.pinned else _edges8(layer, bits)


CONVENTIONS: dict[str, Callable[[Layer, LayerBits], int]] = {
    "edges8": _edges8,  # every layer at the bits it runs with, first and last at 8x8: ours
    "inner": _inner,  # first and last layer left out
    "edges4": _edges4,  # first and last counted at 4x4 although they run at 8x8
    "edges32": _edges32,  # first and last counted as float, 32x32
}


def with_pins(ledger: Ledger, policy: Mapping[str, LayerBits]) -> dict[str, LayerBits]:
    """Bits of every layer: the policy's for searchable layers, 8x8 for pinned ones. KeyError names what is missing."""
    return {layer.name: PINNED_BITS if layer.pinned else policy[layer.name] for layer in ledger}


def bops(ledger: Ledger, policy: Mapping[str, LayerBits], convention: str = "edges8") -> int:
    """Bit-operations of one image: the sum over layers of MACs x weight bits x activation bits.

    Squeeze-and-excitation layers count, depthwise layers count by their groups. Not counted, because they stay
    float: residual additions, SE multiplication, pooling, batch normalization, activation functions.

    >>> layer = Layer("conv", "conv", macs=1000, weights=9, kind="unsigned")
    >>> bops((layer,), {"conv": LayerBits(4, 3)})
    12000
    """
    count = CONVENTIONS[convention]
    bits = with_pins(ledger, policy)
    return sum(count(layer, bits[layer.name]) for layer in ledger)


def weight_bytes(ledger: Ledger, policy: Mapping[str, LayerBits]) -> int:
    """Bytes of the packed weights, each layer rounded up; steps, biases and batch normalization are not counted."""
    bits = with_pins(ledger, policy)
    return sum(-(-layer.weights * bits[layer.name].weight // 8) for layer in ledger)


def uniform_bits(ledger: Ledger, weight: int, activation: int) -> dict[str, LayerBits]:
    """The same bits for every searchable layer."""
    return {layer.name: LayerBits(weight, activation) for layer in ledger if not layer.pinned}
