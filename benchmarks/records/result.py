"""The parts of a record's `result` that follow from ledger and policy."""

from __future__ import annotations

from typing import Any

from methods.quantization.cost import CONVENTIONS, Ledger, bops, weight_bytes, with_pins
from methods.quantization.policy import Policy


def cost_of(ledger: Ledger, policy: Policy, ceiling: int) -> dict[str, Any]:
    """BOPs under every convention, bytes of the weights, and the share of the ceiling that is left unused."""
    counts = {name: bops(ledger, policy, name) for name in CONVENTIONS}
    return {
        "bops": counts,
        "weight_bytes": weight_bytes(ledger, policy),
        "ceiling_bops": ceiling,
        "unused_share": 1.0 - counts["edges8"] / ceiling,
    }


def layer_rows(ledger: Ledger, policy: Policy | None) -> list[dict[str, Any]]:
    """One row per layer, pinned ones included; bits and costs are null for a float network."""
    bits = None if policy is None else with_pins(ledger, policy)
    rows = []
    for layer in ledger:
        own = None if bits is None else bits[layer.name]
        rows.append(
            {
                "name": layer.name,
                "type": layer.type,
                "macs": layer.macs,
                "weights": layer.weights,
                "kind": layer.kind,
                "pinned": layer.pinned,
                "weight_bits": own and own.weight,
                "activation_bits": own and own.activation,
                "bops": own and layer.macs * own.weight * own.activation,
                "weight_bytes": own and -(-layer.weights * own.weight // 8),
            }
        )
    return rows
