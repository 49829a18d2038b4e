"""Layers with quantizers: QuantConv2d and QuantLinear are a float layer, its weight quantizer and its input's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods.quantization.fake_quant import MIN_STEP, fake_quantize_together, step_slope
from methods.quantization.policy import LayerBits, PolicyError
from methods.quantization.quantizer import Quantizer, StepQuantizer


class _QuantLayer:
    """What QuantConv2d and QuantLinear share: one quantizer for the weight and one for the input.

    prepared: the quantized weight of the network's present forward, where WeightsTogether has made it.
    """

    weight: Tensor
    weight_quantizer: Quantizer
    input_quantizer: Quantizer
    prepared: Tensor | None = None

    def quantized_weight(self) -> Tensor:
        return self.weight_quantizer(self.weight) if self.prepared is None else self.prepared

    def select(self, bits: LayerBits) -> None:
        self.weight_quantizer.select(bits.weight)
        self.input_quantizer.select(bits.activation)

    def initialise_weight_steps(self) -> None:
        magnitude = self.weight.detach().abs().flatten(1).mean(1)
        self.weight_quantizer.initialise(magnitude if self.weight_quantizer.per_channel else magnitude.mean())


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """A convolution with quantized weight and input; padding lies on the input's grid.

    Zero lies on the grid of unsigned and signed inputs, so they are padded after quantization. On a shifted grid
    zero is a code only if 0.375 / step is an integer, and with a learned offset hardly ever: there the padding is the
    quantizer's own image of zero, Q(0). `pad_with_zero` pads with exact zeros instead, as public MetaMix code does.

    Padding with Q(0) itself would take one more pass over memory. So, as in integer arithmetic, the convolution is
    given Q(x) - Q(0), padded with zeros, and Q(0) times the sum of its weights is added to the bias.
    """

    pad_with_zero = False

    @property
    def recentres(self) -> bool:
        """Whether the convolution is given Q(x) - Q(0)."""
        quantizer = self.input_quantizer
        misses_zero = quantizer.active and not quantizer.zero_is_a_code
        pads = any(self._reversed_padding_repeated_twice)  # for padding="same" too
        return misses_zero and pads and self.padding_mode == "zeros" and not self.pad_with_zero

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.quantized_weight(), self.bias
        if self._reads_images(x):
            with torch.no_grad():
                quantized = self.input_quantizer(x)
            out: Tensor = self._conv_forward(quantized, weight, bias)
            step = self.input_quantizer.in_use(x).step
            return _StepGradient.apply(out, step, x, weight.detach(), self)  # type: ignore[no-any-return]
        quantized = self.input_quantizer(x)
        if self.recentres:
            zero = self.input_quantizer(x.new_zeros(1), like=x)
            quantized = quantized.sub_(zero)
            of_zero = zero * weight.sum((1, 2, 3))
            bias = of_zero if bias is None else bias + of_zero
        out = self._conv_forward(quantized, weight, bias)
        return out

    def _reads_images(self, x: Tensor) -> bool:
        """Whether only one quantizer step, at one width, needs the input's gradient, and no activation is owed."""
        quantizer = self.input_quantizer
        if x.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling() or self.recentres:
            return False
        owes = any(activation.owed != "none" for activation in quantizer.source)
        return isinstance(quantizer, StepQuantizer) and _is_plain(quantizer) and not owes


class _StepGradient(torch.autograd.Function):
    """The identity on convolution(Q(x)), through which the step of Q learns; no other gradient reaches Q or x.

    <dL/dQ, dQ/dstep> is taken as <dL/dout, convolution(dQ/dstep)>: one forward convolution in place of a backward one,
    which costs several times as much where x has only the channels of an image.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, step: Tensor, x: Tensor, weight: Tensor, layer: QuantConv2d) -> Tensor:
        ctx.save_for_backward(step, x, weight)
        ctx.layer, ctx.use = layer, layer.input_quantizer.in_use(x)
        ctx.mark_dirty(out)  # returned as itself: autograd refuses in-place work on a view of it
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        step, x, weight = ctx.saved_tensors
        slope = step_slope(x, step, ctx.use.grid)
        moved = ctx.layer._conv_forward(slope.to(weight.dtype), weight, None)
        total = (moved * g).sum() * ctx.use.scale
        return g, total.reshape(step.shape).to(step.dtype), None, None, None


class QuantLinear(_QuantLayer, nn.Linear):
    """A linear layer with quantized weight and input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_quantizer(x), self.quantized_weight(), self.bias)


QuantLayer = QuantConv2d | QuantLinear


class WeightsTogether:
    """Quantizes the weights of a whole network in one call, before its forward.

    Two hooks on the network, copied with it: one prepares, the other forgets, whether or not the forward succeeds.
    Weights in a mixture of widths are left to their layers, as are quantizers with hooks or a forward of their own, and
    all of them where torch.compile sees the whole network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = list(quant_layers(model).values())
        model.register_forward_pre_hook(self._prepare)
        model.register_forward_hook(self._forget, always_call=True)

    def _prepare(self, _model: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        chosen = [layer for layer in self.layers if _is_plain(layer.weight_quantizer)]
        uses = [layer.weight_quantizer.in_use(layer.weight) for layer in chosen]
        weights = fake_quantize_together(
            [layer.weight for layer in chosen],
            [use.step for use in uses],
            [use.grid for use in uses],
            [use.scale for use in uses],
        )
        for layer, weight in zip(chosen, weights, strict=True):
            layer.prepared = weight

    def _forget(self, _model: nn.Module, _inputs: Any, _output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for layer in self.layers:
            layer.prepared = None


def _is_plain(quantizer: Quantizer) -> bool:
    """Whether it uses one width and the forward that all quantizers share, without hooks."""
    hooked = quantizer._forward_hooks or quantizer._forward_pre_hooks
    return quantizer.bits is not None and type(quantizer).forward is Quantizer.forward and not hooked


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantizable layers of a converted network by name, in registration order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (QuantConv2d, QuantLinear))}


def quantizers(model: nn.Module) -> Iterator[Quantizer]:
    return (module for module in model.modules() if isinstance(module, Quantizer))


def apply_policy(
    model: nn.Module, policy: Mapping[str, LayerBits], *, weights: bool = True, activations: bool = True
) -> None:
    """Select each layer's bits; `weights=False` leaves weights float (the activation-first stage), likewise inputs.

    Raises PolicyError unless `policy` names exactly the network's layers and gives layers that share an input
    quantizer the same activation bits.
    """
    layers = quant_layers(model)
    if unknown := [name for name in policy if name not in layers]:
        raise PolicyError(f"no layer {unknown[0]!r} in this network; layers: {', '.join(layers)}")
    if missing := [name for name in layers if name not in policy]:
        raise PolicyError(f"the policy gives no bits for {', '.join(missing)}")
    first: dict[Quantizer, str] = {}
    for name, layer in layers.items():
        other = first.setdefault(layer.input_quantizer, name)
        if policy[name].activation != policy[other].activation:
            raise PolicyError(f"{other} and {name} share an input: give them the same activation bits")
    for name, layer in layers.items():
        layer.weight_quantizer.off()
        layer.input_quantizer.off()
        if weights:
            layer.weight_quantizer.select(policy[name].weight)
        if activations:
            layer.input_quantizer.select(policy[name].activation)


def quantization_off(model: nn.Module) -> None:
    for quantizer in quantizers(model):
        quantizer.off()


@torch.no_grad()
def project_steps(model: nn.Module) -> None:
    """Keep every quantizer's step positive; called after each optimizer step."""
    steps = list[Tensor]()
    for quantizer in quantizers(model):
        if isinstance(quantizer, StepQuantizer):
            steps += quantizer.steps.values()
        else:
            quantizer.project()
    if steps:
        torch._foreach_clamp_min_(steps, MIN_STEP)  # one call for hundreds: each on its own costs a hundredth of a step


def initialise_weight_steps(model: nn.Module) -> None:
    for layer in quant_layers(model).values():
        layer.initialise_weight_steps()


@torch.no_grad()
def initialise_activation_steps(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set all input steps from forwards of the unquantized network in train mode; buffers stay as they were.

    batches: micro-batches of images, averaged with equal weight.
    """
    sums: dict[Quantizer, Tensor] = {}
    extents: dict[Quantizer, tuple[Tensor, Tensor]] = {}
    counts: dict[Quantizer, int] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        quantizer: Quantizer = layer.input_quantizer  # type: ignore[assignment]
        shift, (low, high) = next(iter(quantizer.grids.values())).shift, inputs[0].aminmax()
        sums[quantizer] = (
            sums.get(quantizer, torch.zeros((), device=inputs[0].device)) + (inputs[0] + shift).abs().mean()
        )
        least, most = extents.get(quantizer, (low, high))
        extents[quantizer] = torch.minimum(least, low), torch.maximum(most, high)
        counts[quantizer] = counts.get(quantizer, 0) + 1

    quantization_off(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_pre_hook(watch) for layer in quant_layers(model).values()]
    try:
        model.train()
        for images in batches:
            model(images)
    finally:
        for module, flag in training.items():
            module.training = flag
        for handle in handles:
            handle.remove()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for quantizer, total in sums.items():
        quantizer.initialise(total / counts[quantizer], extents[quantizer])
