"""Integer grids: which codes a bit-width has, and where real zero lies on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GridKind = Literal["unsigned", "signed", "shifted"]
GRID_KINDS: tuple[GridKind, ...] = get_args(GridKind)
MAX_BITS = 8

HSWISH_SHIFT = 3 / 8
"""Minus the minimum of h-swish, x * relu6(x + 3) / 6, which it takes at x = -1.5."""


class GridError(ValueError):
    """A bit-width or grid kind that has no usable integer grid."""


@dataclass(frozen=True)
class Grid:
    """Codes `low..high`; a real value x sits at (x + shift) / step."""

    low: int
    high: int
    shift: float = 0.0

    @property
    def levels(self) -> int:
        return self.high - self.low + 1


def int_range(bits: int, *, signed: bool, narrow: bool = True) -> tuple[int, int]:
    """Smallest and largest integer code of a `bits`-wide grid; signed grids are symmetric unless `narrow` is off.

    Raises GridError for widths outside 1..8 and for 1-bit signed grids, whose largest code would be 0.

    >>> int_range(4, signed=False), int_range(4, signed=True), int_range(4, signed=True, narrow=False)
    ((0, 15), (-7, 7), (-8, 7))
    """
    if not 1 <= bits <= MAX_BITS:
        raise GridError(f"bit-width {bits} is outside 1..{MAX_BITS}")
    if not signed:
        return 0, 2**bits - 1
    if bits == 1:
        raise GridError("a signed grid needs at least 2 bits: at 1 bit its largest code is 0")
    high = 2 ** (bits - 1) - 1
    return (-high if narrow else -high - 1), high


def make_grid(kind: GridKind, bits: int, *, narrow: bool = True) -> Grid:
    """The grid of a tensor: `unsigned` behind ReLU, `signed` for weights and linear outputs, `shifted` behind h-swish.

    >>> make_grid("shifted", 3)
    Grid(low=0, high=7, shift=0.375)
    """
    if kind not in GRID_KINDS:
        raise GridError(f"unknown grid kind {kind!r}; known: {', '.join(GRID_KINDS)}")
    low, high = int_range(bits, signed=kind == "signed", narrow=narrow)
    return Grid(low, high, HSWISH_SHIFT if kind == "shifted" else 0.0)
