"""Learned-step fake quantization (LSQ; Esser et al., ICLR 2020, arXiv 1902.08153): forward, backward, mixtures.

Notation: u = (x + shift - offset) / step, r = round_half_even(clamp(u, low, high)), Q(x) = step * r - shift + offset.
The shift is the grid's own; the offset, of LSQ+ (Bhalgat et al., arXiv 2004.09576), is learned; LSQ has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods.quantization.activations import ActivationName, activate
from methods.quantization.grid import Grid
from methods.quantization.paths import kernels_for

GradientScale = Literal["shared", "tensor", "batch", "none"]
GRADIENT_SCALES: tuple[GradientScale, ...] = get_args(GradientScale)

MIN_STEP = 1e-6
"""Steps are projected onto [MIN_STEP, inf) after each update; taking |step| would flip its gradient's sign."""


class StepError(ValueError):
    """A step that is not a positive finite number, or whose shape fits neither the tensor nor its channels."""


def gradient_scale(rule: GradientScale, x: Tensor, grid: Grid, *, per_channel: bool) -> float:
    """1 / sqrt(N * high), the factor on the step's gradient; public code disagrees on N.

    `shared` (default): the elements that share the step, of one image (weights: in * kh * kw per channel;
    activations: features of one image, so that results do not depend on the batch size). `tensor`: the whole
    weight tensor, or one image's features. `batch`: as `tensor`, times the batch. `none`: no scaling.
    """
    if rule == "none":
        return 1.0
    if per_channel:
        count = x.numel() if rule in ("tensor", "batch") else math.prod(x.shape[1:])
    else:
        count = x.numel() if rule == "batch" else math.prod(x.shape[1:])
    return 1.0 / math.sqrt(max(count, 1) * grid.high)


def spread(step: Tensor, x: Tensor) -> Tensor:
    """`step` of shape (), (1,) or (channels,) shaped to broadcast against `x` along its first dimension."""
    if step.numel() == 1:
        return step.reshape(())
    return step.reshape(-1, *([1] * (x.dim() - 1)))


def check_step(step: Tensor, x: Tensor) -> None:
    """Raises StepError unless every step is positive and finite and there is one step, or one per channel."""
    channels = x.shape[0] if x.dim() else 1
    if step.numel() not in (1, channels):
        raise StepError(f"{step.numel()} steps do not fit a tensor of shape {tuple(x.shape)}: give 1 or {channels}")
    if not bool(((step > 0) & torch.isfinite(step)).all()):
        raise StepError(f"steps must be positive and finite, got {step.detach().flatten()[:4].tolist()}")


class _FakeQuantize(torch.autograd.Function):
    """Q(x) with LSQ's gradients. Masks are taken on u, so that they do not depend on clamp's own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, offset: Tensor | None, grid: Grid, scale: float) -> Tensor:
        ctx.save_for_backward(x, step, offset)
        ctx.grid, ctx.scale = grid, scale
        # Codes are computed in float32 whatever autocast says: bfloat16 misplaces 7 % of 8-bit codes.
        s = spread(step.float(), x)
        r = (_centred(x, offset, grid) / s).clamp_(grid.low, grid.high).round_().mul_(s)
        if offset is not None:
            r.add_(offset.float().reshape(()))
        return (r.sub_(grid.shift) if grid.shift else r).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, step, offset = ctx.saved_tensors
        grid: Grid = ctx.grid
        s = spread(step.float(), x)
        u = _centred(x, offset, grid) / s
        clamped = u.clamp(grid.low, grid.high)
        inside = clamped == u  # bounds included; false for NaN and infinities
        zero = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.where(inside, g, zero.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_step = None
        if ctx.needs_input_grad[1]:
            slope = clamped.round_().sub_(torch.where(inside, u, zero)).mul_(g)
            total = slope.sum() if step.numel() == 1 else slope.reshape(step.numel(), -1).sum(1)
            grad_step = (total * ctx.scale).reshape(step.shape).to(step.dtype)
        grad_offset = None
        if offset is not None and ctx.needs_input_grad[2]:
            total = torch.where(inside, zero, g.float()).sum()
            grad_offset = (total * ctx.scale).reshape(offset.shape).to(offset.dtype)
        return grad_x, grad_step, grad_offset, None, None


class _Fused(torch.autograd.Function):
    """Q(x), and mixtures of several, by methods.quantization.kernels. weights: None for a single branch.

    ranges: the steps of all branches, then their offsets.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor | None,
        grids: Sequence[Grid],
        scales: Sequence[float],
        activation: ActivationName,
        *ranges: Tensor | None,
    ) -> Tensor:
        kernels, count = kernels_for(x), len(grids)
        assert kernels is not None
        given: Sequence[Tensor] = ranges[:count]  # type: ignore[assignment]
        offsets = ranges[count:]
        if weights is None:
            steps, offset = given[0].detach().contiguous(), offsets[0]
            found = (
                kernels.constants_of_one(grids[0], scales[0])
                if offset is None
                else kernels.constants(grids, [float(offset)], [1.0], scales)
            )
        else:
            steps = torch.stack([step.detach().reshape(-1) for step in given])
            shifts = [None if offset is None else float(offset) for offset in offsets]
            found = kernels.constants(grids, shifts, weights.tolist(), scales)
        ctx.launch, ctx.count = kernels.Launch([kernels.Operand(x, steps, found, activation)]), count
        ctx.save_for_backward(x, weights, steps, *ranges)
        out: Tensor = ctx.launch.forward([x])[0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weights, steps, *ranges = ctx.saved_tensors
        ((grad_x, totals),) = ctx.launch.backward([x], [steps], [g])
        channels, of_ranges = steps.numel() // ctx.count, list[Tensor | None]([None] * len(ranges))
        for k, parameter in enumerate(ranges):
            if ctx.needs_input_grad[5 + k]:
                found = totals[k * channels : (k + 1) * channels]
                of_ranges[k] = (found if channels == parameter.numel() else found.sum()).reshape(parameter.shape)
        of_weights = None if weights is None else totals[2 * steps.numel() :].reshape(ctx.count, -1).sum(1)
        return (grad_x, of_weights, None, None, None, *of_ranges)


class _FusedTogether(torch.autograd.Function):
    """Q of several tensors at once, each with a step of its own. tensors: all x, then all steps."""

    @staticmethod
    def forward(ctx: Any, grids: Sequence[Grid], scales: Sequence[float], *tensors: Tensor) -> tuple[Tensor, ...]:
        kernels, count = kernels_for(tensors[0]), len(grids)
        assert kernels is not None
        ctx.set_materialize_grads(False)
        found = [kernels.constants_of_one(grid, scale) for grid, scale in zip(grids, scales, strict=True)]
        steps = [step.contiguous() for step in tensors[count:]]
        ctx.save_for_backward(*tensors[:count], *steps)
        ctx.launch = kernels.Launch(list(map(kernels.Operand, tensors[:count], steps, found)))
        return tuple(ctx.launch.forward(tensors[:count]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: Tensor | None) -> tuple[Any, ...]:
        tensors, count = ctx.saved_tensors, len(gs)
        steps = tensors[count:]
        found = ctx.launch.backward(tensors[:count], steps, gs)
        of_x = [None if each is None else each[0] for each in found]
        of_steps = [
            None if each is None else each[1][: step.numel()].reshape(step.shape)
            for each, step in zip(found, steps, strict=True)
        ]
        return (None, None, *of_x, *of_steps)


def _centred(x: Tensor, offset: Tensor | None, grid: Grid) -> Tensor:
    """x + shift - offset, in float32; `x` itself where both are 0."""
    centred = (x.float() + grid.shift) if grid.shift else x.float()
    return centred if offset is None else centred - offset.float().reshape(())


def fake_quantize(
    x: Tensor,
    step: Tensor,
    grid: Grid,
    *,
    offset: Tensor | None = None,
    scale: float = 1.0,
    activation: ActivationName = "none",
    check: bool = True,
) -> Tensor:
    """`x` rounded to `step * code - shift + offset` with codes in `grid`; shape, dtype and memory format are kept.

    x: any shape; step: 1 element (per tensor) or x.shape[0] elements (per channel); offset: 1 element; scale: the
    factor on the gradients of step and offset; activation: what is done to `x` first, in the same pass. dQ/dx is 1
    where low <= u <= high (bounds included), else 0; dQ/dstep is r - u inside, low below, high above; dQ/doffset is 0
    inside, 1 outside. NaN stays NaN; infinities go to the outermost codes with zero input gradient.
    Raises StepError for bad steps (`check=False` skips it where steps are known to be projected).

    >>> x = torch.tensor([-1.0, 0.2, 0.3, 9.0])
    >>> fake_quantize(x, torch.tensor(0.25), Grid(0, 3)).tolist()
    [0.0, 0.25, 0.25, 0.75]
    """
    if check:
        check_step(step, x)
    out: Tensor
    if kernels_for(x) and step.dtype == torch.float32:
        out = _Fused.apply(x, None, (grid,), (scale,), activation, step, offset)
    else:
        out = _FakeQuantize.apply(activate(x, activation), step, offset, grid, scale)
    return out


def fake_quantize_together(
    xs: Sequence[Tensor], steps: Sequence[Tensor], grids: Sequence[Grid], scales: Sequence[float]
) -> Sequence[Tensor]:
    """`fake_quantize` of each tensor with its step, grid and scale: one call for all, where the kernels take them.

    The weights of a network are many and small, so that calls cost as much as the work. Steps are not checked.
    """
    if all(kernels_for(x) and step.dtype == torch.float32 for x, step in zip(xs, steps, strict=True)) and xs:
        together: tuple[Tensor, ...] = _FusedTogether.apply(grids, scales, *xs, *steps)
        return together
    return [
        fake_quantize(x, step, grid, scale=scale, check=False)
        for x, step, grid, scale in zip(xs, steps, grids, scales, strict=True)
    ]


def step_slope(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """dQ/dstep of each element, like `x`: r - u inside, low below, high above."""
    u = _centred(x, None, grid) / spread(step.float(), x)
    clamped = u.clamp(grid.low, grid.high)
    return clamped.round() - torch.where(clamped == u, u, torch.zeros((), device=x.device))


def codes(x: Tensor, step: Tensor, grid: Grid, *, offset: Tensor | None = None) -> Tensor:
    """The integer codes (float32 tensor) that `fake_quantize` gives `x`."""
    u = _centred(x, offset, grid) / spread(step.float(), x)
    return u.clamp(grid.low, grid.high).round()


def mixture(
    x: Tensor,
    steps: Sequence[Tensor],
    grids: Sequence[Grid],
    weights: Tensor,
    *,
    offsets: Sequence[Tensor | None] | None = None,
    scales: Sequence[float] | None = None,
    activation: ActivationName = "none",
    check: bool = True,
) -> Tensor:
    """sum_i weights[i] * Q_i(activation(x)) over candidate grids; a one-hot `weights` gives that branch exactly.

    steps, grids, offsets, scales: one per candidate; weights: shape (candidates,), any values, gradients flow to them.
    """
    if not len(steps) == len(grids) == weights.numel():
        raise StepError(f"{len(steps)} steps, {len(grids)} grids and {weights.numel()} weights: give one per candidate")
    factors = [1.0] * len(steps) if scales is None else list(scales)
    offs = [None] * len(steps) if offsets is None else list(offsets)
    if check:
        for step in steps:
            check_step(step, x)
    if kernels_for(x) and len({step.numel() for step in steps}) == 1 and all(s.dtype == torch.float32 for s in steps):
        out: Tensor = _Fused.apply(x, weights, grids, factors, activation, *steps, *offs)
        return out
    x = activate(x, activation)
    branches = [
        fake_quantize(x, s, g, offset=o, scale=f, check=False)
        for s, g, o, f in zip(steps, grids, offs, factors, strict=True)
    ]
    mixed = branches[0] * weights[0]
    for branch, weight in zip(branches[1:], weights[1:], strict=True):
        mixed = mixed + branch * weight
    return mixed.to(x.dtype)


def lsq_step(mean_magnitude: Tensor, grid: Grid) -> Tensor:
    """LSQ's initial step, 2 * mean|x| / sqrt(high), projected to at least MIN_STEP.

    >>> round(lsq_step(torch.tensor(1.0), Grid(-7, 7)).item(), 4)
    0.7559
    """
    return (2.0 * mean_magnitude / math.sqrt(grid.high)).clamp_min(MIN_STEP)
