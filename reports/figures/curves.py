"""Anytime curves: training loss of the fine-tuning against all compute spent so far, the search's included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports.figures.marks import label_of, line, plain
from reports.figures.panels import legend_of, panels_of
from reports.figures.style import STYLE
from reports.findings.account import account_of
from reports.findings.comparison import Cell, Comparison, Outcome


def curves_figure(comparison: Comparison) -> Figure:
    """A panel per network, at its lowest ceiling: means over ok trials, smoothed over a twelfth, and quartiles."""
    lowest = {model: _lowest_ceiling(comparison, model) for model in comparison.models}
    drawn = {model: ceiling for model, ceiling in lowest.items() if ceiling}
    with rc_context(STYLE):
        figure, panels = panels_of(list(drawn) or ["no curves yet"])
        for axes, (model, ceiling) in zip(panels, drawn.items(), strict=False):
            cells = [c for c in comparison.of(model) if c.ceiling == ceiling or c.is_float]
            for cell in cells:
                _line(axes, comparison, cell)
            axes.set_title(f"{plain(model)}\n{ceiling}", parse_math=False)
            axes.set_xlabel("recipe epochs of compute spent")
            axes.set_ylabel("training loss")
        legend_of(figure, panels)
    return figure


def _lowest_ceiling(comparison: Comparison, model: str) -> str | None:
    cells = [cell for cell in comparison.of(model) if not cell.is_float and cell.ok]
    if not cells:
        return None
    return min(cells, key=lambda cell: cell.outcomes[0].trial.spec.ceiling_bops or 0).ceiling


def _line(axes: Axes, comparison: Comparison, cell: Cell) -> None:
    found = [points for outcome in cell.ok if (points := spent_and_loss(outcome))]
    shortest = min(map(len, found), default=0)
    if not shortest:
        return
    curves = np.stack([_smooth(np.array(points[:shortest])) for points in found])
    (x, y), losses = curves.mean(0).T, curves[..., 1]
    look = line(comparison.rows.index(cell.row), len(x))
    axes.fill_between(x, *np.quantile(losses, (0.25, 0.75), 0), color=look["color"], alpha=0.12, linewidth=0)
    axes.plot(x, y, label=label_of(cell.row), **look)


def _smooth(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a window of a twelfth of the points, where it is whole; (points, 2) and fewer points."""
    window = max(1, len(points) // 12)
    smooth: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(points, window, axis=0).mean(-1)
    return smooth


def spent_and_loss(outcome: Outcome) -> Sequence[tuple[float, float]]:
    """(recipe epochs spent, training loss) of every point of the fine-tuning's curve; empty where there is none."""
    account = account_of(outcome)
    curve = (outcome.result.get("curves") or {}).get("finetune") or []
    tuned = next((entry for entry in account.phases if entry.name == "finetune"), None) if account else None
    if account is None or tuned is None or not tuned.steps:
        return []
    before, each = account.epochs_of("search"), tuned.epochs / tuned.steps
    return [(before + each * point["step"], point["loss"]) for point in curve if "loss" in point]
