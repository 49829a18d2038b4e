"""The life of one trial, top to bottom.

A record's `result` holds: status and reason; search_stopped (the search's share ran out); policy; layers (the
per-layer ledger); cost (BOPs under every convention, weight bytes, the ceiling and what is unused of it); account;
curves; metrics (accuracies in 0..1); search (the method's own report); audit; network_digest.
"""

from __future__ import annotations

import math
import resource
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from benchmarks.data.stream import stream_seed
from benchmarks.events import Progress
from benchmarks.ranks import ALONE, Ranks, RanksDifferError
from benchmarks.records.record import Record, Status
from benchmarks.records.result import cost_of, layer_rows
from benchmarks.records.workspace import Workspace
from benchmarks.suites.spec import TrialSpec, canonical_json, full_digest
from benchmarks.trials.checkpoint import (
    Saver,
    discard_checkpoint,
    load_checkpoint,
    network_digest,
    random_state,
    save_checkpoint,
    save_network,
    set_random_state,
)
from benchmarks.trials.compute import Account, ForwardMeter
from benchmarks.trials.environment import configure_torch, describe, require_compiler
from benchmarks.trials.faults import machine_s_fault
from benchmarks.trials.float_start import Start, float_start, teacher_network
from benchmarks.trials.harness import Harness
from benchmarks.trials.judging import CeilingExceededError, best_of, check_policy, judge, validate
from benchmarks.trials.problem import Problem
from benchmarks.trials.setting import Setting
from benchmarks.trials.training import Loop, WeightTraining
from methods import load_method
from methods.contract import InapplicableError, Method, Searched
from methods.quantization.cost import Ledger, with_pins
from methods.quantization.modules import project_steps
from methods.quantization.policy import LayerBits, Policy

KEPT_PARAMETERS = 3_000_000
"""Networks up to this size are kept beside their record."""

_RECORD_SECONDS = 20.0
"""How long a rank at which the method failed waits for the first to fail alike."""
_POLL_SECONDS = 0.1


@dataclass
class _Trial:
    """What the steps of one trial share."""

    setting: Setting
    workspace: Workspace
    start: Start
    seconds: dict[str, float] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    ranks: Ranks = ALONE
    restarts: int = 0
    account: Account | None = None
    searched: Searched | None = None
    stopped: bool = False
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def spec(self) -> TrialSpec:
        return self.setting.spec

    @property
    def ledger(self) -> Ledger:
        return self.setting.ledger

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begun

    @property
    def save_seconds(self) -> float:
        """How often this rank saves the trial: the first does, for all."""
        return math.inf if self.ranks.rank else self.workspace.checkpoint_seconds

    @property
    def search_seed(self) -> int:
        """Draws of one seed differ in their search only."""
        return stream_seed(self.spec.seed, f"draw-{self.spec.draw}") if self.spec.draw else self.spec.seed


def run(spec: TrialSpec, workspace: Workspace, ranks: Ranks = ALONE) -> Generator[Progress, None, None]:
    """Run one trial, or this rank's part of it: progress while it lasts; afterwards its record is on disk.

    A method's own fault ends in a record (`failed`, `over_ceiling`, `refused`); the machine's faults are raised.
    Ranks do the same steps on their own micro-batches; the first also saves, scores and writes.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    configure_torch(workspace.threads, workspace.device)
    if workspace.compile:
        require_compiler(workspace.device)
    if workspace.gpu:
        torch.cuda.reset_peak_memory_stats()
    data = workspace.load_data(spec.data)
    start = yield from float_start(spec.start, workspace, data, ranks)
    device, teacher = torch.device(workspace.device), None
    if spec.teacher is not None:
        taught = yield from float_start(spec.teacher, workspace, data, ranks)
        teacher = teacher_network(taught, spec.teacher, device)
    setting = Setting(spec, data, start.state, device, teacher, workspace.loaders, ranks)
    trial = _Trial(setting, workspace, start, ranks=ranks)
    failure: str | None = None
    try:
        saved = load_checkpoint(workspace.checkpoint(spec.id), spec.id)
        yield from _search(trial, saved)
        model = yield from _finetune(trial, saved if saved and saved["stage"] == "finetune" else None)
        if ranks.rank:
            return
        result = _examine(trial, model)
        canonical_json(result)  # a NaN, or a report that is no JSON, is the method's fault too
    except Exception as error:
        if machine_s_fault(error):
            raise
        if ranks.rank:
            if _recorded(spec, workspace):
                return  # the first failed alike, and said so
            raise RanksDifferError(f"rank {ranks.rank}: {error}") from error
        result, failure = _failed(trial, error), traceback.format_exc()
    observed = _observed(trial, time.monotonic() - begun, started)
    if result["status"] == "failed":
        observed["traceback"] = failure
    record = Record(spec.id, spec.model_dump(mode="json"), result, observed)
    workspace.records.put(record)
    discard_checkpoint(workspace.checkpoint(spec.id))


def _observed(trial: _Trial, seconds: float, started: datetime) -> dict[str, Any]:
    """What differs from run to run, time, memory and machine, and digests of what the trial was given."""
    place, start, teacher = trial.workspace, trial.start, trial.setting.teacher
    return {
        "seconds": {**trial.seconds, "total": seconds},
        "phase_seconds": trial.phase_seconds,
        **_peaks(trial.setting.device),
        "environment": describe(place.threads, place.device, compiled=place.compile),
        "data_digest": trial.setting.data.digest,
        "weights_digest": start.digest,
        **({} if teacher is None else {"teacher_digest": network_digest(teacher.state_dict())}),
        "start_seconds": start.seconds,
        "start_images": start.images,
        "start_macs": start.macs,
        "restarts": trial.restarts,
        "engine": place.engine,
        "ranks": trial.ranks.count,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _peaks(device: torch.device) -> dict[str, int]:
    """Most memory at a time: of this process so far, and what its tensors had of a GPU since the trial began."""
    peaks = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peaks["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return peaks


def _recorded(spec: TrialSpec, workspace: Workspace) -> bool:
    """Whether the first rank writes the trial's record, which takes it a moment."""
    until = time.monotonic() + _RECORD_SECONDS
    while not (found := workspace.records.path(spec.id).exists()) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    return found


def _search(trial: _Trial, saved: dict[str, Any] | None) -> Iterator[Progress]:
    """Have the method choose; afterwards `trial.searched` and `trial.account` say what came of it.

    saved: what a checkpoint holds, if there is one.
    """
    spec = trial.spec
    problem = trial.setting.problem(trial.search_seed)
    trial.account = problem.account
    _agree(trial, problem.model, saved["stage"] if saved else "", saved["loop"]["step"] if saved else 0)
    if saved:
        trial.restarts = saved["restarts"] + 1
        trial.account.load_state_dict(saved["account"])
        if saved["stage"] == "finetune":
            policy = None if saved["policy"] is None else Policy.from_dict(saved["policy"])
            trial.searched = Searched(policy, None, saved["search"])
            trial.stopped, trial.curves = saved["stopped"], saved["curves"]
            return
    kind = load_method(spec.method.name)
    torch.manual_seed(stream_seed(trial.search_seed, "search/dropout"))
    problem.meter = ForwardMeter({layer.name: layer.macs for layer in trial.ledger})
    with problem.meter.watching(problem.model), trial.timed("search"):
        method = problem.build(kind, spec.method.options)
        loop = Loop(problem, method, "search", trial.account, trial.account.search_macs)
        if saved:
            problem.model.load_state_dict(saved["model"])
            loop.load_state_dict(saved["loop"])
            set_random_state(saved["rng"], trial.setting.device)
            _agree(trial, problem.model, "search", loop.step)
        else:  # only then: a restart has less than its share left
            _require_share(problem, method, kind.min_steps)
        saver = Saver(trial.save_seconds, lambda: _save(trial, "search", problem.model, loop))
        for progress in loop.run():
            saver.tick()
            yield progress
        trial.searched = method.result()
    trial.stopped, trial.curves["search"] = loop.stopped, loop.curve
    trial.phase_seconds |= loop.seconds
    policy = trial.searched.policy
    check_policy(spec, trial.ledger, policy, problem.candidates if kind.chooses else None)
    trial.ranks.agree("the policy", full_digest(None if policy is None else policy.to_dict()))


def _agree(trial: _Trial, model: nn.Module, stage: str, step: int) -> None:
    """Raises RanksDifferError where ranks do not begin alike, before compute is spent on it."""
    if trial.ranks.count > 1:
        parameters = network_digest(dict(model.named_parameters()))
        trial.ranks.agree("what they begin with", full_digest([stage, step, parameters]))


def _require_share(problem: Problem, method: Method, min_steps: int) -> None:
    """Raises InapplicableError if the share cannot pay the steps without which the method has no result."""
    phase = method.phase()  # None too where the method has seen that no step is paid
    paid, of = (0, "") if phase is None else (problem.account.search_macs // problem.price(phase), f" of {phase.name}")
    if paid < min_steps:
        raise InapplicableError(
            f"its search share pays {paid} steps{of}, it needs {min_steps}; raise compute.search_share"
        )


def _finetune(trial: _Trial, saved: dict[str, Any] | None) -> Generator[Progress, None, nn.Module]:
    """Weight training under the chosen policy with all the compute that is left; returns the network.

    saved: what a checkpoint of this stage holds, if there is one.
    """
    spec = trial.spec
    assert trial.account is not None
    assert trial.searched is not None
    harness = _finetuning(trial, trial.searched)
    if trial.workspace.compile:
        harness.compile()
    training = WeightTraining(harness, _all_bits(trial), total=0)
    price = harness.price_of(training, WeightTraining.PHASE).macs * spec.recipe.batch_size
    granted = round(spec.compute.epochs * trial.setting.epoch_steps)
    training.total = min(granted, trial.account.finetune_macs // price)
    if not training.total:
        raise InapplicableError("its compute pays no step of fine-tuning; raise compute.epochs")
    torch.manual_seed(stream_seed(spec.seed, "finetune/dropout"))
    limit = trial.account.searched_macs + trial.account.finetune_macs
    loop = Loop(harness, training, "finetune", trial.account, limit, training.total)
    if saved:
        harness.model.load_state_dict(saved["model"])
        loop.load_state_dict(saved["loop"])
        set_random_state(saved["rng"], trial.setting.device)
    _agree(trial, harness.model, "finetune", loop.step)
    saver = Saver(trial.save_seconds, lambda: _save(trial, "finetune", harness.model, loop))
    with trial.timed("finetune"):
        for progress in loop.run():
            if _validates(spec, progress.step, trial.setting.epoch_steps):
                _validate(trial, harness.model, progress.step)
            saver.tick()
            yield progress
    trial.ranks.agree("the weights", network_digest(dict(harness.model.named_parameters())))
    trial.curves["finetune"] = loop.curve
    trial.phase_seconds |= loop.seconds
    return harness.model


def _validates(spec: TrialSpec, step: int, epoch_steps: int) -> bool:
    """Whether another `validate_epochs` of fine-tuning are done with this step."""
    every = spec.recipe.validate_epochs
    return every is not None and int(step / (every * epoch_steps)) > int((step - 1) / (every * epoch_steps))


def _validate(trial: _Trial, model: nn.Module, step: int) -> None:
    if trial.ranks.rank:
        return
    assert trial.account is not None
    row = {"step": step, **validate(trial.setting, trial.account, model)}
    trial.curves.setdefault("validation", []).append(row)


def _all_bits(trial: _Trial) -> dict[str, LayerBits] | None:
    assert trial.searched is not None
    return None if trial.searched.policy is None else with_pins(trial.ledger, trial.searched.policy)


def _finetuning(trial: _Trial, searched: Searched) -> Harness:
    """The network with the chosen widths only; weights, batch norm and activation steps as the search left them."""
    candidates: Mapping[str, list[LayerBits]]
    if searched.policy is None:
        candidates = {layer.name: [LayerBits(8, 8)] for layer in trial.ledger if not layer.pinned}
    else:
        candidates = {name: [bits] for name, bits in searched.policy.items()}
    # Fine-tuning's own stream is that of the seed alone, so that all methods and draws are paired.
    harness = trial.setting.harness(candidates, trial.spec.seed)
    if searched.state is not None:
        own = harness.model.state_dict()
        harness.model.load_state_dict({**own, **{k: v for k, v in searched.state.items() if k in own}})
        project_steps(harness.model)
    return harness


def _save(trial: _Trial, stage: str, model: nn.Module, loop: Loop) -> None:
    assert trial.account is not None
    state: dict[str, Any] = {
        "stage": stage,
        "restarts": trial.restarts,
        "account": trial.account.state_dict(),
        "model": model.state_dict(),
        "loop": loop.state_dict(),
        "rng": random_state(trial.setting.device),
    }
    if stage == "finetune":
        assert trial.searched is not None
        policy = trial.searched.policy
        state |= {
            "policy": None if policy is None else policy.to_dict(),
            "search": dict(trial.searched.report),
            "stopped": trial.stopped,
            "curves": trial.curves,
        }
    save_checkpoint(trial.workspace.checkpoint(trial.spec.id), trial.spec.id, state)


def _examine(trial: _Trial, model: nn.Module) -> dict[str, Any]:
    """The record's result; the network itself is kept beside it if it is small."""
    assert trial.account is not None
    assert trial.searched is not None
    spec, ledger, policy = trial.spec, trial.ledger, trial.searched.policy
    with trial.timed("evaluation"):
        verdict = judge(trial.setting, trial.account, model, policy, trial.start)
    if sum(parameter.numel() for parameter in model.parameters()) <= KEPT_PARAMETERS:
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        save_network(trial.workspace.network(spec.id), state)
    ceiling = spec.ceiling_bops
    return {
        **_outcome("ok", None, trial),
        **verdict,
        "policy": None if policy is None else policy.to_dict(),
        "layers": layer_rows(ledger, policy),
        "cost": None if policy is None or ceiling is None else cost_of(ledger, policy, ceiling),
        "metrics": {**verdict["metrics"], **best_of(trial.curves.get("validation", ()))},
        "search": dict(trial.searched.report),
    }


def _outcome(status: Status, error: Exception | None, trial: _Trial) -> dict[str, Any]:
    return {
        "status": status,
        "reason": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "search_stopped": trial.stopped,
        "account": None if trial.account is None else trial.account.to_dict(),
        "curves": trial.curves,
    }


def _failed(trial: _Trial, error: Exception) -> dict[str, Any]:
    statuses: dict[type[Exception], Status] = {InapplicableError: "refused", CeilingExceededError: "over_ceiling"}
    return _outcome(statuses.get(type(error), "failed"), error, trial)
