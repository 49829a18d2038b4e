"""Fake quantization: what Q does to values, what LSQ's backward gives, and what is refused.

Notation as in the module: u = (x + shift) / step, r = round_half_even(clamp(u, low, high)), Q(x) = step * r - shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from methods.quantization.fake_quant import (
    GRADIENT_SCALES,
    MIN_STEP,
    GradientScale,
    StepError,
    codes,
    fake_quantize,
    gradient_scale,
    lsq_step,
    mixture,
)
from methods.quantization.grid import GRID_KINDS, HSWISH_SHIFT, Grid, GridKind, make_grid
from methods.quantization.paths import plain_path
from tests.strategies import (
    FLOAT32_ROUNDING,
    allowance,
    beside,
    grids,
    kinds,
    positions,
    powers_of_two,
    randn,
    seeds,
    steps,
    values,
)

EVERY_GRID = [
    pytest.param(make_grid(kind, bits, narrow=narrow), id=f"{kind}-{bits}{'' if narrow else '-full'}")
    for kind in GRID_KINDS
    for bits in range(2, 9)
    for narrow in ((True, False) if kind == "signed" else (True,))
]


@pytest.fixture(params=["fused", "plain"], scope="module", autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds for both ways of computing it."""
    with plain_path() if request.param == "plain" else nullcontext():
        yield


def all_codes(grid: Grid) -> Tensor:
    return torch.arange(grid.low, grid.high + 1, dtype=torch.float32)


def quantize(x: Tensor, step: float, grid: Grid) -> Tensor:
    return fake_quantize(x, torch.tensor(step), grid)


def input_gradient(x: Tensor, step: float, grid: Grid) -> Tensor:
    leaf = x.clone().requires_grad_()
    quantize(leaf, step, grid).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def step_gradient(x: Tensor, step: Tensor, grid: Grid, upstream: Tensor, *, scale: float = 1.0) -> Tensor:
    leaf = step.clone().requires_grad_()
    fake_quantize(x, leaf, grid, scale=scale).backward(upstream)
    assert leaf.grad is not None
    return leaf.grad


# Values


@pytest.mark.parametrize("grid", EVERY_GRID)
@given(step=steps())
def test_every_code_is_reached_and_passes_through_unchanged(grid: Grid, step: float) -> None:
    x = all_codes(grid) * step - grid.shift
    assert torch.equal(codes(x, torch.tensor(step), grid), all_codes(grid))
    assert torch.equal(quantize(x, step, grid), x)


@pytest.mark.parametrize("grid", EVERY_GRID)
def test_a_fine_sweep_meets_exactly_the_grid_s_levels(grid: Grid) -> None:
    # Eight points per code, two codes beyond either end.
    u = torch.arange(8 * (grid.low - 2), 8 * (grid.high + 2)) / 8
    assert len(quantize(u * 0.5 - grid.shift, 0.5, grid).unique()) == grid.levels


@given(st.data(), grids(), steps())
def test_quantizing_twice_is_quantizing_once(data: st.DataObject, grid: Grid, step: float) -> None:
    once = quantize(data.draw(values(grid, step)), step, grid)
    assert torch.equal(quantize(once, step, grid), once)


@pytest.mark.parametrize("kind", ["unsigned", "signed"])
def test_the_smallest_step_is_as_good_as_any(kind: GridKind) -> None:
    grid = make_grid(kind, 8)
    x = all_codes(grid) * MIN_STEP
    assert torch.equal(quantize(x, MIN_STEP, grid), x)


@given(st.data(), grids(), steps())
def test_codes_are_integers_of_the_grid_and_give_back_the_output(data: st.DataObject, grid: Grid, step: float) -> None:
    x = data.draw(values(grid, step))
    r = codes(x, torch.tensor(step), grid)
    assert torch.equal(r, r.round())
    assert grid.low <= r.min()
    assert r.max() <= grid.high
    assert torch.equal(r * step - grid.shift, quantize(x, step, grid))


@given(st.data(), grids(), steps())
def test_order_is_kept(data: st.DataObject, grid: Grid, step: float) -> None:
    x = data.draw(values(grid, step, min_size=2)).sort().values
    assert (quantize(x, step, grid).diff() >= 0).all()


@given(st.data(), grids(), steps())
def test_error_is_at_most_half_a_step_inside_the_range(data: st.DataObject, grid: Grid, step: float) -> None:
    place = data.draw(st.floats(grid.low, grid.high, width=32))
    x = torch.tensor([place], dtype=torch.float32) * step - grid.shift
    error = (quantize(x, step, grid).double() - x.double()).abs().item()
    assert error <= step / 2 + allowance(grid, step)


@given(st.data(), grids(), steps())
def test_outside_the_range_lie_the_outermost_codes(data: st.DataObject, grid: Grid, step: float) -> None:
    beyond = data.draw(st.floats(1, 1e6, width=32))  # 1e6 codes: far enough, and the product below stays finite
    x = torch.tensor([grid.low - beyond, grid.high + beyond]) * step - grid.shift
    assert codes(x, torch.tensor(step), grid).tolist() == [grid.low, grid.high]


@given(st.data(), grids(), powers_of_two())
def test_halves_go_to_the_even_code(data: st.DataObject, grid: Grid, step: float) -> None:
    # A step that is a power of two keeps u = code + 1/2 exact; multiples of 2^-11 are exact beside the shift too.
    code = data.draw(st.integers(grid.low, grid.high - 1))
    x = torch.tensor([(code + 0.5) * step - grid.shift])
    (rounded,) = codes(x, torch.tensor(step), grid).tolist()
    assert rounded in (code, code + 1)
    assert rounded % 2 == 0


@given(st.data(), st.integers(2, 8), steps())
def test_a_symmetric_grid_is_odd(data: st.DataObject, bits: int, step: float) -> None:
    grid = make_grid("signed", bits)
    x = data.draw(values(grid, step))
    assert torch.equal(quantize(-x, step, grid), -quantize(x, step, grid))


@given(grids(st.sampled_from(["unsigned", "signed"])), steps())
def test_zero_is_a_code_of_unsigned_and_signed_grids(grid: Grid, step: float) -> None:
    assert quantize(torch.zeros(1), step, grid).item() == 0.0


@given(grids(st.just("shifted")), st.floats(0, 1, exclude_min=True, width=32))
def test_zero_moves_by_at_most_half_a_step_on_a_shifted_grid(grid: Grid, share: float) -> None:
    # The grid reaches zero when high * step >= shift; such steps begin at shift / high.
    step = HSWISH_SHIFT / grid.high * (1 + 7 * share)
    assert abs(quantize(torch.zeros(1), step, grid).item()) <= step / 2 + allowance(grid, step)


@given(st.data(), grids(st.sampled_from(["unsigned", "signed"])), steps(), st.integers(-6, 6))
def test_scaling_by_a_power_of_two_is_exact(data: st.DataObject, grid: Grid, step: float, exponent: int) -> None:
    # 2^-6..2^6 on top of `steps` is far from float32's ends, where powers of two stop being exact.
    x, factor = data.draw(values(grid, step)), 2.0**exponent
    assert torch.equal(quantize(x * factor, step * factor, grid), quantize(x, step, grid) * factor)


@given(st.data(), grids(st.sampled_from(["unsigned", "signed"])), steps(), st.floats(0.125, 8, width=32))
def test_scaling_by_any_factor_keeps_the_codes(data: st.DataObject, grid: Grid, step: float, factor: float) -> None:
    # factor * x, factor * step and their quotient round once each, and x = u * step did before: a relative error of
    # at most 4 * 2^-24 in u, so a code can change only within this margin of a half.
    x = data.draw(values(grid, step))
    u = x.double() / step
    margin = 4 * FLOAT32_ROUNDING * (u.abs() + 1)
    clear = ((u - u.floor()) - 0.5).abs() > margin
    before = codes(x, torch.tensor(step), grid)
    after = codes(x * factor, torch.tensor(step) * factor, grid)
    assert torch.equal(before[clear], after[clear])


# Tensors: channels, shapes, dtypes, layouts


@given(seeds(), grids(), st.integers(2, 6))
def test_permuting_channels_permutes_the_output(seed: int, grid: Grid, channels: int) -> None:
    x, step = randn((channels, 3, 2), seed), randn((channels,), seed + 1).abs() + 0.01
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(fake_quantize(x[order], step[order], grid), fake_quantize(x, step, grid)[order])


@given(seeds(), grids(), st.integers(2, 6), steps())
def test_equal_steps_per_channel_are_one_step_per_tensor(seed: int, grid: Grid, channels: int, step: float) -> None:
    x = randn((channels, 3, 2), seed)
    assert torch.equal(fake_quantize(x, torch.full((channels,), step), grid), quantize(x, step, grid))


@given(seeds(), grids(), st.integers(1, 6))
def test_each_channel_sees_its_own_step_only(seed: int, grid: Grid, channels: int) -> None:
    x, step = randn((channels, 3, 2), seed), randn((channels,), seed + 1).abs() + 0.01
    alone = [fake_quantize(x[channel], step[channel], grid) for channel in range(channels)]
    assert torch.equal(fake_quantize(x, step, grid), torch.stack(alone))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (2, 3, 4, 5), (0, 3)])
def test_shape_is_kept_whatever_it_is(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    out = fake_quantize(x, torch.tensor(0.5), make_grid("signed", 4))
    out.sum().backward()
    assert x.grad is not None
    assert out.shape == x.grad.shape == shape


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 3, 2), (4, 3, 2, 2)])
def test_per_channel_steps_get_a_gradient_in_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x, step, grid = randn(shape, 0), torch.tensor([0.1, 0.2, 0.3, 0.4]), make_grid("signed", 4)
    together = step_gradient(x, step, grid, torch.ones(shape))
    alone = [step_gradient(x[c], step[c], grid, torch.ones(shape[1:])) for c in range(4)]
    # Sums of at most 12 terms of size <= 7, in another order: 12 roundings of partial sums <= 84.
    assert torch.allclose(together, torch.stack(alone), rtol=0, atol=12 * 84 * FLOAT32_ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", GRID_KINDS)
def test_dtype_is_kept_forward_and_backward(dtype: torch.dtype, kind: GridKind) -> None:
    x = randn((3, 4), 0).to(dtype).requires_grad_()
    step = torch.full((3,), 0.1, requires_grad=True)
    out = fake_quantize(x, step, make_grid(kind, 4))
    out.sum().backward()
    assert x.grad is not None
    assert step.grad is not None
    assert out.dtype == x.grad.dtype == dtype
    assert step.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", GRID_KINDS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_memory_format_is_kept_forward_and_backward(kind: GridKind, per_channel: bool) -> None:
    x = randn((3, 4, 5, 6), 0).to(memory_format=torch.channels_last).requires_grad_()
    step = torch.full((3 if per_channel else 1,), 0.1, requires_grad=True)
    out = fake_quantize(x, step, make_grid(kind, 4))
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    contiguous = fake_quantize(x.detach().contiguous(), step, make_grid(kind, 4))
    assert torch.equal(out, contiguous)


@given(grids(), steps(), seeds())
def test_the_input_is_left_alone(grid: Grid, step: float, seed: int) -> None:
    x = randn((4, 4), seed)
    before = x.clone()
    quantize(x, step, grid)
    assert torch.equal(x, before)


@given(seeds(), grids())
def test_codes_under_autocast_are_those_of_float32(seed: int, grid: Grid) -> None:
    x, step = randn((64,), seed), torch.tensor(0.05)
    expected, out = codes(x, step, grid), fake_quantize(x, step, grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes(x, step, grid), expected)
        assert torch.equal(fake_quantize(x, step, grid), out)


@given(seeds(), grids())
def test_bfloat16_inputs_get_the_codes_of_their_float32_values(seed: int, grid: Grid) -> None:
    x, step = randn((64,), seed).bfloat16(), torch.tensor(0.05)
    assert torch.equal(codes(x, step, grid), codes(x.float(), step, grid))
    assert torch.equal(fake_quantize(x, step, grid), fake_quantize(x.float(), step, grid).bfloat16())


# NaN, infinities and bad steps


@pytest.mark.parametrize("grid", EVERY_GRID)
def test_nan_stays_nan_and_touches_nothing_else(grid: Grid) -> None:
    out = quantize(torch.tensor([0.1, math.nan, 0.2]), 0.1, grid)
    assert out.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("grid", EVERY_GRID)
def test_infinities_go_to_the_outermost_codes_with_zero_gradient(grid: Grid) -> None:
    x = torch.tensor([-math.inf, math.inf])
    assert codes(x, torch.tensor(0.5), grid).tolist() == [grid.low, grid.high]
    assert torch.equal(quantize(x, 0.5, grid), torch.tensor([grid.low, grid.high]) * 0.5 - grid.shift)
    assert input_gradient(x, 0.5, grid).tolist() == [0.0, 0.0]
    slopes = [step_gradient(x[i], torch.tensor(0.5), grid, torch.tensor(1.0)).item() for i in range(2)]
    assert slopes == [grid.low, grid.high]


@pytest.mark.parametrize("bad", [0.0, -0.0, -0.1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_step_that_is_not_positive_and_finite_is_refused(bad: float, per_channel: bool) -> None:
    step = torch.tensor([0.1, bad] if per_channel else [bad])
    with pytest.raises(StepError, match="positive and finite"):
        fake_quantize(torch.zeros(2, 3), step, make_grid("signed", 4))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (4, 3)])
def test_a_wrong_number_of_steps_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StepError, match=r"3 steps do not fit"):
        fake_quantize(torch.zeros(shape), torch.full((3,), 0.1), make_grid("signed", 4))


# Gradients


@given(st.data(), grids(), steps())
def test_input_gradient_is_the_mask(data: st.DataObject, grid: Grid, step: float) -> None:
    x = data.draw(values(grid, step))
    upstream = randn(x.shape, data.draw(seeds()))
    leaf = x.clone().requires_grad_()
    quantize(leaf, step, grid).backward(upstream)
    u = (x + grid.shift) / torch.tensor(step)
    inside = (u >= grid.low) & (u <= grid.high)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.where(inside, upstream, 0.0))


@given(st.data(), grids())
def test_the_mask_includes_both_bounds_and_nothing_beyond(data: st.DataObject, grid: Grid) -> None:
    # Steps begin where high * step >= 1/2: then x >= 1/8 at the upper bound, so x's own spacing is no coarser than
    # that of x + shift and every neighbour of the bound is reached. They end at 2^3 as in `steps`.
    step = 2.0 ** data.draw(st.integers(1 - (grid.levels + 1).bit_length(), 3))
    places = [
        beside(grid, grid.low, -math.inf),
        float(grid.low),
        beside(grid, grid.low, math.inf),
        beside(grid, grid.high, -math.inf),
        float(grid.high),
        beside(grid, grid.high, math.inf),
    ]
    exact = torch.tensor(places, dtype=torch.float64) * step - grid.shift
    x = exact.float()
    assert torch.equal(x.double(), exact), "the places must be float32 numbers, or the test tests something else"
    assert ((x + grid.shift) / step).tolist() == places
    assert input_gradient(x, step, grid).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@given(st.data(), grids(), steps())
def test_step_gradient_is_the_slope_with_the_rounding_residual_frozen(
    data: st.DataObject, grid: Grid, step: float
) -> None:
    # In float64, Q is step * (clamp(u) + residual) - shift with the residual held: linear in the step but for two
    # kinks, where u meets a bound. Elements within 0.01 of one are left out: u moves by at most
    # (high + 2) * 2^-17 < 0.002. What remains is linear, so the central difference is exact to float64 rounding,
    # 2^-53 * 260 * step / (2^-17 * step) < 1e-8. The float32 gradient errs by two roundings in u, one in r - u and
    # one per addition: (3 + n) * 2^-24 * 260 for each of n elements whose upstream is at most 5.
    x = data.draw(values(grid, step))
    exact = (x.double() + grid.shift) / step
    x = x[((exact - grid.low).abs() > 0.01) & ((exact - grid.high).abs() > 0.01)]
    upstream = randn(x.shape, data.draw(seeds())).clamp(-5, 5)
    exact = (x.double() + grid.shift) / step
    residual = codes(x, torch.tensor(step), grid).double() - exact.clamp(grid.low, grid.high)

    def smooth(s: float) -> float:
        u = ((x.double() + grid.shift) / s).clamp(grid.low, grid.high)
        return float(((s * (u + residual) - grid.shift) * upstream.double()).sum())

    h = step * 2.0**-17
    expected = (smooth(step + h) - smooth(step - h)) / (2 * h)
    tolerance = x.numel() * 5 * ((3 + x.numel()) * FLOAT32_ROUNDING * 260 + 1e-8)
    actual = step_gradient(x, torch.tensor(step), grid, upstream).item()
    assert actual == pytest.approx(expected, rel=0, abs=tolerance)


@given(st.data(), grids())
def test_step_gradient_on_and_beside_the_upper_bound(data: st.DataObject, grid: Grid) -> None:
    # On the bound r - u is 0; just beyond it is the bound itself: a jump that a wrong mask cannot hide.
    step = 2.0 ** data.draw(st.integers(1 - (grid.levels + 1).bit_length(), 3))
    one = torch.tensor(1.0)
    on = torch.tensor(grid.high * step - grid.shift)
    beyond = torch.tensor(beside(grid, grid.high, math.inf) * step - grid.shift)
    assert step_gradient(on, torch.tensor(step), grid, one).item() == 0.0
    assert step_gradient(beyond, torch.tensor(step), grid, one).item() == grid.high


@given(seeds(), grids(), st.integers(-8, 0))
def test_the_scale_multiplies_the_step_s_gradient_and_nothing_else(seed: int, grid: Grid, exponent: int) -> None:
    # A power of two, so that the product is exact.
    x, step, scale = randn((3, 8), seed), torch.tensor([0.1, 0.2, 0.3]), 2.0**exponent
    upstream = randn((3, 8), seed + 1)
    plain, scaled = step_gradient(x, step, grid, upstream), step_gradient(x, step, grid, upstream, scale=scale)
    assert torch.equal(scaled, plain * scale)
    assert torch.equal(fake_quantize(x, step, grid, scale=scale), fake_quantize(x, step, grid))
    leaf = x.clone().requires_grad_()
    fake_quantize(leaf, step, grid, scale=scale).sum().backward()
    other = x.clone().requires_grad_()
    fake_quantize(other, step, grid).sum().backward()
    assert leaf.grad is not None
    assert other.grad is not None
    assert torch.equal(leaf.grad, other.grad)


DIMENSIONS = st.integers(1, 7)  # as good as any: N is a product of them


@given(DIMENSIONS, DIMENSIONS, DIMENSIONS, DIMENSIONS, grids())
def test_gradient_scale_counts_what_its_rule_says(n: int, c: int, h: int, w: int, grid: Grid) -> None:
    """First dimension: images for activations (one step), output channels for weights (a step each)."""
    x = torch.zeros(n, c, h, w)
    counts: dict[GradientScale, tuple[int, int]] = {
        "shared": (c * h * w, c * h * w),
        "tensor": (c * h * w, n * c * h * w),
        "batch": (n * c * h * w, n * c * h * w),
    }
    for rule, (activations, weights) in counts.items():
        expected = 1 / math.sqrt(activations * grid.high), 1 / math.sqrt(weights * grid.high)
        actual = tuple(gradient_scale(rule, x, grid, per_channel=flag) for flag in (False, True))
        assert actual == pytest.approx(expected, rel=1e-15)
    assert gradient_scale("none", x, grid, per_channel=True) == gradient_scale("none", x, grid, per_channel=False) == 1
    assert {*counts, "none"} == set(GRADIENT_SCALES)


@given(st.integers(1, 64), grids())
def test_the_default_gradient_scale_of_activations_ignores_the_batch_size(batch: int, grid: Grid) -> None:
    one, many = torch.zeros(1, 3, 4), torch.zeros(batch, 3, 4)
    assert gradient_scale("shared", one, grid, per_channel=False) == gradient_scale(
        "shared", many, grid, per_channel=False
    )


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((5,), 1), ((0, 3), 3)])
def test_gradient_scale_needs_no_images_and_no_dimensions(shape: tuple[int, ...], count: int) -> None:
    grid = make_grid("signed", 4)
    assert gradient_scale("shared", torch.zeros(shape), grid, per_channel=False) == 1 / math.sqrt(count * grid.high)


# Mixtures


def branches(kind: GridKind) -> tuple[list[Grid], list[Tensor]]:
    """Candidates 3, 4 and 8 bits, with steps that cover about the same range."""
    chosen = [make_grid(kind, bits) for bits in (3, 4, 8)]
    return chosen, [torch.tensor(2.0 / grid.high) for grid in chosen]


@given(seeds(), kinds(), st.integers(0, 2), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_one_hot_mixture_is_that_branch_exactly(seed: int, kind: GridKind, hot: int, dtype: torch.dtype) -> None:
    x = randn((4, 8), seed).to(dtype)
    chosen, sizes = branches(kind)
    out = mixture(x, sizes, chosen, torch.eye(3)[hot])
    assert out.dtype == dtype
    assert torch.equal(out, fake_quantize(x, sizes[hot], chosen[hot]))


@given(seeds(), kinds())
def test_a_mixture_of_weights_that_sum_to_one_stays_between_its_branches(seed: int, kind: GridKind) -> None:
    x = randn((32,), seed)
    weights = torch.softmax(randn((3,), seed + 1), 0)
    chosen, sizes = branches(kind)
    each = torch.stack([fake_quantize(x, s, g) for s, g in zip(sizes, chosen, strict=True)])
    out = mixture(x, sizes, chosen, weights)
    # |Q| <= 2 + shift + 1 code; three products, two sums and softmax's own sum: below 10 roundings.
    tolerance = 10 * FLOAT32_ROUNDING * 4
    assert (out >= each.min(0).values - tolerance).all()
    assert (out <= each.max(0).values + tolerance).all()


@given(seeds(), kinds())
def test_a_mixture_s_gradients_are_its_branches_weighted(seed: int, kind: GridKind) -> None:
    x, upstream = randn((32,), seed), randn((32,), seed + 1)
    chosen, sizes = branches(kind)
    scales = [0.5, 0.25, 0.125]
    leaf, weights = x.clone().requires_grad_(), torch.softmax(randn((3,), seed + 2), 0).requires_grad_()
    leaves = [size.clone().requires_grad_() for size in sizes]
    mixture(leaf, leaves, chosen, weights, scales=scales).backward(upstream)
    assert leaf.grad is not None
    assert weights.grad is not None
    masks = torch.zeros(32)
    for i, grid in enumerate(chosen):
        single = x.clone().requires_grad_()
        branch = fake_quantize(single, sizes[i], grid)
        branch.backward(upstream)
        assert single.grad is not None
        masks = masks + weights.detach()[i] * single.grad
        # 32 terms below 5 * 4, each rounded, and their sum in any order: 33 roundings of partial sums <= 640.
        torch.testing.assert_close(weights.grad[i], (upstream * branch.detach()).sum(), rtol=0, atol=33 * 640 * 2**-24)
        # 32 terms below 5 * (high - low), weighted before or after their sum: 34 roundings of partial sums.
        expected = step_gradient(x, sizes[i], grid, upstream * weights.detach()[i], scale=scales[i])
        bound = 34 * 2**-24 * 32 * 5 * (grid.high - grid.low) * scales[i]
        torch.testing.assert_close(leaves[i].grad, expected, rtol=0, atol=bound)
    # Three products and two sums of size below 5.
    torch.testing.assert_close(leaf.grad, masks, rtol=0, atol=6 * 5 * 2**-24)


@pytest.mark.parametrize(("sizes", "weights"), [(2, 3), (3, 2)])
def test_a_mixture_needs_one_weight_and_one_step_per_candidate(sizes: int, weights: int) -> None:
    chosen, each = branches("signed")
    with pytest.raises(StepError, match=f"{sizes} steps, 3 grids and {weights} weights"):
        mixture(torch.zeros(4), each[:sizes], chosen, torch.ones(weights))


# The initial step


@given(st.floats(2**-10, 2**10, width=32), grids())
def test_the_initial_step_is_lsq_s(mean: float, grid: Grid) -> None:
    # Two roundings: the product by 2 is exact, the division by a float32 root is not.
    expected = 2 * mean / math.sqrt(grid.high)
    assert lsq_step(torch.tensor(mean), grid).item() == pytest.approx(expected, rel=3 * FLOAT32_ROUNDING)


@given(kinds())
def test_wider_grids_start_with_smaller_steps(kind: GridKind) -> None:
    started = [lsq_step(torch.tensor(1.0), make_grid(kind, bits)).item() for bits in range(2, 9)]
    assert all(a > b for a, b in pairwise(started))


@given(grids())
def test_a_tensor_of_zeros_starts_with_the_smallest_step(grid: Grid) -> None:
    assert lsq_step(torch.zeros(3), grid).tolist() == pytest.approx([MIN_STEP] * 3, rel=FLOAT32_ROUNDING)


# The strategies themselves


@given(st.data(), grids())
def test_places_reach_both_clamped_ends(data: st.DataObject, grid: Grid) -> None:
    place = data.draw(positions(grid))
    assert grid.low - 2 <= place <= grid.high + 2
