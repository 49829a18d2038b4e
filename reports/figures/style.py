"""What all figures share: sizes of paper, the looks of lines and letters, legends, and how a figure is saved."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

from matplotlib import rc_context
from matplotlib.figure import Figure

START: dict[str, Any] = {"color": "#8a8a8a", "linewidth": 1.2, "linestyle": (0, (5, 2))}
CONTROL: dict[str, Any] = {"color": "#333333", "linewidth": 1.2, "linestyle": (0, (6, 1.5, 1, 1.5))}

HANDLE = 3.0
"""Length of a legend's sample line in em, enough to show its dashes."""

COLUMN_WIDTH, TEXT_WIDTH = 3.4, 7.0
"""Inches: one column and the whole width of a two-column paper."""

CHARACTERS = 20
"""Characters of a caption that fit on one inch."""

STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "pdf.fonttype": 42,
}


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many columns of these labels, in 7.5 points, fit on so many inches; at least one.

    >>> legend_columns(["uniform-lsq"] * 9, 3.4), legend_columns(["differentiable, trained longer"] * 9, 3.4)
    (2, 1)
    """
    entry = 7.5 * (0.62 * max(map(len, labels)) + HANDLE + 2.8)  # and 2.8 em between handle, text and next column
    return max(1, math.floor(72 * width / entry))


def save(figure: Figure, file: BinaryIO, form: str, dpi: int = 180, description: str | None = None) -> None:
    """Write as `png` or `pdf`, without dates or versions: the same report gives the same bytes.

    description: text that a PNG carries with it.
    """
    metadata: dict[str, Any] = (
        {"CreationDate": None, "Creator": None, "Producer": None}
        if form == "pdf"
        else {"Software": None, "Description": description}
    )
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # names in scripts the font lacks
        if engine := figure.get_layout_engine():  # the layout takes most of the time: done once for all files
            figure.set_dpi(dpi)  # letters are as wide as they will be
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(file, format=form, dpi=dpi, metadata=metadata)
