"""Costs: golden totals of known networks, and what holds for every ledger."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from methods.quantization.convert import ledger_of, replace_activations
from methods.quantization.cost import (
    CONVENTIONS,
    PINNED_BITS,
    Layer,
    Ledger,
    bops,
    ledger_from_json,
    ledger_to_json,
    uniform_bits,
    weight_bytes,
    with_pins,
)
from methods.quantization.policy import LayerBits
from tests.strategies import layer_bits, ledgers

# At 224x224, in units of 1e6 MACs and 1e9 BOPs, to the three decimals that papers print.
MEGA_MACS = {"mobilenet_v2": 300.774, "mobilenet_v3_large": 216.590, "resnet18": 1814.073}
GIGA_BOPS = {
    ("mobilenet_v2", 3): 3.373,
    ("mobilenet_v2", 4): 5.394,
    ("mobilenet_v2", 8): 19.250,
    ("mobilenet_v3_large", 3): 2.318,
    ("mobilenet_v3_large", 4): 3.787,
    ("mobilenet_v3_large", 8): 13.862,
    ("resnet18", 3): 22.846,
    ("resnet18", 4): 34.714,
    ("resnet18", 8): 116.101,
}
RESNET18_W4A4 = {"edges4": 29.025, "edges8": 34.714, "inner": 27.129}


@pytest.fixture(scope="module")
def measured() -> dict[str, Ledger]:
    """Ledgers at 224x224; the meta device knows shapes and computes nothing."""
    with torch.device("meta"):
        networks = {name: replace_activations(getattr(torchvision.models, name)()) for name in MEGA_MACS}
    return {name: ledger_of(network, (3, 224, 224)) for name, network in networks.items()}


@pytest.mark.parametrize("name", MEGA_MACS)
def test_macs_of_known_networks(measured: dict[str, Ledger], name: str) -> None:
    assert round(sum(layer.macs for layer in measured[name]) / 1e6, 3) == MEGA_MACS[name]


@pytest.mark.parametrize(("name", "bits"), GIGA_BOPS)
def test_bops_of_known_networks(measured: dict[str, Ledger], name: str, bits: int) -> None:
    ledger = measured[name]
    assert round(bops(ledger, uniform_bits(ledger, bits, bits)) / 1e9, 3) == GIGA_BOPS[name, bits]


@pytest.mark.parametrize("convention", RESNET18_W4A4)
def test_w4a4_means_three_things_for_resnet18(measured: dict[str, Ledger], convention: str) -> None:
    ledger = measured["resnet18"]
    assert round(bops(ledger, uniform_bits(ledger, 4, 4), convention) / 1e9, 3) == RESNET18_W4A4[convention]


@pytest.mark.parametrize("name", MEGA_MACS)
def test_weights_of_the_ledger_are_the_network_s(measured: dict[str, Ledger], name: str) -> None:
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert sum(layer.weights for layer in measured[name]) == sum(layer.weight.numel() for layer in layers)


@st.composite
def ledgers_with_bits(draw: st.DrawFn) -> tuple[Ledger, dict[str, LayerBits]]:
    ledger = draw(ledgers())
    return ledger, {layer.name: draw(layer_bits()) for layer in ledger if not layer.pinned}


@given(ledgers_with_bits())
def test_bops_are_the_sum_over_layers(drawn: tuple[Ledger, dict[str, LayerBits]]) -> None:
    ledger, policy = drawn
    for convention in CONVENTIONS:
        assert bops(ledger, policy, convention) == sum(bops((layer,), policy, convention) for layer in ledger)


@given(ledgers_with_bits())
def test_one_layer_costs_macs_times_both_widths(drawn: tuple[Ledger, dict[str, LayerBits]]) -> None:
    ledger, policy = drawn
    for layer in ledger:
        bits = PINNED_BITS if layer.pinned else policy[layer.name]
        assert bops((layer,), policy) == layer.macs * bits.weight * bits.activation


@given(ledgers_with_bits(), st.data())
def test_every_convention_grows_with_every_width(
    drawn: tuple[Ledger, dict[str, LayerBits]], data: st.DataObject
) -> None:
    ledger, policy = drawn
    name = data.draw(st.sampled_from(sorted(policy)))
    before = policy[name]
    wider = {"weight": before._replace(weight=before.weight + 1)}
    wider["activation"] = before._replace(activation=before.activation + 1)
    for convention in CONVENTIONS:
        for after in wider.values():
            assert bops(ledger, policy | {name: after}, convention) > bops(ledger, policy, convention)


@given(ledgers())
def test_eight_by_eight_is_sixty_four_per_mac(ledger: Ledger) -> None:
    assert bops(ledger, uniform_bits(ledger, 8, 8)) == 64 * sum(layer.macs for layer in ledger)


@given(ledgers_with_bits())
def test_conventions_differ_in_what_the_edges_count(drawn: tuple[Ledger, dict[str, LayerBits]]) -> None:
    ledger, policy = drawn
    edges = sum(layer.macs for layer in ledger if layer.pinned)
    inner = bops(ledger, policy, "inner")
    extra = {convention: bops(ledger, policy, convention) - inner for convention in CONVENTIONS}
    assert extra == {"inner": 0, "edges4": 16 * edges, "edges8": 64 * edges, "edges32": 1024 * edges}


@given(ledgers_with_bits())
def test_a_policy_cannot_move_the_pins(drawn: tuple[Ledger, dict[str, LayerBits]]) -> None:
    ledger, policy = drawn
    meddling = policy | {layer.name: LayerBits(2, 2) for layer in ledger if layer.pinned}
    assert with_pins(ledger, meddling) == with_pins(ledger, policy)
    assert bops(ledger, meddling) == bops(ledger, policy)
    assert weight_bytes(ledger, meddling) == weight_bytes(ledger, policy)


@given(ledgers_with_bits())
def test_bits_come_in_graph_order_for_every_layer(drawn: tuple[Ledger, dict[str, LayerBits]]) -> None:
    ledger, policy = drawn
    assert list(with_pins(ledger, policy)) == [layer.name for layer in ledger]


@given(ledgers())
def test_a_missing_layer_is_named(ledger: Ledger) -> None:
    with pytest.raises(KeyError, match="inner0"):
        bops(ledger, {name: bits for name, bits in uniform_bits(ledger, 4, 4).items() if name != "inner0"})


@given(st.integers(0, 1000), st.integers(1, 8))
def test_weight_bytes_are_packed_bits_rounded_up_per_layer(weights: int, bits: int) -> None:
    layer = Layer("conv", "conv", macs=1, weights=weights, kind="signed")
    packed = weight_bytes((layer,), {"conv": LayerBits(bits, 2)})
    assert 8 * packed - 7 <= weights * bits <= 8 * packed
    twin = Layer("twin", "conv", macs=1, weights=weights, kind="signed")
    assert weight_bytes((layer, twin), {"conv": LayerBits(bits, 2), "twin": LayerBits(bits, 2)}) == 2 * packed


@given(ledgers_with_bits())
def test_activation_bits_do_not_change_weight_bytes(drawn: tuple[Ledger, dict[str, LayerBits]]) -> None:
    ledger, policy = drawn
    other = {name: bits._replace(activation=8) for name, bits in policy.items()}
    assert weight_bytes(ledger, other) == weight_bytes(ledger, policy)


@given(ledgers())
def test_a_ledger_survives_json(ledger: Ledger) -> None:
    assert ledger_from_json(ledger_to_json(ledger)) == ledger


@given(ledgers(), st.integers(2, 8), st.integers(2, 8))
def test_uniform_bits_name_exactly_the_searchable_layers(ledger: Ledger, weight: int, activation: int) -> None:
    expected = {layer.name: LayerBits(weight, activation) for layer in ledger if not layer.pinned}
    assert uniform_bits(ledger, weight, activation) == expected
