"""Small multiples that figures share: a row of panels and one legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures.style import COLUMN_WIDTH, HANDLE, TEXT_WIDTH, legend_columns

_ACROSS = 3


def panels_of(names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per name, at most three across; the names stand as titles until something is drawn."""
    columns = min(_ACROSS, len(names))
    lines = math.ceil(len(names) / columns)
    width = TEXT_WIDTH if columns > 1 else COLUMN_WIDTH
    figure = Figure(figsize=(width, (2.2 if columns > 1 else 2.6) * lines + 0.4), layout="constrained")
    panels = [figure.add_subplot(lines, columns, index + 1) for index in range(len(names))]
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, parse_math=False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def legend_of(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below all panels, every label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not found:
        return
    columns = min(6, legend_columns(list(found), figure.get_figwidth()))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 7.5}
    place["handlelength"] = HANDLE
    legend = figure.legend(list(found.values()), list(found), **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
