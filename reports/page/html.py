"""The report as one self-contained page: figures embedded, nothing fetched, every name escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.suites.spec import PROTOCOL
from methods.quantization.cost import CONVENTIONS
from reports.findings.account import Entry, account_of
from reports.findings.across import READING as ACROSS_READING
from reports.findings.across import across_tables
from reports.findings.agreement import READING as AGREEMENT_READING
from reports.findings.agreement import agreement_table
from reports.findings.comparison import STATE_WORDS, Comparison, Outcome
from reports.findings.disputes import READING as DISPUTES_READING
from reports.findings.disputes import disputes_table
from reports.findings.fronts import READING as FRONTS_READING
from reports.findings.fronts import fronts_table
from reports.findings.phases import phases_table, starts_table
from reports.findings.provenance import commits_of, environments
from reports.findings.strips import COLOURS, strips_of
from reports.findings.summary import ENOUGH_SEEDS, Summary, comparisons_called
from reports.findings.tables import READING, Row, Table, summary_tables
from reports.numbers import display
from reports.page.bars import bars_of, colours_of
from reports.page.explorer import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, explorers
from reports.page.sheets import BESIDE
from reports.verification.claims import READING as CLAIMS_READING
from reports.verification.claims import claims_tables

STAYS_FLOAT = (
    "residual additions",
    "squeeze-and-excitation multiplications",
    "pooling",
    "batch normalization",
    "activation functions",
)

CONVENTION_WORDS = {
    "edges8": "every layer at the bits it runs with, first and last at 8×8: ceilings and rankings use this one",
    "inner": "first and last layer left out",
    "edges4": "first and last layer counted at 4×4 although they run at 8×8",
    "edges32": "first and last layer counted as float, 32×32",
}

FREE_SEARCH = (
    "Searches are free here, as in most papers: what they spend is counted, and fine-tuning gets the whole grant all "
    "the same, so that searching rows have more compute than the others."
)

SHOWN = ("pareto.png", "profile.png", "attainment.png", "curves.png")

DPI = 200

STRIPS_OPEN = 24
"""Up to so many strips of one network are shown unfolded."""

LONGEST_REPORT = 4000
"""Characters of a method's own report that the page shows; the record holds all."""


def render(comparison: Comparison, summaries: Sequence[Summary], pictures: Mapping[str, bytes], caption: str) -> str:
    """The page. pictures: SHOWN by file name, as far as drawn; `caption` explains the bars of `pareto.png`."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    script = (folder / "page.js").read_text(encoding="utf-8")
    return template.render(
        _context(comparison, summaries),
        css=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}",
        pictures={name: _embedded(pictures[name]) for name in SHOWN if name in pictures},
        caption=caption,
    )


def _embedded(png: bytes) -> dict[str, Any]:
    """A PNG as text, and how wide it is shown: a third wider than on paper."""
    pixels = int.from_bytes(png[16:20], "big")
    return {"data": base64.b64encode(png).decode(), "width": round(pixels * 128 / DPI)}


def _context(comparison: Comparison, summaries: Sequence[Summary]) -> dict[str, Any]:
    records = [outcome.record for outcome in comparison.outcomes if outcome.record]
    suite = comparison.plan.suite
    return {
        "suite": suite,
        "protocol": PROTOCOL,
        "counts": _counts(comparison),
        "standing": standing(comparison, summaries),
        "free_search": FREE_SEARCH if suite.compute.protocol == "free-search" else "",
        "reading": READING,
        "wrapped": {"Verdict", "Read from", "Source", *ACCOUNT_WORDS},
        "tables": summary_tables(comparison, summaries),
        "beside": beside_table(summaries),
        "across": across_tables(comparison),
        "across_reading": ACROSS_READING,
        "fronts": fronts_table(comparison),
        "fronts_reading": FRONTS_READING,
        "claims": claims_tables(comparison),
        "claims_reading": CLAIMS_READING,
        "agreement": agreement_table(comparison),
        "agreement_reading": AGREEMENT_READING,
        "absent": absent(comparison),
        "disputes": disputes_table(comparison),
        "disputes_reading": DISPUTES_READING,
        "warnings": comparison.warnings,
        "strips": {model: strips_of(comparison, model) for model in comparison.models},
        "strips_open": STRIPS_OPEN,
        "colours": COLOURS,
        "accounts": account_table(comparison),
        "bars": bars_of(comparison),
        "bar_colours": colours_of(comparison),
        "phases": phases_table(comparison),
        "starts": starts_table(comparison),
        "explorers": explorers(comparison),
        "frame": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "bops": bops_table(summaries),
        "conventions": {name: CONVENTION_WORDS.get(name, "") for name in CONVENTIONS},
        "stays_float": STAYS_FLOAT,
        "audit": audit_line(comparison),
        "environments": environments(records),
        "commits": commits_of(records),
        "searches": _searches(comparison),
        "resolved": json.dumps(suite.model_dump(mode="json"), indent=1, ensure_ascii=False),
    }


def _counts(comparison: Comparison) -> list[tuple[str, int]]:
    states = [outcome.state for outcome in comparison.outcomes]
    return [(words, states.count(state)) for state, words in STATE_WORDS.items() if state in states]


def standing(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    """One sentence on what this table can bear."""
    most = max((len(summary.cell.accuracies) for summary in summaries), default=0)
    if most == 0:
        return "There are no results yet."
    if most == 1:
        return "One seed per cell: no ranking. Differences between rows may be nothing but chance."
    if most < ENOUGH_SEEDS:
        return f"Fewer than {ENOUGH_SEEDS} seeds per cell: nothing here is called a difference."
    tests = comparisons_called(tuple(summaries))
    if tests == 0:
        return "No row has enough seeds in common with uniform LSQ: nothing here is called a difference."
    return (
        f"{display.count(tests, 'paired difference')} to uniform LSQ held against zero at 95 %, one by one and not "
        f"corrected for their number: about {tests * 0.05:.1f} of them would be called a difference if there were none."
    )


def absent(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Trial, state, reason and traceback of everything that is not ok."""
    return [
        (outcome.trial.label, STATE_WORDS[outcome.state], outcome.reason, _traceback(outcome))
        for outcome in comparison.outcomes
        if not outcome.ok
    ]


def _traceback(outcome: Outcome) -> str:
    return str(outcome.observed.get("traceback") or "")


ACCOUNT_WORDS = ("Trial", "Spent by phase, MACs", "Shown, not charged, MACs")
ACCOUNT_NUMBERS = (
    "Granted, epochs",
    "Search, epochs",
    "Fine-tuning, epochs",
    "Spent, epochs",
    "Search, time",
    "Fine-tuning, time",
    "In all, time",
    "Peak memory",
)


def account_table(comparison: Comparison) -> Table:
    """Per trial: compute granted and spent in recipe epochs, time and memory beside, then MACs by phase."""
    rows = [row for outcome in comparison.outcomes if (row := _account_row(outcome))]
    return Table((ACCOUNT_WORDS[0], *ACCOUNT_NUMBERS, *ACCOUNT_WORDS[1:]), tuple(rows), frozenset(ACCOUNT_NUMBERS))


def _account_row(outcome: Outcome) -> Row | None:
    account = account_of(outcome)
    if account is None:
        return None
    seconds = outcome.observed.get("seconds") or {}
    by_phase = outcome.observed.get("phase_seconds") or {}
    phases = [_phase_text(entry, by_phase.get(entry.name)) for entry in account.phases]
    spent = (account.granted_epochs, account.epochs_of("search"), account.epochs_of("finetune"), account.spent_epochs)
    cells = (
        outcome.trial.label + (" · search stopped" if outcome.search_stopped else ""),
        *map(display.epochs, spent),
        *(display.unbroken(display.duration(seconds.get(part))) for part in ("search", "finetune", "total")),
        _memory_text(outcome),
        "; ".join(phases),
        ", ".join(f"{entry.name} {display.scaled(entry.macs)} for {entry.images:,} images" for entry in account.shown),
    )
    return Row(cells)


def _memory_text(outcome: Outcome) -> str:
    """`2.10 GiB`, with `, GPU 5.30 GiB` behind it where the trial had one."""
    text = display.unbroken(display.size(outcome.observed.get("peak_memory_bytes")))
    gpu = outcome.observed.get("peak_gpu_memory_bytes")
    return text if gpu is None else f"{text}, {display.unbroken(f'GPU {display.size(gpu)}')}"


def _phase_text(entry: Entry, seconds: float | None) -> str:
    """`search/hessian 1.50 G in 10 steps, 640 images, 0.75 epochs, 3.1 s, the teacher 0.20 G of it`"""
    parts = [f"{entry.name} {display.scaled(entry.macs)} in {entry.steps} steps", f"{entry.images:,} images"]
    parts.append(f"{display.epochs(entry.epochs)} epochs")
    if seconds is not None:
        parts.append(display.duration(seconds))
    if entry.teacher_macs:
        parts.append(f"the teacher {display.scaled(entry.teacher_macs)} of it")
    return ", ".join(parts)


def bops_table(summaries: Sequence[Summary]) -> Table:
    """Per cell: means of the BOPs under every convention, the ceiling and the weight bytes."""
    header = ("Network", "Ceiling", "Method", "Ceiling, GBOPs", *(f"{name}, GBOPs" for name in CONVENTIONS), "Weights")
    quantized = [summary.cell for summary in summaries if summary.cell.ok and not summary.cell.is_float]
    rows = tuple(
        (
            cell.model,
            cell.ceiling,
            cell.row,
            display.gbops(cell.outcomes[0].trial.spec.ceiling_bops),
            *(display.gbops(cell.mean(lambda o, name=name: o.cost["bops"].get(name))) for name in CONVENTIONS),  # type: ignore[misc]
            display.size(cell.mean(lambda o: o.cost.get("weight_bytes"))),
        )
        for cell in quantized
    )
    return Table(header, tuple(map(Row, rows)), frozenset(header[3:]))


def beside_table(summaries: Sequence[Summary]) -> Table:
    """Means over seeds of what some suites measure beside the test accuracy; nothing is ranked by it."""
    header = ("Network", "Ceiling", "Method", "Best validation on the way, %", "Test top-5, %")
    rows = []
    for cell in (summary.cell for summary in summaries):
        found = [cell.mean(lambda o, name=name: o.metrics.get(name)) for name in BESIDE]  # type: ignore[misc]
        if any(value is not None for value in found):
            texts = (display.NOTHING if value is None else display.percent(value) for value in found)
            rows.append(Row((cell.model, cell.ceiling, cell.row, *texts)))
    return Table(header, tuple(rows), frozenset(header[3:]))


def audit_line(comparison: Comparison) -> str:
    """What the audits found: every tensor's codes against the bits promised for it."""
    audits = [row for outcome in comparison.outcomes if outcome.ok for row in outcome.result.get("audit") or ()]
    if not audits:
        return "No audit of codes is recorded."
    wide = sum(row["levels"] > 2 ** row["bits"] for row in audits)
    found = f"{wide} hold more codes than their bits allow" if wide else "none holds more codes than its bits allow"
    return f"Codes of {len(audits):,} tensors were counted in the final networks; {found}."


def _searches(comparison: Comparison) -> list[tuple[str, str]]:
    """What each method says of its own search."""
    found = []
    for outcome in comparison.outcomes:
        if outcome.result.get("search"):
            text = json.dumps(outcome.result["search"], indent=1, ensure_ascii=False)
            cut = f"\n… {len(text) - LONGEST_REPORT:,} more characters in the record"
            found.append((outcome.trial.label, text if len(text) <= LONGEST_REPORT else text[:LONGEST_REPORT] + cut))
    return found
