"""Quantizers and quantizable layers: states, steps, padding, policies; h-swish that can be differentiated twice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.quantization.activations import HardSigmoid, HardSwish
from methods.quantization.convert import QuantizerOptions
from methods.quantization.fake_quant import (
    GRADIENT_SCALES,
    MIN_STEP,
    GradientScale,
    StepError,
    fake_quantize,
    gradient_scale,
    mixture,
)
from methods.quantization.grid import HSWISH_SHIFT, GridKind, make_grid
from methods.quantization.modules import (
    QuantConv2d,
    QuantLinear,
    apply_policy,
    initialise_activation_steps,
    initialise_weight_steps,
    project_steps,
    quant_layers,
    quantization_off,
    quantizers,
)
from methods.quantization.policy import LayerBits, Policy, PolicyError
from methods.quantization.quantizer import StepQuantizer
from tests.strategies import (
    FLOAT32_ROUNDING,
    Block,
    TinyNetwork,
    blocks,
    kinds,
    quantizable,
    randn,
    seeds,
    start_steps,
    tiny_network,
)

WIDTHS = (3, 4, 8)


def ready(kind: GridKind = "signed", *, channels: int = 1, rule: GradientScale = "shared") -> StepQuantizer:
    """A quantizer whose steps are set."""
    quantizer = StepQuantizer(kind, WIDTHS, channels=channels, rule=rule)
    quantizer.initialise(torch.linspace(0.5, 1.0, channels))
    return quantizer


def uniform(model: nn.Module, weight: int = 4, activation: int = 4) -> Policy:
    """The same bits for every inner layer of a converted network, 8x8 for its ends and what shares their input."""
    layers = quant_layers(model)
    ends = {name for name, layer in layers.items() if layer.weight_quantizer.widths == (8,)}
    held = {layers[name].input_quantizer for name in ends}
    return Policy(
        {
            name: (8 if name in ends else weight, 8 if layer.input_quantizer in held else activation)
            for name, layer in layers.items()
        }
    )


# One quantizer


@given(kinds(), seeds())
def test_a_fresh_quantizer_is_off(kind: GridKind, seed: int) -> None:
    quantizer, x = StepQuantizer(kind, WIDTHS), randn((3, 4), seed)
    assert not quantizer.active
    assert quantizer(x) is x


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_step_that_was_never_set_cannot_be_used(bits: int) -> None:
    quantizer = StepQuantizer("signed", WIDTHS)
    with pytest.raises(StepError, match=f"the {bits}-bit step was never set"):
        quantizer.select(bits)
    with pytest.raises(StepError, match="was never set"):
        quantizer.mix(torch.ones(3) / 3)
    assert not quantizer.active


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan])
def test_a_spoiled_step_cannot_be_selected(bad: float) -> None:
    quantizer = ready(channels=4)
    with torch.no_grad():
        quantizer.step_of(4)[2] = bad
    with pytest.raises(StepError, match="4-bit step"):
        quantizer.select(4)
    quantizer.select(3)


@pytest.mark.parametrize("bits", [1, 2, 5, 16])
def test_a_width_that_is_no_candidate_is_refused_and_the_candidates_are_listed(bits: int) -> None:
    quantizer = ready()
    quantizer.select(4)
    with pytest.raises(PolicyError, match=f"{bits} bits are no candidate here; candidates: 3, 4, 8"):
        quantizer.select(bits)
    assert quantizer.bits == 4


@given(kinds(), st.sampled_from(WIDTHS), seeds())
def test_a_selected_width_quantizes_with_its_own_step(kind: GridKind, bits: int, seed: int) -> None:
    quantizer, x = ready(kind, channels=4), randn((4, 5), seed)
    quantizer.select(bits)
    assert torch.equal(quantizer(x), fake_quantize(x, quantizer.step_of(bits), make_grid(kind, bits)))


@pytest.mark.parametrize("rule", GRADIENT_SCALES)
@pytest.mark.parametrize("channels", [1, 4])
def test_the_rule_scales_the_step_s_gradient(rule: GradientScale, channels: int) -> None:
    quantizer, x = ready(channels=channels, rule=rule), randn((4, 5), 0)
    quantizer.select(4)
    quantizer(x).sum().backward()
    step, grid = quantizer.step_of(4), make_grid("signed", 4)
    scaled = step.detach().clone().requires_grad_()
    factor = gradient_scale(rule, x, grid, per_channel=channels > 1)
    fake_quantize(x, scaled, grid, scale=factor).sum().backward()
    assert step.grad is not None
    assert scaled.grad is not None
    assert torch.equal(step.grad, scaled.grad)


@given(seeds(), st.integers(1, 4))
def test_repeating_the_batch_repeats_the_step_s_gradient(seed: int, log_copies: int) -> None:
    """Under the default rule; with a batch in N it would grow with its root only."""
    x, copies = randn((2, 8), seed), 2**log_copies  # a power of two: sums of equal parts are exact
    gradients = []
    for images in (x, x.repeat(copies, 1)):
        quantizer = ready("unsigned")
        quantizer.select(4)
        quantizer(images).sum().backward()
        gradients.append(quantizer.step_of(4).grad)
    first, second = gradients
    assert first is not None
    assert second is not None
    # At most 2 * 8 * 16 additions of terms <= 15: each partial sum is below 3840 and rounds once.
    tolerance = 256 * 3840 * FLOAT32_ROUNDING * gradient_scale("shared", x, make_grid("unsigned", 4), per_channel=False)
    torch.testing.assert_close(second, first * copies, rtol=0, atol=tolerance)


@given(st.permutations(WIDTHS), seeds())
def test_a_mixture_takes_the_widths_in_ascending_order(widths: Sequence[int], seed: int) -> None:
    quantizer, x = StepQuantizer("signed", widths), randn((6,), seed)
    quantizer.initialise(torch.tensor(0.8))
    weights = torch.tensor([0.2, 0.3, 0.5])
    quantizer.mix(weights)
    steps = [quantizer.step_of(bits) for bits in WIDTHS]
    assert torch.equal(quantizer(x), mixture(x, steps, [make_grid("signed", bits) for bits in WIDTHS], weights))


def test_a_mixture_passes_gradients_to_probabilities_and_every_step() -> None:
    quantizer, weights = ready(), torch.full((3,), 1 / 3, requires_grad=True)
    quantizer.mix(weights)
    quantizer(randn((32,), 0)).square().sum().backward()
    gradients = [weights.grad, *(quantizer.step_of(bits).grad for bits in WIDTHS)]
    assert all(gradient is not None and gradient.abs().min() > 0 for gradient in gradients)


@given(st.sampled_from(["unsigned", "signed", "shifted"]), st.sampled_from([1, 4]), seeds())
def test_a_mixture_of_one_width_is_that_width_to_the_bit_gradients_too(kind: Any, channels: int, seed: int) -> None:
    x, upstream = randn((channels, 3, 5, 5), seed), randn((channels, 3, 5, 5), seed + 1)
    seen = []
    for mixed in (True, False):
        quantizer, leaf = StepQuantizer(kind, [4], channels=channels), x.clone().requires_grad_()
        quantizer.initialise(torch.tensor(0.8))
        quantizer.mix(torch.zeros(1).softmax(0)) if mixed else quantizer.select(4)
        out = quantizer(leaf)
        out.backward(upstream)
        seen.append((out, leaf.grad, quantizer.step_of(4).grad))
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_select_mix_and_off_replace_one_another() -> None:
    quantizer, x = ready(), randn((4,), 0)
    quantizer.mix(torch.ones(3) / 3)
    quantizer.select(4)
    assert (quantizer.bits, quantizer.probabilities) == (4, None)
    quantizer.mix(torch.ones(3) / 3)
    assert quantizer.bits is None
    quantizer.off()
    assert quantizer(x) is x


def test_codes_need_one_width() -> None:
    quantizer, x = ready(), randn((16,), 0)
    with pytest.raises(StepError, match="call select"):
        quantizer.codes(x)
    quantizer.select(3)
    assert torch.equal(quantizer.codes(x) * quantizer.step_of(3), quantizer(x))


@given(kinds(), st.floats(2**-10, 2**3, width=32), st.integers(1, 4))
def test_every_width_starts_by_lsq_s_rule(kind: GridKind, mean: float, channels: int) -> None:
    quantizer = StepQuantizer(kind, WIDTHS, channels=channels)
    means = torch.arange(1, channels + 1) * mean
    quantizer.initialise(means)
    for bits in WIDTHS:
        expected = 2 * means.double() / math.sqrt(make_grid(kind, bits).high)
        # Two roundings: the root, and the division.
        torch.testing.assert_close(quantizer.step_of(bits).double(), expected, rtol=3 * FLOAT32_ROUNDING, atol=0)


def test_a_quantizer_without_usable_grid_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="at least 2 bits"):
        StepQuantizer("signed", [1, 4])


# Steps of a network

RESIDUAL = [Block("hardswish", False, True, False, 1), Block("relu", True, False, True, 2)]


@pytest.fixture
def network() -> nn.Module:
    """A converted network with every kind of layer and a tie, steps set, quantizers off."""
    model = quantizable(tiny_network(RESIDUAL), TinyNetwork.image_shape)
    return start_steps(model, randn((5, *TinyNetwork.image_shape), 0))


def test_steps_weights_and_buffers_survive_a_state_dict(network: nn.Module) -> None:
    other = quantizable(tiny_network(RESIDUAL, seed=1), TinyNetwork.image_shape)
    other.load_state_dict(network.state_dict())
    images = randn((2, *TinyNetwork.image_shape), 1)
    outputs = []
    for model in (network, other):
        apply_policy(model.eval(), uniform(model))
        outputs.append(model(images))
    assert torch.equal(*outputs)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())


def steps_of(network: nn.Module) -> list[nn.Parameter]:
    return [step for quantizer in quantizers(network) for step in quantizer.parameters()]


def test_a_tied_step_is_listed_once(network: nn.Module) -> None:
    layers = quant_layers(network)
    assert layers["mixers.1"].input_quantizer is layers["shortcuts.1"].input_quantizer
    identities = [id(step) for step in steps_of(network)]
    assert len(identities) == len(set(identities))


def test_a_copy_keeps_its_ties_and_shares_no_step(network: nn.Module) -> None:
    layers = quant_layers(copy.deepcopy(network))
    assert layers["mixers.1"].input_quantizer is layers["shortcuts.1"].input_quantizer
    assert layers["mixers.1"].input_quantizer is not quant_layers(network)["mixers.1"].input_quantizer


@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
def test_projection_lifts_small_and_negative_steps_and_moves_no_other(updated: list[float]) -> None:
    layer = QuantLinear(2, 4)
    layer.weight_quantizer, layer.input_quantizer = ready(channels=4), ready()
    with torch.no_grad():
        layer.weight_quantizer.step_of(4).copy_(torch.tensor(updated))
    before = layer.weight_quantizer.step_of(3).clone()
    project_steps(layer)
    smallest = torch.tensor(MIN_STEP).item()
    assert layer.weight_quantizer.step_of(4).tolist() == [max(value, smallest) for value in updated]
    assert torch.equal(layer.weight_quantizer.step_of(3), before)
    assert all(step.requires_grad for step in steps_of(layer))


def test_weight_steps_start_per_output_channel_from_the_float_weights(network: nn.Module) -> None:
    initialise_weight_steps(network)
    for layer in quant_layers(network).values():
        for bits, grid in layer.weight_quantizer.grids.items():
            expected = 2 * layer.weight.detach().double().abs().flatten(1).mean(1) / math.sqrt(grid.high)
            # A mean of at most 36 float32 numbers, a root and a division.
            actual = layer.weight_quantizer.step_of(bits).double()
            torch.testing.assert_close(actual, expected, rtol=40 * FLOAT32_ROUNDING, atol=0)


def input_magnitudes(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """mean|x + shift| of every layer's input in one forward in train mode, gathered without the code under test."""
    found: dict[str, Tensor] = {}

    def watch(name: str, shift: float) -> Callable[[nn.Module, Any], None]:
        def hook(layer: nn.Module, inputs: Any) -> None:
            found[name] = (inputs[0].detach().double() + shift).abs().mean()

        return hook

    layers = quant_layers(model)
    handles = [
        layers[name].register_forward_pre_hook(
            watch(name, HSWISH_SHIFT if layers[name].input_quantizer.kind == "shifted" else 0.0)
        )
        for name in names
    ]
    model.train()(images)
    for handle in handles:
        handle.remove()
    return found


def test_activation_steps_start_by_lsq_s_rule_averaged_over_batches(network: nn.Module) -> None:
    batches = [randn((4, *TinyNetwork.image_shape), seed) for seed in (1, 2, 3)]
    initialise_activation_steps(network, batches)
    quantization_off(network)
    layers = quant_layers(network)
    each = [input_magnitudes(copy.deepcopy(network), list(layers), images) for images in batches]
    for name, layer in layers.items():
        mean = torch.stack([magnitudes[name] for magnitudes in each]).mean()
        for bits, grid in layer.input_quantizer.grids.items():
            # Means of at most 576 float32 numbers, summed in blocks: well below 64 roundings.
            expected = (2 * mean / math.sqrt(grid.high)).reshape(1)
            actual = layer.input_quantizer.step_of(bits).double()
            torch.testing.assert_close(actual, expected, rtol=64 * FLOAT32_ROUNDING, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_starting_activation_steps_changes_nothing_else(network: nn.Module, training: bool) -> None:
    network.train(training)
    first_norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    first_norm.train(not training)  # a frozen layer must stay frozen
    flags = [module.training for module in network.modules()]
    steps = {id(step) for step in steps_of(network)}
    parameters = {name: p.clone() for name, p in network.named_parameters() if id(p) not in steps}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weight_steps = {name: p.clone() for name, p in network.named_parameters() if "weight_quantizer" in name}
    hooks = [len(module._forward_pre_hooks) for module in network.modules()]
    initialise_activation_steps(network, [randn((4, *TinyNetwork.image_shape), 5)])
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in (parameters | buffers | weight_steps).items())
    assert [module.training for module in network.modules()] == flags
    assert [len(module._forward_pre_hooks) for module in network.modules()] == hooks
    assert all(parameter.grad is None for parameter in network.parameters())


def test_activation_steps_are_started_from_the_float_network_even_when_quantizers_are_on(network: nn.Module) -> None:
    images = [randn((4, *TinyNetwork.image_shape), 6)]
    initialise_activation_steps(network, images)
    expected = [step.clone() for step in steps_of(network)]
    apply_policy(network, uniform(network, activation=3))
    initialise_activation_steps(network, images)
    assert all(torch.equal(a, b) for a, b in zip(steps_of(network), expected, strict=True))


def test_a_failing_forward_leaves_no_trace(network: nn.Module) -> None:
    network.eval()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    good, bad = randn((4, *TinyNetwork.image_shape), 7), torch.zeros(1, 1, 1, 1)
    hooks = [len(module._forward_pre_hooks) for module in network.modules()]
    with pytest.raises(RuntimeError):
        initialise_activation_steps(network, [good, bad])
    assert not network.training
    assert [len(module._forward_pre_hooks) for module in network.modules()] == hooks
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())


# Weights of a whole network in one call


def one_by_one(model: nn.Module) -> nn.Module:
    """A copy whose layers quantize their own weights."""
    copied = copy.deepcopy(model)
    copied._forward_pre_hooks.clear()
    return copied


def trained_once(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Every parameter's gradient, and the output."""
    out = model(images)
    out.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **found}


def test_weights_together_equal_weights_one_by_one(network: nn.Module) -> None:
    apply_policy(network, uniform(network))
    images = randn((3, *TinyNetwork.image_shape), 2)
    alone, together = trained_once(one_by_one(network), images), trained_once(network, images)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    layers = quant_layers(network)
    assert all(
        f"{name}.weight_quantizer.steps.{layer.weight_quantizer.bits}" in alone for name, layer in layers.items()
    )


def test_a_network_prepares_its_weights_for_one_forward_alone(network: nn.Module) -> None:
    apply_policy(network, uniform(network))
    seen: list[bool] = []
    layers = list(quant_layers(network).values())
    layers[0].register_forward_pre_hook(lambda *_: seen.append(all(layer.prepared is not None for layer in layers)))
    network(randn((3, *TinyNetwork.image_shape), 2))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 1, 1, 1))
    assert seen == [True, True]
    assert all(layer.prepared is None for layer in layers)


def test_a_copy_prepares_its_own_weights(network: nn.Module) -> None:
    apply_policy(network, uniform(network))
    images, copied = randn((3, *TinyNetwork.image_shape), 2), copy.deepcopy(network)
    with torch.no_grad():
        for layer in quant_layers(copied).values():
            layer.weight.neg_()
    assert torch.equal(copied(images), one_by_one(copied)(images))
    assert not torch.equal(copied(images), network(images))


def test_weights_in_a_mixture_and_float_weights_are_left_to_their_layers(network: nn.Module) -> None:
    apply_policy(network, uniform(network), weights=False)
    layers = list(quant_layers(network).values())
    mixed = layers[1].weight_quantizer
    mixed.mix(torch.full((len(mixed.widths),), 1.0 / len(mixed.widths)))
    images = randn((3, *TinyNetwork.image_shape), 2)
    assert torch.equal(network(images), one_by_one(network)(images))


def test_a_hook_on_a_weight_quantizer_is_run(network: nn.Module) -> None:
    apply_policy(network, uniform(network))
    seen: list[Tensor] = []
    quantizer = next(iter(quant_layers(network).values())).weight_quantizer
    quantizer.register_forward_hook(lambda _quantizer, _inputs, output: seen.append(output))
    network(randn((3, *TinyNetwork.image_shape), 2))
    assert len(seen) == 1


def test_a_weight_that_no_output_hangs_on_gets_no_gradient() -> None:
    model = quantizable(tiny_network(RESIDUAL), TinyNetwork.image_shape)
    start_steps(model, randn((5, *TinyNetwork.image_shape), 0))
    apply_policy(model, uniform(model))
    *_, last = quant_layers(model).values()
    outputs: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
    model(randn((3, *TinyNetwork.image_shape), 2))
    outputs[0].sum().backward()
    first = next(iter(quant_layers(model).values()))
    assert last.weight.grad is None
    assert first.weight.grad is not None


# Layers


def conv_behind(kind: GridKind, options: QuantizerOptions | None = None, **geometry: Any) -> QuantConv2d:
    """A 4-bit quantizable convolution of 2 channels with steps set, weights and input quantized."""
    layer = QuantConv2d(2, 3, 3, **geometry)
    with torch.no_grad():
        layer.weight.copy_(randn(layer.weight.shape, 3))
    layer.weight_quantizer = StepQuantizer("signed", [4], channels=3)
    layer.input_quantizer = StepQuantizer(kind, [4])
    layer.initialise_weight_steps()
    layer.input_quantizer.initialise(torch.tensor(0.7))
    layer.pad_with_zero = options is not None and options.pad_with_zero
    layer.select(LayerBits(4, 4))
    return layer


def same_sums(found: Tensor, expected: Tensor, layer: QuantConv2d, x: Tensor) -> bool:
    """Whether two ways to sum the products of a kernel of 18 weights agree to rounding."""
    largest = float((layer.input_quantizer(x).abs().max() * layer.weight.abs().max()).detach()) + 1.0
    return float((found - expected).detach().abs().max()) <= 64 * 18 * FLOAT32_ROUNDING * largest


def padded_by_hand(layer: QuantConv2d, x: Tensor, value: float, pads: Sequence[int]) -> Tensor:
    """The layer without its own padding, on a quantized input that `value` surrounds."""
    around = F.pad(layer.input_quantizer(x), list(pads), value=value)
    weight = layer.weight_quantizer(layer.weight)
    return F.conv2d(around, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


# Padding arguments with the pads (left, right, top, bottom) that a 3x3 kernel makes of them.
PADDINGS: list[Any] = [
    ({"padding": 1}, (1, 1, 1, 1)),
    ({"padding": (0, 2)}, (2, 2, 0, 0)),
    ({"padding": "same"}, (1, 1, 1, 1)),
    ({"padding": "same", "dilation": 2}, (2, 2, 2, 2)),
    ({"padding": 1, "stride": 2}, (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("geometry", "pads"), PADDINGS)
@pytest.mark.parametrize("kind", ["unsigned", "signed", "shifted"])
def test_padding_is_the_quantizer_s_image_of_zero(kind: GridKind, geometry: Any, pads: Sequence[int]) -> None:
    layer, x = conv_behind(kind, **geometry), randn((2, 2, 6, 6), 0)
    zero = layer.input_quantizer(torch.zeros(1)).item()
    assert (zero != 0) == (kind == "shifted"), "0.375 / step must not be an integer, or this test shows nothing"
    assert same_sums(layer(x), padded_by_hand(layer, x, zero, pads), layer, x)
    assert layer.recentres == (kind == "shifted")


@pytest.mark.parametrize(("geometry", "pads"), PADDINGS)
@pytest.mark.parametrize("kind", ["unsigned", "signed", "shifted"])
def test_pad_with_zero_pads_with_zero(kind: GridKind, geometry: Any, pads: Sequence[int]) -> None:
    layer, x = conv_behind(kind, QuantizerOptions(pad_with_zero=True), **geometry), randn((2, 2, 6, 6), 0)
    assert torch.equal(layer(x), padded_by_hand(layer, x, 0.0, pads))


def test_the_two_paddings_differ_on_a_shifted_grid_and_at_the_border_only() -> None:
    x = randn((1, 2, 6, 6), 0)
    image, zeros = (
        conv_behind("shifted", padding=1),
        conv_behind("shifted", QuantizerOptions(pad_with_zero=True), padding=1),
    )
    zeros.load_state_dict(image.state_dict())
    difference = (image(x) - zeros(x)).abs()
    assert same_sums(image(x)[..., 1:-1, 1:-1], zeros(x)[..., 1:-1, 1:-1], image, x)
    assert difference.max() > 0.05


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_the_input_repeats_its_codes(mode: str) -> None:
    layer, x = conv_behind("shifted", padding=1, padding_mode=mode), randn((1, 2, 6, 6), 0)
    around = F.pad(layer.input_quantizer(x), [1, 1, 1, 1], mode=mode)
    assert torch.equal(layer(x), F.conv2d(around, layer.weight_quantizer(layer.weight), layer.bias))


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_padding_learns_and_does_not_count_as_features_in_the_gradient_scale(padding: int) -> None:
    layer, x = conv_behind("shifted", padding=padding), randn((2, 2, 6, 6), 0)
    grid, step = make_grid("shifted", 4), layer.input_quantizer.step_of(4)
    layer(x).sum().backward()
    twin = step.detach().clone().requires_grad_()
    scale = gradient_scale("shared", x, grid, per_channel=False)
    padded = fake_quantize(F.pad(x, [padding] * 4), twin, grid, scale=scale)
    F.conv2d(padded, layer.weight_quantizer(layer.weight), layer.bias).sum().backward()
    assert step.grad is not None
    assert twin.grad is not None
    # Sums of 2 x 3 x 6 x 6 x 18 products of gradient and slope, in another order, each slope below 5.
    assert torch.allclose(step.grad, twin.grad, rtol=1e-5, atol=4 * 3888 * FLOAT32_ROUNDING * 5 * scale)


def test_a_mixture_pads_a_shifted_input_with_the_mixture_s_image_of_zero() -> None:
    layer, x = conv_behind("shifted", padding=1), randn((1, 2, 6, 6), 0)
    layer.input_quantizer = ready("shifted")
    layer.input_quantizer.mix(torch.tensor([0.25, 0.25, 0.5]))
    zero = layer.input_quantizer(torch.zeros(1)).item()
    assert same_sums(layer(x), padded_by_hand(layer, x, zero, (1, 1, 1, 1)), layer, x)


@pytest.mark.parametrize("geometry", [{}, {"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 1, "bias": False}])
@pytest.mark.parametrize("kind", ["unsigned", "signed"])
def test_the_step_of_an_image_learns_the_same_without_the_image_s_gradient(kind: GridKind, geometry: Any) -> None:
    layer, x = conv_behind(kind, **geometry), randn((2, 2, 6, 6), 0)
    g = randn(tuple(layer(x).shape), 4)
    gradients = []
    for image in (x, x.clone().requires_grad_()):
        layer.zero_grad()
        out = layer(image)
        out.backward(g)
        gradients.append({"output": out.detach(), **{name: p.grad for name, p in layer.named_parameters()}})
    # Sums of 3 x 72 x 18 products at the most, in two orders, of numbers about 1: far below one in a thousand.
    for name, found in gradients[0].items():
        assert found is not None, name
        assert torch.allclose(found, gradients[1][name], rtol=1e-4, atol=1e-4), name
    assert gradients[0]["input_quantizer.steps.4"].abs().item() > 0.01


def test_a_step_behind_frozen_layers_learns_from_what_its_activation_gives() -> None:
    layer, x = conv_behind("shifted"), 4 * randn((2, 2, 6, 6), 0)
    activation = HardSwish()
    activation.readers, layer.input_quantizer.source = (layer.input_quantizer,), (activation,)
    step, found = layer.input_quantizer.step_of(4), []
    for image in (x, x.clone().requires_grad_()):
        step.grad = None
        layer(activation(image)).square().sum().backward()
        assert activation.owed == "hardswish", "or this test shows nothing"
        assert step.grad is not None
        found.append(step.grad)
    assert torch.allclose(*found, rtol=1e-4)


@given(seeds(), st.sampled_from([2, 3, 4, 8]), st.sampled_from([2, 3, 4, 8]))
def test_a_linear_layer_multiplies_quantized_input_by_quantized_weight(seed: int, weight: int, activation: int) -> None:
    layer, x = QuantLinear(5, 4), randn((3, 5), seed)
    layer.weight_quantizer, layer.input_quantizer = (
        StepQuantizer("signed", [weight], channels=4),
        StepQuantizer("signed", [activation]),
    )
    layer.initialise_weight_steps()
    layer.input_quantizer.initialise(x.abs().mean())
    layer.select(LayerBits(weight, activation))
    quantized = fake_quantize(layer.weight, layer.weight_quantizer.step_of(weight), make_grid("signed", weight))
    codes = fake_quantize(x, layer.input_quantizer.step_of(activation), make_grid("signed", activation))
    assert torch.equal(layer(x), F.linear(codes, quantized, layer.bias))


def test_under_autocast_a_layer_s_codes_are_those_of_float32() -> None:
    layer, x = conv_behind("shifted", padding=1), randn((2, 2, 6, 6), 0)
    expected = layer.weight_quantizer(layer.weight), layer.input_quantizer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight_quantizer(layer.weight), expected[0])
        assert torch.equal(layer.input_quantizer(x), expected[1])
        assert layer(x).dtype == torch.bfloat16


# Policies on a network


def test_a_policy_selects_every_layer_s_bits(network: nn.Module) -> None:
    policy = uniform(network, weight=4, activation=3)
    apply_policy(network, policy)
    for name, layer in quant_layers(network).items():
        assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == policy[name]


@pytest.mark.parametrize(("weights", "activations"), [(True, True), (True, False), (False, True), (False, False)])
def test_either_side_can_stay_float(network: nn.Module, weights: bool, activations: bool) -> None:
    apply_policy(network, uniform(network))
    apply_policy(network, uniform(network), weights=weights, activations=activations)
    for layer in quant_layers(network).values():
        assert layer.weight_quantizer.active == weights
        assert layer.input_quantizer.active == activations


def test_an_unknown_layer_is_refused_and_the_known_are_listed(network: nn.Module) -> None:
    policy = dict(uniform(network)) | {"stem": LayerBits(4, 4)}
    with pytest.raises(PolicyError, match=r"no layer 'stem' in this network; layers: mixers\.0, "):
        apply_policy(network, policy)


def test_missing_layers_are_refused_and_named(network: nn.Module) -> None:
    policy = {name: bits for name, bits in uniform(network).items() if name not in ("mixers.1", "classifier")}
    with pytest.raises(PolicyError, match=r"gives no bits for mixers\.1, classifier"):
        apply_policy(network, policy)


def test_bits_that_are_no_candidate_are_refused(network: nn.Module) -> None:
    with pytest.raises(PolicyError, match="2 bits are no candidate"):
        apply_policy(network, uniform(network, activation=2))


def test_tied_layers_with_different_activation_bits_are_refused(network: nn.Module) -> None:
    policy = dict(uniform(network)) | {"shortcuts.1": LayerBits(4, 3)}
    with pytest.raises(PolicyError, match=r"mixers\.1 and shortcuts\.1 share an input"):
        apply_policy(network, policy)


def test_a_policy_before_any_step_is_refused() -> None:
    fresh = quantizable(tiny_network(RESIDUAL), TinyNetwork.image_shape)
    with pytest.raises(StepError, match="was never set"):
        apply_policy(fresh, uniform(fresh))


def test_off_means_off_everywhere(network: nn.Module) -> None:
    apply_policy(network, uniform(network))
    quantization_off(network)
    assert not any(quantizer.active for quantizer in quantizers(network))


@settings(max_examples=20)  # a forward and a backward of a network each
@given(blocks(), seeds())
def test_every_step_in_use_gets_a_finite_gradient(plan: list[Block], seed: int) -> None:
    images = randn((4, *TinyNetwork.image_shape), seed)
    model = start_steps(quantizable(tiny_network(plan, seed), TinyNetwork.image_shape), images)
    apply_policy(model, uniform(model))
    model(images).square().sum().backward()
    used = [quantizer.step_of(quantizer.bits) for quantizer in quantizers(model) if quantizer.bits is not None]
    assert len(used) == len(list(quantizers(model)))
    assert all(step.grad is not None and bool(step.grad.isfinite().all()) for step in used)


# h-swish and h-sigmoid

OURS_AND_TORCH_S: list[Any] = [(HardSwish(), nn.Hardswish()), (HardSigmoid(), nn.Hardsigmoid())]
# Beyond +-3 both are flat or linear; 8 shows it. Kinks lie at -3 and 3, where derivatives are a matter of taste.
PLACES = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=16).map(torch.tensor)


@pytest.mark.parametrize(("ours", "torch_s"), OURS_AND_TORCH_S)
@given(x=PLACES)
def test_values_equal_torch_s(ours: nn.Module, torch_s: nn.Module, x: Tensor) -> None:
    # x + 3 rounds alike in both; then a product and a quotient, in either order, perhaps by a rounded 1/6: 3 each.
    torch.testing.assert_close(ours(x), torch_s(x), rtol=6 * FLOAT32_ROUNDING, atol=2.0**-126)


@pytest.mark.parametrize(("ours", "torch_s"), OURS_AND_TORCH_S)
@given(x=PLACES)
def test_first_derivatives_equal_torch_s(ours: nn.Module, torch_s: nn.Module, x: Tensor) -> None:
    x = x[x.abs() != 3]
    gradients = []
    for function in (ours, torch_s):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf).sum(), leaf)[0])
    # h-swish: x/3 + 1/2 by at most 4 operations on terms below 1.5 where it is curved, in another order in each.
    torch.testing.assert_close(*gradients, rtol=0, atol=2 * 4 * 1.5 * FLOAT32_ROUNDING)


@pytest.mark.parametrize(("ours", "curvature"), [(HardSwish(), 1 / 3), (HardSigmoid(), 0.0)])
@given(x=PLACES)
def test_second_derivatives_exist(ours: nn.Module, curvature: float, x: Tensor) -> None:
    leaf = x[x.abs() != 3].clone().requires_grad_()
    # The sum of squares gives h-sigmoid a second derivative that autograd can reach.
    value = ours(leaf).sum() + leaf.square().sum()
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), leaf)
    expected = 2 + torch.where(leaf.detach().abs() < 3, curvature, 0.0)
    torch.testing.assert_close(second, expected, rtol=4 * FLOAT32_ROUNDING, atol=0)
