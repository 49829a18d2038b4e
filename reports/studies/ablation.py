"""MetaMix's claims, one table each: `python -m reports.studies.ablation RECORDS`, those of `metamix-ablation`.

Means over seeds with 95 % t-intervals, differences paired by seed, a table per network.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.records.record import Record
from methods import load_method
from reports.findings.tables import Row, Table, markdown
from reports.numbers.display import NOTHING, interval, paired, percent
from reports.numbers.statistics import Mean, mean_interval, paired_difference
from reports.studies.reading import records_at

METHOD = "metamix"
DIAGNOSTIC = "statistics_batches"

Trials = dict[str, dict[int, Record]]
"""Finished trials of one network by row and seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="an archive or a folder of records")
    place = parser.parse_args().records
    by_model = trials_of(records_at(place, parser))
    if not any(METHOD in rows for rows in by_model.values()):
        parser.exit(2, f"error: no finished trials of {METHOD} with its default options in {place}\n")
    print("\n".join(markdown(table) for table in tables(by_model)))


def tables(by_model: Mapping[str, Trials]) -> Iterator[Table]:
    """Accuracies of each network, and its variances where they were measured."""
    for model, rows in sorted(by_model.items()):
        yield accuracies(model, rows)
        if variances := discrepancies(rows):
            yield variances


def trials_of(records: Iterable[Record]) -> dict[str, Trials]:
    """Finished trials by network, row and seed; of several draws the first."""
    by_model: dict[str, Trials] = {}
    for record in sorted(records, key=lambda record: record.trial_spec.draw):
        if record.status == "ok":
            spec = record.trial_spec
            rows = by_model.setdefault(f"{spec.model.name} x{spec.model.width:g}", {})
            rows.setdefault(row_of(record), {}).setdefault(spec.seed, record)
    return by_model


def row_of(record: Record) -> str:
    """The method and each option that it has otherwise than by default: `metamix, branches highest`."""
    method = record.trial_spec.method
    default = load_method(method.name).Options().model_dump(mode="json")
    others = {key: value for key, value in method.options.items() if key != DIAGNOSTIC and value != default[key]}
    return ", ".join(
        [method.name, *(f"{key.replace('_', ' ')} {str(value).lower()}" for key, value in sorted(others.items()))]
    )


def accuracies(model: str, rows: Trials) -> Table:
    """Claims (b) and (c): what each option costs in accuracy."""
    reference, chance = accuracy_of(rows.get(METHOD, {})), accuracy_of(rows.get("random", {}))
    header = (model, "test accuracy, %", f"minus {METHOD}, points, paired", "minus random, points, paired")
    lines = []
    for row in rows_in_order(rows):
        found = accuracy_of(rows[row])
        less = [NOTHING if found == other else paired(paired_difference(found, other)) for other in (reference, chance)]
        lines.append(Row((row, _percent(mean_interval(list(found.values()))), *less)))
    return Table(header, tuple(lines), frozenset(header[1:]))


def rows_in_order(rows: Trials) -> list[str]:
    """The controls, MetaMix with its defaults, then its other rows."""
    return sorted(rows, key=lambda row: (row.startswith(METHOD), row != METHOD, row))


def accuracy_of(trials: Mapping[int, Record]) -> dict[int, float]:
    """Test accuracy in 0..1 by seed."""
    return {seed: record.result["metrics"]["test_accuracy"] for seed, record in trials.items()}


def _percent(mean: Mean) -> str:
    return f"{percent(mean.value)}{interval(mean.interval)}, n = {mean.n}"


def discrepancies(rows: Trials) -> Table | None:
    """Claim (a): how far batch norms' variances at a width are from those at the highest, before and after.

    The number is the mean over channels, then over batch norms, of |ln(variance / variance at the highest width)|.
    None where no trial measured it.
    """
    found = {row: shifts for row, trials in rows.items() if (shifts := _shifts(trials))}
    widths = sorted({int(width) for shifts in found.values() for when in shifts.values() for width in when})
    if not widths:
        return None
    header = ("variances against those at the highest width", *(f"{width} bits" for width in widths))
    lines = []
    for row, shifts in sorted(found.items(), key=lambda item: (item[0] != METHOD, item[0])):
        for when in ("before", "after"):
            cells = [_plain(mean_interval(list(shifts[when][str(width)].values()))) for width in widths]
            lines.append(Row((f"{row}, {when}", *cells)))
        changes = [_change(shifts["after"][str(width)], shifts["before"][str(width)]) for width in widths]
        lines.append(Row((f"{row}, after − before, paired", *changes)))
    if plain := found.get(f"{METHOD}, branches highest"):
        ours = found.get(METHOD, {"after": {}})["after"]
        changes = [_change(ours.get(str(width), {}), plain["after"][str(width)]) for width in widths]
        lines.append(Row((f"{METHOD} − {METHOD}, branches highest, after, paired", *changes)))
    return Table(header, tuple(lines), frozenset(header[1:]))


def _shifts(trials: Mapping[int, Record]) -> dict[str, dict[str, dict[int, float]]]:
    """before/after -> width -> seed -> mean over batch norms."""
    shifts: dict[str, dict[str, dict[int, float]]] = {}
    for seed, record in trials.items():
        variances: Mapping[str, Any] = record.result["search"].get("variances", {})
        for when, layers in variances.items():
            for width in next(iter(layers.values()), {}):
                values = [layer[width] for layer in layers.values()]
                shifts.setdefault(when, {}).setdefault(width, {})[seed] = math.fsum(values) / len(values)
    return shifts


def _plain(mean: Mean) -> str:
    bounds = f" [{mean.interval.low:.3f}, {mean.interval.high:.3f}]" if mean.interval else ""
    return f"{mean.value:.3f}{bounds}"


def _change(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    less = paired_difference(ours, theirs)
    if less is None or less.interval is None:
        return NOTHING
    signed = [f"{value:+.3f}".replace("-", "−") for value in (less.value, less.interval.low, less.interval.high)]
    return f"{signed[0]} [{signed[1]}, {signed[2]}]"


if __name__ == "__main__":
    main()
