"""What a run shows while it lasts: bars and the time left on a terminal, a line per job elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from benchmarks.drawing.presets import SPLITS
from benchmarks.engines.jobs import Job
from benchmarks.events import Outcome
from benchmarks.events import Progress as Step
from benchmarks.records.record import Records
from benchmarks.suites.spec import ProceduralSpec


@dataclass
class View:
    """An observer that prints. Bars only where the console is a terminal."""

    console: Console
    jobs: Sequence[Job]
    work: dict[str, float]
    records: Records
    done: dict[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    _ended: set[str] = field(default_factory=set)
    _bars: Progress | None = None
    _tasks: dict[str, TaskID] = field(default_factory=dict)

    def __enter__(self) -> View:
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
            self._tasks["all"] = self._bars.add_task("all trials", total=1.0, note="")
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bars:
            self._bars.stop()

    def progress(self, job: Job, progress: Sequence[Step]) -> None:
        last = progress[-1]
        fraction = last.step / last.total if last.total else 0.0
        self.done[job.key] = max(self.done.get(job.key, 0.0), fraction)
        if self._bars:
            if job.key not in self._tasks:
                self._tasks[job.key] = self._bars.add_task(job.label, total=1.0, note="")
            note = f"{last.stage} {last.step}" + (f"/{last.total}" if last.total else "")
            self._bars.update(self._tasks[job.key], completed=fraction, note=note)
            self._update_all()

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.done[job.key] = 1.0
        if self._bars:
            if job.key in self._tasks:
                self._bars.remove_task(self._tasks.pop(job.key))
            self._update_all()
        self._ended.add(job.key)
        ending = self._ending(job, outcome)
        self.console.print(f"[{len(self._ended)}/{len(self.jobs)}] {job.label}: {ending}", markup=False)

    def _ending(self, job: Job, outcome: Outcome) -> str:
        if outcome.status in ("lost", "failed"):
            return f"{outcome.status}: {outcome.message}"
        record = self.records.get(job.key) if job.is_trial else None
        if record is None:
            return "done"
        if record.status != "ok":
            return f"{record.status}: {record.result['reason']['message']}"
        return f"test accuracy {100 * record.result['metrics']['test_accuracy']:.1f} %"

    def _update_all(self) -> None:
        assert self._bars
        total = sum(self.work[job.key] for job in self.jobs)
        share = sum(self.work[job.key] * self.done.get(job.key, 0.0) for job in self.jobs) / max(total, 1e-9)
        self._bars.update(self._tasks["all"], completed=share, note=self._time_left(share))

    def _time_left(self, share: float) -> str:
        elapsed = time.monotonic() - self.begun
        if share < 0.02:
            return "time left: measuring"
        left = elapsed * (1 - share) / share
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"


@contextmanager
def told(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function to call with a task's name, how much is done and the total; a terminal shows it as bars."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield tell


def prepare_images(console: Console, spec: ProceduralSpec, folder: Path, warn: Callable[[str], None]) -> None:
    """Draw the images that are missing or damaged before trials ask for them, with a bar per split on a terminal."""
    from benchmarks.data.drawn import is_drawn, open_images

    missing = {split: getattr(spec, split) for split in SPLITS if not is_drawn(spec, split, folder)}
    if missing:
        console.print(f"drawing {sum(missing.values()):,} images of {spec.preset} into {folder}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for split in SPLITS:
            task = bars.add_task(split, total=getattr(spec, split), visible=split in missing)
            open_images(spec, split, folder, partial(bars.advance, task), warn)
