"""The report as Markdown: the page's content, for reading in a terminal or a repository."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports.findings.across import READING as ACROSS_READING
from reports.findings.across import across_tables
from reports.findings.agreement import READING as AGREEMENT_READING
from reports.findings.agreement import agreement_table
from reports.findings.comparison import Comparison
from reports.findings.disputes import READING as DISPUTES_READING
from reports.findings.disputes import disputes_table
from reports.findings.fronts import READING as FRONTS_READING
from reports.findings.fronts import fronts_table
from reports.findings.phases import phases_table, starts_table
from reports.findings.provenance import commits_of, environments
from reports.findings.summary import Summary
from reports.findings.tables import READING, Row, Table, escape_markdown, markdown, summary_tables
from reports.page.html import (
    CONVENTION_WORDS,
    FREE_SEARCH,
    STAYS_FLOAT,
    absent,
    account_table,
    audit_line,
    beside_table,
    bops_table,
    standing,
)
from reports.verification.claims import READING as CLAIMS_READING
from reports.verification.claims import claims_tables


def write(comparison: Comparison, summaries: Sequence[Summary], caption: str) -> str:
    """report.md; its pictures are the files beside it."""
    return "\n".join(
        [
            *_head(comparison, summaries),
            *_results(comparison, summaries, caption),
            *_across(comparison),
            *_fronts(comparison),
            *_claims(comparison),
            *_absent(comparison),
            *_disputes(comparison),
            *_list("Warnings", comparison.warnings),
            "## Bits per layer\n\n![Bits per layer](bits.png)\n",
            *_agreement(comparison),
            escape_markdown(audit_line(comparison)) + "\n",
            "## Compute account\n",
            *_phases(comparison),
            _filled(account_table(comparison), "No trial has left an account yet."),
            "![Training loss against compute spent](curves.png)\n",
            "## Bit-operations\n",
            *(f"- `{name}`: {words}" for name, words in CONVENTION_WORDS.items()),
            "",
            _filled(bops_table(summaries), "No policy has been counted yet."),
            f"What stays float and is in no count: {', '.join(STAYS_FLOAT)}.\n",
            *_environment(comparison),
            *_reproduce(comparison),
        ]
    )


def _head(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    suite = comparison.plan.suite
    ok = sum(outcome.ok for outcome in comparison.outcomes)
    return [
        f"# {escape_markdown(suite.suite)}\n",
        f"{escape_markdown(suite.description)}\n" if suite.description else "",
        f"{ok} of {len(comparison.outcomes)} trials ok. {standing(comparison, summaries)}\n",
        f"{FREE_SEARCH}\n" if suite.compute.protocol == "free-search" else "",
    ]


def _results(comparison: Comparison, summaries: Sequence[Summary], caption: str) -> list[str]:
    lines = ["## Results\n", f"![Bit-operations against test accuracy](pareto.png)\n\n{caption}\n"]
    for model, table in summary_tables(comparison, summaries).items():
        lines += [f"### {escape_markdown(model)}\n", markdown(table)]
    beside = beside_table(summaries)
    more = ["### Beside it, never ranked\n", markdown(beside)] if beside.rows else []
    return [*lines, f"{READING}\n", *more]


def _across(comparison: Comparison) -> list[str]:
    lines = []
    for title, table in across_tables(comparison).items():
        lines += [f"### {title}\n", markdown(table)]
    picture = "![Share of runs against points lost to the float control](profile.png)\n"
    return ["## Over all networks and ceilings\n", *lines, f"{ACROSS_READING}\n", picture] if lines else []


def _fronts(comparison: Comparison) -> list[str]:
    table = fronts_table(comparison)
    picture = "![Best accuracy with at most so many bit-operations](attainment.png)\n"
    return ["## Accuracy over bit-operations\n", markdown(table), f"{FRONTS_READING}\n", picture] if table.rows else []


def _claims(comparison: Comparison) -> list[str]:
    tables = [markdown(table) for table in claims_tables(comparison)]
    return ["## Published numbers\n", *tables, f"{CLAIMS_READING}\n"] if tables else []


def _agreement(comparison: Comparison) -> list[str]:
    table = agreement_table(comparison)
    heading = "### Agreement of policies between seeds\n"
    return [heading, markdown(table), f"{AGREEMENT_READING}\n"] if table.rows else []


def _phases(comparison: Comparison) -> list[str]:
    phases, starts = phases_table(comparison), starts_table(comparison)
    if not phases.rows:
        return []
    heads = ["### Phase by phase\n", "### Float pretraining, not charged\n", "### Trial by trial\n"]
    return [heads[0], markdown(phases), heads[1], markdown(starts), heads[2]]


def _absent(comparison: Comparison) -> list[str]:
    rows = tuple(Row((label, state, reason)) for label, state, reason, _ in absent(comparison))
    table = Table(("Trial", "State", "Reason"), rows)
    return ["## Missing, failed and refused\n", markdown(table)] if rows else []


def _disputes(comparison: Comparison) -> list[str]:
    table = disputes_table(comparison)
    return ["## Two results of one trial\n", markdown(table), f"{DISPUTES_READING}\n"] if table.rows else []


def _list(title: str, items: Iterable[str]) -> list[str]:
    lines = [f"- {escape_markdown(item)}" for item in items]
    return [f"## {title}\n", *lines, ""] if lines else []


def _filled(table: Table, empty: str) -> str:
    return markdown(table) if table.rows else f"{empty}\n"


def _environment(comparison: Comparison) -> list[str]:
    found = environments(outcome.record for outcome in comparison.outcomes if outcome.record)
    lines = []
    for key, values in found:
        texts = [f"{value} ({number} records)" if len(values) > 1 else value for value, number in values]
        lines.append(f"{key}: {'; '.join(texts)}")
    return _list("Environment", lines)


def _reproduce(comparison: Comparison) -> list[str]:
    commits = commits_of(outcome.record for outcome in comparison.outcomes if outcome.record)
    checkout = [f"git checkout {commits[0]}"] if len(commits) == 1 else []
    words = "In the checkout, with the folder of this file for `PATH/TO/REPORT`; `suite.yaml` lies beside it.\n"
    return [
        "## How to reproduce\n",
        "```",
        *checkout,
        "python runner.py --suite PATH/TO/REPORT/suite.yaml",
        "```\n",
        words,
    ]
