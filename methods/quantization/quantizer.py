"""The quantizer of one tensor: which widths it has, which is in use, and what is learned of its range.

Activations may learn LSQ's step (StepQuantizer) or, as other codes do, an offset as well, the ends of the range, or
shares of it (OffsetQuantizer). The latter all have codes 0..P, P = 2^b - 1, at Q(x) = step * code + offset, and start
from the smallest and largest value of the first training batch, zero included; their gradients follow from LSQ+'s of
step and offset (methods.quantization.fake_quant) by the chain rule. Weights learn LSQ's step in every case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from methods.quantization.activations import Activation
from methods.quantization.fake_quant import (
    MIN_STEP,
    GradientScale,
    StepError,
    codes,
    fake_quantize,
    gradient_scale,
    lsq_step,
    mixture,
)
from methods.quantization.grid import Grid, GridKind, make_grid
from methods.quantization.policy import PolicyError

_SIGMOID_START = 4.0
"""sigmoid(4) = 0.982: nearly the whole range of the first batch, where the sigmoid still has a slope."""

_SIGMOID_LEAST = -10.0


class WidthInUse(NamedTuple):
    """Step, offset, grid and gradient scale of one width, as methods.quantization.fake_quant takes them."""

    step: Tensor
    offset: Tensor | None
    grid: Grid
    scale: float


class Quantizer(nn.Module):
    """One tensor's quantizer: a learned range per candidate width, and which of them is in use.

    A fresh quantizer is off (float). `select(bits)` uses one width, `mix(probabilities)` a mixture of all of
    them, `off()` none. Ranges are empty until `initialise` or a state dict sets them; using one before is a StepError.
    Subclasses say what is learned: parameters, `scale_and_offset`, `initialise` and `project`.
    """

    def __init__(self, kind: GridKind, grids: dict[int, Grid], rule: GradientScale, *, narrow: bool) -> None:
        super().__init__()
        self.kind, self.grids, self.rule, self.narrow = kind, grids, rule, narrow
        self.bits: int | None = None
        self.probabilities: Tensor | None = None
        self.source: tuple[Activation, ...] = ()

    per_channel = False
    zero_is_a_code = True
    """Whether real zero lies on the grid, whatever was learned."""

    def scale_and_offset(self, bits: int) -> tuple[Tensor, Tensor | None]:
        """Step and offset of one width; an offset of None is 0 and is not learned."""
        raise NotImplementedError

    def initialise(self, mean_magnitude: Tensor, extent: tuple[Tensor, Tensor] | None = None) -> None:
        """Set every width's range from mean|x + shift| and from the smallest and largest x, of shape () each."""
        raise NotImplementedError

    def project(self) -> None:
        """Keep every step positive; called after each optimizer step."""
        raise NotImplementedError

    def gradient_scale(self, x: Tensor, bits: int) -> float:
        """The factor on the gradients of step and offset, where `x` is what is quantized."""
        return gradient_scale(self.rule, x, self.grids[bits], per_channel=self.per_channel)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.grids)

    @property
    def active(self) -> bool:
        return self.bits is not None or self.probabilities is not None

    def off(self) -> None:
        self.bits = self.probabilities = None

    def select(self, bits: int) -> None:
        """Use one width. PolicyError if it is no candidate, StepError if its range was never set."""
        if bits not in self.grids:
            raise PolicyError(f"{bits} bits are no candidate here; candidates: {', '.join(map(str, self.grids))}")
        self._require_step(bits)
        self.bits, self.probabilities = bits, None

    def mix(self, probabilities: Tensor) -> None:
        """Use the mixture of all candidate widths, in ascending order; shape (candidates,)."""
        for bits in self.grids:
            self._require_step(bits)
        self.bits, self.probabilities = None, probabilities

    def forward(self, x: Tensor, *, like: Tensor | None = None) -> Tensor:
        """Quantize `x`, after applying the activation function that its `source`, if any, has left to it.

        like: counts the elements for the gradient scale in the place of `x`.
        """
        if not self.active:
            return x
        counted = x if like is None else like
        owed = self.source[0].owed if self.source else "none"
        if self.bits is not None:
            use = self.in_use(counted)
            return fake_quantize(
                x, use.step, use.grid, offset=use.offset, scale=use.scale, activation=owed, check=False
            )
        assert self.probabilities is not None
        steps, offsets = zip(*(self.scale_and_offset(bits) for bits in self.grids), strict=True)
        scales = [self.gradient_scale(counted, bits) for bits in self.grids]
        return mixture(
            x,
            steps,
            list(self.grids.values()),
            self.probabilities,
            offsets=offsets,
            scales=scales,
            activation=owed,
            check=False,
        )

    def in_use(self, x: Tensor) -> WidthInUse:
        """Step, offset, grid and gradient scale of the selected width for `x`; StepError if none is selected."""
        if self.bits is None:
            raise StepError("no one width is in use; call select(bits) first")
        step, offset = self.scale_and_offset(self.bits)
        return WidthInUse(step, offset, self.grids[self.bits], self.gradient_scale(x, self.bits))

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of `x` at the width in use."""
        use = self.in_use(x)
        return codes(x, use.step, use.grid, offset=use.offset)

    def _require_step(self, bits: int) -> None:
        step, _ = self.scale_and_offset(bits)
        if step.device.type == "cpu" and not bool((step > 0).all()):
            raise StepError(f"the {bits}-bit step was never set, or is not positive: initialise the quantizer first")

    def extra_repr(self) -> str:
        return f"{self.kind}, widths={list(self.grids)}, bits={self.bits}"


class StepQuantizer(Quantizer):
    """LSQ: the step is learned, on the grid of the tensor's kind.

    Deviation: weights have a step per output channel, LSQ one per layer.
    Deviation: the output of h-swish has a shifted grid (methods.quantization.grid), in LSQ a signed one.
    channels: 1 for per-tensor (activations), else one step per output channel (weights).
    """

    def __init__(
        self,
        kind: GridKind,
        widths: Sequence[int],
        *,
        channels: int = 1,
        rule: GradientScale = "shared",
        narrow: bool = True,
    ) -> None:
        super().__init__(kind, {b: make_grid(kind, b, narrow=narrow) for b in _ascending(widths)}, rule, narrow=narrow)
        self.steps = nn.ParameterDict({str(bits): nn.Parameter(torch.zeros(channels)) for bits in self.grids})
        self.per_channel = channels > 1
        self.zero_is_a_code = kind != "shifted"

    def step_of(self, bits: int) -> nn.Parameter:
        step: nn.Parameter = self.steps[str(bits)]
        return step

    def scale_and_offset(self, bits: int) -> tuple[Tensor, None]:
        return self.step_of(bits), None

    @torch.no_grad()
    def initialise(self, mean_magnitude: Tensor, extent: tuple[Tensor, Tensor] | None = None) -> None:
        """LSQ's rule, 2 * mean|x + shift| / sqrt(high), from a mean of shape () or (channels,)."""
        for bits, grid in self.grids.items():
            self.step_of(bits).copy_(lsq_step(mean_magnitude, grid).expand_as(self.step_of(bits)))

    @torch.no_grad()
    def project(self) -> None:
        for step in self.steps.values():
            step.clamp_min_(MIN_STEP)


def _ascending(widths: Sequence[int]) -> list[int]:
    return sorted(set(widths))


class _Round(torch.autograd.Function):
    """round_half_even, straight through: its gradient is taken as 1."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: Any, g: Tensor) -> Tensor:
        return g


class OffsetQuantizer(Quantizer):
    """Base of quantizers with an offset: two parameters per width, which subclasses turn into step and offset.

    Subclasses name their parameters, set them and keep them in bounds. integer_offset: round the zero point,
    -offset / step, to a whole number (straight-through), as integer arithmetic needs it.
    Deviation: all start from the range of the first batch, so that they differ only in what is learned; LSQ+ starts
    from the step and offset of least squared error.
    """

    names: tuple[str, str]

    def __init__(
        self,
        kind: GridKind,
        widths: Sequence[int],
        *,
        rule: GradientScale = "shared",
        narrow: bool = True,
        integer_offset: bool = False,
    ) -> None:
        grids = {bits: make_grid("unsigned", bits) for bits in _ascending(widths)}
        super().__init__(kind, grids, rule, narrow=narrow)
        self.integer_offset = integer_offset
        for name in self.names:
            parameters = {str(bits): nn.Parameter(torch.zeros(1)) for bits in self.grids}
            self.register_module(name, nn.ParameterDict(parameters))

    zero_is_a_code = False

    def pair(self, bits: int) -> tuple[nn.Parameter, nn.Parameter]:
        """The two parameters of one width."""
        first, second = (self.get_submodule(name) for name in self.names)
        return first[str(bits)], second[str(bits)]  # type: ignore[index]

    def scale_and_offset(self, bits: int) -> tuple[Tensor, Tensor]:
        step, offset = self.range_of(bits)
        if self.integer_offset:
            offset = -step * _Round.apply(-offset / step)
        return step, offset

    def range_of(self, bits: int) -> tuple[Tensor, Tensor]:
        """Step and real-valued offset of one width, differentiable in its parameters; shape (1,) each."""
        raise NotImplementedError

    def initialise(self, mean_magnitude: Tensor, extent: tuple[Tensor, Tensor] | None = None) -> None:
        if extent is None:
            raise ValueError(f"{type(self).__name__} starts from the smallest and largest value: give the extent")
        low, high = extent
        # Zero lies in the range, for padding and for inputs that a batch happens not to hold.
        with torch.no_grad():
            self.start(low.clamp_max(0.0), high.clamp_min(MIN_STEP * max(g.high for g in self.grids.values())))
        self.project()

    def start(self, low: Tensor, high: Tensor) -> None:
        """Set all parameters for the range low <= 0 < high; shape () each."""
        raise NotImplementedError


class LearnedOffset(OffsetQuantizer):
    """LSQ+ (Bhalgat et al., arXiv 2004.09576): step and offset are learned as they are, both with LSQ's scale."""

    names = ("steps", "offsets")

    def range_of(self, bits: int) -> tuple[Tensor, Tensor]:
        return self.pair(bits)

    def start(self, low: Tensor, high: Tensor) -> None:
        for bits, grid in self.grids.items():
            step, offset = self.pair(bits)
            step.fill_((high - low) / grid.high)
            offset.fill_(low)

    @torch.no_grad()
    def project(self) -> None:
        for bits in self.grids:
            self.pair(bits)[0].clamp_min_(MIN_STEP)


class MinMax(OffsetQuantizer):
    """The ends of the range are learned: step = (high - low) / P, offset = low.

    Hence dQ/dlow = -(r - u) / P and dQ/dhigh = (r - u) / P inside, and each is 1 beyond its own end. No gradient scale.
    """

    names = ("lows", "highs")

    def range_of(self, bits: int) -> tuple[Tensor, Tensor]:
        low, high = self.pair(bits)
        return (high - low) / self.grids[bits].high, low

    def gradient_scale(self, x: Tensor, bits: int) -> float:
        return 1.0

    def start(self, low: Tensor, high: Tensor) -> None:
        for bits in self.grids:
            for parameter, value in zip(self.pair(bits), (low, high), strict=True):
                parameter.fill_(value)

    @torch.no_grad()
    def project(self) -> None:
        for bits, grid in self.grids.items():
            low, high = self.pair(bits)
            high.copy_(torch.maximum(high, low + MIN_STEP * grid.high))


class BetaGamma(OffsetQuantizer):
    """Shares of the first batch's range are learned: low = beta * min, high = gamma * max, then as `MinMax`.

    sigmoid: shares are sigmoid(beta) and sigmoid(gamma), so that the range can only shrink. No gradient scale.
    """

    names = ("betas", "gammas")
    low: Tensor
    high: Tensor

    def __init__(self, kind: GridKind, widths: Sequence[int], *, sigmoid: bool = False, **options: Any) -> None:
        super().__init__(kind, widths, **options)
        self.through_sigmoid = sigmoid
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))

    def range_of(self, bits: int) -> tuple[Tensor, Tensor]:
        beta, gamma = (share.sigmoid() if self.through_sigmoid else share for share in self.pair(bits))
        low, high = beta * self.low, gamma * self.high
        return (high - low) / self.grids[bits].high, low

    def gradient_scale(self, x: Tensor, bits: int) -> float:
        return 1.0

    def start(self, low: Tensor, high: Tensor) -> None:
        self.low.fill_(low)
        self.high.fill_(high)
        for bits in self.grids:
            for share in self.pair(bits):
                share.fill_(_SIGMOID_START if self.through_sigmoid else 1.0)

    @torch.no_grad()
    def project(self) -> None:
        for bits, grid in self.grids.items():
            beta, gamma = self.pair(bits)
            if self.through_sigmoid:
                beta.clamp_min_(_SIGMOID_LEAST)
                gamma.clamp_min_(_SIGMOID_LEAST)
            else:
                beta.clamp_min_(0.0)
                gamma.copy_(torch.maximum(gamma, MIN_STEP * grid.high / self.high.clamp_min(MIN_STEP)))
