"""The records that a study is asked of."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from benchmarks.records.archive import open_records
from benchmarks.records.record import Record, RecordError


def records_at(place: Path, parser: ArgumentParser) -> list[Record]:
    """Records of a folder or an archive; ends the program with exit code 2 where there are none, or damaged ones."""
    try:
        return list(open_records(place))
    except RecordError as error:
        parser.exit(2, f"error: {error}\n")
