"""What ways to parameterise activation ranges come to, by width and learning rate.

`python -m reports.studies.ranges RECORDS`

RECORDS are those of one suite with uniform widths, such as `asymmetric-ranges`. Means over seeds with 95 %
t-intervals, differences from LSQ paired by seed, and how far training loss had come after the first part of a run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.records.record import Record
from benchmarks.suites.spec import QuantizerSpec
from reports.figures.marks import marker
from reports.figures.style import STYLE, save
from reports.findings.tables import Row, Table, markdown
from reports.numbers.display import NOTHING, interval, paired, percent
from reports.numbers.statistics import Mean, mean_interval, paired_difference
from reports.studies.reading import records_at
from reports.studies.widths import row_of

BASELINE = "lsq"
BASELINES = (BASELINE, "beta-gamma")
"""Parameterisations that the others are set against; the second starts from the same range as the others."""
DODGE = 1.06
"""Factor on the learning rate between neighbouring lines, so that their bars do not cover each other."""


class Key(NamedTuple):
    """A cell: uniform width (`w4a3`), parameterisation and learning rate."""

    width: str
    ranges: str
    rate: float


@dataclass
class Cell:
    """Trials of one cell by seed: test accuracies in 0..1, first and last point of the loss curves; how many failed."""

    accuracies: dict[int, float] = field(default_factory=dict)
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, record: Record) -> None:
        if record.status != "ok":
            self.failed += 1
            return
        self.accuracies[record.trial_spec.seed] = record.result["metrics"]["test_accuracy"]
        curve = [point["loss"] for point in record.result["curves"]["finetune"]]
        self.first_losses.append(curve[0])
        self.last_losses.append(curve[-1])

    @property
    def mean(self) -> Mean | None:
        return mean_interval(list(self.accuracies.values())) if self.accuracies else None


Cells = dict[Key, Cell]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="an archive or a folder of records")
    parser.add_argument("--figure", type=Path, help="write the figure here, as .png or .pdf")
    arguments = parser.parse_args()
    cells = cells_of(records_at(arguments.records, parser))
    if not cells:
        parser.exit(2, f"error: no trials of uniform-lsq in {arguments.records}\n")
    print("\n".join(markdown(table) for table in tables(cells)))
    if arguments.figure:
        with arguments.figure.open("wb") as file:
            save(figure(cells), file, arguments.figure.suffix.removeprefix(".") or "png")


def cells_of(records: Iterable[Record]) -> Cells:
    """Trials of `uniform-lsq` by cell. A failed one has no policy; it counts where its ceiling's others do."""
    found = [record for record in records if record.trial_spec.method.name == "uniform-lsq"]
    widths = {
        record.trial_spec.ceiling_bops: row for record in found if record.status == "ok" and (row := row_of(record))
    }
    cells: Cells = {}
    for record in found:
        spec = record.trial_spec
        if width := widths.get(spec.ceiling_bops):
            key = Key(width, name_of(spec.quantizer), spec.recipe.optimizer.lr)
            cells.setdefault(key, Cell()).add(record)
    return cells


def name_of(quantizer: QuantizerSpec) -> str:
    """`beta-gamma sigmoid`: the parameterisation and what it has beside its default."""
    parts: list[str] = [quantizer.parameterisation]
    parts += ["sigmoid"] if quantizer.sigmoid else []
    parts += [f"{quantizer.offset} offset"] if quantizer.offset != "real" else []
    return " ".join(parts)


def axes_of(cells: Cells) -> tuple[list[str], list[str], list[float]]:
    """Widths from many bits to few, parameterisations with the baseline first, learning rates ascending."""
    widths = sorted({key.width for key in cells}, reverse=True)
    ranges = sorted({key.ranges for key in cells}, key=lambda name: (name != BASELINE, name.split()[0] != "lsq+", name))
    return widths, ranges, sorted({key.rate for key in cells})


def tables(cells: Cells) -> Iterator[Table]:
    """Of every width: accuracies, differences from the baselines, and losses; a column per learning rate."""
    widths, ranges, rates = axes_of(cells)

    def table(title: str, names: list[str], cell: Callable[[Key], str]) -> Table:
        header = (title, *(f"lr {rate:g}" for rate in rates))
        lines = [Row((name, *(cell(Key(width, name, rate)) for rate in rates))) for name in names]
        return Table(header, tuple(lines), frozenset(header[1:]))

    for width in widths:
        yield table(f"{width}: test accuracy, %", ranges, lambda key: _accuracy(cells.get(key)))
        for baseline in BASELINES:
            others = [name for name in ranges if name not in BASELINES[: BASELINES.index(baseline) + 1]]
            if baseline in ranges and others:
                title = f"{width}: minus {baseline}, points, paired"
                yield table(title, others, lambda key, to=baseline: paired(difference(cells, key, to)))  # type: ignore[misc]
        yield table(f"{width}: training loss, first → last part", ranges, lambda key: _losses(cells.get(key)))


def _accuracy(cell: Cell | None) -> str:
    if cell is None:
        return NOTHING
    failures = f", {cell.failed} failed" if cell.failed else ""
    if cell.mean is None:
        return f"all{failures.removeprefix(',')}"
    return f"{percent(cell.mean.value)}{interval(cell.mean.interval)}, n = {cell.mean.n}{failures}"


def difference(cells: Cells, key: Key, baseline: str = BASELINE) -> Mean | None:
    """Accuracy minus that of `baseline` at the same width and rate, paired by seed."""
    ours, theirs = cells.get(key), cells.get(key._replace(ranges=baseline))
    return paired_difference(ours.accuracies, theirs.accuracies) if ours and theirs else None


def _losses(cell: Cell | None) -> str:
    if cell is None or not cell.first_losses:
        return NOTHING
    first, last = (math.fsum(losses) / len(losses) for losses in (cell.first_losses, cell.last_losses))
    return f"{first:.3f} → {last:.3f}"


def figure(cells: Cells) -> Figure:
    """Test accuracy against learning rate, a panel per width, a line per parameterisation; bars are t-intervals."""
    widths, ranges, rates = axes_of(cells)
    with rc_context(STYLE):
        drawn = Figure(figsize=(2.6 * len(widths) + 0.6, 3.4), layout="constrained")
        panels = drawn.subplots(1, len(widths), sharey=True, squeeze=False)[0]
        for panel, width in zip(panels, widths, strict=True):
            panel.set_title(width.upper())
            panel.set_xscale("log")
            panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
            panel.minorticks_off()
            panel.set_xlabel("learning rate")
            panel.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        for (panel, width), (row, name) in product(zip(panels, widths, strict=True), enumerate(ranges)):
            shift = DODGE ** (row - (len(ranges) - 1) / 2)
            means = [(rate, cell.mean) for rate in rates if (cell := cells.get(Key(width, name, rate)))]
            shown = [(rate * shift, mean) for rate, mean in means if mean]
            heights = [100 * mean.value for _, mean in shown]
            halves = [50 * mean.interval.width if mean.interval else 0.0 for _, mean in shown]
            look = {**marker(row), "linewidth": 1.0, "elinewidth": 1.0, "capsize": 2}
            panel.errorbar([rate for rate, _ in shown], heights, yerr=halves, label=name, **look)
        panels[0].set_ylabel("Test accuracy, %")
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=len(ranges), frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
