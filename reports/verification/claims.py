"""Published numbers, and what measured ones say to them. The numbers stand in reports/claims/*.yaml, one entry each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from benchmarks.messages import SuiteError, explain, unknown
from benchmarks.planning import ceiling_bops
from benchmarks.suites.spec import Config
from benchmarks.suites.suite import Suite, load_suite, suite_names
from methods.quantization.cost import CONVENTIONS
from reports.findings.comparison import Comparison
from reports.findings.tables import Row, Table
from reports.numbers.display import NOTHING, gbops, interval, percent
from reports.numbers.statistics import NO_SPREAD, TWO_SAMPLES, Interval, prediction_interval, wilson_interval

FOLDER = Path(__file__).parent
FLOAT_START = "float start"
IMAGENET_CLASSES = 1000
OURS, UNSTATED = "edges8", "unstated"
"""Conventions: that of ceilings and rankings, and that of a source which does not say how it counts."""

IMITATED = ("data", "weights", "teacher", "pretraining", "space", "quantizer", "recipe", "compute")

Status = Literal["reproduced", "not reproduced", "suspiciously better", "not run"]
FAILED: tuple[Status, ...] = ("not reproduced", "suspiciously better")

READING = (
    "A claim that names this suite is set against the cell that imitates it: reproduced if the published number "
    "lies in the 95 % prediction interval of one further run of ours, suspiciously better or not reproduced if it "
    "lies below or above; a float start is held to a tolerance instead. Everything else is context: other "
    "recipes, starts or counts. Published GBOPs are as their authors count, under the convention that stands beside; "
    "of uniform widths ours (edges8) stand there too, of mixed ones only where they were counted so."
)


class Claim(Config):
    """One published number.

    top1: percent. bits: `w4a4` for one width everywhere, else in words. gbops: as published; convention: how they are
    counted, `unstated` where the source does not say. start: what training began from, where it is known. source: who
    published it; read: where and how it was read. suite, row, ceiling: the cell that imitates its recipe. tolerance:
    points, in place of a prediction interval.
    """

    id: str
    method: str
    network: str
    top1: float = Field(ge=0, le=100)
    bits: str = "float"
    gbops: float | None = Field(None, gt=0)
    convention: str = ""
    start: str = ""
    source: str
    read: str
    suite: str | None = None
    row: str = ""
    ceiling: str = ""
    tolerance: float | None = Field(None, gt=0)

    @field_validator("convention")
    @classmethod
    def _known(cls, convention: str) -> str:
        if convention not in (known := ["", *CONVENTIONS, UNSTATED]):
            raise ValueError(unknown("convention", convention, known[1:]))
        return convention

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.gbops is None) != (self.convention == ""):
            raise ValueError(f"claim {self.id}: published gbops need the convention they are counted under")
        if self.suite is not None and not self.row:
            raise ValueError(f"claim {self.id} names the suite {self.suite} but no row of it")
        return self


@dataclass(frozen=True)
class Verdict:
    """What measurements say to one claim. measured: mean accuracy, 0..1; runs: its number of seeds."""

    claim: Claim
    status: Status
    why: str
    measured: float | None = None
    runs: int = 0
    expected: Interval | None = None


@cache
def published(folder: Path = FOLDER) -> tuple[Claim, ...]:
    """Every claim there is. Raises SuiteError naming the file and entry that is wrong."""
    claims: list[Claim] = []
    for path in sorted(folder.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
            try:
                claims.append(Claim.model_validate(entry))
            except ValidationError as error:
                raise SuiteError(f"{path.name}, {entry.get('id', 'an entry')}: {explain(error, Claim)}") from None
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise SuiteError(f"{folder}: several claims are called {', '.join(twice)}")
    return tuple(claims)


def judged(comparison: Comparison, claims: Iterable[Claim]) -> list[Verdict]:
    """Verdicts on the claims that name this suite and one of its networks."""
    suite = comparison.plan.suite
    named = [claim for claim in claims if claim.suite == suite.suite and claim.network in comparison.models]
    return [_judge(comparison, claim) for claim in named]


def changed_keys(suite: Suite, claim: Claim) -> list[str]:
    """What of a claim's cell differs from the shipped suite of its name: then it imitates nothing."""
    if suite.suite not in suite_names():
        return []
    shipped = load_suite(suite.suite)
    changed = [key for key in IMITATED if getattr(shipped, key) != getattr(suite, key)]
    networks = [{model.name: model for model in each.models}.get(claim.network) for each in (shipped, suite)]
    rows = [{entry.row: entry for entry in each.methods}.get(claim.row) for each in (shipped, suite)]
    changed += ["models"] if networks[0] != networks[1] else []
    return changed + (["methods"] if None not in rows and rows[0] != rows[1] else [])


def context(comparison: Comparison, claims: Iterable[Claim]) -> list[Claim]:
    """Published numbers for networks and data of this suite that it does not imitate."""
    suite = comparison.plan.suite
    published_form = [model for model in suite.models if model.width == 1 and model.form == "imagenet"]
    networks = {model.name for model in published_form if suite.data.classes == IMAGENET_CLASSES}
    return [claim for claim in claims if claim.suite != suite.suite and claim.network in networks]


def _judge(comparison: Comparison, claim: Claim) -> Verdict:
    if changed := changed_keys(comparison.plan.suite, claim):
        return Verdict(claim, "not run", f"not the suite as shipped: {', '.join(changed)} differ")
    if claim.ceiling and claim.convention not in ("", OURS, UNSTATED):
        return Verdict(
            claim, "not run", f"not comparable: BOPs counted under {claim.convention}, ceilings under {OURS}"
        )
    found = _measured(comparison, claim)
    if isinstance(found, tuple):
        return Verdict(claim, *found)
    values = list(found.values())
    mean, wanted = sum(values) / len(values), claim.top1 / 100
    if claim.tolerance is not None:
        expected = Interval(mean - claim.tolerance / 100, mean + claim.tolerance / 100)
    elif (predicted := prediction_interval(values)) is not None:
        expected = wider(predicted, mean, _images(comparison, claim))
    else:
        return Verdict(claim, "not run", "one seed gives no prediction interval", mean, 1)
    why = f"if its BOPs are counted under {OURS}: unstated" if claim.ceiling and claim.convention == UNSTATED else ""
    if wanted in expected:
        return Verdict(claim, "reproduced", why, mean, len(values), expected)
    status: Status = "not reproduced" if wanted > expected.high else "suspiciously better"
    return Verdict(claim, status, why, mean, len(values), expected)


def _measured(comparison: Comparison, claim: Claim) -> Mapping[int, float] | tuple[Status, str]:
    """Seed -> accuracy of the cell that the claim names, or the verdict where there is none, and why."""
    if claim.row == FLOAT_START:
        return comparison.start_accuracies(claim.network) or ("not run", "no trial of this network is there yet")
    cells = [c for c in comparison.of(claim.network) if c.row == claim.row and claim.ceiling in ("", c.ceiling)]
    if len(cells) != 1:
        return "not run", f"{len(cells) or 'no'} cells are called {claim.row} at {claim.ceiling or 'any ceiling'}"
    cell = cells[0]
    if not cell.judged:
        return "not run", f"{len(cell.ok)} of {len(cell.outcomes)} runs are there"
    if cell.worst:
        return "not reproduced", f"{cell.worst} of {len(cell.outcomes)} runs failed or are over the ceiling"
    return cell.accuracies


def wider(predicted: Interval, mean: float, images: int) -> Interval:
    """The prediction interval within 0..1; where all runs are alike, how far two samples of test images lie apart."""
    return wilson_interval(mean, images, TWO_SAMPLES) if predicted.width < NO_SPREAD else predicted.of_shares()


def _images(comparison: Comparison, claim: Claim) -> int:
    return next(int(o.metrics["test_images"]) for cell in comparison.of(claim.network) for o in cell.ok)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    header = ("Claim", "Published, %", "Measured, %", "Seeds", "Verdict", "Source", "Read from")
    rows = []
    for verdict in verdicts:
        measured = NOTHING
        if verdict.measured is not None:
            measured = percent(verdict.measured) + interval(verdict.expected)
        status = f"{verdict.status}: {verdict.why}" if verdict.why else verdict.status
        claim = verdict.claim
        rows.append(
            Row((_name(claim), f"{claim.top1:.2f}", measured, str(verdict.runs), status, claim.source, claim.read))
        )
    return Table(header, tuple(rows), frozenset(header[1:4]))


def context_table(comparison: Comparison, claims: Sequence[Claim]) -> Table:
    header = ("Context", "Published, %", "GBOPs, theirs", "GBOPs, edges8", "Counted", "Start", "Source", "Read from")
    rows = []
    for claim in claims:
        theirs = NOTHING if claim.gbops is None else f"{claim.gbops:g}"
        said = (claim.convention or NOTHING, claim.start or NOTHING, claim.source, claim.read)
        cells = (theirs, _ours(comparison, claim), *said)
        rows.append(Row((_name(claim), f"{claim.top1:.2f}", *cells)))
    return Table(header, tuple(rows), frozenset(header[1:4]))


def _name(claim: Claim) -> str:
    return f"{claim.method}, {claim.network}, {claim.bits}"


def _ours(comparison: Comparison, claim: Claim) -> str:
    """BOPs of the claim under our convention; `not comparable` where they are counted otherwise and cannot be anew."""
    if claim.bits == "float":
        return NOTHING
    if not re.fullmatch(r"w\da\d", claim.bits):
        return gbops(claim.gbops * 1e9) if claim.gbops and claim.convention == OURS else "not comparable"
    trial = next(trial for trial in comparison.plan.trials if trial.model == claim.network)
    return gbops(ceiling_bops(f"uniform:{claim.bits}", trial.spec.model, trial.ledger))


def claims_tables(comparison: Comparison) -> list[Table]:
    """Claims held against this suite, then the numbers that are context; tables without rows are left out."""
    verdicts = verdicts_table(judged(comparison, published()))
    others = context_table(comparison, context(comparison, published()))
    return [table for table in (verdicts, others) if table.rows]
