"""Pages and figures of docs/results from the shipped records: `make results`, or `python -m reports.results NAME ...`.

Our own words in the pages stay, and the answers that README.md repeats are brought up to date. `--check` writes
nothing and ends with exit code 1 where a page is not what the records give.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.files import write_atomic, write_text_atomic
from benchmarks.messages import SuiteError
from benchmarks.records.record import RecordError
from reports.findings.comparison import ComparisonError
from reports.results.making import DOCUMENTS, PAGES, RECORDS, Maker, stale
from reports.results.measured import ResultsError
from reports.results.shipped import SHIPPED


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m reports.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [shipped.name for shipped in SHIPPED]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"pages to make, all by default: {', '.join(names)}")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of archives, or of folders of records")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder of the pages")
    parser.add_argument("--check", action="store_true", help="only say which pages are not what the records give")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(names):
        parser.exit(2, f"error: no page {', '.join(sorted(unknown))}; known: {', '.join(names)}\n")
    maker = Maker(given.records, given.out)
    chosen = [shipped for shipped in SHIPPED if not given.names or shipped.name in given.names]
    documents = [] if given.names or given.out != PAGES else list(DOCUMENTS)
    try:
        texts = {given.out / f"{shipped.name}.md": maker.page(shipped) for shipped in chosen}
        if not given.names:
            texts[given.out / "README.md"] = maker.index()
        texts |= {path: maker.document(path) for path in documents}
        figures = {given.out / f"{shipped.name}.png": shipped for shipped in chosen if maker.sections(shipped).picture}
        if given.check:
            old = [*(p for p, text in texts.items() if stale(p, text)), *maker.old_figures(figures)]
            print("\n".join(f"{path}: not what the records give; run make results" for path in old) or "all as given")
            sys.exit(1 if old else 0)
        for path, shipped in figures.items():
            drawn = maker.drawn(shipped)
            write_atomic(path, lambda file, drawn=drawn: file.write(drawn))  # type: ignore[misc]
        for path, text in texts.items():
            write_text_atomic(path, text)
    except (ResultsError, RecordError, SuiteError, ComparisonError, ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{len(texts)} pages and {len(figures)} figures: {given.out}")


if __name__ == "__main__":
    main()
