"""What an engine is given to do: float starts and trials. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.planning import Plan
from benchmarks.suites.spec import StartSpec, TrialSpec


@dataclass(frozen=True)
class Job:
    """A float start or a trial. key: its lock, alike in every process."""

    key: str
    label: str
    spec: TrialSpec | StartSpec

    @property
    def is_trial(self) -> bool:
        return isinstance(self.spec, TrialSpec)

    @property
    def with_starts(self) -> list[Job]:
        """The float starts that a trial needs, then the trial itself; for a float start, only itself."""
        starts = self.spec.starts if isinstance(self.spec, TrialSpec) else ()
        return [*(Job(f"start-{start.key}", self.label, start) for start in starts), self]

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.key, "label": self.label, "trial": self.is_trial, "spec": self.spec.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        kind = TrialSpec if data["trial"] else StartSpec
        return cls(data["key"], data["label"], kind.model_validate(data["spec"]))


def jobs_of(plan: Plan) -> list[Job]:
    """Float starts before the trials that need them, long ones first, so that no core waits at the end."""
    longest = {start.key: trial.work for trial in plan.trials for start in trial.spec.starts}
    starts = sorted(plan.starts, key=lambda start: -longest[start.key])
    names = {start.key: f"{start.model.name} · float start · seed {start.seed}" for start in starts}
    trials = sorted(plan.trials, key=lambda trial: -trial.work)
    return [Job(f"start-{start.key}", names[start.key], start) for start in starts] + [
        Job(trial.id, trial.label, trial.spec) for trial in trials
    ]
