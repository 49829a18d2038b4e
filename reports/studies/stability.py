"""Whether the order of methods depends on how much compute there is: one suite at several shares of its epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.files import write_atomic
from reports.figures.marks import label_of, line
from reports.figures.panels import legend_of, panels_of
from reports.figures.style import STYLE, save
from reports.findings.across import RowScores, row_scores
from reports.findings.comparison import Comparison
from reports.findings.tables import Row, Table, escape_markdown, markdown
from reports.numbers.display import NOTHING, interval, points
from reports.numbers.resampling import Scores

Sweep = Mapping[float, Comparison]
"""Share of the suite's epochs -> the comparison at it."""

READING = (
    "Score: as in the report, the interquartile mean over networks and ceilings (of fewer than four of them together "
    "the mean) of test accuracy minus that of the same seed's float control at the same compute, points; mean over "
    "seeds with 95 % t-interval. Kendall's "
    "tau-b of two shares: over all pairs of rows, on their means over seeds within each network and ceiling, "
    "averaged over those; 1 where both shares order all rows alike, -1 where in reverse. Seeds alone reorder rows "
    "too: on the diagonal stands the tau between the even and the odd seeds of one share, so that only taus well "
    "below it speak of compute; without four seeds there is none, and then a low tau says nothing."
)


def kendall_tau(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float | None:
    """Kendall's tau-b of two orders of the same names; None where one of them ties everything, or for one name.

    (concordant - discordant pairs) / sqrt((pairs - ties of one) (pairs - ties of the other)).

    >>> kendall_tau({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2})
    0.3333333333333333
    """
    agreeing = untied_ours = untied_theirs = 0
    for one, other in combinations(sorted(ours.keys() & theirs.keys()), 2):
        x, y = np.sign(ours[one] - ours[other]), np.sign(theirs[one] - theirs[other])
        agreeing += int(x * y)
        untied_ours += int(x != 0)
        untied_theirs += int(y != 0)
    if not untied_ours or not untied_theirs:
        return None
    return agreeing / math.sqrt(untied_ours * untied_theirs)


def stability(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> float | None:
    """Mean tau over networks and ceilings of the rows that both have; row -> network -> (seeds, ceilings)."""
    rows = sorted(ours.keys() & theirs.keys())
    taus = []
    for model in ours[rows[0]] if rows else ():
        for ceiling in range(ours[rows[0]][model].shape[1]):
            means = [{row: float(side[row][model][:, ceiling].mean()) for row in rows} for side in (ours, theirs)]
            taus.append(kendall_tau(*means))
    known = [tau for tau in taus if tau is not None]
    return math.fsum(known) / len(known) if known else None


def split_half(scores: Mapping[str, Scores]) -> float | None:
    """`stability` of the even against the odd seeds, by their place; None where a network has fewer than four."""
    if any(len(values) < 4 for row in scores.values() for values in row.values()):
        return None
    halves = [{row: {m: v[start::2] for m, v in own.items()} for row, own in scores.items()} for start in (0, 1)]
    return stability(*halves)


def write(sweep: Sweep, folder: Path) -> Path:
    """Write stability.md, stability.png and stability.pdf; returns the first."""
    scored = {share: row_scores(comparison) for share, comparison in sorted(sweep.items())}
    figure = stability_figure(sweep, scored)
    for form in ("png", "pdf"):
        drawn = io.BytesIO()
        save(figure, drawn, form)
        write_atomic(folder / f"stability.{form}", lambda file, drawn=drawn: file.write(drawn.getvalue()))  # type: ignore[misc]
    path = folder / "stability.md"
    write_atomic(path, lambda file: file.write("\n".join(_document(sweep, scored)).encode()))
    return path


def _document(sweep: Sweep, scored: Mapping[float, list[RowScores]]) -> Iterator[str]:
    suite = next(iter(sweep.values())).plan.suite
    yield f"# {escape_markdown(suite.suite)} at {', '.join(f'{share:g}' for share in scored)} of its compute\n"
    yield "![Score against compute](stability.png)\n"
    yield markdown(scores_table(scored))
    yield markdown(taus_table(scored))
    yield READING + "\n"


def scores_table(scored: Mapping[float, list[RowScores]]) -> Table:
    """Row -> score at every share."""
    names = list(dict.fromkeys(row.row for rows in scored.values() for row in rows))
    by_share = {share: {row.row: row for row in rows} for share, rows in scored.items()}
    header = ("Method", *(f"x{share:g}" for share in scored))
    lines = [Row((name, *(_score(by_share[share].get(name)) for share in scored))) for name in names]
    return Table(header, tuple(lines), frozenset(header[1:]))


def _score(row: RowScores | None) -> str:
    if row is None or row.absent:
        return row.absent if row else NOTHING
    return points(row.score.value) + interval(row.score.interval, signed=True)


def taus(sweep: Sweep) -> dict[tuple[float, float], float | None]:
    """Pair of shares -> mean tau; of a share with itself, that of the even against the odd seeds."""
    return _taus({share: row_scores(comparison) for share, comparison in sorted(sweep.items())})


def _taus(scored: Mapping[float, list[RowScores]]) -> dict[tuple[float, float], float | None]:
    present = {share: {row.row: row.scores for row in rows if not row.absent} for share, rows in scored.items()}
    return {
        (one, other): split_half(present[one]) if one == other else stability(present[one], present[other])
        for one in scored
        for other in scored
    }


def taus_table(scored: Mapping[float, list[RowScores]]) -> Table:
    """Share x share -> mean tau; on the diagonal, of the even against the odd seeds."""
    found = _taus(scored)
    header = ("Kendall's tau", *(f"x{share:g}" for share in scored))
    lines = [Row((f"x{one:g}", *(_tau(found[one, other]) for other in scored))) for one in scored]
    return Table(header, tuple(lines), frozenset(header[1:]))


def _tau(tau: float | None) -> str:
    return NOTHING if tau is None else f"{tau:.2f}"


def stability_figure(sweep: Sweep, scored: Mapping[float, list[RowScores]]) -> Figure:
    """Score against share of compute, a line per row."""
    rows = next(iter(sweep.values())).rows
    with rc_context(STYLE):
        figure, (axes,) = panels_of([""])
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(scored), [f"{share:g}" for share in scored])
        axes.minorticks_off()
        axes.set_xlabel("compute, as a share of the suite's")
        axes.set_ylabel("score: points above the float control")
        for place, name in enumerate(rows):
            found = [(share, row) for share, own in scored.items() for row in own if row.row == name and not row.absent]
            if not found:
                continue
            means = [row.score for _, row in found]
            look = {**line(place, 1), "elinewidth": 1.0, "capsize": 2}
            halves = [50 * mean.interval.width if mean.interval else 0.0 for mean in means]
            x = [share * 1.02 ** (place - len(rows) / 2) for share, _ in found]
            axes.errorbar(x, [100 * mean.value for mean in means], yerr=halves, label=label_of(name), **look)
        legend_of(figure, [axes])
    return figure
