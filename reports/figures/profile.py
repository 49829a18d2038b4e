"""Performance profiles: of each row, the share of runs that lose less than so many points to the float control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from reports.figures.marks import label_of, line
from reports.figures.panels import legend_of, panels_of
from reports.figures.style import STYLE
from reports.findings.across import RowScores
from reports.findings.comparison import Comparison
from reports.numbers.resampling import profile

_POINTS = 400
_LOST_ENOUGH = 0.5
"""Scores below this (a failed run is about -0.9) lie beyond the left edge: they would compress all others."""


def profile_figure(comparison: Comparison, rows: Sequence[RowScores]) -> Figure:
    """A step line per row with scores; the higher and the further right, the better."""
    shown = [row for row in rows if not row.absent]
    with rc_context(STYLE):
        figure, (axes,) = panels_of([""])
        axes.set_xlabel("Points lost to the float control, at most")
        axes.set_ylabel("Share of runs, %")
        if not shown:
            axes.text(0.5, 0.5, "no scores yet", transform=axes.transAxes, ha="center", va="center", color="#8a8a8a")
            return figure
        pooled = np.concatenate([row.pooled for row in shown])
        kept = pooled[pooled > -_LOST_ENOUGH]
        low, high = (float(kept.min()), float(kept.max())) if kept.size else (-_LOST_ENOUGH, 0.0)
        room = max(0.02 * (high - low), 1e-3)
        thresholds = np.linspace(low - room, high + room, _POINTS)
        for row in shown:
            look = line(comparison.rows.index(row.row), _POINTS)
            shares = 100 * profile(row.pooled, thresholds)
            axes.step(-100 * thresholds, shares, where="pre", label=label_of(row.row), **look)
        axes.invert_xaxis()
        axes.set_ylim(-3, 103)
        legend_of(figure, [axes])
    return figure
