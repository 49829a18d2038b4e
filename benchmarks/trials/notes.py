"""What is noted of a trial while it runs, for its record; also if the trial fails."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.addresses import without_secrets
from benchmarks.records.schema import Status
from benchmarks.runtime import Runtime
from benchmarks.trials.checkpoint import network_digest
from benchmarks.trials.compute import Account
from benchmarks.trials.environment import describe
from benchmarks.trials.float_start import Start
from benchmarks.trials.setting import Setting
from benchmarks.trials.training import Loop


@dataclass
class Notes:
    """given: digests of what the trial was given, and its start's cost. account: None until its price is measured."""

    given: dict[str, Any]
    account: Account | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    search_stopped: bool = False
    restarts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begun

    def note_given(self, setting: Setting, start: Start) -> None:
        teacher = setting.teacher
        self.given |= {
            "weights_digest": start.digest,
            **({} if teacher is None else {"teacher_digest": network_digest(teacher.state_dict())}),
            "start_seconds": start.seconds,
            "start_images": start.images,
            "start_macs": start.macs,
        }

    def note_training(self, loop: Loop) -> None:
        self.curves[loop.stage] = loop.curve
        self.phase_seconds |= loop.seconds

    def begin(self, account: Account, saved: dict[str, Any] | None) -> None:
        """Begin, or continue from what `saved` returned in a process that has ended."""
        self.account, self.restarts, self.search_stopped, self.curves = account, 0, False, {}
        if saved:
            account.load_state_dict(saved["account"])
            self.restarts = saved["restarts"] + 1
            self.search_stopped, self.curves = saved["stopped"], saved["curves"]

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of these notes."""
        account = None if self.account is None else self.account.state_dict()
        return {"account": account, "restarts": self.restarts, "stopped": self.search_stopped, "curves": self.curves}

    def outcome(self, status: Status, error: Exception | None = None) -> dict[str, Any]:
        """The part of a record's result that every trial has, however it ended."""
        told = None if error is None else {"type": type(error).__name__, "message": without_secrets(str(error))}
        return {
            "status": status,
            "reason": told,
            "search_stopped": self.search_stopped,
            "account": None if self.account is None else self.account.to_dict(),
            "curves": self.curves,
        }

    def observed(self, runtime: Runtime, ranks: int) -> dict[str, Any]:
        """What differs from run to run: time, memory and machine; and digests of what the trial was given."""
        return {
            "seconds": {**self.seconds, "total": time.monotonic() - self.begun},
            "phase_seconds": self.phase_seconds,
            **_peaks(torch.device(runtime.device)),
            "environment": describe(runtime.threads, runtime.device, compiled=runtime.compile),
            **self.given,
            "restarts": self.restarts,
            "engine": runtime.engine,
            "ranks": ranks,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _peaks(device: torch.device) -> dict[str, int]:
    """Peak memory: of this process so far, and of its tensors on a GPU since the trial began."""
    peaks = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peaks["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return peaks
