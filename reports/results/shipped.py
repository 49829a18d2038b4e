"""What was measured and is shipped: a page each, with the suite that it was asked as and the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from benchmarks.planning import Plan, plan
from benchmarks.records.record import Record
from benchmarks.suites.suite import Suite, build, load_suite, select
from reports.studies.retraining import suite_again

Kind = Literal["comparison", "widths", "ablation", "ranges", "retraining", "sweep"]

SHARES = (0.25, 0.5, 1.0, 2.0)
"""Of a suite's compute, that `sweep` runs it at."""


@dataclass(frozen=True)
class Shipped:
    """Records under `name` in reports/reference, and how they came about.

    suite: the suite's file. overrides: its keys that were set on the command line. models, seeds: what it was cut down
    to. beside: other shipped records that hold some of its rows. kind: how the page tells it. before: a command that
    has to run first.
    """

    name: str
    suite: str
    kind: Kind = "comparison"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()
    before: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """What makes the records, as it is typed."""
        words = ["python", "runner.py", *(["sweep"] if self.kind == "sweep" else []), "--suite", self.suite]
        words += ["--models", ",".join(self.models)] if self.models else []
        words += ["--seeds", ",".join(map(str, self.seeds))] if self.seeds else []
        for key, value in self.overrides.items():
            flow = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
            words += ["--set", f"{key}={flow}"]
        return (*filter(None, [self.before]), shlex.join(words))

    def plans(self, records: Sequence[Record]) -> list[Plan]:
        """What today's suite asks for: one plan, or one for each of SHARES. Raises SuiteError.

        records: the shipped ones; given policies are named by nothing else.
        """
        if self.kind == "retraining":
            return [plan(build(Suite, suite_again(records, self.name), self.name))]
        whole = self.read()
        if self.kind != "sweep":
            return [plan(whole)]
        return [plan(self.read({"compute.epochs": share * whole.compute.epochs})) for share in SHARES]

    def read(self, more: Mapping[str, Any] | None = None) -> Suite:
        suite = load_suite(self.suite, {**self.overrides, **(more or {})})
        return select(suite, methods=(), models=self.models, seeds=self.seeds)


def _with_faster_metamix(draws: int) -> dict[str, Any]:
    faster = {"name": "metamix", "label": "metamix-faster", "options": {"lr_scale": 1.0}}
    others = ("metamix", "uniform-lsq", "random")
    return {
        "methods": ["float", "uniform-lsq", "metamix", faster, {"name": "random", "draws": draws}],
        "pairs": [["metamix-faster", other] for other in others],
    }


HAWQ_CONTROLS = {
    "methods": ["float", "uniform-lsq", "hawq", "reversed", "shuffled", {"name": "random", "draws": 3}],
    "pairs": [["hawq", "reversed"], ["hawq", "shuffled"], ["shuffled", "random"], ["reversed", "random"]],
}

RETRAINING = "retraining-metamix-mobilenet-v3-small"

SHIPPED = (
    Shipped("quick", "quick"),
    Shipped("digits-full", "digits-full"),
    Shipped("procedural-quick", "procedural-quick"),
    Shipped("digits-hawq-controls", "digits-full", overrides=HAWQ_CONTROLS, beside=("digits-full",)),
    Shipped("digits-metamix-rate", "digits-full", overrides=_with_faster_metamix(3), beside=("digits-full",)),
    Shipped(
        "procedural-metamix-rate", "procedural-quick", overrides=_with_faster_metamix(2), beside=("procedural-quick",)
    ),
    Shipped("procedural-calibration", "procedural-calibration", "widths"),
    Shipped("w8a8", "w8a8", "widths"),
    Shipped("metamix-ablation", "metamix-ablation", "ablation"),
    Shipped("digits-metamix-ablation", "digits-metamix-ablation", "ablation"),
    Shipped("asymmetric-ranges", "asymmetric-ranges", "ranges"),
    Shipped("digits-asymmetric-ranges", "digits-asymmetric-ranges", "ranges"),
    Shipped("quick-sweep", "quick", "sweep", models=("resnet18",), seeds=(0, 1, 2)),
    Shipped(
        RETRAINING,
        f"{RETRAINING}.yaml",
        "retraining",
        before="python -m reports.studies.retraining suite reports/reference/digits-full.tar.xz --method metamix"
        f" --model mobilenet_v3_small --ceiling 8816864 > {RETRAINING}.yaml",
    ),
)
