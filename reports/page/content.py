"""What a report says, told once: its sections in order, which `html` and `markdown` write.

To add a section, write a function that returns it and name the function in SECTIONS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from benchmarks.records.record import Record
from benchmarks.suites.spec import PROTOCOL
from benchmarks.suites.suite import Suite
from reports.findings import account, across, agreement, costs, disputes, fronts, phases, provenance, standing, tables
from reports.findings.comparison import Comparison
from reports.findings.strips import strips_of
from reports.findings.summary import Summary
from reports.numbers.display import count
from reports.page.bars import bars_of, colours_of
from reports.page.blocks import (
    FEW,
    PAGE_ONLY,
    Block,
    Content,
    Counts,
    Figure,
    Files,
    Fold,
    Grid,
    Heading,
    Listing,
    PageOnly,
    Preformatted,
    Prose,
    Section,
)
from reports.page.explorer import explorers
from reports.verification import claims

LONGEST_SEARCH = 4000
"""Characters of a method's own report that the page shows; the record holds all."""

FILES = {
    "index.html": "this report as a page",
    "report.md": "this report as Markdown",
    "table.csv": "a row per trial",
    "summary.csv": "a row per network, ceiling and method",
    "layers.csv": "a row per layer of a trial",
    "account.csv": "a row per phase of a trial",
    "agreement.csv": "a row per layer, with how far the policies of several seeds agree on it",
    "suite.yaml": "the suite as it was resolved",
    "table.tex": "the tables of results for LaTeX",
    "references.bib": "the literature that they cite",
    "pareto.pdf": "the figure of accuracy over bit-operations",
    "profile.pdf": "the performance profiles",
    "attainment.pdf": "the best accuracy within so many bit-operations",
    "curves.pdf": "the training losses",
    "bits.pdf": "the bits per layer",
}
"""What lies beside a report, as far as it was written."""


@dataclass(frozen=True)
class Material:
    """What sections are made from. caption: what the Pareto figure's bars are; files: those beside the report."""

    comparison: Comparison
    summaries: Sequence[Summary]
    caption: str
    files: Collection[str]

    @property
    def suite(self) -> Suite:
        return self.comparison.plan.suite

    @property
    def free_search(self) -> bool:
        return self.suite.compute.protocol == "free-search"


def content_of(
    comparison: Comparison, summaries: Sequence[Summary], caption: str = "", files: Collection[str] = ()
) -> Content:
    """The report as values; sections with nothing in them are left out."""
    material = Material(comparison, summaries, caption, files)
    sections = (section(material) for section in SECTIONS)
    return Content(material.suite.suite, _lead(material), tuple(section for section in sections if section))


def _lead(material: Material) -> tuple[Block, ...]:
    suite = material.suite
    said = standing.standing(material.comparison, material.summaries)
    about = suite.description or "Mixed-precision quantization methods under shared bit-operation and compute budgets."
    return (
        Prose(about),
        Prose(_setting(suite), role="note"),
        Counts(tuple(standing.ended(material.comparison))),
        Prose(f"{said} {standing.FREE_SEARCH}" if material.free_search else said, role="claim"),
    )


def _setting(suite: Suite) -> str:
    """Data, compute, widths and seeds in one line."""
    data = suite.data
    compute = f"{round(suite.compute.epochs, 2):g} recipe epochs of compute per trial"
    if suite.compute.protocol == "free-search":
        compute += ", searches not charged"
    if suite.teacher:
        compute += f", taught by {suite.teacher.name} x{suite.teacher.width:g}"
    weights, activations = ("/".join(map(str, widths)) for widths in (suite.space.weights, suite.space.activations))
    return " · ".join(
        [
            f"{getattr(data, 'preset', data.dataset)}, {data.image_size} pixels, {data.classes} classes",
            compute,
            f"weights {weights} bits, activations {activations} bits",
            f"seeds {', '.join(map(str, suite.seeds))}",
            f"protocol {PROTOCOL}",
        ]
    )


def _results(material: Material) -> Section:
    blocks: list[Block] = [
        Figure(
            "pareto",
            "Bit-operations against test accuracy, one panel per network; the same numbers stand in the table below.",
            f"{material.caption} Crowded marks move left, with their bars and labels; ticks at the foot show true "
            "BOPs; dotted verticals are the ceilings. Float start is the pretrained network as it is, float control "
            "the same network fine-tuned with the recipe and compute that every row gets.".lstrip(),
        ),
        PageOnly("filter"),
    ]
    shown = tables.summary_tables(material.comparison, material.summaries)
    for model, table in shown.items():
        blocks += [Heading(model), Grid(table, model)]
    blocks += [] if shown else [Prose("The suite has no trials.")]
    blocks.append(Prose(tables.READING, role="note"))
    beside = tables.beside_table(material.summaries)
    if beside.rows:
        title = "Also measured, never ranked: the best validation accuracy on the way, and top-5"
        blocks.append(Fold(title, (Grid(beside),)))
    return Section("results", "Results", tuple(blocks))


def _trials(material: Material) -> Section | None:
    drawn = explorers(material.comparison)
    if not drawn:
        return None
    how = (
        "A point is one trial; over a point, or with it in focus, its bits per layer stand below the figure. A click "
        "leads to its strip."
    )
    instead = Prose("On the page alone, as a figure with a point per trial; table.csv has the numbers.")
    return Section("trials", "Every trial", (PageOnly("explorer", (how, drawn), (instead,)),))


def _across(material: Material) -> Section | None:
    found = across.across_tables(material.comparison)
    if not found:
        return None
    blocks: list[Block] = []
    for title, table in found.items():
        blocks += [Heading(title), Grid(table)]
    profile = Figure(
        "profile",
        "Performance profiles: share of runs against points lost to the float control, a line per method.",
        "Performance profiles: of each method, the share of its runs over all networks, ceilings and seeds (draws of "
        "a seed averaged) that lose at most so many points to the float control of their seed. A line above another "
        "is better; lines that cross give no order.",
    )
    reading = Prose(across.READING, role="note")
    return Section("across", "Over all networks and ceilings", (*blocks, reading, profile), "Over all")


def _fronts(material: Material) -> Section | None:
    table = fronts.fronts_table(material.comparison)
    if not table.rows:
        return None
    attainment = Figure(
        "attainment",
        "Attainment: best accuracy with at most so many bit-operations, one panel per network.",
        "What each method attains with at most so many bit-operations: the median over seeds, and a band from the "
        "lowest to the highest seed.",
    )
    blocks = (Grid(table), Prose(fronts.READING, role="note"), attainment)
    return Section("fronts", "Accuracy over bit-operations", blocks)


def _claims(material: Material) -> Section | None:
    found = claims.claims_tables(material.comparison)
    blocks: tuple[Block, ...] = (*map(Grid, found), Prose(claims.READING, role="note"))
    return Section("claims", "Published numbers", blocks, "Published") if found else None


def _absent(material: Material) -> Section | None:
    table = standing.absent_table(material.comparison)
    if not table.rows:
        return None
    ranks = (
        "Failed trials and trials over their ceiling rank last; refused ones are not ranked; missing ones have yet to "
        "run."
    )
    blocks: list[Block] = [Prose(ranks, role="note"), Grid(table, plain=True)]
    blocks += [
        Fold(f"Traceback of {label}", (Preformatted(text),)) for label, text in standing.tracebacks(material.comparison)
    ]
    return Section("absent", "Missing, failed and refused", tuple(blocks), "Not ok")


def _disputes(material: Material) -> Section | None:
    table = disputes.disputes_table(material.comparison)
    blocks = (Grid(table), Prose(disputes.READING, role="note"))
    return Section("disputes", "Two results of one trial", blocks, "Two results") if table.rows else None


def _warnings(material: Material) -> Section | None:
    found = material.comparison.warnings
    return Section("warnings", "Warnings", (Listing(found, warning=True),)) if found else None


def _policies(material: Material) -> Section:
    strips = {model: strips_of(material.comparison, model) for model in material.comparison.models}
    blocks: list[Block] = [Prose("No trial has left a policy yet.")]
    if any(strips.values()):
        how = (
            "One strip per trial, layers in graph order: W weight bits, A bits of the layer's input. Hover over a "
            "layer for its name. Layers framed in orange are pinned at 8×8."
        )
        caption = "The first trial of each cell that is ok, layers in graph order; framed layers are pinned at 8×8."
        instead = Figure("bits", "Bits per layer, a line per cell.", caption)
        blocks = [PageOnly("strips", (how, strips), (instead,))]
    agreed = agreement.agreement_table(material.comparison)
    if agreed.rows:
        heading = Heading("Agreement of policies between seeds")
        blocks += [heading, Grid(agreed), Prose(agreement.READING, role="note")]
    blocks.append(Prose(standing.audit_line(material.comparison), role="note"))
    return Section("policies", "Bits per layer", tuple(blocks))


def _compute(material: Material) -> Section:
    charged = standing.FREE_SEARCH if material.free_search else "What a search spends, the fine-tuning does not get."
    blocks: list[Block] = [
        Prose(
            "Every trial is granted the same compute, measured in MACs and written in recipe epochs: one epoch is one "
            f"pass of this suite's fine-tuning over the training images. {charged} Evaluation, recalibration and float "
            "pretraining are shown, not charged. Elementwise work has no MACs, so time is shown as well."
        ),
        *_phases(material.comparison),
        *_accounts(material.comparison),
        Figure(
            "curves",
            "Training loss against compute spent, one panel per network.",
            "Training loss of the fine-tuning against all compute spent until then, at each network's lowest ceiling; "
            "means over the trials that are ok, smoothed over a twelfth of a line, with the middle half of them "
            "shaded. A search's line begins where its search ended.",
        ),
    ]
    return Section("compute", "Compute account", tuple(blocks), "Compute")


def _phases(comparison: Comparison) -> list[Block]:
    table = phases.phases_table(comparison)
    if not table.rows:
        return []
    return [
        PageOnly("bars", (bars_of(comparison), colours_of(comparison))),
        Heading("Phase by phase"),
        Grid(table),
        Prose("Means over a row's trials on one network, at all ceilings. Epochs are recipe epochs.", role="note"),
        Heading("Float pretraining, not charged"),
        Grid(phases.starts_table(comparison)),
        Prose(
            "Each float start is trained once, whichever trials share it; its epochs are passes over the training "
            "images, its time is that of the machine that trained it.",
            role="note",
        ),
    ]


def _accounts(comparison: Comparison) -> list[Block]:
    table = account.account_table(comparison)
    if not table.rows:
        return [Prose("No trial has left an account yet.")]
    few = len(table.rows) <= FEW
    blocks: list[Block] = [Fold(f"Trial by trial: {len(table.rows)}", (Grid(table),), open=few)]
    reported = [(o.trial.label, _report(o.search)) for o in comparison.outcomes if o.search]
    return [*blocks, PageOnly("searches", reported)] if reported else blocks


def _report(search: object) -> str:
    """What a method says of its own search, as JSON, cut after LONGEST_SEARCH characters."""
    text = json.dumps(search, indent=1, ensure_ascii=False)
    more = len(text) - LONGEST_SEARCH
    return text if more <= 0 else f"{text[:LONGEST_SEARCH]}\n… {more:,} more characters in the record"


def _bops(material: Material) -> Section:
    table = costs.bops_table(material.summaries)
    return Section(
        "bops",
        "Bit-operations",
        (
            Prose(
                "BOPs are MACs × weight bits × activation bits of one image, summed over every convolution and linear "
                "layer. Papers count differently, so the other conventions in use are shown beside ours."
            ),
            Grid(costs.conventions_table(), plain=True),
            Grid(table) if table.rows else Prose("No policy has been counted yet."),
            Prose(f"What stays float and is in no count: {', '.join(costs.STAYS_FLOAT)}."),
        ),
    )


def _environment(material: Material) -> Section:
    table = standing.environments_table(_records(material))
    empty = Prose("No record describes its environment yet.")
    return Section("environment", "Environment", (Grid(table, plain=True) if table.rows else empty,))


def _reproduce(material: Material) -> Section:
    records = _records(material)
    commits = provenance.commits_of(records)
    checkout = f"git checkout {commits[0]}\n" if len(commits) == 1 else ""
    several = f" The records come from several commits: {', '.join(commits)}." if len(commits) > 1 else ""
    if unnamed := sum(not provenance.commits_of([record]) for record in records):
        several += f" Of {unnamed} of {count(len(records), 'record')} the commit is not known."
    resolved = json.dumps(material.suite.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return Section(
        "reproduce",
        "How to reproduce",
        (
            Preformatted(f"{checkout}python runner.py --suite PATH/TO/REPORT/suite.yaml"),
            Prose(
                "In the checkout, with the folder of this report for PATH/TO/REPORT: suite.yaml lies there, the suite "
                "as it was resolved. Trials with a complete record are not run again; the same seed, thread count and "
                f"kind of processor give the same result in every record.{several}"
            ),
            Fold("The suite as resolved", (Preformatted(resolved),)),
        ),
        "Reproduce",
    )


def _files(material: Material) -> Section | None:
    beside = tuple((name, words) for name, words in FILES.items() if name in material.files)
    if not beside:
        return None
    return Section(
        "files",
        "Files",
        (
            Prose("All are rebuilt from the records. The numbers of this report lie beside it:"),
            Files(beside),
            Prose("What the page has and the Markdown file lacks:"),
            Listing(tuple(PAGE_ONLY.values())),
        ),
    )


def _records(material: Material) -> list[Record]:
    return [outcome.record for outcome in material.comparison.outcomes if outcome.record]


SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    _results,
    _trials,
    _across,
    _fronts,
    _claims,
    _absent,
    _disputes,
    _warnings,
    _policies,
    _compute,
    _bops,
    _environment,
    _reproduce,
    _files,
)
"""The report from top to bottom."""
