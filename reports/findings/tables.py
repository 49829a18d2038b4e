"""Tables as values, the summary as one, and the one place each where text is escaped for Markdown, LaTeX and CSV.

Any text may hold anything: a row may be called `<b>` or `a|b`, and a record may come from a stranger.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.untrusted import csv_cell, printable
from reports.findings.comparison import Comparison
from reports.findings.summary import Summary
from reports.numbers.display import NOTHING, count, gbops, interval, paired, percent, unbroken
from reports.numbers.statistics import mean_interval, sampling_error


@dataclass(frozen=True)
class Row:
    """One line of a table. strong: the column to set in bold, where a difference may be called."""

    cells: tuple[str, ...]
    strong: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of text. numeric: names of the columns that are set flush right."""

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    numeric: frozenset[str] = frozenset()

    def without(self, dropped: Iterable[str]) -> Table:
        """The table without the columns of these names."""
        kept = [index for index, name in enumerate(self.header) if name not in set(dropped)]
        rows = tuple(
            Row(tuple(row.cells[index] for index in kept), kept.index(row.strong) if row.strong in kept else None)
            for row in self.rows
        )
        return Table(tuple(self.header[index] for index in kept), rows, self.numeric)

    def empty_columns(self) -> set[str]:
        columns = zip(*(row.cells for row in self.rows), strict=True)
        return {name for name, column in zip(self.header, columns, strict=False) if set(column) <= {"", NOTHING}}


HEADER = (
    "Ceiling",
    "Method",
    "n",
    "GBOPs",
    "Test accuracy, %",
    "Δ uniform LSQ, points",
    "Verdict",
    "Δ random, points",
    "Δ float control, points",
    "Notes",
)
NUMERIC = frozenset(name for name in HEADER if name in ("n", "GBOPs", "Test accuracy, %") or name.startswith("Δ"))
_DELTA = HEADER.index("Δ uniform LSQ, points")

BESIDE = ("best_validation_accuracy", "test_top5_accuracy")
"""Metrics that some suites measure; shown and never ranked."""

READING = (
    "Test accuracy: the mean over seeds with its 95 % t-interval within 0 to 100, which is about training again from "
    "other seeds, then ± one standard error from drawing the test images, which all seeds share (Wilson, z = 1). Δ are "
    "means of differences paired by seed with their 95 % t-interval; nothing is called a difference below three pairs, "
    "and there is none where a trial of either row failed or is over the ceiling. "
    "n counts seeds; where not every trial is ok it says how many are."
)


def summary_tables(comparison: Comparison, summaries: Iterable[Summary]) -> dict[str, Table]:
    """Network -> float start, float control, then ceiling by ceiling; columns that no network fills are left out."""
    tables = {}
    for model in comparison.models:
        own = [_row(summary) for summary in summaries if summary.cell.model == model]
        tables[model] = Table(HEADER, (*_start_row(comparison, model), *own), NUMERIC)
    empty = set(HEADER).intersection(*(table.empty_columns() for table in tables.values()))
    return {model: table.without(empty) for model, table in tables.items()}


def _row(summary: Summary) -> Row:
    role = "float control" if summary.cell.row == "float" else f"{summary.cell.row} (float control)"
    cells = (
        summary.cell.ceiling,
        role if summary.cell.is_float else summary.cell.row,
        summary.counted,
        gbops(summary.bops),
        accuracy_text(summary),
        paired(summary.to_uniform),
        summary.verdict.text,
        paired(summary.to_random),
        paired(summary.to_float),
        "; ".join(summary.notes),
    )
    return Row(cells, _DELTA if summary.verdict.call else None)


def accuracy_text(summary: Summary) -> str:
    """`97.22 ± 0.87` for one seed, `97.22 [96.10, 98.34] ± 0.87` for several."""
    if summary.accuracy is None or summary.sampling_error is None:
        return NOTHING
    spread = interval(summary.accuracy.interval)
    return f"{percent(summary.accuracy.value)}{spread} ±\u00a0{percent(summary.sampling_error)}"


def _start_row(comparison: Comparison, model: str) -> list[Row]:
    """The pretrained float network as it is, before any fine-tuning."""
    starts = list(comparison.start_accuracies(model).values())
    if not starts:
        return []
    mean = mean_interval(starts).of_shares()
    seeds = unbroken(count(mean.n, "seed"))
    images = next(int(o.metrics["test_images"]) for o in comparison.outcomes if o.ok and o.trial.model == model)
    spread = interval(mean.interval) if mean.interval else f" ± {percent(sampling_error(mean.value, images))}"
    accuracy = percent(mean.value) + spread
    cells = ("float", "float start", seeds, NOTHING, accuracy, NOTHING, "reference", NOTHING, NOTHING, "")
    return [Row(cells)]


def beside_table(summaries: Sequence[Summary]) -> Table:
    """Means over seeds of what some suites measure in addition to the test accuracy; nothing is ranked by it."""
    header = ("Network", "Ceiling", "Method", "Best validation on the way, %", "Test top-5, %")
    rows = []
    for cell in (summary.cell for summary in summaries):
        found = [cell.mean(lambda o, name=name: o.metrics.get(name)) for name in BESIDE]  # type: ignore[misc]
        if any(value is not None for value in found):
            texts = (NOTHING if value is None else percent(value) for value in found)
            rows.append(Row((cell.model, cell.ceiling, cell.row, *texts)))
    return Table(header, tuple(rows), frozenset(header[3:]))


def markdown(table: Table) -> str:
    lines = ["| " + " | ".join(map(escape_markdown, table.header)) + " |"]
    lines.append("|" + "|".join(" ---: " if name in table.numeric else " --- " for name in table.header) + "|")
    for row in table.rows:
        cells = [escape_markdown(cell) for cell in row.cells]
        if row.strong is not None:
            cells[row.strong] = f"**{cells[row.strong]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def latex(tables: Mapping[str, Table], caption: str, cited: Mapping[str, Sequence[str]] | None = None) -> str:
    """A booktabs table per network, the long caption under the first. Needs the packages booktabs and graphicx.

    cited: row -> keys of references.bib. Numbers of pairs are left out where they are the row's n.
    """
    lines: list[str] = []
    for number, (model, whole) in enumerate(tables.items()):
        table = whole.without(["Notes"])
        columns = "".join("r" if name in table.numeric else "l" for name in table.header)
        said = f"{escape_latex(model)}. {escape_latex(caption) if not number else 'As in the first of these tables.'}"
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{said}}}", r"\resizebox{\linewidth}{!}{%"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(escape_latex, table.header)) + r" \\"]
        for index, row in enumerate(table.rows):
            if not index or row.cells[0] != table.rows[index - 1].cells[0]:
                lines.append(r"\midrule")
            lines.append(
                " & ".join(_latex_cell(table, row, column, cited or {}) for column in range(len(columns))) + r" \\"
            )
        lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_cell(table: Table, row: Row, index: int, cited: Mapping[str, Sequence[str]]) -> str:
    seeds = row.cells[table.header.index("n")].partition("\u00a0")[0]
    text = escape_latex(row.cells[index].removesuffix(f", {seeds}\u00a0pairs"))
    if table.header[index] == "Method" and (keys := cited.get(row.cells[index])):
        return rf"{text}~\cite{{{','.join(keys)}}}"
    return rf"\textbf{{{text}}}" if index == row.strong else text


def write_csv(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Numbers as they are, None as an empty field, text safe to open in a spreadsheet."""
    file = io.StringIO()
    writer = csv.DictWriter(file, header, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def escape_markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line: no markup, no HTML, no link of its own.

    >>> escape_markdown("<b>|*a*")
    '&lt;b&gt;\\|\\*a\\*'
    """
    flat = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", flat)
    return re.sub("(www)[.]", r"\1&#46;", escaped.replace("://", ":&#47;/").replace("@", "&#64;"), flags=re.IGNORECASE)


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "·": r"\textperiodcentered{}",
    "–": "--",
}


def escape_latex(text: str) -> str:
    r"""Text that LaTeX sets as it is; a bracket cannot follow a line break unprotected.

    Letters that pdfLaTeX does not know, those beyond Latin, are named by their code.

    >>> escape_latex("100 %_x 方")
    '100 \\%\\_x U+65B9'
    """
    return "".join(map(_latex_character, " ".join(printable(text).split())))


def _latex_character(character: str) -> str:
    beyond_latin = f"U+{ord(character):04X}" if character >= "\u0180" else character
    return _LATEX.get(character, beyond_latin)
