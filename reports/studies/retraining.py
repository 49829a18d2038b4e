"""How much of a method's spread over seeds is its search and how much is training.

`python -m reports.studies.retraining`

`suite RECORDS --method M --model N [--ceiling BOPS]` writes a suite, to standard output, in which every policy that the
method chose is trained again from every seed (`given`), for as many epochs as the search left. `table RECORDS
--searched RECORDS --method M`, of that suite's records and of those that it was written from, splits the variance of
the accuracy; a policy that several searches chose counts as often.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.records.record import Record
from benchmarks.suites.spec import canonical_json
from reports.numbers.display import percent
from reports.studies.reading import records_at


@dataclass(frozen=True)
class Components:
    """Variances of accuracy: between searches' policies, between seeds, and what is left. Negative estimates are 0."""

    policies: float
    seeds: float
    rest: float
    rows: int
    columns: int
    searches: int


def components(table: Mapping[str, Mapping[int, float]], times: Mapping[str, int] | None = None) -> Components:
    """Two-way random effects without replication, by mean squares: row (policy) -> seed -> accuracy.

    E[MS of rows] = rest + columns · rows' variance, E[MS of columns] = rest + rows · columns' variance, E[MS of the
    rest] = rest (Searle, Casella and McCulloch 1992). times: how many searches chose a row, w, 1 where it is not said.
    Over n = Σ w searches the variance of rows' means, Σ w (m - m̄)² / (n - 1), has that of policies in it and
    (n - Σ w² / n) / (n - 1) · rest / columns, which for w = 1 is the first equation. Raises ValueError unless all rows
    have the same seeds, at least two, and there are two rows.
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
    weights = [(times or {}).get(name, 1) for name in names]
    searches = sum(weights)
    centre = math.fsum(w * mean for w, mean in zip(weights, of_rows, strict=True)) / searches
    spread = math.fsum(w * (mean - centre) ** 2 for w, mean in zip(weights, of_rows, strict=True)) / (searches - 1)
    noisy = (searches - sum(w * w for w in weights) / searches) / (searches - 1)
    columns = a * math.fsum((mean - total) ** 2 for mean in of_columns) / (b - 1)
    rest = math.fsum((values[i][j] - of_rows[i] - of_columns[j] + total) ** 2 for i in range(a) for j in range(b)) / (
        (a - 1) * (b - 1)
    )
    return Components(max(0.0, spread - noisy * rest / b), max(0.0, (columns - rest) / a), rest, a, b, searches)


def suite_of(records: Sequence[Record], method: str, model: str, ceiling: int | None = None) -> dict[str, Any]:
    """A suite that trains every policy of `method` on `model` again, from all seeds; policies that are alike once.

    ceiling: BOPs, where the records have several. Raises ValueError unless there are ok records of one kind: the same
    options, ceiling, data and recipe.
    """
    own = [r for r in records if (r.spec["method"]["name"], r.spec["model"]["name"]) == (method, model)]
    ceilings = sorted({r.spec["ceiling_bops"] for r in own})
    if ceiling is None and len(ceilings) > 1:
        raise ValueError(
            f"{method} on {model} has several ceilings: choose by --ceiling {' or '.join(map(str, ceilings))}"
        )
    own = [r for r in own if ceiling in (None, r.spec["ceiling_bops"])]
    chosen = sorted((r for r in own if r.status == "ok"), key=lambda r: (r.spec["seed"], r.spec["draw"]))
    kinds = {canonical_json({k: v for k, v in r.spec.items() if k not in ("seed", "draw")}) for r in chosen}
    if len(kinds) != 1:
        raise ValueError(f"{len(chosen)} ok records of {method} on {model}, of {len(kinds)} kinds; one kind is needed")
    named: dict[str, list[Record]] = {}
    for record in chosen:
        named.setdefault(canonical_json(record.result["policy"]), []).append(record)
    description = f"Every policy that {method} chose on {model}, trained again from every seed."
    rows = [_row(same[0].result["policy"], _label(same)) for same in named.values()]
    name = f"retraining-{method}-{model}".replace("_", "-")
    return _suite(name, description, chosen, rows, statistics.median(map(_finetuned, chosen)))


def suite_again(records: Sequence[Record], name: str) -> dict[str, Any]:
    """The suite that records of given policies are of. Raises ValueError where there are none."""
    given = sorted(given_of(records), key=lambda record: record.spec["seed"])
    if not given:
        raise ValueError(f"{name}: no ok records of given policies")
    policies = {canonical_json(p): p for record in given if (p := record.spec["method"]["options"]["policy"])}
    rows = [_row(policy, f"policy {number}") for number, (_, policy) in enumerate(sorted(policies.items()), 1)]
    return _suite(name, "Policies of one search, each trained again from every seed.", given, rows)


def _suite(
    name: str, description: str, records: Sequence[Record], rows: list[dict[str, Any]], epochs: float | None = None
) -> dict[str, Any]:
    """A suite of these rows over the records' seeds, of their network, data and recipe. epochs: None for theirs."""
    spec = records[0].spec
    kept = {key: spec[key] for key in ("data", "space", "quantizer", "recipe")}
    return {
        "suite": name,
        "description": description,
        **kept,
        "pretraining": spec["pretraining"] or {"epochs": 1, "recipe": spec["recipe"]},  # published weights need none
        **({"teacher": spec["teacher"]["model"]} if spec.get("teacher") else {}),
        "models": [spec["model"]],
        "ceilings": [spec["ceiling_bops"]],
        "methods": ["float", *rows],
        "seeds": sorted({record.spec["seed"] for record in records}),
        "compute": {"epochs": spec["compute"]["epochs"] if epochs is None else epochs},
    }


def _row(policy: Any, label: str) -> dict[str, Any]:
    return {"name": "given", "label": label, "options": {"policy": policy}}


def _finetuned(record: Record) -> float:
    """Recipe epochs of fine-tuning that the search left."""
    account = record.result["account"]
    return float(sum(p["macs"] for p in account["phases"] if p["name"] == "finetune") / account["epoch_macs"])


def _label(same: Sequence[Record]) -> str:
    """`policy of seed 0 draw 1, seed 3`"""
    parts = [f"seed {r.spec['seed']}" + (f" draw {r.spec['draw']}" if r.spec["draw"] else "") for r in same]
    return f"policy of {', '.join(parts)}"


def lines(records: Sequence[Record], searched: Sequence[Record] = (), method: str = "") -> list[str]:
    """The split of the variance, for people. Raises ValueError for records of several networks, ceilings or recipes.

    searched, method: the records and the method that the policies are of; without them each policy counts once.
    """
    found = split(records, searched, method)
    chosen = f" that {found.searches} searches chose" if searched else ""
    head = f"{found.rows} policies{chosen} x {found.columns} seeds"
    return [
        f"{head}; standard deviations in points, shares of the variance",
        *(f"{name}: {percent(deviation)} points, {percent(share, 0)} %" for name, deviation, share in parts(found)),
    ]


def split(records: Sequence[Record], searched: Sequence[Record] = (), method: str = "") -> Components:
    """`components` of the ok records of given policies; as `lines`."""
    given = given_of(records)
    kinds = {canonical_json({k: v for k, v in r.spec.items() if k not in ("seed", "method")}) for r in given}
    if len(kinds) > 1:
        raise ValueError(f"records of {len(kinds)} networks, ceilings or recipes; give those of one suite")
    table: dict[str, dict[int, float]] = {}
    for record in given:
        policy = canonical_json(record.spec["method"]["options"])
        table.setdefault(policy, {})[record.spec["seed"]] = record.result["metrics"]["test_accuracy"]
    return components(table, _times(given, searched, method) if searched else None)


def given_of(records: Sequence[Record]) -> list[Record]:
    """The ok records of policies that were given."""
    return [record for record in records if record.status == "ok" and record.spec["method"]["name"] == "given"]


def parts(found: Components) -> list[tuple[str, float, float]]:
    """What the variance is made of: its name, standard deviation (accuracy in 0..1) and share of the variance."""
    whole = found.policies + found.seeds + found.rest or 1.0
    named = {"policies (the search)": found.policies, "seeds (start and data order)": found.seeds}
    return [(name, math.sqrt(v), v / whole) for name, v in {**named, "the rest": found.rest}.items()]


def _times(given: Sequence[Record], searched: Sequence[Record], method: str) -> dict[str, int]:
    """Options of a given policy -> how many searches of `method` at its ceiling chose it. Raises ValueError if none."""
    cell = {(canonical_json(r.spec["model"]), r.spec["ceiling_bops"]) for r in given}
    own = [r for r in searched if r.status == "ok" and r.spec["method"]["name"] == method]
    own = [r for r in own if (canonical_json(r.spec["model"]), r.spec["ceiling_bops"]) in cell]
    chosen = Counter(canonical_json(r.result["policy"]) for r in own)
    times = {
        canonical_json(r.spec["method"]["options"]): chosen[canonical_json(r.spec["method"]["options"]["policy"])]
        for r in given
    }
    if 0 in times.values():
        raise ValueError(f"the searched records have no ok run of {method or 'no --method'} with one of these policies")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writes, splits = commands.add_parser("suite"), commands.add_parser("table")
    for command in (writes, splits):
        command.add_argument("records", type=Path, help="an archive or a folder of records")
    writes.add_argument("--method", required=True)
    splits.add_argument("--method", default="", help="whose policies they are")
    splits.add_argument("--searched", type=Path, help="records that the suite was written from")
    writes.add_argument("--model", required=True)
    writes.add_argument("--ceiling", type=int, help="BOPs, where the records have several ceilings")
    arguments = parser.parse_args()
    records = records_at(arguments.records, parser)
    try:
        if arguments.command == "table":
            searched = records_at(arguments.searched, parser) if arguments.searched else []
            print("\n".join(lines(records, searched, arguments.method)))
        else:
            suite = suite_of(records, arguments.method, arguments.model, arguments.ceiling)
            yaml.safe_dump(suite, sys.stdout, sort_keys=False)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
