"""Builds the whole report of a suite from its plan and records."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.files import write_atomic
from benchmarks.planning import Plan
from benchmarks.records.record import RecordSource
from reports.findings import tables
from reports.findings.across import row_scores
from reports.findings.agreement import agreement_rows
from reports.findings.comparison import Comparison, gather
from reports.findings.fronts import any_curves
from reports.findings.phases import phase_rows
from reports.findings.standing import FREE_SEARCH
from reports.findings.summary import Summary, summarise
from reports.page import html, markdown
from reports.page.content import content_of
from reports.page.references import OF_METHOD, bibliography
from reports.page.sheets import cell_rows, layer_rows, trial_rows


@dataclass(frozen=True)
class Report:
    """What was written, the page last, and what is worth a warning."""

    paths: tuple[Path, ...]
    warnings: tuple[str, ...]

    @property
    def page(self) -> Path:
        return self.paths[-1]


MAY_LACK = ("agreement.csv", "attainment.pdf", "attainment.png")
"""Files that are left out when there is nothing to put in them."""


def build_report(plan: Plan, records: RecordSource, out: Path) -> Report:
    """Write the report of a plan into `out`, each file whole or not at all; missing trials are shown as missing.

    Files: suite.yaml (the suite as resolved), table.csv (a row per trial), summary.csv (a row per cell), layers.csv (a
    row per layer of a trial), account.csv (a row per phase of a trial), agreement.csv (a row per layer of a cell with
    several policies), references.bib, table.tex, figures (pareto, profile, attainment, curves, bits, each .pdf and
    .png), report.md, index.html. Those of MAY_LACK are written only with something in them, else removed. The same plan
    and records give the same bytes. Raises ComparisonError for records of several protocols or data sets.
    """
    comparison = gather(plan, records)
    paths = []
    for name, content in _files(comparison, summarise(comparison)):
        path = out / name
        write_atomic(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
        paths.append(path)
    for name in {*MAY_LACK} - {path.name for path in paths}:  # those of an earlier report
        (out / name).unlink(missing_ok=True)
    return Report(tuple(paths), comparison.warnings)


def _files(comparison: Comparison, summaries: tuple[Summary, ...]) -> Iterator[tuple[str, bytes]]:
    pictures, caption = _pictures(comparison, summaries)
    beside = {**dict(_numbers(comparison, summaries)), **pictures}
    yield from beside.items()
    content = content_of(comparison, summaries, caption, (*beside, markdown.FILE, html.FILE))
    yield markdown.FILE, markdown.write(content).encode()
    yield html.FILE, html.render(content, pictures).encode()


def _numbers(comparison: Comparison, summaries: tuple[Summary, ...]) -> Iterator[tuple[str, bytes]]:
    """The suite, and what was found as CSV and LaTeX."""
    suite = comparison.plan.suite
    as_yaml = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    yield "suite.yaml", as_yaml.encode()
    sheets = {"table": trial_rows(comparison), "summary": cell_rows(summaries), "layers": layer_rows(comparison)}
    sheets |= {"account": phase_rows(comparison), "agreement": agreement_rows(comparison)}
    for name, rows in sheets.items():
        if not rows and f"{name}.csv" in MAY_LACK:
            continue
        yield f"{name}.csv", tables.write_csv(list(rows[0]) if rows else [], rows).encode()
    yield "references.bib", bibliography(suite).encode()
    free = f" {FREE_SEARCH}" if suite.compute.protocol == "free-search" else ""
    cited = {entry.row: OF_METHOD.get(entry.name, ()) for entry in suite.methods}
    shown = tables.summary_tables(comparison, summaries)
    yield "table.tex", tables.latex(shown, tables.READING + free, cited).encode()


def _pictures(comparison: Comparison, summaries: tuple[Summary, ...]) -> tuple[dict[str, bytes], str]:
    """The figures by file name, and the Pareto figure's caption. Matplotlib is imported here, when it is needed."""
    from reports.figures.attainment import attainment_figure
    from reports.figures.bits import bits_figure
    from reports.figures.curves import curves_figure
    from reports.figures.pareto import caption_parts, pareto_figure
    from reports.figures.profile import profile_figure
    from reports.figures.style import save

    figures = {
        "pareto": pareto_figure(comparison, summaries),
        "profile": profile_figure(comparison, row_scores(comparison)),
        **({"attainment": attainment_figure(comparison)} if any_curves(comparison) else {}),
        "curves": curves_figure(comparison),
        "bits": bits_figure(comparison),
    }
    pictures = {}
    for name, figure in figures.items():
        for form in ("pdf", "png"):
            file = io.BytesIO()
            save(figure, file, form, html.DPI)
            pictures[f"{name}.{form}"] = file.getvalue()
    return pictures, " ".join(caption_parts(summaries))
