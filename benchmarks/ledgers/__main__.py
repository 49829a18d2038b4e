"""Remake the committed ledgers of every shipped suite: `python -m benchmarks.ledgers`."""

from __future__ import annotations

from benchmarks.ledgers import ledger_path
from benchmarks.models import measure_ledger
from benchmarks.suites.suite import load_suite, suite_names
from methods.quantization.cost import ledger_to_json


def main() -> None:
    for name in suite_names():
        suite = load_suite(name)
        for model in suite.models:
            path = ledger_path(model, suite.data)
            path.write_text(ledger_to_json(measure_ledger(model, suite.data)), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
