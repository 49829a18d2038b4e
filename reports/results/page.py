"""A page of results as Markdown, with our own words between marks, which stay when the page is made again."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from benchmarks.records.record import Record
from reports.findings.comparison import Comparison, Outcome
from reports.findings.tables import Row, Table, escape_markdown, markdown
from reports.numbers.display import NOTHING, count, listing
from reports.results.measured import GRIDS, Change, Measured, ResultsError
from reports.results.sections import Picture, Sections
from reports.results.shipped import Shipped

WIDTH = 120

OURS = re.compile(r"<!-- ours: (?P<name>[a-z]+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
OPENED = re.compile(r"<!-- ours: [a-z]+ -->")

SLOTS = ("about", "reading")
"""Our own words: before the answer, and after it."""

MADE = (
    "<!-- Made by `make results` from the records of {name}. -->\n"
    "<!-- What stands between marks of ours stays; all else is made anew. -->"
)


def ours_of(text: str, where: str, slots: Sequence[str] = SLOTS) -> dict[str, str]:
    """Our own words in a page, by the name of their place. Raises ResultsError for marks that would lose some."""
    found = [(match["name"], match["text"]) for match in OURS.finditer(text)]
    names = [name for name, _ in found]
    if len(found) != len(OPENED.findall(text)):
        raise ResultsError(f"{where}: a mark `<!-- ours: ... -->` has no `<!-- end -->` of its own; add it")
    if unknown := [name for name in names if name not in slots or names.count(name) > 1]:
        raise ResultsError(
            f"{where}: `<!-- ours: {unknown[0]} -->` is no place of this page, or there twice; a page has "
            f"{listing(slots)}, each once"
        )
    return dict(found)


def page(shipped: Shipped, measured: Sequence[Measured], sections: Sections, ours: Mapping[str, str]) -> str:
    """The page's text. ours: by the name of their place."""
    blocks = [f"# {escape_markdown(shipped.name)}", MADE.format(name=shipped.name)]
    blocks += [prose(measured[0].comparison.plan.suite.description), _slot("about", ours)]
    blocks += [prose(f"**{escape_markdown(sections.answer.full)}**"), *map(prose, _of_records(shipped, measured))]
    blocks += [_slot("reading", ours), *_picture(shipped, sections.picture)]
    for heading, tables in sections.tables.items():
        blocks += [f"## {heading}", *(markdown(table).rstrip("\n") for table in tables)]
    blocks += ["## How it was measured", _commands(shipped)]
    blocks += [markdown(sources_table([one.comparison for one in measured])).rstrip("\n")]
    blocks += ["[How to read these tables](README.md#how-to-read-the-pages)"]
    return "\n\n".join(filter(None, blocks)) + "\n"


def prose(text: str) -> str:
    """Text in lines of at most WIDTH characters; a paragraph stays one."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _slot(name: str, ours: Mapping[str, str]) -> str:
    return f"<!-- ours: {name} -->\n{ours.get(name, '')}<!-- end -->"


def _picture(shipped: Shipped, picture: Picture | None) -> Iterator[str]:
    if picture:
        yield f"![{picture.alt}]({shipped.name}.png)"
        yield prose(escape_markdown(picture.caption))


def _commands(shipped: Shipped) -> str:
    check = [f"python runner.py verify --suite {shipped.suite}"] if _plain(shipped) else []
    made = [command.replace(" --set ", " \\\n  --set ").replace(" > ", " \\\n  > ") for command in shipped.commands]
    lines = [*made, *check, f"python -m reports.results {shipped.name}"]
    return "\n".join(["```sh", *lines, "```"])


def _plain(shipped: Shipped) -> bool:
    return shipped.name == shipped.suite


def _of_records(shipped: Shipped, measured: Sequence[Measured]) -> Iterator[str]:
    """What has to be said of the records: which are of an earlier version, missing, not ok, or in no table."""
    outcomes = _outcomes([one.comparison for one in measured])
    states = [outcome.state for outcome in outcomes]
    yield f"{count(len(states), 'trial')}, {_states(outcomes)}." + (
        f" Some are records of {listing(shipped.beside)}." if shipped.beside else ""
    )
    changes = dict.fromkeys(chain.from_iterable(one.changes for one in measured))
    if changes:
        yield (
            "**Some rows are of an earlier version.** The records behind this page were made with "
            f"{listing(list(dict.fromkeys(map(_change, changes))))}. A run today makes other trials of these rows."
        )
    own = [{record.id for record in one.left_out} for one in measured]
    if shipped.beside == () and (left := set.intersection(*own)):
        yield f"{count(len(left), 'more record')} of reports/reference/{shipped.name} answer no trial of this suite."


def _change(change: Change) -> str:
    if change.what == GRIDS:
        return escape_markdown(f"other grids of {change.row}'s layers than today's")
    if change.what in ("version", "protocol"):
        return escape_markdown(f"{change.row} at {change.what} {change.then} (today {change.today})")
    return escape_markdown(f"{change.row} with {change.what} {change.then} (today {change.today})")


def _states(outcomes: Sequence[Outcome]) -> str:
    kinds = dict.fromkeys(outcome.state for outcome in outcomes)
    if list(kinds) == ["ok"]:
        return "all ok"
    return listing([f"{sum(o.state == kind for o in outcomes)} {kind.replace('_', ' ')}" for kind in kinds])


def _outcomes(comparisons: Sequence[Comparison]) -> list[Outcome]:
    return [outcome for comparison in comparisons for outcome in comparison.outcomes]


def sources_table(comparisons: Sequence[Comparison]) -> Table:
    """Commit, processor and quantizer path -> how many records, and of which rows and versions."""
    found: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in _outcomes(comparisons):
        if outcome.record:
            found.setdefault(_source(outcome.record), []).append(outcome)
    header = ("Commit", "Processor", "torch", "Quantizers", "Records", "Rows (version)")
    lines = [Row((*key, str(len(own)), _rows(own))) for key, own in sorted(found.items())]
    return Table(header, tuple(lines), frozenset(["Records"]))


def _source(record: Record) -> tuple[str, ...]:
    environment = record.observed.get("environment") or {}
    commit = str(environment.get("commit") or NOTHING)[:7] + (", changed" if environment.get("dirty") else "")
    path = str(environment.get("quantizer") or NOTHING) + (", compiled" if environment.get("compile") else "")
    return commit, str(environment.get("processor", NOTHING)), str(environment.get("torch", NOTHING)), path


def _rows(outcomes: Sequence[Outcome]) -> str:
    rows = dict.fromkeys((outcome.trial.row, outcome.trial.spec.method.version) for outcome in outcomes)
    if len(rows) > MOST_ROWS:
        return f"{len(rows)} rows"
    return ", ".join(f"{row} ({version})" for row, version in rows)


MOST_ROWS = 12
"""So many rows are named one by one."""
