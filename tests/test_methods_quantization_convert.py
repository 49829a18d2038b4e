"""Conversion: the float network is kept, layers are found by type, activation kinds and ties follow from the graph."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn

from methods.quantization.activations import HardSigmoid, HardSwish
from methods.quantization.convert import QuantizerOptions, convert, ledger_of, replace_activations
from methods.quantization.cost import Ledger
from methods.quantization.modules import QuantConv2d, QuantLinear, apply_policy, quant_layers, quantizers
from methods.quantization.policy import LayerBits, PolicyError
from tests.strategies import Block, TinyNetwork, blocks, quantizable, randn, seeds, start_steps, tiny_network

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18")
IMAGE_SHAPE = (3, 64, 64)  # large enough that no feature map is empty, small enough for a second per network
ONE_CHOICE = (LayerBits(4, 4),)


@pytest.fixture(scope="module")
def floats() -> dict[str, nn.Module]:
    """Each network as torchvision builds it; tests copy what they change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: getattr(torchvision.models, name)().eval() for name in NETWORKS}


@pytest.fixture(scope="module")
def ledgers(floats: dict[str, nn.Module]) -> dict[str, Ledger]:
    return {name: ledger_of(network, IMAGE_SHAPE) for name, network in floats.items()}


@pytest.fixture(scope="module")
def converted(floats: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {name: quantizable(copy.deepcopy(network), IMAGE_SHAPE) for name, network in floats.items()}


def kinds_of(ledger: Ledger) -> dict[str, str]:
    return {layer.name: layer.kind for layer in ledger}


# Real networks


@pytest.mark.parametrize("name", NETWORKS)
def test_with_quantizers_off_the_output_is_the_float_network_s_bit_for_bit(
    floats: dict[str, nn.Module], converted: dict[str, nn.Module], name: str
) -> None:
    """For MobileNetV3: the float network with the twice differentiable h-swish, whose last bit differs from torch's."""
    reference = floats[name] if "v3" not in name else replace_activations(copy.deepcopy(floats[name]))
    images = randn((2, *IMAGE_SHAPE), 0)
    with torch.no_grad():
        assert torch.equal(converted[name](images), reference(images))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_replacing_activations_keeps_the_function(floats: dict[str, nn.Module], name: str) -> None:
    # In float64 rounding is 1e-16 an operation and each of the 60 layers amplifies it by far less than 10^2; a wrong
    # activation anywhere would show in the first digits.
    before, images = copy.deepcopy(floats[name]).double(), randn((2, *IMAGE_SHAPE), 0).double()
    after = replace_activations(copy.deepcopy(before))
    with torch.no_grad():
        expected = before(images)
        torch.testing.assert_close(after(images), expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_works_in_place_and_no_old_activation_is_left(converted: dict[str, nn.Module], name: str) -> None:
    for module in converted[name].modules():
        assert not getattr(module, "inplace", False)
        assert not isinstance(module, (nn.Hardswish, nn.Hardsigmoid))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_and_linear_layer_is_quantizable_and_none_twice(
    floats: dict[str, nn.Module], ledgers: dict[str, Ledger], converted: dict[str, nn.Module], name: str
) -> None:
    by_type = {n for n, m in floats[name].named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    names = [layer.name for layer in ledgers[name]]
    assert len(names) == len(set(names))
    assert set(names) == by_type == set(quant_layers(converted[name]))


@pytest.mark.parametrize("name", NETWORKS)
def test_float_parameters_keep_names_and_values(
    floats: dict[str, nn.Module], converted: dict[str, nn.Module], name: str
) -> None:
    after = converted[name].state_dict()
    for key, value in floats[name].state_dict().items():
        assert torch.equal(after.pop(key), value)
    assert all("_quantizer.steps." in key for key in after)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_ledger_is_the_same_before_and_after_conversion(
    ledgers: dict[str, Ledger], converted: dict[str, nn.Module], name: str
) -> None:
    assert ledger_of(converted[name], IMAGE_SHAPE) == ledgers[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_exactly_the_first_and_the_last_layer_are_pinned(ledgers: dict[str, Ledger], name: str) -> None:
    ledger = ledgers[name]
    assert [layer.pinned for layer in ledger] == [True, *[False] * (len(ledger) - 2), True]
    assert (ledger[0].type, ledger[-1].type) == ("conv", "linear")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_grid_cannot_hold_does_not_occur(
    converted: dict[str, nn.Module], ledgers: dict[str, Ledger], name: str
) -> None:
    """Inputs of unsigned layers are never negative, those of shifted layers never below h-swish's minimum."""
    assert_inputs_fit(converted[name], ledgers[name], randn((2, *IMAGE_SHAPE), 1))


@torch.no_grad()
def assert_inputs_fit(model: nn.Module, ledger: Ledger, images: Tensor) -> None:
    smallest: dict[str, float] = {}
    layers = quant_layers(model)
    handles = [
        layers[name].register_forward_pre_hook(
            lambda _, inputs, name=name: smallest.update({name: inputs[0].min().item()})
        )
        for name in layers
    ]
    model(images)
    for handle in handles:
        handle.remove()
    # h-swish rounds three times near -3/8, a mean over a map of at most 32x32 pixels some more.
    bounds = {"unsigned": 0.0, "shifted": -0.375 * (1 + 1e-6), "signed": -float("inf")}
    assert {layer.name for layer in ledger} == set(smallest)
    assert {layer.name for layer in ledger if smallest[layer.name] < bounds[layer.kind]} == set()


def test_mobilenet_v2_is_signed_at_the_stem_and_behind_linear_bottlenecks_only(ledgers: dict[str, Ledger]) -> None:
    kinds = kinds_of(ledgers["mobilenet_v2"])
    expand = {f"features.{block}.conv.0.0" for block in range(2, 18)}  # block 1 does not expand
    signed = {"features.0.0", "features.18.0"} | expand
    assert {name for name, kind in kinds.items() if kind == "signed"} == signed
    assert {kind for name, kind in kinds.items() if name not in signed} == {"unsigned"}


@pytest.mark.parametrize(("name", "blocks_"), [("mobilenet_v3_large", 15), ("mobilenet_v3_small", 11)])
def test_mobilenet_v3_is_signed_at_the_stem_behind_linear_bottlenecks_and_behind_dropout_only(
    ledgers: dict[str, Ledger], name: str, blocks_: int
) -> None:
    signed = {layer.name for layer in ledgers[name] if layer.kind == "signed"}
    expand = {f"features.{block}.block.0.0" for block in range(2, blocks_ + 1)}  # block 1 reads the stem's h-swish
    # In training dropout of a fifth takes h-swish's minimum down to -0.375 / 0.8, off a shifted grid.
    assert signed == {"features.0.0", f"features.{blocks_ + 1}.0", "classifier.3"} | expand


def test_the_shift_holds_behind_squeeze_and_excitation(ledgers: dict[str, Ledger]) -> None:
    kinds = kinds_of(ledgers["mobilenet_v3_large"])
    behind_hswish = {
        "features.11.block.1.0": "shifted",  # depthwise, reads h-swish
        "features.11.block.2.fc1": "shifted",  # reads its mean
        "features.11.block.2.fc2": "unsigned",  # reads fc1's ReLU
        "features.11.block.3.0": "shifted",  # reads h-swish times a hard sigmoid
    }
    behind_relu = {
        "features.4.block.1.0": "unsigned",
        "features.4.block.2.fc1": "unsigned",
        "features.4.block.2.fc2": "unsigned",
        "features.4.block.3.0": "unsigned",
    }
    expected = behind_hswish | behind_relu
    assert {name: kinds[name] for name in expected} == expected
    assert all(kind == "unsigned" for name, kind in kinds.items() if name.endswith("fc2"))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_mobilenet_v3_s_first_classifier_layer_is_shifted_and_its_last_behind_dropout_signed(
    ledgers: dict[str, Ledger], name: str
) -> None:
    first, last = ledgers[name][-2:]
    assert (first.name, first.type, first.kind, first.pinned) == ("classifier.0", "linear", "shifted", False)
    assert (last.name, last.type, last.kind, last.pinned) == ("classifier.3", "linear", "signed", True)


def test_resnet18_is_unsigned_behind_its_stem(ledgers: dict[str, Ledger]) -> None:
    assert [layer.kind for layer in ledgers["resnet18"]] == ["signed", *["unsigned"] * 20]


def test_resnet18_ties_each_downsampling_to_its_block_s_first_convolution(
    ledgers: dict[str, Ledger], converted: dict[str, nn.Module]
) -> None:
    ties = {layer.name: layer.tie for layer in ledgers["resnet18"] if layer.tie is not None}
    pairs = [(f"layer{stage}.0.conv1", f"layer{stage}.0.downsample.0") for stage in (2, 3, 4)]
    assert ties == {name: first for first, second in pairs for name in (first, second)}
    layers = quant_layers(converted["resnet18"])
    shared = Counter(layer.input_quantizer for layer in layers.values())
    assert [count for count in shared.values() if count > 1] == [2, 2, 2]
    assert all(layers[first].input_quantizer is layers[second].input_quantizer for first, second in pairs)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_mobilenets_have_no_ties(ledgers: dict[str, Ledger], name: str) -> None:
    assert all(layer.tie is None for layer in ledgers[name])


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_depthwise_layers_are_those_with_one_filter_per_channel(
    floats: dict[str, nn.Module], ledgers: dict[str, Ledger], name: str
) -> None:
    modules = dict(floats[name].named_modules())
    for layer in ledgers[name]:
        grouped = getattr(modules[layer.name], "groups", 1) > 1
        assert (layer.type == "depthwise") == grouped


# Tiny networks


@settings(max_examples=40)
@given(blocks(), seeds())
def test_conversion_keeps_any_network_s_function(plan: list[Block], seed: int) -> None:
    reference = replace_activations(tiny_network(plan, seed))
    model, images = (
        quantizable(copy.deepcopy(reference), TinyNetwork.image_shape),
        randn((3, *TinyNetwork.image_shape), seed),
    )
    for mode in (True, False):
        assert torch.equal(model.train(mode)(images), reference.train(mode)(images))


@settings(max_examples=40)
@given(blocks(), seeds())
def test_every_input_fits_its_grid(plan: list[Block], seed: int) -> None:
    model = quantizable(tiny_network(plan, seed), TinyNetwork.image_shape)
    assert_inputs_fit(model, ledger_of(model, TinyNetwork.image_shape), randn((3, *TinyNetwork.image_shape), seed))


def macs_by_hand(plan: list[Block]) -> dict[str, int]:
    """width^2 multiplications per tap and pixel, width of them where depthwise; pixels shrink with every stride."""
    width, side, counts = TinyNetwork.width, TinyNetwork.image_shape[1], {}
    for index, block in enumerate(plan):
        side = -(-side // block.stride)
        counts[f"mixers.{index}"] = 9 * side**2 * (width if block.depthwise else width**2)
        if block.gate:
            counts[f"squeezes.{index}.1"] = width**2
        if block.residual:
            counts[f"shortcuts.{index}"] = side**2 * width**2
    return counts | {"classifier": 3 * width}


@settings(max_examples=40)
@given(blocks())
def test_macs_are_those_counted_by_hand_and_only_layers_in_the_graph_count(plan: list[Block]) -> None:
    ledger = ledger_of(replace_activations(tiny_network(plan)), TinyNetwork.image_shape)
    assert {layer.name: layer.macs for layer in ledger} == macs_by_hand(plan)


@settings(max_examples=40)
@given(blocks())
def test_layers_that_read_one_tensor_are_tied_and_no_others(plan: list[Block]) -> None:
    ledger = ledger_of(replace_activations(tiny_network(plan)), TinyNetwork.image_shape)
    expected: dict[str, str] = {}
    for index, block in enumerate(plan):
        if block.residual:
            expected |= {name: f"mixers.{index}" for name in (f"mixers.{index}", f"shortcuts.{index}")}
    assert {layer.name: layer.tie for layer in ledger if layer.tie is not None} == expected


@settings(max_examples=20)
@given(blocks())
def test_counting_leaves_no_trace(plan: list[Block]) -> None:
    model = tiny_network(plan)
    model.norms.eval()
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    ledger_of(replace_activations(model), TinyNetwork.image_shape)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_eight_bits_are_nearly_float() -> None:
    """The whole chain at once: at 8x8 with steps of least error the output moves by percents, not by its own size."""
    plan = [Block("hardswish", False, True, False, 1), Block("relu", True, False, True, 2)]
    model = quantizable(tiny_network(plan), TinyNetwork.image_shape, [LayerBits(8, 8)])
    images = randn((16, *TinyNetwork.image_shape), 0)
    start_steps(model.eval(), images)
    for quantizer in quantizers(model):
        with torch.no_grad():
            quantizer.step_of(8).mul_(0.5 if quantizer.kind == "shifted" else 0.25)
    expected = model(images)
    apply_policy(model, {name: LayerBits(8, 8) for name in quant_layers(model)})
    # One tensor at 8 bits: error about 2^-8 of its range each; six quantized tensors in a row add up to some percent.
    assert (model(images) - expected).norm() / expected.norm() < 0.1


# By type, never by name


class Named(nn.Module):
    """The same two layers whatever they are called."""

    def __init__(self, first: str, second: str, last: str) -> None:
        super().__init__()
        self.order = (first, second, last)
        self.add_module(first, nn.Conv2d(4, 4, 3, padding=1))
        self.add_module(second, nn.Conv2d(4, 4, 1))
        self.add_module(last, nn.Linear(4, 2))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = (self.get_submodule(name) for name in self.order)
        out: Tensor = last(second(self.act(first(x))).mean((2, 3)))
        return out


@pytest.mark.parametrize(
    "names", [("relu", "downsample", "bn"), ("fc", "hardswish", "conv"), ("head", "quantizer", "se")]
)
@pytest.mark.filterwarnings("ignore:operation 'mean' is unknown")
def test_names_do_not_matter(names: tuple[str, str, str]) -> None:
    plain, odd = (ledger_of(Named(*each), (4, 6, 6)) for each in (("a", "b", "c"), names))
    assert tuple(replace(layer, name="") for layer in odd) == tuple(replace(layer, name="") for layer in plain)
    assert tuple(layer.name for layer in odd) == names


class Around(nn.Module):
    """conv, then anything, then conv: the second convolution's kind tells what became of the anything."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.stem, self.between, self.inner, self.last = (
            nn.Conv2d(4, 4, 1),
            between,
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.inner(self.between(self.stem(x))))
        return out


class Lambda(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)  # type: ignore[operator]
        return out


def kind_behind(between: nn.Module) -> str:
    return ledger_of(replace_activations(Around(between)), (4, 6, 6))[1].kind


@pytest.mark.parametrize(
    ("between", "kind"),
    [
        (nn.ReLU(), "unsigned"),
        (nn.ReLU6(), "unsigned"),
        (nn.Hardswish(), "shifted"),
        (nn.Hardsigmoid(), "unsigned"),
        (nn.Identity(), "signed"),
        (nn.BatchNorm2d(4), "signed"),
        (nn.Sequential(nn.Hardswish(), nn.MaxPool2d(2), nn.Dropout(0.0), nn.Identity()), "shifted"),
        (nn.Sequential(nn.Hardswish(), nn.MaxPool2d(2), nn.Dropout(0.1), nn.Identity()), "signed"),
        (nn.Sequential(nn.ReLU(), nn.Dropout(0.9)), "unsigned"),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)), "unsigned"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "signed"),
        (Lambda(torch.relu), "unsigned"),
        (Lambda(lambda x: x.relu()), "unsigned"),
        (Lambda(lambda x: torch.relu(x) + torch.relu(x)), "unsigned"),
        (Lambda(lambda x: x + torch.relu(x)), "signed"),
        (Lambda(lambda x: torch.relu(x) * x), "signed"),
        (Lambda(lambda x: torch.relu(x) * torch.relu(x)), "unsigned"),
    ],
    ids=str,
)
def test_kinds_follow_from_the_graph(between: nn.Module, kind: str) -> None:
    assert kind_behind(between) == kind


class Gated(nn.Module):
    """activation(x) * hard sigmoid, or plus another activation of the same kind."""

    def __init__(self, activation: nn.Module, *, product: bool) -> None:
        super().__init__()
        self.activation, self.gate, self.product = activation, nn.Hardsigmoid(), product

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x)
        out: Tensor = self.gate(x) * y if self.product else y + self.activation(x)
        return out


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize(
    ("activation", "gated", "added"),
    [
        (nn.ReLU(), "unsigned", "unsigned"),
        (nn.Hardswish(), "shifted", "signed"),  # two minima of -3/8 make -3/4
        (nn.BatchNorm2d(4), "signed", "signed"),
    ],
    ids=str,
)
def test_a_gate_keeps_the_kind_and_a_sum_keeps_only_unsigned(
    activation: nn.Module, gated: str, added: str, product: bool
) -> None:
    assert kind_behind(Gated(copy.deepcopy(activation), product=product)) == (gated if product else added)


@pytest.mark.parametrize("unknown", [nn.GELU(), nn.Hardtanh(-1, 1), nn.PReLU()], ids=str)
def test_an_unknown_layer_warns_and_gives_signed(unknown: nn.Module) -> None:
    with pytest.warns(UserWarning, match=f"'between' \\({type(unknown).__name__}\\) is unknown here"):
        assert kind_behind(unknown) == "signed"


def test_an_unknown_operation_warns_and_gives_signed() -> None:
    with pytest.warns(UserWarning, match="operation .*sin.* is unknown here: its output is taken as signed"):
        assert kind_behind(Lambda(torch.sin)) == "signed"


def test_an_unknown_operation_forgets_what_came_before() -> None:
    with pytest.warns(UserWarning, match="unknown"):
        assert kind_behind(nn.Sequential(nn.ReLU(), Lambda(torch.sin))) == "signed"


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks_hold_nothing_unknown(floats: dict[str, nn.Module], name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ledger_of(floats[name], IMAGE_SHAPE)


# convert


def tiny_ledger() -> tuple[nn.Module, Ledger]:
    model = replace_activations(tiny_network([Block("relu", False, False, False, 1)] * 2))
    return model, ledger_of(model, TinyNetwork.image_shape)


@pytest.mark.parametrize(
    ("names", "differing"),
    [
        ([], r"mixers\.1"),
        (["mixers.1", "classifier"], "classifier"),  # pinned
        (["mixers.1", "stem"], "stem"),
        (["stem"], r"mixers\.1, stem"),
    ],
)
def test_candidates_for_other_layers_than_the_searchable_are_refused(names: list[str], differing: str) -> None:
    model, ledger = tiny_ledger()
    with pytest.raises(PolicyError, match=f"exactly the searchable layers; differing: {differing}$"):
        convert(model, ledger, {name: ONE_CHOICE for name in names}, QuantizerOptions())
    assert not quant_layers(model)


def test_parameters_stay_the_same_objects() -> None:
    """So that an optimizer or a loader that holds them keeps working."""
    model, ledger = tiny_ledger()
    before = dict(model.named_parameters())
    convert(model, ledger, {"mixers.1": ONE_CHOICE}, QuantizerOptions())
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in before.items())


def test_candidates_become_widths_and_pins_get_eight() -> None:
    model, ledger = tiny_ledger()
    choices = [LayerBits(4, 3), LayerBits(4, 8), LayerBits(2, 3)]
    convert(model, ledger, {"mixers.1": choices}, QuantizerOptions())
    widths = {
        name: (layer.weight_quantizer.widths, layer.input_quantizer.widths)
        for name, layer in quant_layers(model).items()
    }
    assert widths == {"mixers.0": ((8,), (8,)), "mixers.1": ((2, 4), (3, 8)), "classifier": ((8,), (8,))}


def test_an_input_shared_with_a_pinned_layer_gets_both_widths() -> None:
    plan = [Block("relu", False, False, True, 1)]
    layers = quant_layers(quantizable(tiny_network(plan), TinyNetwork.image_shape, [LayerBits(4, 3)]))
    assert layers["mixers.0"].input_quantizer is layers["shortcuts.0"].input_quantizer
    assert layers["mixers.0"].input_quantizer.widths == (3, 8)


def test_options_reach_every_layer() -> None:
    options = QuantizerOptions(gradient_scale="batch", narrow=False, pad_with_zero=True)
    plan = [Block("hardswish", False, True, False, 1)] * 2
    model = quantizable(tiny_network(plan), TinyNetwork.image_shape, ONE_CHOICE, options)
    for quantizer in quantizers(model):
        assert quantizer.rule == "batch"
        assert all(quantizer.kind != "signed" or grid.low == -grid.high - 1 for grid in quantizer.grids.values())
    convolutions = [layer for layer in quant_layers(model).values() if isinstance(layer, QuantConv2d)]
    assert all(layer.pad_with_zero for layer in convolutions)


def test_weights_are_quantized_per_output_channel_and_inputs_per_tensor(converted: dict[str, nn.Module]) -> None:
    for layer in quant_layers(converted["mobilenet_v3_small"]).values():
        assert layer.weight_quantizer.kind == "signed"
        assert all(step.shape == (layer.weight.shape[0],) for step in layer.weight_quantizer.steps.values())
        assert all(step.shape == (1,) for step in layer.input_quantizer.steps.values())


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_geometry_is_kept(mode: str) -> None:
    sizes = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    conv = nn.Conv2d(4, 8, (3, 5), **sizes, bias=False, padding_mode=mode)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), conv, nn.Conv2d(8, 2, 1))
    text = conv.extra_repr()
    layer = quantizable(model, (4, 12, 12)).get_submodule("2")
    assert isinstance(layer, QuantConv2d)
    assert layer.extra_repr() == text
    assert layer.weight is conv.weight
    assert layer.bias is None


def test_training_flags_are_kept() -> None:
    for mode in (True, False):
        model = quantizable(tiny_network([Block("relu", False, False, False, 1)]).train(mode), TinyNetwork.image_shape)
        assert all(layer.training == mode for layer in quant_layers(model).values())


def test_converted_layers_are_of_our_types(converted: dict[str, nn.Module]) -> None:
    layers = quant_layers(converted["mobilenet_v3_large"])
    types = {name: type(layer) for name, layer in layers.items()}
    assert types["classifier.0"] is QuantLinear
    assert types["features.0.0"] is QuantConv2d
    activations = Counter(type(module) for module in converted["mobilenet_v3_large"].modules())
    assert (activations[HardSwish], activations[HardSigmoid]) == (21, 8)
