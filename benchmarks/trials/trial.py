"""The life of one trial, top to bottom.

A record's `result` holds: status and reason; search_stopped (the search's share ran out); policy; layers (the
per-layer ledger); cost (BOPs under every convention, weight bytes, the ceiling and what is unused of it); account;
curves; metrics (accuracies in 0..1); search (the method's own report); audit; network_digest.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.data import Dataset
from benchmarks.data.stream import stream_seed
from benchmarks.events import Progress
from benchmarks.ranks import ALONE, Ranks, RanksDifferError, comes
from benchmarks.records.record import Record, require_sound
from benchmarks.records.result import cost_of, layer_rows
from benchmarks.records.schema import Status
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import TrialSpec, full_digest
from benchmarks.trials.checkpoint import (
    Saver,
    discard_checkpoint,
    going_on,
    network_digest,
    save_checkpoint,
    save_network,
)
from benchmarks.trials.compute import Account, ForwardMeter
from benchmarks.trials.environment import configure_torch, require_compiler
from benchmarks.trials.faults import machine_s_fault, resuming, traceback_of
from benchmarks.trials.float_start import Start, StartFailedError, float_start, teacher_network
from benchmarks.trials.harness import Harness
from benchmarks.trials.judging import CeilingExceededError, best_of, check_policy, judge, validate
from benchmarks.trials.notes import Notes
from benchmarks.trials.problem import Problem
from benchmarks.trials.setting import Setting
from benchmarks.trials.training import Loop, WeightTraining
from methods import load_method
from methods.contract import InapplicableError, Method, Searched
from methods.quantization.cost import with_pins
from methods.quantization.modules import project_steps
from methods.quantization.policy import LayerBits, Policy

KEPT_PARAMETERS = 3_000_000
"""Networks up to this size are kept beside their record."""


def run(
    spec: TrialSpec, workspace: Workspace, runtime: Runtime, ranks: Ranks = ALONE
) -> Generator[Progress, None, None]:
    """Run one trial, or this rank's part of it: progress while it lasts; afterwards its record is on disk.

    A method's own fault ends in a record (`failed`, `over_ceiling`, `refused`); the machine's faults are raised.
    Ranks do the same steps on their own micro-batches; the first also saves, scores and writes.
    """
    _configure(runtime)
    data = runtime.load_data(spec.data)
    notes = Notes({"data_digest": data.digest})
    trace: str | None = None
    try:
        setting, start = yield from _given(spec, workspace, runtime, data, ranks)
        notes.note_given(setting, start)
        path, stages = workspace.checkpoint(spec.id), partial(_stages, setting, start, workspace, runtime, notes)
        result = yield from going_on(path, spec.id, stages)
    except Exception as error:
        if machine_s_fault(error):
            raise
        if ranks.rank and not comes(lambda: workspace.done(spec)):  # else the first failed too, and wrote the record
            raise RanksDifferError(f"rank {ranks.rank}: {error}") from error
        trace = error.trace if isinstance(error, StartFailedError) else traceback_of(error)
        result = notes.outcome(_status_of(error), error)
    if ranks.rank:
        return
    observed = notes.observed(runtime, ranks.count)
    if result["status"] == "failed":
        observed["traceback"] = trace
    workspace.records.put(Record(spec.id, spec.model_dump(mode="json"), result, observed))
    discard_checkpoint(workspace.checkpoint(spec.id))


def _configure(runtime: Runtime) -> None:
    configure_torch(runtime.threads, runtime.device)
    if runtime.compile:
        require_compiler(runtime.device)
    if runtime.gpu:
        torch.cuda.reset_peak_memory_stats()


def _given(
    spec: TrialSpec, workspace: Workspace, runtime: Runtime, data: Dataset, ranks: Ranks
) -> Generator[Progress, None, tuple[Setting, Start]]:
    """What a trial is given: its data and float networks, made first where they are missing."""
    start = yield from float_start(spec.start, workspace, runtime, data, ranks)
    device, teacher = torch.device(runtime.device), None
    if spec.teacher is not None:
        taught = yield from float_start(spec.teacher, workspace, runtime, data, ranks)
        teacher = teacher_network(taught, spec.teacher, device)
    return Setting(spec, data, start.state, device, teacher, runtime.loaders, ranks), start


def _status_of(error: Exception) -> Status:
    statuses: dict[type[Exception], Status] = {InapplicableError: "refused", CeilingExceededError: "over_ceiling"}
    return statuses.get(type(error), "failed")


@dataclass(frozen=True)
class _Trial:
    """What all stages of a trial are given. account: charged by all of them."""

    setting: Setting
    workspace: Workspace
    runtime: Runtime
    notes: Notes
    account: Account

    @property
    def spec(self) -> TrialSpec:
        return self.setting.spec

    @property
    def ranks(self) -> Ranks:
        return self.setting.ranks

    @property
    def save_seconds(self) -> float:
        """How often this rank saves the trial: the first does, for all."""
        return math.inf if self.ranks.rank else self.runtime.checkpoint_seconds


def _stages(
    setting: Setting,
    start: Start,
    workspace: Workspace,
    runtime: Runtime,
    notes: Notes,
    saved: dict[str, Any] | None,
) -> Generator[Progress, None, dict[str, Any]]:
    """Search, fine-tune and examine, from the checkpoint if there is one; only the first rank examines."""
    problem = setting.problem(_search_seed(setting.spec))
    trial = _Trial(setting, workspace, runtime, notes, problem.account)
    with resuming():
        notes.begin(problem.account, saved)
        at = (str(saved["stage"]), int(saved["loop"]["step"])) if saved else ("", 0)
        searched = _chosen(saved) if saved and at[0] == "finetune" else None
    _agree(trial, problem.model, *at)
    if searched is None:
        searched = yield from _search(trial, problem, saved)
        saved = None
    model = yield from _finetune(trial, searched, saved)
    if setting.ranks.rank:
        return {}
    result = _examine(trial, searched, model, start)
    require_sound(trial.spec, result)  # a NaN, or a report that is no JSON, is the method's fault too
    return result


def _search_seed(spec: TrialSpec) -> int:
    """Draws of one seed differ in their search only."""
    return stream_seed(spec.seed, f"draw-{spec.draw}") if spec.draw else spec.seed


def _agree(trial: _Trial, model: nn.Module, stage: str, step: int) -> None:
    """Raises RanksDifferError if ranks begin a stage with different weights, before compute is spent on it."""
    if trial.ranks.count > 1:
        parameters = network_digest(dict(model.named_parameters()))
        trial.ranks.agree("what they begin with", full_digest([stage, step, parameters]))


def _chosen(saved: dict[str, Any]) -> Searched:
    """What the search had chosen, as a checkpoint of fine-tuning keeps it."""
    policy = None if saved["policy"] is None else Policy.from_dict(saved["policy"])
    return Searched(policy, None, saved["search"])


def _search(trial: _Trial, problem: Problem, saved: dict[str, Any] | None) -> Generator[Progress, None, Searched]:
    """Have the method choose. saved: what a checkpoint of the search holds, if there is one."""
    spec, notes, ledger = trial.spec, trial.notes, problem.ledger
    kind = load_method(spec.method.name)
    torch.manual_seed(stream_seed(problem.seed, "search/dropout"))
    problem.meter = ForwardMeter(tuple(layer.name for layer in ledger))
    with problem.meter.watching(problem.model), notes.timed("search"):
        method = problem.build(kind, spec.method.options)
        loop = Loop(problem, method, "search", trial.account, trial.account.search_macs)
        if saved:
            with resuming():
                loop.resume(saved)
            _agree(trial, problem.model, "search", loop.step)
        else:  # only then: a restart has less than its share left
            _require_share(problem, method, kind.min_steps)
        saver = Saver(trial.save_seconds, lambda: _save(trial, loop))
        for progress in loop.run():
            saver.tick()
            yield progress
        searched = method.result()
    notes.search_stopped = loop.stopped
    notes.note_training(loop)
    check_policy(spec, ledger, searched.policy, problem.candidates if kind.chooses else None)
    trial.ranks.agree("the policy", full_digest(None if searched.policy is None else searched.policy.to_dict()))
    return searched


def _require_share(problem: Problem, method: Method, min_steps: int) -> None:
    """Raises InapplicableError if the share cannot pay the steps without which the method has no result."""
    phase = method.phase()  # also None if the method found that its share pays no step
    paid, of = (0, "") if phase is None else (problem.account.search_macs // problem.price(phase), f" of {phase.name}")
    if paid < min_steps:
        raise InapplicableError(
            f"its search share pays {paid} steps{of}, it needs {min_steps}; raise compute.search_share"
        )


def _finetune(trial: _Trial, searched: Searched, saved: dict[str, Any] | None) -> Generator[Progress, None, nn.Module]:
    """Weight training under the chosen policy with all the compute that is left; returns the network.

    saved: what a checkpoint of this stage holds, if there is one.
    """
    spec, notes, account = trial.spec, trial.notes, trial.account
    harness = _finetuning(trial.setting, searched)
    if trial.runtime.compile:
        harness.compile()
    bits = None if searched.policy is None else with_pins(trial.setting.ledger, searched.policy)
    training = WeightTraining(harness, bits, total=0)
    training.total = _paid_steps(trial, harness.price_of(training, WeightTraining.PHASE).macs)
    torch.manual_seed(stream_seed(spec.seed, "finetune/dropout"))
    limit = account.searched_macs + account.finetune_macs
    loop = Loop(harness, training, "finetune", account, limit, training.total)
    if saved:
        with resuming():
            loop.resume(saved)
    _agree(trial, harness.model, "finetune", loop.step)
    saver = Saver(trial.save_seconds, lambda: _save(trial, loop, searched))
    with notes.timed("finetune"):
        for progress in loop.run():
            if _validates(trial, progress.step):
                row = {"step": progress.step, **validate(trial.setting, account, harness.model)}
                notes.curves.setdefault("validation", []).append(row)
            saver.tick()
            yield progress
    trial.ranks.agree("the weights", network_digest(dict(harness.model.named_parameters())))
    notes.note_training(loop)
    return harness.model


def _finetuning(setting: Setting, searched: Searched) -> Harness:
    """The network with the chosen widths only; weights, batch norm and activation steps as the search left them."""
    # A network that stays float has quantizers too; they are off.
    unused = {layer.name: LayerBits(8, 8) for layer in setting.ledger if not layer.pinned}
    bits = unused if searched.policy is None else searched.policy
    # Fine-tuning's own stream is that of the seed alone, so that all methods and draws are paired.
    harness = setting.harness({name: [pair] for name, pair in bits.items()}, setting.spec.seed)
    if searched.state is not None:
        own = harness.model.state_dict()
        harness.model.load_state_dict({**own, **{k: v for k, v in searched.state.items() if k in own}})
        project_steps(harness.model)
    return harness


def _paid_steps(trial: _Trial, macs_per_image: int) -> int:
    """Steps of fine-tuning that are granted and paid. Raises InapplicableError if there are none."""
    granted = round(trial.spec.compute.epochs * trial.setting.epoch_steps)
    steps = min(granted, trial.account.finetune_macs // (macs_per_image * trial.spec.recipe.batch_size))
    if not steps:
        raise InapplicableError("its compute pays no step of fine-tuning; raise compute.epochs")
    return steps


def _validates(trial: _Trial, step: int) -> bool:
    """Whether this rank scores validation now: the first does after every `validate_epochs` of fine-tuning."""
    every = trial.spec.recipe.validate_epochs
    if trial.ranks.rank or every is None:
        return False
    steps = every * trial.setting.epoch_steps
    return int(step / steps) > int((step - 1) / steps)


def _save(trial: _Trial, loop: Loop, searched: Searched | None = None) -> None:
    """Save a stage. searched: the method's choice, once it is made."""
    state = {"stage": loop.stage, **trial.notes.saved(), **loop.saved()}
    if searched is not None:
        policy = None if searched.policy is None else searched.policy.to_dict()
        state |= {"policy": policy, "search": dict(searched.report)}
    save_checkpoint(trial.workspace.checkpoint(trial.spec.id), trial.spec.id, state)


def _examine(trial: _Trial, searched: Searched, model: nn.Module, start: Start) -> dict[str, Any]:
    """The record's result; the network itself is kept beside it if it is small."""
    spec, policy, ledger = trial.spec, searched.policy, trial.setting.ledger
    with trial.notes.timed("evaluation"):
        verdict = judge(trial.setting, trial.account, model, policy, start)
    if sum(parameter.numel() for parameter in model.parameters()) <= KEPT_PARAMETERS:
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        save_network(trial.workspace.network(spec.id), state)
    ceiling = spec.ceiling_bops
    return {
        **trial.notes.outcome("ok"),
        **verdict,
        "policy": None if policy is None else policy.to_dict(),
        "layers": layer_rows(ledger, policy),
        "cost": None if policy is None or ceiling is None else cost_of(ledger, policy, ceiling),
        "metrics": {**verdict["metrics"], **best_of(trial.notes.curves.get("validation", ()))},
        "search": dict(searched.report),
    }
