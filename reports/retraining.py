"""How much of a method's spread over seeds is its search and how much is training: `python -m reports.retraining`.

`suite RECORDS --method M --model N` writes a suite, to standard output, in which every policy that the method chose is
trained again from every seed (`given`). `table RECORDS`, of that suite's records, splits the variance of the accuracy.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import Record, Records
from reports.display import percent


@dataclass(frozen=True)
class Components:
    """Variances of accuracy: between policies, between seeds, and what is left. Negative estimates are 0."""

    policies: float
    seeds: float
    rest: float
    rows: int
    columns: int


def components(table: Mapping[str, Mapping[int, float]]) -> Components:
    """Two-way random effects without replication, by mean squares: row (policy) -> seed -> accuracy.

    E[MS of rows] = rest + columns · rows' variance, E[MS of columns] = rest + rows · columns' variance, E[MS of the
    rest] = rest (Searle, Casella and McCulloch 1992). Raises ValueError unless all rows have the same seeds, at least
    two, and there are two rows.
    """
    names = sorted(table)
    seeds = sorted(next(iter(table.values()), {}))
    if len(names) < 2 or len(seeds) < 2 or any(sorted(row) != seeds for row in table.values()):
        raise ValueError("the table needs two policies or more, each trained from the same two seeds or more")
    values = [[table[name][seed] for seed in seeds] for name in names]
    a, b = len(names), len(seeds)
    total = math.fsum(map(math.fsum, values)) / (a * b)
    of_rows = [math.fsum(row) / b for row in values]
    of_columns = [math.fsum(column) / a for column in zip(*values, strict=True)]
    rows = b * math.fsum((mean - total) ** 2 for mean in of_rows) / (a - 1)
    columns = a * math.fsum((mean - total) ** 2 for mean in of_columns) / (b - 1)
    rest = math.fsum((values[i][j] - of_rows[i] - of_columns[j] + total) ** 2 for i in range(a) for j in range(b)) / (
        (a - 1) * (b - 1)
    )
    return Components(max(0.0, (rows - rest) / b), max(0.0, (columns - rest) / a), rest, a, b)


def suite_of(records: Sequence[Record], method: str, model: str) -> dict[str, Any]:
    """A suite that trains every policy of `method` on `model` again, from all seeds. Raises ValueError for none."""
    own = [r for r in records if (r.spec["method"]["name"], r.spec["model"]["name"]) == (method, model)]
    chosen = [record for record in own if record.status == "ok"]
    ceilings = sorted({record.spec["ceiling_bops"] for record in chosen})
    if not chosen or len(ceilings) != 1:
        raise ValueError(f"{len(chosen)} ok records of {method} on {model} at {len(ceilings)} ceilings; one is needed")
    spec = chosen[0].spec
    ordered = sorted(chosen, key=lambda record: (record.spec["seed"], record.spec["draw"]))
    rows = [
        {"name": "given", "label": _label(record.spec), "options": {"policy": record.result["policy"]}}
        for record in ordered
    ]
    kept = {key: spec[key] for key in ("data", "pretraining", "space", "quantizer", "recipe") if spec[key] is not None}
    return {
        "suite": f"retraining-{method}-{model}".replace("_", "-"),
        "description": f"Every policy that {method} chose on {model}, trained again from every seed.",
        **kept,
        "models": [spec["model"]],
        "ceilings": ceilings,
        "methods": ["float", *rows],
        "seeds": sorted({record.spec["seed"] for record in chosen}),
        "compute": {"epochs": spec["compute"]["epochs"]},
    }


def _label(spec: Mapping[str, Any]) -> str:
    return f"policy of seed {spec['seed']}" + (f" draw {spec['draw']}" if spec["draw"] else "")


def lines(records: Sequence[Record]) -> list[str]:
    """The split of the variance, for people."""
    table: dict[str, dict[int, float]] = {}
    for record in records:
        if record.status == "ok" and record.spec["method"]["name"] == "given":
            policy = yaml.safe_dump(record.spec["method"]["options"])
            table.setdefault(policy, {})[record.spec["seed"]] = record.result["metrics"]["test_accuracy"]
    found = components(table)
    whole = found.policies + found.seeds + found.rest
    names = ("policies (the search)", "seeds (start and data order)", "the rest")
    parts = zip(names, (found.policies, found.seeds, found.rest), strict=True)
    head = [f"{found.rows} policies x {found.columns} seeds; standard deviations in points, shares of the variance"]
    return head + [f"{name}: {percent(math.sqrt(v))} points, {percent(v / whole, 0)} %" for name, v in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    suite, table = commands.add_parser("suite"), commands.add_parser("table")
    for command in (suite, table):
        command.add_argument("records", type=Path)
    suite.add_argument("--method", required=True)
    suite.add_argument("--model", required=True)
    arguments = parser.parse_args()
    records = list(Records(arguments.records))
    try:
        if arguments.command == "table":
            print("\n".join(lines(records)))
        else:
            yaml.safe_dump(suite_of(records, arguments.method, arguments.model), sys.stdout, sort_keys=False)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
