"""Float network -> quantizable network: layers by type, activation kinds and ties from the graph."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import methods.quantization.strided_pointwise  # noqa: F401 (registers a kernel for every convolution's gradients)
from methods.quantization.activations import Activation, HardSigmoid, HardSwish, ReLU, ReLU6
from methods.quantization.cost import PINNED_BITS, Layer, Ledger
from methods.quantization.fake_quant import GradientScale
from methods.quantization.grid import GridKind
from methods.quantization.modules import QuantConv2d, QuantLinear, WeightsTogether
from methods.quantization.policy import Candidates, PolicyError
from methods.quantization.quantizer import (
    BetaGamma,
    LearnedOffset,
    MinMax,
    Quantizer,
    StepQuantizer,
)

_UNSIGNED = (nn.ReLU, nn.ReLU6, nn.Sigmoid, ReLU, ReLU6)
_SHIFTED = (nn.Hardswish, HardSwish)
_GATES = (nn.Hardsigmoid, HardSigmoid)
_ACTIVATIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU6: ReLU6,
    nn.ReLU: ReLU,
    nn.Hardswish: HardSwish,
    nn.Hardsigmoid: HardSigmoid,
}
_KEEPING = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Identity)
_SIGNED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
_KEEPING_FUNCTIONS: set[Any] = {
    torch.flatten,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.max_pool2d,
    F.dropout,
    "flatten",
    "view",
    "reshape",
}
_ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_PRODUCTS: set[Any] = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_UNSIGNED_FUNCTIONS: set[Any] = {F.relu, F.relu6, torch.relu, "relu", "relu_"}


@dataclass(frozen=True)
class QuantizerOptions:
    """How quantizers are built, alike for every layer.

    parameterisation: what activation quantizers learn; weights learn LSQ's step in every case. sigmoid: of
    `beta-gamma`. integer_offset: of all but `lsq`.
    """

    gradient_scale: GradientScale = "shared"
    narrow: bool = True
    pad_with_zero: bool = False
    parameterisation: Literal["lsq", "lsq+", "min-max", "beta-gamma"] = "lsq"
    sigmoid: bool = False
    integer_offset: bool = False

    def of_input(self, kind: GridKind, widths: Sequence[int]) -> Quantizer:
        """A quantizer of activations of this kind."""
        rule, narrow, integer = self.gradient_scale, self.narrow, self.integer_offset
        match self.parameterisation:
            case "lsq":
                return StepQuantizer(kind, widths, rule=rule, narrow=narrow)
            case "lsq+":
                return LearnedOffset(kind, widths, rule=rule, narrow=narrow, integer_offset=integer)
            case "min-max":
                return MinMax(kind, widths, rule=rule, narrow=narrow, integer_offset=integer)
            case "beta-gamma":
                return BetaGamma(kind, widths, rule=rule, narrow=narrow, integer_offset=integer, sigmoid=self.sigmoid)

    def of_weight(self, channels: int, widths: Sequence[int]) -> StepQuantizer:
        return StepQuantizer("signed", widths, channels=channels, rule=self.gradient_scale, narrow=self.narrow)


def replace_activations(model: nn.Module) -> nn.Module:
    """Swap activations for ours, twice differentiable and not in place; switch other in-place operations off."""
    replaced: dict[nn.Module | None, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # one module may stand under several names
            if ours := next((ours for kind, ours in _ACTIVATIONS.items() if isinstance(child, kind)), None):
                setattr(module, name, replaced.setdefault(child, ours()))
            elif hasattr(child, "inplace"):
                setattr(child, "inplace", False)  # noqa: B010 (not every module declares it)
    return model


@dataclass(frozen=True)
class _Site:
    """Where a layer stands in the graph: its name, its input's kind and the node that it reads."""

    name: str
    kind: GridKind
    source: fx.Node


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (Activation, HardSigmoid, QuantConv2d, QuantLinear)) or super().is_leaf_module(
            module, qualified_name
        )


def _sites(model: nn.Module) -> list[_Site]:
    """Every convolution and linear layer in the order in which the graph runs them."""
    modules = dict(model.named_modules())
    kinds: dict[fx.Node, str] = {}
    found: list[_Site] = []
    for node in _Tracer().trace(model).nodes:
        kinds[node] = _kind(node, modules, kinds)
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            found.append(_Site(str(node.target), _as_grid_kind(kinds[source]), source))
    return found


def _kind(node: fx.Node, modules: dict[str, nn.Module], kinds: dict[fx.Node, str]) -> str:
    """What `node` puts out: unsigned, signed, shifted, or gate (the [0, 1] output of a hard sigmoid)."""
    inputs = [kinds[source] for source in node.all_input_nodes]
    if node.op in ("placeholder", "get_attr", "output"):
        return "signed"
    if node.op == "call_module":
        return _module_kind(modules[str(node.target)], inputs, str(node.target))
    if node.target in _UNSIGNED_FUNCTIONS:
        return "unsigned"
    if node.target in _KEEPING_FUNCTIONS:
        return inputs[0]
    if node.target in _ADDITIONS:
        return "unsigned" if all(kind in ("unsigned", "gate") for kind in inputs) else "signed"
    if node.target in _PRODUCTS:
        return _product_kind(inputs)
    if inputs:
        warnings.warn(f"operation {node.target!r} is unknown here: its output is taken as signed", stacklevel=2)
    return "signed"


def _module_kind(module: nn.Module, inputs: list[str], name: str) -> str:
    if isinstance(module, _UNSIGNED):
        return "unsigned"
    if isinstance(module, _SHIFTED):
        return "shifted"
    if isinstance(module, _GATES):
        return "gate"
    if isinstance(module, _KEEPING):
        return inputs[0]
    if not isinstance(module, _SIGNED):
        warnings.warn(f"layer {name!r} ({type(module).__name__}) is unknown here: taken as signed", stacklevel=2)
    return "signed"


def _product_kind(inputs: list[str]) -> str:
    others = [kind for kind in inputs if kind != "gate"]
    if len(others) <= 1:
        return others[0] if others else "gate"
    return "unsigned" if all(kind == "unsigned" for kind in others) else "signed"


def _as_grid_kind(kind: str) -> GridKind:
    return "unsigned" if kind == "gate" else kind  # type: ignore[return-value]


@torch.no_grad()
def _macs(model: nn.Module, names: Sequence[str], image_shape: tuple[int, int, int]) -> dict[str, int]:
    """MACs per layer of one image, from the shapes that a forward of zeros meets."""
    counts: dict[str, int] = {}
    modules = dict(model.named_modules())

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            counts[name] = output[0].numel() * layer.weight[0].numel()  # type: ignore[index]

        return hook

    handles = [modules[name].register_forward_hook(count(name)) for name in names]
    training = {module: module.training for module in model.modules()}
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module, flag in training.items():
            module.training = flag
        for handle in handles:
            handle.remove()
    return counts


def ledger_of(model: nn.Module, image_shape: tuple[int, int, int]) -> Ledger:
    """The network's layers in graph order, first and last pinned; works before and after conversion.

    image_shape: (channels, height, width). Layers that read the same tensor are tied.
    """
    sites = _sites(model)
    macs = _macs(model, [site.name for site in sites], image_shape)
    modules = dict(model.named_modules())
    readers: dict[fx.Node, list[str]] = {}
    for site in sites:
        readers.setdefault(site.source, []).append(site.name)
    ledger = []
    for index, site in enumerate(sites):
        module = modules[site.name]
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        shared = readers[site.source]
        ledger.append(
            Layer(
                name=site.name,
                type="linear" if isinstance(module, nn.Linear) else "depthwise" if depthwise else "conv",
                macs=macs[site.name],
                weights=module.weight.numel(),
                kind=site.kind,
                pinned=index in (0, len(sites) - 1),
                tie=shared[0] if len(shared) > 1 else None,
            )
        )
    return tuple(ledger)


def convert(model: nn.Module, ledger: Ledger, candidates: Candidates, options: QuantizerOptions) -> nn.Module:
    """Swap every layer of `ledger` for its quantizable form, in place; float weights are kept, quantizers are off.

    candidates: the bits that each searchable layer may get; pinned layers get 8x8. Tied layers share one input
    quantizer, hence one step. Raises PolicyError if `candidates` does not name exactly the searchable layers.
    """
    searchable = {layer.name for layer in ledger if not layer.pinned}
    if wrong := sorted(searchable.symmetric_difference(candidates)):
        raise PolicyError(f"candidates must name exactly the searchable layers; differing: {', '.join(wrong)}")
    bits_of = {layer.name: [PINNED_BITS] if layer.pinned else candidates[layer.name] for layer in ledger}
    input_bits: dict[str, set[int]] = {}
    for layer in ledger:
        input_bits.setdefault(layer.tie or layer.name, set()).update(bits.activation for bits in bits_of[layer.name])
    inputs: dict[str, Quantizer] = {}
    for layer in ledger:
        key = layer.tie or layer.name
        if key not in inputs:
            inputs[key] = options.of_input(layer.kind, sorted(input_bits[key]))
        parent_name, _, child_name = layer.name.rpartition(".")
        parent = model.get_submodule(parent_name)
        weight_bits = sorted({bits.weight for bits in bits_of[layer.name]})
        setattr(parent, child_name, _quantizable(getattr(parent, child_name), weight_bits, inputs[key], options))
    _hand_over_activations(model)
    WeightsTogether(model)
    return model


def _hand_over_activations(model: nn.Module) -> None:
    """Let quantizers take over the activations that they alone read, and that run once."""
    modules = dict(model.named_modules())
    calls = [node for node in _Tracer().trace(model).nodes if node.op == "call_module"]
    runs = Counter(node.target for node in calls)
    for node in calls:
        activation = modules[str(node.target)]
        readers = [modules.get(str(user.target)) if user.op == "call_module" else None for user in node.users]
        layers = [reader for reader in readers if isinstance(reader, (QuantConv2d, QuantLinear))]
        if isinstance(activation, Activation) and runs[node.target] == 1 and readers and len(layers) == len(readers):
            activation.readers = tuple(dict.fromkeys(layer.input_quantizer for layer in layers))
            for quantizer in activation.readers:
                quantizer.source = (activation,)


def _quantizable(
    layer: nn.Module, weight_bits: Sequence[int], input_quantizer: Quantizer, options: QuantizerOptions
) -> QuantConv2d | QuantLinear:
    """`layer` with quantizers; weight and bias are the same Parameter objects."""
    quantized: QuantConv2d | QuantLinear
    if isinstance(layer, nn.Conv2d):
        quantized = QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
        quantized.pad_with_zero = options.pad_with_zero
    elif isinstance(layer, nn.Linear):
        quantized = QuantLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        raise TypeError(f"only Conv2d and Linear can be quantized, got {type(layer).__name__}")
    quantized.weight, quantized.bias = layer.weight, layer.bias
    quantized.train(layer.training)
    quantized.weight_quantizer = options.of_weight(layer.weight.shape[0], weight_bits)
    quantized.input_quantizer = input_quantizer
    quantized.to(layer.weight.device)
    return quantized
