"""What uniform bit-widths cost: `python -m reports.studies.widths RECORDS`, those of one suite.

Means over seeds with 95 % t-intervals, and differences between neighbouring widths paired by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from benchmarks.records.record import Record
from reports.findings.tables import Row, Table, markdown
from reports.numbers.display import interval, paired, percent
from reports.numbers.statistics import Mean, mean_interval, paired_difference
from reports.studies.reading import records_at

Accuracies = dict[str, dict[int, float]]
"""Test accuracy in 0..1 by row of the table and seed."""

START, FLOAT = "float start", "float"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, help="an archive or a folder of records")
    place = parser.parse_args().records
    by_model = accuracies_of(records_at(place, parser))
    if not by_model:
        parser.exit(2, f"error: no finished float or uniform trials in {place}\n")
    print("\n".join(markdown(table) for table in tables(by_model)))


def accuracies_of(records: Iterable[Record]) -> dict[str, Accuracies]:
    """Accuracies of the finished float and uniform trials, by network."""
    by_model: dict[str, Accuracies] = {}
    for record in records:
        if record.status == "ok" and (row := row_of(record)):
            model = f"{record.trial_spec.model.name} x{record.trial_spec.model.width:g}"
            found, seed = by_model.setdefault(model, {}), record.trial_spec.seed
            found.setdefault(row, {})[seed] = record.result["metrics"]["test_accuracy"]
            found.setdefault(START, {})[seed] = record.result["metrics"]["start_test_accuracy"]
    return by_model


def row_of(record: Record) -> str | None:
    """`float`, `w4a3` and the like for uniform policies; None for every other trial."""
    if record.trial_spec.method.name == "float":
        return FLOAT
    widths = {tuple(bits) for bits in record.result["policy"]["layers"].values()}
    if record.trial_spec.method.name != "uniform-lsq" or len(widths) != 1:
        return None
    ((weights, activations),) = widths
    return f"w{weights}a{activations}"


def rows_of(accuracies: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The float start and control as far as there are any, then widths from many bits to few."""
    widths = sorted((row for row in accuracies if row not in (START, FLOAT)), reverse=True)
    return [row for row in (START, FLOAT, *widths) if row in accuracies]


def steps(accuracies: Mapping[str, Mapping[int, float]]) -> Iterator[tuple[str, str, Mean]]:
    """Every row but the first, the row above it, and the difference, paired by seed."""
    rows = rows_of(accuracies)
    for above, row in pairwise(rows):
        if difference := paired_difference(accuracies[row], accuracies[above]):
            yield row, above, difference


def tables(by_model: Mapping[str, Accuracies]) -> Iterator[Table]:
    """A table per network: accuracy of every row, and what it has less than the row above."""
    for model, accuracies in sorted(by_model.items()):
        less = {row: difference for row, _, difference in steps(accuracies)}
        header = (model, "test accuracy, %", "minus the row above, points, paired")
        lines = []
        for row in rows_of(accuracies):
            mean = mean_interval(list(accuracies[row].values()))
            accuracy = f"{percent(mean.value)}{interval(mean.interval)}, n = {mean.n}"
            lines.append(Row((row, accuracy, paired(less.get(row)))))
        yield Table(header, tuple(lines), frozenset(header[1:]))


if __name__ == "__main__":
    main()
