"""Hypothesis strategies that the tests share. Every bound has its reason beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nn

from methods.quantization.convert import QuantizerOptions, convert, ledger_of, replace_activations
from methods.quantization.cost import Layer, Ledger
from methods.quantization.grid import GRID_KINDS, MAX_BITS, Grid, GridKind, make_grid
from methods.quantization.modules import initialise_activation_steps, initialise_weight_steps
from methods.quantization.policy import Candidates, LayerBits

FLOAT32_ROUNDING = 2.0**-24
"""Largest relative error of one float32 operation."""


def allowance(grid: Grid, step: float) -> float:
    """How far float32 may put Q(x), or the place where x changes its code, from exact arithmetic; in units of x.

    For codes up to m = max|code| + 1 the exact u is off by two roundings (x + shift, then / step), the product by
    one, Q's own shift by one more: 4 * 2^-24 relative to step * m + shift.
    """
    largest = max(abs(grid.low), abs(grid.high)) + 1
    return 4 * FLOAT32_ROUNDING * (step * largest + grid.shift)


def kinds() -> SearchStrategy[GridKind]:
    return st.sampled_from(GRID_KINDS)


@st.composite
def grids(draw: DrawFn, kind: SearchStrategy[GridKind] | None = None, *, max_bits: int = MAX_BITS) -> Grid:
    """Every grid that exists: three kinds, narrow and full, 1 bit (signed: 2 bits) and up."""
    chosen = draw(kind if kind is not None else kinds())
    bits = draw(st.integers(2 if chosen == "signed" else 1, max_bits))
    return make_grid(chosen, bits, narrow=draw(st.booleans()))


def steps() -> SearchStrategy[float]:
    """Steps of real networks: LSQ starts at 2 * mean|x| / sqrt(high), between 2^-10 and 2^3 for any mean|x| in
    0.006..4. Nothing but the shifted grid depends on magnitude, and there 2^-10 keeps float32's spacing at the
    shift, 2^-25, far below half a step. MIN_STEP has tests of its own.
    """
    return st.floats(2.0**-10, 2.0**3, width=32)


def powers_of_two() -> SearchStrategy[float]:
    """As `steps`; x = step * u and u = x / step are exact, so that u can be placed on a bound or just beside it."""
    return st.integers(-10, 3).map(lambda exponent: 2.0**exponent)


def positions(grid: Grid) -> SearchStrategy[float]:
    """Places u on the grid: anywhere, on codes, half-way between codes; up to 2 codes beyond either end.

    Farther out nothing new happens: everything is clamped. Infinities have tests of their own.
    """
    low, high = grid.low - 2, grid.high + 2
    return st.one_of(
        st.floats(low, high, width=32),
        st.integers(low, high).map(float),
        st.integers(low, high - 1).map(lambda code: code + 0.5),
    )


def values(grid: Grid, step: float, *, min_size: int = 1, max_size: int = 24) -> SearchStrategy[Tensor]:
    """One-dimensional float32 tensors around the grid; 24 elements show every interaction between elements."""
    return st.lists(positions(grid), min_size=min_size, max_size=max_size).map(
        lambda places: torch.tensor(places, dtype=torch.float32) * step - grid.shift
    )


def seeds() -> SearchStrategy[int]:
    return st.integers(0, 2**16 - 1)


def randn(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_bits(*, low: int = 2) -> SearchStrategy[LayerBits]:
    width = st.integers(low, MAX_BITS)
    return st.builds(LayerBits, width, width)


@st.composite
def ledgers(draw: DrawFn, *, max_layers: int = 5) -> Ledger:
    """Networks of pinned ends and up to `max_layers` searchable layers, of which two may share an input, side by
    side or not (as ResNet's downsampling), with the pinned first layer or without it.

    Brute force over 3 candidates in each of 5 layers is 243 policies. MACs start at 1: a layer without work has
    no costs to compare. They stay below 100, which makes equal sums likely.
    """
    ties = [[], ["inner0", "inner1"], ["inner0", "inner2"], ["first", "inner0"], ["first", "inner0", "inner2"]]
    tied = draw(st.sampled_from(ties))
    names = ["first", *(f"inner{index}" for index in range(draw(st.integers(1, max_layers)))), "last"]
    sizes = st.integers(1, 99)
    return tuple(
        Layer(
            name=name,
            type=draw(st.sampled_from(["conv", "depthwise", "linear"])),
            macs=draw(sizes),
            weights=draw(sizes),
            kind=draw(kinds()),
            pinned=name in ("first", "last"),
            tie=tied[0] if name in tied else None,
        )
        for name in names
    )


@st.composite
def candidates(draw: DrawFn, ledger: Ledger) -> Candidates:
    """One to three candidates per searchable layer; 8 activation bits are always among them, so that ties can agree,
    also with a pinned layer.
    """
    others = st.lists(st.builds(LayerBits, st.integers(2, 8), st.sampled_from([3, 4, 8])), max_size=2)
    return {
        layer.name: list(dict.fromkeys([LayerBits(draw(st.integers(2, 8)), 8), *draw(others)]))
        for layer in ledger
        if not layer.pinned
    }


@dataclass(frozen=True)
class Block:
    """One block of a tiny network: a convolution, its activation, and what stands around it."""

    activation: str
    depthwise: bool
    gate: bool
    residual: bool
    stride: int


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "linear": nn.Identity,
}


def blocks() -> SearchStrategy[list[Block]]:
    """Up to 3 blocks: one is the stem, one is fed by the stem's activation, one by an inner block's."""
    block = st.builds(
        Block,
        st.sampled_from(sorted(ACTIVATIONS)),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from([1, 2]),
    )
    return st.lists(block, min_size=1, max_size=3)


class TinyNetwork(nn.Module):
    """Blocks of one width over 6x6 images and a linear classifier: the shapes of real networks, in microseconds."""

    width = 4
    image_shape = (4, 6, 6)

    def __init__(self, plan: Sequence[Block]) -> None:
        super().__init__()
        self.plan = list(plan)
        width = self.width
        self.mixers = nn.ModuleList(
            nn.Conv2d(width, width, 3, b.stride, 1, groups=width if b.depthwise else 1, bias=False) for b in plan
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in plan)
        self.activations = nn.ModuleList(ACTIVATIONS[b.activation]() for b in plan)
        self.squeezes = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid()) for _ in plan
        )
        self.shortcuts = nn.ModuleList(nn.Conv2d(width, width, 1, b.stride, bias=False) for b in plan)
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.plan):
            y = self.activations[index](self.norms[index](self.mixers[index](x)))
            if block.gate:
                y = y * self.squeezes[index](y)
            x = y + self.shortcuts[index](x) if block.residual else y
        out: Tensor = self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return out


def tiny_network(plan: Sequence[Block], seed: int = 0) -> TinyNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNetwork(plan)


def next_after(value: float, towards: float) -> float:
    """The neighbouring float32."""
    return torch.nextafter(torch.tensor(value), torch.tensor(towards)).item()


def beside(grid: Grid, bound: int, towards: float) -> float:
    """A place u just beside `bound` that some float32 x reaches exactly when the step is a power of two.

    That is the next float32, except beside 0: on a shifted grid x + shift cannot come closer to 0 than float32's
    spacing at the shift, 2^-25; elsewhere 2^-100 keeps step * u a normal number. Both are in units of u * step
    with steps of at most 2^3 and at least 2^-10, hence the factors.
    """
    if bound:
        return next_after(float(bound), towards)
    return math.copysign(2.0**-15 if grid.shift else 2.0**-100, towards)


def quantizable(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    widths: Sequence[LayerBits] = (LayerBits(4, 3), LayerBits(4, 4), LayerBits(4, 8)),
    options: QuantizerOptions | None = None,
) -> nn.Module:
    """`model` converted in place with the same candidates in every searchable layer; quantizers are off."""
    ledger = ledger_of(replace_activations(model), image_shape)
    free = {layer.name: widths for layer in ledger if not layer.pinned}
    return convert(model, ledger, free, options or QuantizerOptions())


def start_steps(model: nn.Module, images: Tensor) -> nn.Module:
    """Every step of a converted network set from its weights and from `images`."""
    initialise_weight_steps(model)
    initialise_activation_steps(model, [images])
    return model
