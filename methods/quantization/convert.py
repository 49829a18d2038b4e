"""Float network -> quantizable network: layers by type, activation kinds and ties from the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import methods.quantization.strided_pointwise  # noqa: F401 (registers a kernel for every convolution's gradients)
from methods.quantization.activations import Activation, HardSigmoid, HardSwish, ReLU, ReLU6
from methods.quantization.cost import PINNED_BITS, Layer, Ledger
from methods.quantization.fake_quant import GradientScale
from methods.quantization.graph import (
    LOGITS_ALONE,
    NetworkError,
    Walk,
    one_line,
    require_own_layers,
    training_flags_kept,
    walk_in_evaluation,
    walks_of,
    warn_of_unknown,
)
from methods.quantization.grid import GridKind
from methods.quantization.macs import FloatWork, float_work, undeclared
from methods.quantization.modules import QuantConv2d, QuantLinear, WeightsTogether
from methods.quantization.policy import Candidates, PolicyError
from methods.quantization.quantizer import (
    BetaGamma,
    LearnedOffset,
    MinMax,
    Quantizer,
    StepQuantizer,
)

_ACTIVATIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU6: ReLU6,
    nn.ReLU: ReLU,
    nn.Hardswish: HardSwish,
    nn.Hardsigmoid: HardSigmoid,
}


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
    """Swap activations for our twice differentiable ones, and make no module work in place.

    Only exact types are swapped, without hooks and unchanged: a subclass may compute something else.
    """
    replaced: dict[nn.Module | None, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # one module may stand under several names
            ours = None if child is None or _is_changed(child) else _ACTIVATIONS.get(type(child))
            if ours is not None:
                setattr(module, name, replaced.setdefault(child, ours()))
            elif getattr(child, "inplace", False) is True:
                setattr(child, "inplace", False)  # noqa: B010 (not every module declares it)
    return model


def _is_changed(module: nn.Module) -> bool:
    """Whether it may compute something else than its type says; a ReLU6 has its ends as attributes."""
    watched = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(watched) or (isinstance(module, nn.ReLU6) and (module.min_val, module.max_val) != (0.0, 6.0))


@torch.no_grad()
def _macs(
    model: nn.Module, names: Sequence[str], image_shape: tuple[int, int, int]
) -> tuple[dict[str, int], list[FloatWork]]:
    """MACs of one image per layer, and those outside of layers, from the shapes in a forward of zeros."""
    counts: dict[str, list[int]] = {name: [] for name in names}
    modules = dict(model.named_modules())

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, _inputs, output: counts[name].append(macs_of_call(layer, output))

    handles = [modules[name].register_forward_hook(count(name)) for name in names]
    try:
        with training_flags_kept(model):
            parameter = next(model.parameters())
            image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
            put_out: list[Any] = []
            others = float_work(model.eval(), names, lambda: put_out.append(model(image)))
    except Exception as error:  # whatever a network's own code raises
        raise NetworkError(f"it does not run on an image of shape {image_shape}: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(put_out[0], Tensor):
        raise NetworkError(f"it puts out {type(put_out[0]).__name__}; {LOGITS_ALONE}")
    if often := next((name for name, calls in counts.items() if len(calls) != 1), None):
        raise NetworkError(f"layer {often} ran {len(counts[often])} times in one forward; it must run once")
    return {name: macs for name, (macs,) in counts.items()}, others


def _require_declared(work: Sequence[FloatWork], declared: Sequence[str]) -> None:
    """Raises NetworkError for undeclared work outside of layers, or for a declared name that does no such work."""
    for name in declared:
        if not any(each.is_named(name) for each in work):
            known = ", ".join(dict.fromkeys(each.module or each.operation for each in work)) or "there is none"
            raise NetworkError(f"stays_float names {name!r}, which does no work outside of layers; what does: {known}")
    if missing := undeclared(work, declared):
        names = ", ".join(dict.fromkeys(each.module or each.operation for each in missing))
        raise NetworkError(
            f"not all of its work is done by convolution and linear layers: {'; '.join(map(str, missing))} per image "
            "would stay float and be in no BOPs; build it of Conv2d and Linear, or accept that in the suite, "
            f"stays_float: [{names}] of this model"
        )


def float_work_of(model: nn.Module, image_shape: tuple[int, int, int]) -> list[FloatWork]:
    """The MACs of one image that no layer of the ledger does."""
    return _macs(model, [site.name for site in _walks(model, image_shape)[0].sites], image_shape)[1]


def _walks(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Walk, Walk]:
    """Its graph in training and in evaluation.

    A network that raises in training, whatever runs it, has that of evaluation for both: it can be counted, and what it
    raises is for its trials to report.
    """
    try:
        return walks_of(model)
    except NetworkError:
        if _runs_in_training(model, image_shape):
            raise
    return (walk_in_evaluation(model),) * 2


@torch.no_grad()
def _runs_in_training(model: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    with torch.random.fork_rng(devices=[]):
        try:
            copy = deepcopy(model).train()
            parameter = next(copy.parameters())
            copy(torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype))
        except Exception:  # noqa: BLE001 (whatever a network's own code raises)
            return False
    return True


def macs_of_call(layer: nn.Module, output: Tensor) -> int:
    """MACs of one call of a convolution or linear layer: every output is a sum over one filter."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return output.numel() * weight[0].numel()


def ledger_of(model: nn.Module, image_shape: tuple[int, int, int], stays_float: Sequence[str] = ()) -> Ledger:
    """The network's layers in graph order, first and last pinned; works before and after conversion.

    image_shape: (channels, height, width). stays_float: modules or operations that may do work outside of layers, which
    is in no ledger. Layers that read the same tensor are tied. Kinds hold in training and in evaluation. Raises
    NetworkError, which names the layer, where the network cannot be quantized as it is.
    """
    walks = _walks(model, image_shape)
    warn_of_unknown(walks)
    require_own_layers(model, walks[0].sites)
    sites = list(zip(*(walk.sites for walk in walks), strict=True))
    macs, others = _macs(model, [site.name for site, _ in sites], image_shape)
    _require_declared(others, stays_float)
    modules = dict(model.named_modules())
    readers: dict[Any, list[str]] = {}
    for training, evaluation in sites:
        readers.setdefault((training.source, evaluation.source), []).append(training.name)
    ledger = []
    for index, (training, evaluation) in enumerate(sites):
        module = modules[training.name]
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        shared = readers[training.source, evaluation.source]
        ledger.append(
            Layer(
                name=training.name,
                type="linear" if isinstance(module, nn.Linear) else "depthwise" if depthwise else "conv",
                macs=macs[training.name],
                weights=module.weight.numel(),
                kind=training.range.hull(evaluation.range).kind,
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
    walks = walks_of(model)
    for site in walks[0].sites:
        if site.by_keyword:
            model.get_submodule(site.name).register_forward_pre_hook(_by_place, with_kwargs=True)
    _hand_over_activations(model, walks)
    WeightsTogether(model)
    return model


def _by_place(
    _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call `layer(input=x)` becomes `layer(x)`, which is what hooks and our layers' forwards expect."""
    return (args, kwargs) if args else ((kwargs["input"],), {})


def _hand_over_activations(model: nn.Module, walks: Sequence[Walk]) -> None:
    """Let quantizers take over the activations that they alone read, in training and in evaluation."""
    found = [_sole_readers(walk) for walk in walks]
    modules = dict(model.named_modules())
    for name, layers in found[0].items():
        activation = modules[name]
        assert isinstance(activation, Activation)
        if all(other.get(name) == layers for other in found):
            activation.readers = tuple(dict.fromkeys(modules[layer].input_quantizer for layer in layers))
            for quantizer in activation.readers:
                quantizer.source = (activation,)


def _sole_readers(walk: Walk) -> dict[str, list[str]]:
    """Activations that run once and that quantized layers alone read, with those layers' names.

    An activation passes its input on unchanged, so nothing may overwrite that input before these layers have run.
    """
    runs = Counter(node.target for node in walk.nodes if node.op == "call_module")
    return {
        str(node.target): [str(user.target) for user in node.users]
        for node in walk.nodes
        if isinstance(walk.module_of(node), Activation)
        and runs[node.target] == 1
        and node.users
        and all(isinstance(walk.module_of(user), (QuantConv2d, QuantLinear)) for user in node.users)
        and not walk.overwritten_after(node)
    }


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
