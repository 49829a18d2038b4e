"""How much a layer's bits matter: Hutchinson traces of the loss's Hessian, and the perturbation of rounding."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from methods.contract import MicroBatch
from methods.quantization.fake_quant import fake_quantize, lsq_step, spread
from methods.quantization.grid import Grid

with warnings.catch_warnings():  # torch warns of itself at its first forward derivative
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp

_STEP_SEARCH = tuple(0.05 + 0.05 * k for k in range(24))
"""Factors of LSQ's initial step, 0.05..1.2; LSQ's own start has 21 times the least error at 8 bits."""

_STEP_SEARCH_VALUES = 16_384
"""Values of an activation tensor that the search for its step looks at."""


@dataclass
class TraceEstimate:
    """Samples of one mean trace, v'Hv / n; Hutchinson's estimate is their mean."""

    samples: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.samples) / len(self.samples)

    @property
    def standard_error(self) -> float:
        """s / sqrt(count) with the sample deviation s; infinite below two samples."""
        count = len(self.samples)
        if count < 2:
            return math.inf
        mean = self.mean  # computed once, not again for each sample
        return math.sqrt(sum((x - mean) ** 2 for x in self.samples) / (count - 1) / count)

    @property
    def clamped(self) -> float:
        """The mean, or 0 where it is negative: a layer cannot gain from error."""
        return max(self.mean, 0.0)


def hessian_samples(
    model: nn.Module,
    inputs_of: Mapping[str, Sequence[nn.Module]],
    batch: MicroBatch,
    weights: Mapping[str, Tensor],
    probe: torch.Generator,
    *,
    separate: bool = False,
) -> tuple[dict[str, float], dict[str, float], dict[str, Tensor]]:
    """One Hutchinson sample of every trace: a Hessian-vector product for all weights and one for all inputs.

    inputs_of: name -> the layers that read one tensor through one quantizer; weights: name -> parameter of `model`;
    no product is taken for an empty mapping. Returns v'Hv/n per weight, the same per input (mean over images of the
    per-image Hessian's, n features of one image), and the inputs themselves; v is a Rademacher probe. An input varies
    for those layers alone, as under their quantizer, not for a skip connection beside them. H is that of the hard
    cross-entropy in the model's current mode. Cross terms between the blocks of a product have mean 0 and only add
    variance. Weights with inputs would add most of it, since a weight moves every image alike, and are never in one
    product; `separate` takes one product per block, without cross terms. Gradients of parameters are left alone.
    """
    products: list[tuple[Mapping[str, Sequence[nn.Module]], Mapping[str, Tensor]]]
    if separate:
        products = [({}, {name: weight}) for name, weight in weights.items()]
        products += [({name: readers}, {}) for name, readers in inputs_of.items()]
    else:
        products = [({}, weights)] if weights else []
        products += [(inputs_of, {})] if inputs_of else []
    of_weights, of_inputs, inputs = dict[str, float](), dict[str, float](), dict[str, Tensor]()
    for readers_of, moving in products:
        weight_samples, input_samples, taken = _product(model, readers_of, batch, moving, probe)
        of_weights |= weight_samples
        of_inputs |= input_samples
        inputs |= taken
    return of_weights, of_inputs, inputs


def _product(
    model: nn.Module,
    inputs_of: Mapping[str, Sequence[nn.Module]],
    batch: MicroBatch,
    weights: Mapping[str, Tensor],
    probe: torch.Generator,
) -> tuple[dict[str, float], dict[str, float], dict[str, Tensor]]:
    """`hessian_samples` from one product for all: the loss's slope along v, forward, then that slope's gradient, Hv.

    The reverse order, the gradient's gradient, takes torch several times as long for the same products.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    directions = {name: _rademacher(weight, probe) for name, weight in weights.items()}
    # Curvature is a difference of differences: float32, whatever precision the recipe trains in.
    with forward_ad.dual_level(), torch.autocast(batch.images.device.type, enabled=False):
        moving = {names[id(w)]: forward_ad.make_dual(w, directions[name]) for name, w in weights.items()}
        with _CheaperDerivatives(), _moving_inputs(inputs_of, probe) as (inputs, input_directions):
            dual = torch.func.functional_call(model, moving, (batch.images,))
        logits, moved = (part.float() for part in forward_ad.unpack_dual(dual))
        # The mean cross-entropy's slope; torch's own forward derivative of it cannot be differentiated again.
        hot = F.one_hot(batch.labels, logits.shape[1])
        slope = ((logits.softmax(1) - hot) * moved).sum() / len(batch.labels)
    # Outside the dual level: inside, the gradient's own forward derivative would be computed as well.
    variables = [*weights.values(), *inputs.values()]
    curvature = iter(torch.autograd.grad(slope, variables, materialize_grads=True))
    of_weights = {name: float((next(curvature) * v).sum()) / v.numel() for name, v in directions.items()}
    # The loss is a mean over images, so v'Hv over the stacked inputs already is the mean over images.
    of_inputs = {name: float((next(curvature) * v).sum()) / v[0].numel() for name, v in input_directions.items()}
    return of_weights, of_inputs, {name: value.detach() for name, value in inputs.items()}


@contextmanager
def _moving_inputs(
    readers: Mapping[str, Sequence[nn.Module]], probe: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Give each of some layers' inputs a random tangent for the forward derivative; yields inputs and tangents.

    The forward fills both. Each input is an alias, so that its gradient comes only from the layers that read it.
    """
    inputs: dict[str, Tensor] = {}
    directions: dict[str, Tensor] = {}
    duals: dict[str, Tensor] = {}

    def move(name: str) -> Callable[[nn.Module, Any], Any]:
        def hook(_layer: nn.Module, given: Any) -> Any:
            if name not in duals:
                value, tangent = forward_ad.unpack_dual(given[0])
                inputs[name] = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
                directions[name] = _rademacher(value, probe)
                moved = directions[name] if tangent is None else tangent + directions[name]
                duals[name] = forward_ad.make_dual(inputs[name], moved)
            return (duals[name],)

        return hook

    handles = [layer.register_forward_pre_hook(move(name)) for name, layers in readers.items() for layer in layers]
    try:
        yield inputs, directions
    finally:
        for handle in handles:
            handle.remove()


class _Affine(torch.autograd.Function):
    """x * scale + shift, where scale and shift are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.save_for_forward(scale)
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return g * scale, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_constant: None) -> Tensor:
        (scale,) = ctx.saved_tensors
        out: Tensor = tangent * scale
        return out


class _CheaperDerivatives(TorchFunctionMode):
    """Cheaper forward derivatives of batch norm in eval mode and of convolutions by constant weights.

    Batch norm is computed as the affine map that it is in eval mode; torch's own derivatives take many times as long.
    With constant weights a convolution's derivative is one more convolution; torch adds another, by zeros.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func is F.conv2d:
            return _conv2d(*args, **kwargs)
        return func(*args, **kwargs)


def _moves(x: Tensor | None) -> bool:
    return x is not None and forward_ad.unpack_dual(x).tangent is not None


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    given = signature(F.batch_norm).bind(*args, **kwargs)
    given.apply_defaults()
    x, mean, variance, weight, bias, training, _, eps = given.args
    if training or _moves(weight) or _moves(bias):
        return F.batch_norm(*args, **kwargs)
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    per_channel = (1, -1, *([1] * (x.dim() - 2)))
    out: Tensor = _Affine.apply(x, scale.detach().reshape(per_channel), shift.detach().reshape(per_channel))
    return out


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    value, tangent = forward_ad.unpack_dual(input)
    if tangent is None or _moves(weight) or _moves(bias):
        return F.conv2d(input, weight, bias, *args, **kwargs)
    moved = F.conv2d(tangent, weight, None, *args, **kwargs)
    out: Tensor = forward_ad.make_dual(F.conv2d(value, weight, bias, *args, **kwargs), moved)
    return out


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    count = like.numel()
    words = torch.empty(-(-count // 64), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = torch.from_numpy(np.unpackbits(words.numpy().view(np.uint8), count=count))
    signs = bits.to(like.device, like.dtype).mul_(2).sub_(1)
    dense = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return signs.as_strided(like.shape, like.stride()) if dense else signs.reshape(like.shape)


def converged(estimates: Sequence[TraceEstimate], tolerance: float) -> bool:
    """Whether every standard error is below `tolerance` times its trace or the median trace, whichever is larger."""
    means = sorted(abs(estimate.mean) for estimate in estimates)
    median = means[len(means) // 2]
    return all(e.standard_error <= tolerance * max(abs(e.mean), median) for e in estimates)


@torch.no_grad()
def least_squares_step(x: Tensor, grid: Grid, *, per_channel: bool) -> Tensor:
    """The step of least squared error among 0.05..1.2 times LSQ's initial step; shape (channels,) or (1,).

    Activations are searched on some 16,000 values only, from everywhere in the tensor; weights on all.
    """
    flat = x.flatten(1) if per_channel else _thinned(x).reshape(1, -1)
    start = lsq_step((flat + grid.shift).abs().mean(1), grid)
    errors = torch.stack([(fake_quantize(flat, start * f, grid) - flat).square().sum(1) for f in _STEP_SEARCH])
    factors = torch.tensor(_STEP_SEARCH, device=x.device)[errors.argmin(0)]
    return start * factors


def _thinned(x: Tensor) -> Tensor:
    """Every k-th value; k is coprime to every side, so that no single column is sampled."""
    every = max(1, x.numel() // _STEP_SEARCH_VALUES)
    while any(math.gcd(every, side) > 1 for side in x.shape):
        every += 1
    return x.reshape(-1)[::every]


@torch.no_grad()
def squared_error(x: Tensor, step: Tensor, grid: Grid) -> float:
    """||Q(x) - x||^2, summed over all elements."""
    assert spread(step, x).dim() in (0, x.dim())
    return float((fake_quantize(x, step, grid) - x).double().square().sum())
