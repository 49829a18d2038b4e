"""The page in a real browser: headless Chromium loads it from disk, and what its scripts change is read back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.build import build_report
from reports.findings.comparison import gather
from reports.page.explorer import explorers
from tests.fabricated import Shelf, make_plan, make_suite, with_label, write_records

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=document.title='owned'>"
METHODS = ["float", "uniform-lsq", "hawq", with_label("hawq", HOSTILE, options={"a": 1})]
CEILINGS = ("uniform:w4a3", "uniform:w4a4")


def browser() -> str:
    """The browser; a machine without one skips these tests, the project's own check does not."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    why = "no chromium here; install it to test the page"
    pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


@cache
def page() -> str:
    plan = make_plan(make_suite(METHODS, ceilings=CEILINGS, seeds=(0, 1, 2)))
    with tempfile.TemporaryDirectory() as folder:
        report = build_report(plan, write_records(plan, Path(folder) / "records"), Path(folder) / "out")
        return report.page.read_text(encoding="utf-8")


def after(tmp_path: Path, html: str) -> str:
    """The document once the page has loaded and its scripts have run.

    A browser that does not end is ended with all its processes, which would hold a pipe open, and asked once more.
    """
    path, said = tmp_path / "index.html", tmp_path / "said"
    path.write_text(html, encoding="utf-8")
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    for profile in ("first", "second"):
        with said.open("w") as file:
            process = subprocess.Popen(
                [*command, f"--user-data-dir={tmp_path / profile}", path.as_uri()],
                stdout=file,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                continue
        assert code == 0, said.read_text()
        return said.read_text()
    pytest.fail("twice the browser did not end within two minutes")


def doing(tmp_path: Path, script: str) -> str:
    """What `script` returns as text when it runs in the loaded page; the policy that allows only our own is lifted."""
    lifted = re.sub(r"'sha256-[^']+'", "'unsafe-inline'", page(), count=1)
    run = f"<script>document.documentElement.dataset.result = (() => {{ {script} }})()</script></body>"
    found = re.search(r'data-result="([^"]*)"', after(tmp_path, lifted.replace("</body>", run)))
    assert found, "the script did not come to its end"
    return found[1]


class Tags(HTMLParser):
    """How often each tag with each class occurs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        for name in (tag, *(f"{tag}.{kind}" for kind in (dict(attrs).get("class") or "").split())):
            self.found[name] = self.found.get(name, 0) + 1


def test_its_own_script_runs_under_its_own_policy_and_no_other(tmp_path):
    injected = page().replace("</body>", "<script>document.title = 'owned'</script></body>")
    html = after(tmp_path, injected)
    assert Tags(html).found["button"] > 10  # heads of tables became buttons
    assert '<label class="filter">' in html  # and the filter came out
    assert "<title>fabricated" in html
    assert "owned</title>" not in html


def test_without_scripts_the_page_holds_all_its_numbers():
    bare = re.sub(r"<script>.*</script>", "", page(), flags=re.DOTALL)
    found = Tags(bare).found
    assert found["a.dot"] == 18  # every quantized trial is a point
    assert found["table.sortable"] > 3


def test_a_click_on_a_head_sorts_by_number_and_another_turns_it_round(tmp_path):
    script = """
      const table = document.querySelector("table.sortable");
      const heads = [...table.tHead.rows[0].cells];
      const column = heads.findIndex((h) => h.textContent.startsWith("Test acc"));
      const seen = () => [...table.tBodies[0].rows].map((r) => parseFloat(r.cells[column].textContent));
      const rising = (xs) => xs.every((x, i) => !i || xs[i - 1] <= x);
      heads[column].querySelector("button").click();
      const up = seen(), first = heads[column].getAttribute("aria-sort");
      heads[column].querySelector("button").click();
      const down = seen().reverse();
      return [rising(up), first, rising(down), up.length, heads[column].getAttribute("aria-sort")].join(" ");
    """
    assert doing(tmp_path, script) == "true ascending true 8 descending"


def test_times_and_sizes_sort_by_what_they_are_not_by_their_first_figure(tmp_path):
    cells = ["59.9 s", "1 min 15 s", "2 h 05 min", "900.00 KiB", "1.20 MiB", "−1.25 [−2.00, 0.00]", "< 0.0001", "–"]
    found = doing(tmp_path, f"return {cells!r}.map(numberIn).join(' ')").split(" ")
    assert found[:3] == ["59.9", "75", "7500"]
    assert [float(value) for value in found[3:7]] == [900 * 2**10, pytest.approx(1.2 * 2**20), -1.25, 0.0001]
    assert found[7:] == [""]


def test_the_filter_keeps_rows_with_all_its_words(tmp_path):
    script = """
      const field = document.getElementById("filter");
      field.value = "HAWQ w4a3";
      field.dispatchEvent(new Event("input"));
      const rows = [...document.querySelector("table.sortable").tBodies[0].rows];
      const texts = rows.filter((r) => !r.hidden).map((r) => r.textContent);
      const kept = texts.map((text) => text.includes("w4a3") && text.includes("hawq"));
      const said = document.getElementById("matches").textContent;
      const others = [...document.querySelectorAll("#trials ~ * table.sortable tr")].filter((r) => r.hidden);
      field.value = "";
      field.dispatchEvent(new Event("input"));
      return [kept.length, kept.every(Boolean), rows.some((r) => r.hidden), others.length, said].join(" ");
    """
    assert doing(tmp_path, script) == "1 true false 0 1 of 8 rows"


def test_a_point_shows_its_policy(tmp_path):
    script = """
      const figure = document.querySelector(".explorer"), dots = [...figure.querySelectorAll(".dot")];
      const shown = figure.querySelector(".shown");
      dots[3].dispatchEvent(new Event("pointerenter"));
      const first = shown.querySelector("p").textContent === dots[3].querySelector("title").textContent;
      dots[5].focus();
      const own = document.getElementById(dots[5].getAttribute("href").slice(1)).querySelector("svg").outerHTML;
      const same = shown.querySelector("svg").outerHTML === own;
      return [dots.length, first, same, figure.querySelectorAll(".dot.on").length].join(" ");
    """
    assert doing(tmp_path, script) == "18 true true 1"


def test_hostile_names_stay_text_in_the_browser(tmp_path):
    html = after(tmp_path, page())
    assert "owned</title>" not in html
    assert Tags(html).found["img"] == 4  # the figures
    cells = "[...document.querySelectorAll('td')].map((cell) => cell.textContent)"
    assert doing(tmp_path, f"return {cells}.some((text) => text.includes('onerror=document'))") == "true"


def test_the_points_of_a_figure_lie_where_their_numbers_say(tmp_path):
    plan = make_plan(make_suite(METHODS[:3], ceilings=CEILINGS, seeds=(0, 1)))
    comparison = gather(plan, write_records(plan, tmp_path))
    (drawn,) = explorers(comparison)
    outcomes = [o for cell in comparison.cells if not cell.is_float for o in cell.ok]
    assert len(drawn.dots) == len(outcomes) == 8
    by_height = [dot.text for dot in sorted(drawn.dots, key=lambda dot: -dot.y)]
    by_accuracy = [f"{100 * o.accuracy:.2f} %" for o in sorted(outcomes, key=lambda o: o.accuracy)]
    assert [text.split(" · ")[-2] for text in by_height] == by_accuracy
    # Weights are 4 bits everywhere, so no figure against bytes; with 2 bits in one policy there is one.
    assert drawn.cost == "MBOPs per image"  # nothing costs as much as 0.1 GBOPs
    assert [tick.text for tick in drawn.ceilings] == list(CEILINGS)
    best = min(drawn.dots, key=lambda dot: dot.y)
    assert f"{best.x},{best.y}" in drawn.front.split()
    assert [dot.row for dot in drawn.dots][-4:] == ["uniform-lsq"] * 4  # drawn over the others

    def lighter(trial, result, _observed):
        if trial.row == "hawq" and trial.spec.seed == 0:
            result["cost"]["weight_bytes"] //= 2

    both = explorers(gather(plan, Shelf(plan, lighter)))
    assert [figure.cost for figure in both] == ["MBOPs per image", "weights, KiB"]
    cheapest = min(drawn.dots, key=lambda dot: dot.x)
    assert f"{min(o.bops for o in outcomes) / 1e9:#.4g}" in cheapest.text
