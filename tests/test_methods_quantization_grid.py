"""Integer grids: sizes, symmetry, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from methods.quantization.grid import GRID_KINDS, HSWISH_SHIFT, MAX_BITS, Grid, GridError, int_range, make_grid
from tests.strategies import grids

WIDTHS = range(2, MAX_BITS + 1)


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_unsigned_uses_every_pattern_of_bits(bits: int) -> None:
    low, high = int_range(bits, signed=False)
    assert (low, high - low + 1) == (0, 2**bits)


@pytest.mark.parametrize("bits", WIDTHS)
def test_signed_is_symmetric_and_leaves_one_pattern_unused(bits: int) -> None:
    low, high = int_range(bits, signed=True)
    assert low == -high
    assert high - low + 1 == 2**bits - 1


@pytest.mark.parametrize("bits", WIDTHS)
def test_full_signed_is_two_s_complement(bits: int) -> None:
    assert int_range(bits, signed=True, narrow=False) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", WIDTHS)
def test_unsigned_and_shifted_ignore_narrow(bits: int) -> None:
    for kind in ("unsigned", "shifted"):
        assert make_grid(kind, bits, narrow=True) == make_grid(kind, bits, narrow=False)


@pytest.mark.parametrize("narrow", [True, False])
def test_one_signed_bit_is_refused(narrow: bool) -> None:
    with pytest.raises(GridError, match="at least 2 bits"):
        make_grid("signed", 1, narrow=narrow)


@example(0, "unsigned")
@example(MAX_BITS + 1, "unsigned")
@given(st.integers().filter(lambda bits: not 1 <= bits <= MAX_BITS), st.sampled_from(GRID_KINDS))
def test_widths_outside_one_to_eight_are_refused(bits: int, kind: str) -> None:
    with pytest.raises(GridError, match=f"bit-width {bits} is outside 1..{MAX_BITS}"):
        make_grid(kind, bits)  # type: ignore[arg-type]


def test_an_unknown_kind_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(GridError, match="'ternary'; known: unsigned, signed, shifted"):
        make_grid("ternary", 4)  # type: ignore[arg-type]


@given(grids())
def test_levels_count_the_codes(grid: Grid) -> None:
    assert grid.levels == len(range(grid.low, grid.high + 1))


@pytest.mark.parametrize("bits", WIDTHS)
def test_only_shifted_grids_are_shifted_and_by_the_minimum_of_h_swish(bits: int) -> None:
    assert [make_grid(kind, bits).shift for kind in GRID_KINDS] == [0.0, 0.0, HSWISH_SHIFT]
    assert -1.5 * min(max(-1.5 + 3, 0), 6) / 6 == -HSWISH_SHIFT


def test_grids_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_grid("signed", 4).high = 9  # type: ignore[misc]
