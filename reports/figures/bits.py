"""The picture of bits per layer: one row per cell, its first ok trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.figures.marks import plain
from reports.figures.style import STYLE, TEXT_WIDTH
from reports.findings.comparison import Comparison
from reports.findings.strips import COLOURS, Strip, colour, strip_of

PINNED = "#D55E00"


def bits_figure(comparison: Comparison) -> Figure:
    """Activation bits beside weight bits, layer by layer, a pair of panels per network."""
    found = {model: _first_strips(comparison, model) for model in comparison.models}
    shown = {model: strips for model, strips in found.items() if strips}
    heights = [len(strips) for strips in shown.values()] or [1]
    with rc_context(STYLE):
        height = 0.7 * len(heights) + 0.14 * sum(heights) + 0.4
        figure = Figure(figsize=(TEXT_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
        for (model, strips), (left, right) in zip(shown.items(), grid, strict=False):
            activations = [[tile.activation for tile in strip.tiles] for strip in strips]
            weights = [[tile.weight for tile in strip.tiles] for strip in strips]
            _picture(left, f"{plain(model)}: activation bits", strips, activations)
            _picture(right, f"{plain(model)}: weight bits", strips, weights)
            _labels(left, strips)
        _legend(figure, shown)
        if not shown:
            for axes in grid[0]:
                axes.axis("off")
            grid[0][0].text(0, 0.5, "no policy yet")
    return figure


def _first_strips(comparison: Comparison, model: str) -> list[Strip]:
    firsts = [cell.ok[0] for cell in comparison.of(model) if cell.ok]
    return [strip for outcome in firsts if (strip := strip_of(outcome))]


def _picture(axes: Axes, title: str, strips: Sequence[Strip], bits: Sequence[Sequence[int]]) -> None:
    longest = max(map(len, bits))
    padded = [[*row, *[float("nan")] * (longest - len(row))] for row in bits]
    axes.pcolormesh(padded, cmap=ListedColormap(COLOURS), vmin=0.5, vmax=8.5, edgecolors="white", linewidth=0.3)
    axes.set_title(title, fontsize=7.5, parse_math=False)
    axes.set_yticks([])
    places = range(0, longest, 10 if longest > 30 else 5)
    axes.set_xticks([place + 0.5 for place in places], [str(place + 1) for place in places])
    axes.set_xlabel("layer, in graph order")
    pinned = [(place, row) for row, strip in enumerate(strips) for place, tile in enumerate(strip.tiles) if tile.pinned]
    corners = [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for x, y in pinned]
    axes.add_collection(PolyCollection(corners, facecolors="none", edgecolors=PINNED, linewidths=0.7))
    axes.invert_yaxis()


def _labels(axes: Axes, strips: Sequence[Strip]) -> None:
    """As ticks of the axis, for which the layout makes room."""
    names = [plain(strip.label.replace("uniform:", ""), 60) for strip in strips]
    axes.set_yticks([row + 0.5 for row in range(len(strips))], names, fontsize=6, parse_math=False)
    axes.tick_params(axis="y", length=0)


def _legend(figure: Figure, shown: Mapping[str, Sequence[Strip]]) -> None:
    tiles = [tile for strips in shown.values() for strip in strips for tile in strip.tiles]
    widths = sorted({bits for tile in tiles for bits in (tile.activation, tile.weight)})
    if not widths:
        return
    patches = [Patch(facecolor=colour(bits), edgecolor="#999999", linewidth=0.5) for bits in widths]
    patches.append(Patch(facecolor="white", edgecolor=PINNED))
    labels = [f"{bits} bit" for bits in widths] + ["pinned layer"]
    figure.legend(patches, labels, loc="outside lower center", ncols=9, frameon=False)
