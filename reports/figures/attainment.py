"""Attainment: the best accuracy that each row reaches with at most so many BOPs, as a band over its seeds."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures.marks import label_of, line, plain
from reports.figures.panels import legend_of, panels_of
from reports.figures.style import STYLE
from reports.findings.comparison import Comparison
from reports.findings.fronts import Curve, attained, curves

_POINTS = 200


def attainment_figure(comparison: Comparison) -> Figure:
    """A panel per network; rows with several ceilings and no run missing. Line: median seed; band: lowest to highest.

    Failed runs are at 0, below the lower edge: they would compress all others.
    """
    found = {model: shown for model in comparison.models if (shown := curves(comparison, model))}
    with rc_context(STYLE):
        figure, panels = panels_of(list(found) or ["no row with several ceilings yet"])
        for axes, (model, shown) in zip(panels, found.items(), strict=False):
            _panel(axes, comparison, shown)
            axes.set_title(plain(model), parse_math=False)
        legend_of(figure, panels)
    return figure


def _panel(axes: Axes, comparison: Comparison, shown: list[Curve]) -> None:
    every = [point.bops for curve in shown for points in curve.points.values() for point in points]
    grid = np.exp(np.linspace(math.log(min(every)), math.log(max(every) * 1.05), _POINTS))
    for curve in shown:
        look = line(comparison.rows.index(curve.row), _POINTS)
        best = 100 * np.array([attained(points, grid) for points in curve.points.values()])
        reached = ~np.isnan(best).any(0)
        x, best = grid[reached] / 1e9, best[:, reached]
        axes.fill_between(x, best.min(0), best.max(0), step="post", color=look["color"], alpha=0.15, linewidth=0)
        axes.step(x, np.median(best, 0), where="post", label=label_of(curve.row), **look)
    lowest = min((p.accuracy for curve in shown for ps in curve.points.values() for p in ps if p.accuracy), default=0.0)
    if lowest and any(curve.failed for curve in shown):
        axes.set_ylim(bottom=100 * lowest - 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("GBOPs per image, at most")
    axes.set_ylabel("Test accuracy, %")
