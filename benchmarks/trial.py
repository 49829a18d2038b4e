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

import numpy as np
import torch
from torch import nn

from benchmarks.audit import audit_codes
from benchmarks.checkpoint import (
    CheckpointError,
    Saver,
    discard_checkpoint,
    load_checkpoint,
    network_digest,
    save_checkpoint,
    save_network,
)
from benchmarks.compute import Account, ForwardMeter
from benchmarks.data.folders import DataError
from benchmarks.data.stream import stream_seed
from benchmarks.environment import configure_torch, describe, require_compiler
from benchmarks.evaluation import Score, evaluate, recalibrate_bn
from benchmarks.messages import SuiteError
from benchmarks.pretraining import Start, float_start, teacher_network
from benchmarks.ranks import ALONE, RankLostError, Ranks, RanksDifferError
from benchmarks.record import Record, Status
from benchmarks.result import cost_of, layer_rows
from benchmarks.setting import Setting
from benchmarks.spec import TrialSpec, canonical_json, full_digest
from benchmarks.suite import candidates_of
from benchmarks.training import Loop, Problem, Progress, WeightTraining
from benchmarks.workspace import Workspace
from methods import load_method
from methods.contract import InapplicableError, Method, Searched
from methods.quantization.cost import Ledger, bops, with_pins
from methods.quantization.modules import (
    project_steps,
)
from methods.quantization.policy import LayerBits, Policy, PolicyError

KEPT_PARAMETERS = 3_000_000
"""Networks up to this size are kept beside their record."""

_AUDITED_IMAGES = 64

INFRASTRUCTURE = (
    OSError,
    MemoryError,
    torch.OutOfMemoryError,
    CheckpointError,
    DataError,
    SuiteError,
    RankLostError,
    RanksDifferError,
)
"""What says nothing about a method: the trial is lost, leaves no record, and runs again next time."""


def machine_s_fault(error: Exception) -> bool:
    """Whether one of torch's RuntimeErrors says that memory was short, or that a process which loads images was killed.

    The latter is raised by a signal, wherever the trial happens to be.
    """
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MACHINE)


_MACHINE = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "DataLoader worker")


class CeilingExceededError(Exception):
    """A method returned a policy above the ceiling."""


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

    A method's own fault ends in a record (`failed`, `over_ceiling`, `refused`); INFRASTRUCTURE errors are raised.
    Ranks do the same steps on their own micro-batches; the first also saves, scores and writes.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    configure_torch(workspace.threads, workspace.device)
    if workspace.compile:
        require_compiler(workspace.device)
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
        yield from _search(trial)
        model = yield from _finetune(trial)
        if ranks.rank:
            return
        result = _examine(trial, model)
        canonical_json(result)  # a NaN, or a report that is no JSON, is the method's fault too
    except INFRASTRUCTURE:
        raise
    except Exception as error:
        if machine_s_fault(error):
            raise
        if ranks.rank:
            raise RanksDifferError(
                f"rank {ranks.rank}: {error}"
            ) from error  # unless the first fails alike, and says so
        result, failure = _failed(trial, error), traceback.format_exc()
    observed = {
        "seconds": {**trial.seconds, "total": time.monotonic() - begun},
        "phase_seconds": trial.phase_seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "environment": describe(workspace.threads, workspace.device, compiled=workspace.compile),
        "data_digest": data.digest,
        "weights_digest": start.digest,
        **({} if teacher is None else {"teacher_digest": network_digest(teacher.state_dict())}),
        "start_seconds": start.seconds,
        "restarts": trial.restarts,
        "engine": workspace.engine,
        "ranks": ranks.count,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"traceback": failure} if result["status"] == "failed" else {}),
    }
    record = Record(spec.id, spec.model_dump(mode="json"), result, observed)
    workspace.records.put(record)
    discard_checkpoint(workspace.checkpoint(spec.id))


def _search(trial: _Trial) -> Iterator[Progress]:
    """Have the method choose; afterwards `trial.searched` and `trial.account` say what came of it."""
    spec, path = trial.spec, trial.workspace.checkpoint(trial.spec.id)
    problem = trial.setting.problem(candidates_of(spec.space, trial.ledger), trial.search_seed)
    trial.account = problem.account = trial.setting.account(problem)
    saved = load_checkpoint(path, spec.id)
    if saved:
        trial.restarts = saved["restarts"] + 1
        trial.account.load_state_dict(saved["account"])
        if saved["stage"] == "finetune":
            return  # _finetune reads the rest
    kind = load_method(spec.method.name)
    torch.manual_seed(stream_seed(trial.search_seed, "search/dropout"))
    problem.meter = ForwardMeter({layer.name: layer.macs for layer in trial.ledger})
    with problem.meter.watching(problem.model), trial.timed("search"):
        problem.trainee = method = kind(problem, kind.Options.model_validate(spec.method.options))
        _require_share(problem, method, kind.min_steps)
        loop = Loop(problem, method, "search", limit=trial.account.search_macs)
        if saved:
            problem.model.load_state_dict(saved["model"])
            loop.load_state_dict(saved["loop"])
            torch.set_rng_state(saved["rng"])
        saver = Saver(trial.save_seconds, lambda: _save(trial, "search", problem.model, loop))
        for progress in loop.run():
            saver.tick()
            yield progress
        trial.searched = method.result()
    trial.stopped, trial.curves["search"] = loop.stopped, loop.curve
    trial.phase_seconds |= loop.seconds
    _check(trial, trial.searched)
    policy = trial.searched.policy
    trial.ranks.agree("the policy", full_digest(None if policy is None else policy.to_dict()))


def _require_share(problem: Problem, method: Method, min_steps: int) -> None:
    """Raises InapplicableError if the share cannot pay the steps without which the method has no result."""
    phase = method.phase()
    if phase is not None and (paid := problem.account.search_macs // problem.price(phase)) < min_steps:
        raise InapplicableError(
            f"its search share pays {paid} steps of {phase.name}, it needs {min_steps}; raise compute.search_share"
        )


def _check(trial: _Trial, searched: Searched) -> None:
    """The policy names exactly the searchable layers and keeps the ceiling."""
    ceiling, policy = trial.spec.ceiling_bops, searched.policy
    if (policy is None) != (ceiling is None):
        raise PolicyError("a quantizing method must return a policy, and only such a method may")
    if policy is None or ceiling is None:
        return
    searchable = {layer.name for layer in trial.ledger if not layer.pinned}
    if wrong := sorted(searchable.symmetric_difference(policy)):
        raise PolicyError(f"the policy must name exactly the searchable layers; differing: {', '.join(wrong)}")
    cost = bops(trial.ledger, policy)
    if cost > ceiling:
        raise CeilingExceededError(f"the policy costs {cost:,} BOPs, above the ceiling of {ceiling:,}")


def _finetune(trial: _Trial) -> Generator[Progress, None, nn.Module]:
    """Weight training under the chosen policy with all the compute that is left; returns the network."""
    spec, path = trial.spec, trial.workspace.checkpoint(trial.spec.id)
    assert trial.account is not None
    saved = load_checkpoint(path, spec.id) if trial.searched is None else None
    if saved:
        policy = None if saved["policy"] is None else Policy.from_dict(saved["policy"])
        trial.searched = Searched(policy, None, saved["search"])
        trial.stopped, trial.curves = saved["stopped"], saved["curves"]
    assert trial.searched is not None
    problem = _finetuning_problem(trial, trial.searched)
    if trial.workspace.compile:
        problem.compile()
    training = WeightTraining(problem, _all_bits(trial), total=0)
    problem.trainee = training
    price = problem.price(WeightTraining.PHASE)
    granted = round(spec.compute.epochs * trial.setting.epoch_steps)
    training.total = min(granted, trial.account.finetune_macs // price)
    torch.manual_seed(stream_seed(spec.seed, "finetune/dropout"))
    limit = trial.account.searched_macs + trial.account.finetune_macs
    loop = Loop(problem, training, "finetune", limit=limit, total=training.total)
    if saved:
        problem.model.load_state_dict(saved["model"])
        loop.load_state_dict(saved["loop"])
        torch.set_rng_state(saved["rng"])
    saver = Saver(trial.save_seconds, lambda: _save(trial, "finetune", problem.model, loop))
    with trial.timed("finetune"):
        for progress in loop.run():
            if _validates(spec, progress.step, trial.setting.epoch_steps):
                _validate(trial, problem.model, progress.step)
            saver.tick()
            yield progress
    trial.ranks.agree("the weights", network_digest(dict(problem.model.named_parameters())))
    trial.curves["finetune"] = loop.curve
    trial.phase_seconds |= loop.seconds
    return problem.model


def _validates(spec: TrialSpec, step: int, epoch_steps: int) -> bool:
    """Whether another `validate_epochs` of fine-tuning are done with this step."""
    every = spec.recipe.validate_epochs
    return every is not None and int(step / (every * epoch_steps)) > int((step - 1) / (every * epoch_steps))


def _validate(trial: _Trial, model: nn.Module, step: int) -> None:
    """Score validation as at the end, with batch norm recalibrated, and take all back that this changed."""
    if trial.ranks.rank:
        return
    assert trial.account is not None
    data, device, loaders = trial.setting.data, trial.setting.device, trial.workspace.loaders
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    forward = sum(layer.macs for layer in trial.ledger)
    trial.account.show("recalibration", recalibrate_bn(model, data.train, device, loaders), forward)
    score = evaluate(model, data.validation, device, loaders)
    trial.account.show("evaluation", score.images, forward)
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    row = {"step": step, "accuracy": score.accuracy, "loss": score.loss}
    trial.curves.setdefault("validation", []).append(row)


def _all_bits(trial: _Trial) -> dict[str, LayerBits] | None:
    assert trial.searched is not None
    return None if trial.searched.policy is None else with_pins(trial.ledger, trial.searched.policy)


def _finetuning_problem(trial: _Trial, searched: Searched) -> Problem:
    """The network with the chosen widths only; weights, batch norm and activation steps as the search left them."""
    candidates: Mapping[str, list[LayerBits]]
    if searched.policy is None:
        candidates = {layer.name: [LayerBits(8, 8)] for layer in trial.ledger if not layer.pinned}
    else:
        candidates = {name: [bits] for name, bits in searched.policy.items()}
    # Fine-tuning's own stream is that of the seed alone, so that all methods and draws are paired.
    problem = trial.setting.problem(candidates, trial.spec.seed, trial.account)
    if searched.state is not None:
        own = problem.model.state_dict()
        problem.model.load_state_dict({**own, **{k: v for k, v in searched.state.items() if k in own}})
        project_steps(problem.model)
    return problem


def _save(trial: _Trial, stage: str, model: nn.Module, loop: Loop) -> None:
    assert trial.account is not None
    state: dict[str, Any] = {
        "stage": stage,
        "restarts": trial.restarts,
        "account": trial.account.state_dict(),
        "model": model.state_dict(),
        "loop": loop.state_dict(),
        "rng": torch.get_rng_state(),
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
    """The harness, not the method, counts cost, audits codes, recalibrates batch norm and scores; test once."""
    assert trial.account is not None
    assert trial.searched is not None
    data, device, loaders = trial.setting.data, trial.setting.device, trial.workspace.loaders
    with trial.timed("evaluation"):
        forward = sum(layer.macs for layer in trial.ledger)
        trial.account.show("recalibration", recalibrate_bn(model, data.train, device, loaders), forward)
        audit = _audit(trial, model)
        validation = evaluate(model, data.validation, device, loaders)
        test = evaluate(model, data.test, device, loaders)
        trial.account.show("evaluation", validation.images + test.images, forward)
    state = model.state_dict()
    if sum(parameter.numel() for parameter in model.parameters()) <= KEPT_PARAMETERS:
        save_network(trial.workspace.network(trial.spec.id), {name: tensor.cpu() for name, tensor in state.items()})
    spec, policy = trial.spec, trial.searched.policy
    return {
        **_outcome("ok", None, trial),
        "policy": None if policy is None else policy.to_dict(),
        "layers": layer_rows(trial.ledger, policy),
        "cost": None
        if policy is None or spec.ceiling_bops is None
        else cost_of(trial.ledger, policy, spec.ceiling_bops),
        "metrics": {**_metrics(validation, test, trial.start), **_best(trial)},
        "search": dict(trial.searched.report),
        "audit": audit,
        "network_digest": network_digest(state),
    }


def _audit(trial: _Trial, model: nn.Module) -> list[dict[str, Any]]:
    assert trial.searched is not None
    if trial.searched.policy is None:
        return []
    count = min(_AUDITED_IMAGES, len(trial.setting.data.validation))
    images = trial.setting.data.validation.load(np.arange(count), None)[0].to(trial.setting.device)
    narrow = trial.spec.quantizer.signed == "narrow"
    return audit_codes(model, trial.ledger, trial.searched.policy, images, narrow=narrow)


def _metrics(validation: Score, test: Score, start: Start) -> dict[str, Any]:
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_images": test.images,
        "validation_accuracy": validation.accuracy,
        "validation_loss": validation.loss,
        "validation_images": validation.images,
        "start_test_accuracy": start.test_accuracy,
        **({} if test.top5 is None else {"test_top5_accuracy": test.top5, "validation_top5_accuracy": validation.top5}),
    }


def _best(trial: _Trial) -> dict[str, Any]:
    """The best of what was scored on the way, the first of equals; it ranks nothing."""
    if "validation" not in trial.curves:
        return {}
    best = max(trial.curves["validation"], key=lambda row: row["accuracy"])
    return {"best_validation_accuracy": best["accuracy"], "best_validation_step": best["step"]}


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
