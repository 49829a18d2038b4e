"""Gathers a plan and its records into cells: network x ceiling x row, with every trial that was asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from benchmarks.planning import FLOAT_CEILING, Plan, Trial
from benchmarks.records.record import Record, RecordError, RecordSource
from benchmarks.suites.spec import digest
from benchmarks.suites.suite import ceiling_name
from reports.findings.provenance import (
    ComparisonError,
    check_comparable,
    older_records,
    provenance_warnings,
)
from reports.numbers.display import count

__all__ = ["Cell", "Comparison", "ComparisonError", "Outcome", "State", "gather"]

State = Literal["ok", "refused", "over_ceiling", "failed", "missing", "damaged"]

STATE_WORDS: dict[State, str] = {
    "ok": "ok",
    "refused": "refused",
    "over_ceiling": "over the ceiling",
    "failed": "failed",
    "missing": "missing",
    "damaged": "damaged record",
}

WORST: tuple[State, ...] = ("failed", "over_ceiling")
"""States that are a method's own fault: they count as an accuracy of 0, the worst there is, at the ceiling's BOPs."""


@dataclass(frozen=True)
class Outcome:
    """What became of one trial. reason: why it is not ok; record: None if missing or damaged."""

    trial: Trial
    state: State
    reason: str = ""
    record: Record | None = None

    @property
    def ok(self) -> bool:
        return self.state == "ok"

    @property
    def result(self) -> Mapping[str, Any]:
        return self.record.result if self.record else {}

    @property
    def observed(self) -> Mapping[str, Any]:
        return self.record.observed if self.record else {}

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.result.get("metrics") or {}

    @property
    def cost(self) -> Mapping[str, Any]:
        return self.result.get("cost") or {}

    @property
    def search(self) -> Mapping[str, Any]:
        return self.result.get("search") or {}

    @property
    def accuracy(self) -> float:
        return float(self.metrics["test_accuracy"])

    @property
    def bops(self) -> int | None:
        counted: int | None = self.cost.get("bops", {}).get("edges8")
        return counted

    @property
    def search_stopped(self) -> bool:
        return bool(self.result.get("search_stopped"))


@dataclass(frozen=True)
class Cell:
    """Every seed and draw of one row under one ceiling of one network."""

    model: str
    ceiling: str
    row: str
    outcomes: tuple[Outcome, ...]

    @property
    def method(self) -> str:
        return self.outcomes[0].trial.spec.method.name

    @property
    def is_float(self) -> bool:
        return self.ceiling == FLOAT_CEILING

    @cached_property
    def ok(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.ok)

    @property
    def complete(self) -> bool:
        return len(self.ok) == len(self.outcomes)

    @property
    def seeds_planned(self) -> int:
        return len({outcome.trial.spec.seed for outcome in self.outcomes})

    @property
    def draws(self) -> int:
        return len({outcome.trial.spec.draw for outcome in self.outcomes})

    def counts(self) -> Counter[State]:
        return Counter(outcome.state for outcome in self.outcomes)

    def by_seed(self, value: Callable[[Outcome], float | None]) -> dict[int, float]:
        """Seed -> mean of `value` over the seed's ok draws; seeds without one are left out."""
        found: dict[int, list[float]] = {}
        for outcome in self.ok:
            if (number := value(outcome)) is not None:
                found.setdefault(outcome.trial.spec.seed, []).append(number)
        return {seed: math.fsum(values) / len(values) for seed, values in found.items()}

    @cached_property
    def accuracies(self) -> dict[int, float]:
        return self.by_seed(lambda outcome: outcome.accuracy)

    @cached_property
    def starts(self) -> dict[int, frozenset[str]]:
        """Seed -> digests of the float weights that its ok trials started from; more than one is a fault."""
        digests = {(o.trial.spec.seed, o.observed.get("weights_digest")) for o in self.ok}
        return {seed: frozenset(str(own) for of, own in digests if of == seed and own) for seed, _ in digests}

    def paired_with(self, other: Cell) -> list[int]:
        """Seeds of both cells that started from the same float weights, as far as these are known."""
        known = ((seed, own, other.starts[seed]) for seed, own in self.starts.items() if seed in other.starts)
        return sorted(seed for seed, ours, theirs in known if not ours or not theirs or ours == theirs)

    @property
    def worst(self) -> int:
        """How many trials failed or are over the ceiling."""
        return sum(outcome.state in WORST for outcome in self.outcomes)

    @property
    def judged(self) -> bool:
        """Whether every trial is ok or counts as the worst there is: none missing, damaged or refused."""
        return all(outcome.ok or outcome.state in WORST for outcome in self.outcomes)

    def mean(self, value: Callable[[Outcome], float | None]) -> float | None:
        """Mean of `value` over seeds, draws averaged within their seed first."""
        values = self.by_seed(value).values()
        return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """All cells of a plan in the suite's order; ceiling `float` holds the float control that all ceilings share.

    disputed: other results of trials that have one; in no number of this report.
    """

    plan: Plan
    cells: tuple[Cell, ...]
    warnings: tuple[str, ...]
    disputed: tuple[Record, ...] = ()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(outcome for cell in self.cells for outcome in cell.outcomes)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row, in the suite's order."""
        order = _position(entry.row for entry in self.plan.suite.methods)
        return tuple(sorted({cell.row for cell in self.cells}, key=order))

    def of(self, model: str) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.model == model)

    def baseline(self, model: str, ceiling: str) -> Cell | None:
        """The uniform-LSQ cell that rows of this ceiling are compared with."""
        return _first(c for c in self.of(model) if c.ceiling == ceiling and c.method == "uniform-lsq")

    def chance(self, model: str, ceiling: str) -> Cell | None:
        """The cell of random policies at this ceiling: what a search has to beat."""
        return _first(c for c in self.of(model) if c.ceiling == ceiling and c.method == "random")

    def float_control(self, model: str) -> Cell | None:
        """The float network, fine-tuned with the recipe and compute that every row gets."""
        return _first(c for c in self.of(model) if c.is_float)

    def start_accuracies(self, model: str) -> dict[int, float]:
        """Seed -> test accuracy of the float network that every trial of the seed starts from."""
        found: dict[int, list[float]] = {}
        for outcome in self.outcomes:
            if outcome.ok and outcome.trial.model == model:
                found.setdefault(outcome.trial.spec.seed, []).append(float(outcome.metrics["start_test_accuracy"]))
        return {seed: math.fsum(values) / len(values) for seed, values in sorted(found.items())}


def gather(plan: Plan, records: RecordSource) -> Comparison:
    """Look up every trial of the plan. Raises ComparisonError where records cannot stand in one table."""
    outcomes = [_outcome(trial, records) for trial in plan.trials]
    found = [(outcome.trial, outcome.record) for outcome in outcomes if outcome.record]
    check_comparable(found)
    warnings = list(plan.warnings)
    if any(outcome.state == "missing" for outcome in outcomes):
        reasons, said = older_records(plan, records)
        outcomes = [
            replace(o, reason=reasons.get(o.trial.id, o.reason)) if o.state == "missing" else o for o in outcomes
        ]
        warnings += said
    warnings += [*provenance_warnings(found), *_result_warnings(outcomes)]
    counted = {record.id: record.result_digest for _, record in found}
    disputed = tuple(
        other for other in records.disputed() if counted.get(other.id, other.result_digest) != other.result_digest
    )
    if disputed:
        warnings.append(
            f"trials here have two results: {count(len(disputed), 'other one', 'other ones')} shown, not used"
        )
    return Comparison(plan, _cells(plan, outcomes), tuple(warnings), disputed)


def _outcome(trial: Trial, records: RecordSource) -> Outcome:
    try:
        record = records.get(trial.id)
    except RecordError as error:
        return Outcome(trial, "damaged", str(error))
    if record is None:
        return Outcome(trial, "missing", "no record yet")
    if problem := _bits_problem(record):
        return Outcome(trial, "damaged", f"record {record.id}: {problem}; move it away and run the suite again")
    if record.status != "ok":
        return Outcome(trial, record.status, _reason(record), record)
    if problem := _problem(trial, record):
        return Outcome(trial, "damaged", f"record {record.id}: {problem}; move it away and run the suite again")
    return Outcome(trial, "ok", "", record)


def _reason(record: Record) -> str:
    reason = record.result.get("reason")
    if isinstance(reason, Mapping):
        return f"{reason.get('type', 'Error')}: {reason.get('message', '')}"
    return str(reason) if reason else "no reason recorded"


def _problem(trial: Trial, record: Record) -> str | None:
    """What keeps an ok record's numbers from being used."""
    if record.spec.get("protocol", trial.spec.protocol) == trial.spec.protocol and digest(record.spec) != trial.id:
        return "its specification is not that of this trial"
    try:
        metrics = record.result["metrics"]
        for name in ("test_accuracy", "start_test_accuracy"):
            if not 0 <= metrics[name] <= 1:
                return f"metric {name} is {metrics[name]}, expected a number in 0..1"
        if not metrics["test_images"] >= 1 or not record.result["account"]["epoch_macs"] > 0:
            return "no test images, or recipe epochs of no MACs"
        if trial.spec.ceiling_bops is not None and not record.result["cost"]["bops"]["edges8"] > 0:
            return "no bit-operations"
    except (KeyError, TypeError) as error:
        return f"its result lacks something ({error!r})"
    return None


def _bits_problem(record: Record) -> str | None:
    """What keeps the bits per layer from being shown."""
    layers = record.result.get("layers") or ()
    if not isinstance(layers, list | tuple) or not all(isinstance(layer, Mapping) for layer in layers):
        return "its layers are no list of layers"
    for layer in layers:
        for name in ("weight_bits", "activation_bits"):
            bits = layer.get(name)
            if bits is not None and (type(bits) is not int or not 1 <= bits <= 32):
                return f"{name} of {layer.get('name', 'a layer')} is {bits!r}, expected a whole number in 1..32 or none"
    return None


def _cells(plan: Plan, outcomes: Iterable[Outcome]) -> tuple[Cell, ...]:
    grouped: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault((outcome.trial.model, outcome.trial.ceiling, outcome.trial.row), []).append(outcome)
    models = _position(model.name for model in plan.suite.models)
    ceilings = _position([FLOAT_CEILING, *map(ceiling_name, plan.suite.ceilings)])
    rows = _position(entry.row for entry in plan.suite.methods)
    keys = sorted(grouped, key=lambda key: (models(key[0]), ceilings(key[1]), rows(key[2])))
    return tuple(Cell(*key, tuple(sorted(grouped[key], key=_seed_and_draw))) for key in keys)


def _seed_and_draw(outcome: Outcome) -> tuple[int, int]:
    return outcome.trial.spec.seed, outcome.trial.spec.draw


def _result_warnings(outcomes: Iterable[Outcome]) -> list[str]:
    warnings = []
    for outcome in outcomes:
        if not outcome.ok:
            continue
        account = outcome.result["account"]
        charged = [p for p in account.get("phases", ()) if not account.get("free_search") or p["name"] == "finetune"]
        if sum(phase["macs"] for phase in charged) > account.get("granted_macs", math.inf):
            warnings.append(f"{outcome.trial.label}: spent more compute than it was granted")
        if wide := [row for row in outcome.result.get("audit") or () if row["levels"] > 2 ** row["bits"]]:
            warnings.append(f"{outcome.trial.label}: {len(wide)} tensors hold more codes than their bits allow")
    return warnings


def _position(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """A sort key: the order of `names`, then the alphabet for any other."""
    order = {name: index for index, name in enumerate(names)}
    return lambda name: (order.get(name, len(order)), name)


def _first(cells: Iterable[Cell]) -> Cell | None:
    return next(iter(cells), None)
