"""Whole reports: every file written, hostile names harmless, and nothing claimed that was not measured."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml

from benchmarks.records.record import Records
from reports.build import build_report
from reports.findings.comparison import gather
from reports.findings.summary import summarise
from reports.findings.tables import READING, escape_latex, escape_markdown, latex, markdown, summary_tables, write_csv
from reports.page.blocks import Figure
from reports.page.content import content_of
from reports.page.html import render
from reports.page.sheets import cell_rows, trial_rows
from tests.fabricated import fail, make_plan, make_suite, shuffled, with_label, write_records

FILES = [
    "suite.yaml",
    "table.csv",
    "summary.csv",
    "layers.csv",
    "account.csv",
    "agreement.csv",
    "references.bib",
    "table.tex",
    "pareto.pdf",
    "pareto.png",
    "profile.pdf",
    "profile.png",
    "attainment.pdf",
    "attainment.png",
    "curves.pdf",
    "curves.png",
    "bits.pdf",
    "bits.png",
    "report.md",
    "index.html",
]
HOSTILE = "<script>alert(1)</script>|$x_1$ & 100%\\n{}~^#`*_<b>"


class Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def tables_of(tmp_path, methods, change=None, **suite):
    """The summary tables alone: no figures, no page."""
    plan = make_plan(make_suite(methods, **suite))
    comparison = gather(plan, write_records(plan, tmp_path / "records", change))
    return summary_tables(comparison, summarise(comparison))


def page_of(tmp_path, methods, change=None, **suite):
    """The page without its figure, and the plan."""
    plan = make_plan(make_suite(methods, **suite))
    comparison = gather(plan, write_records(plan, tmp_path / "records", change))
    content = content_of(comparison, summarise(comparison))
    return plan, render(content, {f"{block.name}.png": b"" for block in content.blocks() if isinstance(block, Figure)})


def build(tmp_path, methods, change=None, leave_out=lambda trial: False, **suite):
    plan = make_plan(make_suite(methods, **suite))
    records = write_records(plan, tmp_path / "records", change, leave_out=leave_out)
    return plan, build_report(plan, records, tmp_path / "out")


def test_every_file_is_written_and_the_page_fetches_nothing(tmp_path):
    plan, report = build(tmp_path, ["float", "uniform-lsq", "hawq"], models=("mobilenet_v2", "resnet18"), seeds=(0, 1))
    files = [name for name in FILES if "attainment" not in name]  # one ceiling: nothing is attained along BOPs
    assert [path.name for path in report.paths] == files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)
    page = Page(report.page.read_text(encoding="utf-8"))
    fetched = [value for name, value in page.attributes if name == "src"]
    beside = {value for name, value in page.attributes if name == "href" and not value.startswith("#")}
    shown = {name for name in files if name.endswith(".png") and name.removesuffix(".png") + ".pdf" in files}
    assert beside == set(files) - shown - {"index.html"}  # figures on the page are linked as PDF
    assert len(fetched) == 3
    assert all(value.startswith("data:image/png;base64,") for value in fetched)
    assert "link" not in page.tags
    assert page.tags.count("script") == 1
    assert yaml.safe_load((tmp_path / "out" / "suite.yaml").read_text(encoding="utf-8")) == plan.suite.model_dump(
        mode="json"
    )
    assert len(read_csv(tmp_path / "out" / "table.csv")) == len(plan.trials)
    assert len(read_csv(tmp_path / "out" / "summary.csv")) == 6


def test_files_with_nothing_in_them_are_neither_written_nor_linked_nor_left_behind(tmp_path):
    ceilings = ("uniform:w4a3", "uniform:w4a4")
    _, report = build(tmp_path / "a", ["float", "uniform-lsq", "hawq"], seeds=(0, 1), ceilings=ceilings)
    assert [path.name for path in report.paths] == FILES
    plan = make_plan(make_suite(["float", "uniform-lsq"]))
    again = build_report(plan, write_records(plan, tmp_path / "records"), report.page.parent)
    left = [name for name in FILES if not name.startswith(("attainment", "agreement"))]
    assert sorted(path.name for path in report.page.parent.iterdir()) == sorted(left)
    for path in (again.page, again.page.with_name("report.md")):
        text = path.read_text(encoding="utf-8")
        assert "attainment.p" not in text
        assert 'href="agreement' not in text


def test_how_to_reproduce_names_a_suite_s_file_that_is_there_from_the_checkout(tmp_path):
    _, report = build(tmp_path, ["float", "uniform-lsq"])
    for name in ("index.html", "report.md"):
        text = report.page.with_name(name).read_text(encoding="utf-8")
        assert "python runner.py --suite PATH/TO/REPORT/suite.yaml" in text
        assert "In the checkout, with the folder of this" in text


def test_the_same_records_give_the_same_bytes(tmp_path):
    plan, report = build(tmp_path, ["float", "uniform-lsq", "hawq"], seeds=(0, 1))
    again = build_report(shuffled(plan, 7), Records(tmp_path / "records"), tmp_path / "again")
    assert [path.read_bytes() for path in again.paths] == [path.read_bytes() for path in report.paths]


def test_one_seed_highlights_nobody(tmp_path):
    _, report = build(tmp_path, ["float", "uniform-lsq", "hawq", "metamix"])
    html = report.page.read_text(encoding="utf-8")
    table = html[html.index("<h3>mobilenet_v2") : html.index('id="policies"')]
    assert "<strong>" not in table
    assert table.count("one seed: no ranking") == 3
    assert "Δ" not in table.replace("Δ are means", "")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "**" not in text
    assert "one standard error of sampling 360 test images" in text
    assert r"\textbf" not in (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert all(row["test_accuracy_low"] == "" for row in read_csv(tmp_path / "out" / "summary.csv"))


def test_three_seeds_highlight_the_difference_that_is_shown_and_no_other(tmp_path):
    gains = {"hawq": (0.04, 0.041, 0.042), "metamix": (0.05, -0.01, 0.04)}

    def change(trial, result, observed):
        result["metrics"]["test_accuracy"] = 0.9 + gains.get(trial.row, (0, 0, 0))[trial.spec.seed]

    methods = ["uniform-lsq", *gains]
    _, html = page_of(tmp_path, methods, change, seeds=(0, 1, 2))
    page = Page(html)
    assert "higher than uniform-lsq" in page.text
    assert "+4.10\u00a0[+3.85,\u00a0+4.35], 3\u00a0pairs" in "".join(page.words)
    assert html.count("<strong>") == 1  # that difference
    (table,) = tables_of(tmp_path, methods, change, seeds=(0, 1, 2)).values()
    strong = {row.cells[1]: row.strong for row in table.rows if row.strong is not None}
    assert list(strong) == ["hawq"]
    assert table.header[strong["hawq"]] == "Δ uniform LSQ, points"


def test_failed_refused_and_missing_trials_are_shown_with_their_reasons(tmp_path):
    def change(trial, result, observed):
        if trial.row == "hawq":
            fail(result, observed, message="trace is <nan>")
        if trial.row == "metamix":
            fail(result, observed, message="no batch norm", status="refused")

    _, report = build(
        tmp_path,
        ["float", "uniform-lsq", "hawq", "metamix", "differentiable"],
        change,
        leave_out=lambda trial: trial.row == "differentiable",
    )
    page = Page(report.page.read_text(encoding="utf-8"))
    for words in ("trace is <nan>", "refused: not ranked", "no record yet", "Not drawn: 2 cells without a result"):
        assert words in page.text
    states = {row["row"]: row["status"] for row in read_csv(tmp_path / "out" / "table.csv")}
    assert states["hawq"] == "failed"
    assert states["metamix"] == "refused"
    assert states["differentiable"] == "missing"


@pytest.mark.parametrize("methods", [["float", "uniform-lsq"], ["float"]])
def test_a_suite_without_any_record_is_reported_as_missing(tmp_path, methods):
    _, report = build(tmp_path, methods, leave_out=lambda trial: True)
    page = Page(report.page.read_text(encoding="utf-8"))
    assert "There are no results yet." in page.text
    assert f"{len(methods)} missing" in page.text.replace("  ", " ")


def test_float_only(tmp_path):
    page = Page(page_of(tmp_path, ["float"], seeds=(0, 1))[1])
    assert "float control" in page.text
    assert "No trial has left a policy yet." in page.text


def test_a_plan_without_trials_still_gives_a_report(tmp_path):
    plan = make_plan(make_suite([]))
    report = build_report(plan, Records(tmp_path), tmp_path / "out")
    assert "The suite has no trials." in report.page.read_text(encoding="utf-8")


def test_hostile_names_stay_text_in_every_file(tmp_path):
    methods = ["float", "uniform-lsq", with_label("hawq", HOSTILE), with_label("hawq", "_日本$", options={"a": 1})]
    _, report = build(tmp_path, methods)
    page = Page(report.page.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert " ".join(HOSTILE.split()) in page.text
    rows = read_csv(tmp_path / "out" / "summary.csv")
    assert HOSTILE in [row["row"] for row in rows]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert escape_markdown(HOSTILE) in text


def test_names_in_markdown_break_no_column(tmp_path):
    (table,) = tables_of(tmp_path, ["uniform-lsq", with_label("hawq", "a|b\n|c")]).values()
    lines = markdown(table).splitlines()
    assert len(lines) == 2 + len(table.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.header) + 1}


def test_latex_has_no_bare_specials_and_as_many_columns_as_it_says(tmp_path):
    text = latex(tables_of(tmp_path, ["uniform-lsq", with_label("hawq", HOSTILE)]), "caption with 95 %")
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)%(?!\n)", text)
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    lines = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}
    assert escape_latex("\\[x]^2") == r"\textbackslash{}{[}x]\textasciicircum{}2"


def test_latex_compiles_and_cites(tmp_path):
    methods = ["float", "uniform-lsq", "hawq", with_label("metamix", "方法 α_é")]
    tables = tables_of(tmp_path, methods, models=("mobilenet_v2", "resnet18"), seeds=(0, 1, 2))
    text = latex(tables, READING, {"hawq": ("dong2020hawqv2", "yao2021hawqv3")})
    assert text.count(r"\begin{table}") == 2
    assert text.count(r"U+65B9U+6CD5 U+03B1\_é") == 2
    assert text.count(r"hawq~\cite{dong2020hawqv2,yao2021hawqv3}") == 2
    assert "pairs" not in text.replace("three pairs", "")
    if not (compiler := shutil.which("pdflatex")):
        pytest.skip("no pdflatex here")
    head = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    (tmp_path / "paper.tex").write_text(f"{head}{text}\\end{{document}}\n", encoding="utf-8")
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_a_spreadsheet_runs_no_name(formula):
    text = write_csv(["row", "number"], [{"row": formula, "number": -1.5}])
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {"row": f"'{formula}", "number": "-1.5"}


def test_policies_are_drawn_layer_by_layer(tmp_path):
    plan, html = page_of(tmp_path, ["float", "uniform-lsq"])
    layers = len(plan.trials[0].ledger)
    assert html.count("<g><title>") == layers  # the float control has no strip
    assert html.count("<rect") == 2 * layers
    assert html.count(' p"/>') == 2 * 2  # weights and activations of the first and the last layer
    assert "features.3.conv · conv · 360.00 kMACs · weights 4 bits, input 4 bits" in html


def test_the_account_is_written_in_recipe_epochs(tmp_path):
    plan, html = page_of(tmp_path, ["hawq"])
    (row,) = trial_rows(gather(plan, Records(tmp_path / "records")))
    assert (row["search_epochs"], row["finetune_epochs"]) == (2.0, 6.0)
    page = Page(html)
    assert "search/select 4.00 G in 40 steps, 2,560 images, 2.00 epochs; finetune 12.00 G in 170 steps" in page.text


def test_a_report_needs_no_torch_ray_or_mlflow_and_no_pyplot():
    code = (
        "import sys, reports.build, reports.figures.pareto, reports.figures.bits;"
        "print(sorted({'torch', 'ray', 'mlflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_matplotlib_is_imported_only_when_a_figure_is_drawn():
    code = "import sys, reports.build; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_best_validation_stands_beside_the_ranking(tmp_path):
    def change(trial, result, observed):
        if trial.row == "hawq":
            result["metrics"]["best_validation_accuracy"] = 0.96 + 0.01 * trial.spec.seed

    plan, html = page_of(tmp_path, ["uniform-lsq", "hawq"], change, seeds=(0, 1))
    rows = {row["row"]: row for row in cell_rows(summarise(gather(plan, Records(tmp_path / "records"))))}
    assert rows["hawq"]["best_validation_accuracy"] == pytest.approx(
        0.965, abs=1e-12
    )  # float rounding of a mean of two
    assert (rows["uniform-lsq"]["best_validation_accuracy"], rows["hawq"]["test_top5_accuracy"]) == (None, None)
    text = Page(html).text
    assert "never ranked" in text
    assert "96.50 –" in text[text.index("never ranked") :]
    assert "never ranked" not in Page(page_of(tmp_path / "plain", ["uniform-lsq"])[1]).text
