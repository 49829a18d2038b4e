"""What uniform bit-widths cost: `python -m reports.studies.widths RECORDS`, those of one suite.

Means over seeds with 95 % t-intervals, and differences between neighbouring widths paired by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.records.record import Record
from reports.numbers.display import interval, paired, percent
from reports.numbers.statistics import mean_interval, paired_difference
from reports.studies.reading import records_at

Accuracies = dict[str, dict[int, float]]
"""Test accuracy in 0..1 by row of the table and seed."""

START, FLOAT = "float start", "float"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, help="an archive or a folder of records")
    place = parser.parse_args().records
    by_model: dict[str, Accuracies] = {}
    for record in records_at(place, parser):
        if record.status == "ok" and (row := row_of(record)):
            model = f"{record.trial_spec.model.name} x{record.trial_spec.model.width:g}"
            found, seed = by_model.setdefault(model, {}), record.trial_spec.seed
            found.setdefault(row, {})[seed] = record.result["metrics"]["test_accuracy"]
            found.setdefault(START, {})[seed] = record.result["metrics"]["start_test_accuracy"]
    if not by_model:
        parser.exit(2, f"error: no finished float or uniform trials in {place}\n")
    print("\n".join(line for model in sorted(by_model) for line in table(model, by_model[model])))


def row_of(record: Record) -> str | None:
    """`float`, `w4a3` and the like for uniform policies; None for every other trial."""
    if record.trial_spec.method.name == "float":
        return FLOAT
    widths = {tuple(bits) for bits in record.result["policy"]["layers"].values()}
    if record.trial_spec.method.name != "uniform-lsq" or len(widths) != 1:
        return None
    ((weights, activations),) = widths
    return f"w{weights}a{activations}"


def table(model: str, accuracies: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    """Lines of Markdown: the network's float start and control, then widths from many bits to few."""
    widths = sorted((row for row in accuracies if row not in (START, FLOAT)), reverse=True)
    yield f"| {model} | test accuracy, % | minus the row above, points, paired |"
    yield "|---|---:|---:|"
    above: str | None = None
    for row in (START, FLOAT, *widths):
        if row not in accuracies:
            continue
        mean = mean_interval(list(accuracies[row].values()))
        less = paired_difference(accuracies[row], accuracies[above]) if above else None
        yield f"| {row} | {percent(mean.value)}{interval(mean.interval)}, n = {mean.n} | {paired(less)} |"
        above = row
    yield ""


if __name__ == "__main__":
    main()
