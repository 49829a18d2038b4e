"""The float network that trials start from: trained once per model and seed, or published; cached."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.data import Dataset
from benchmarks.data.stream import stream_seed
from benchmarks.events import Progress
from benchmarks.files import write_text_atomic
from benchmarks.models import build_model, published_weights
from benchmarks.ranks import ALONE, Ranks, RanksDifferError, comes
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import StartSpec
from benchmarks.trials.checkpoint import (
    CheckpointError,
    Saver,
    discard_checkpoint,
    going_on,
    load_network,
    network_digest,
    save_checkpoint,
    save_network,
)
from benchmarks.trials.evaluation import evaluate, recalibrate_bn
from benchmarks.trials.faults import machine_s_fault, resuming, traceback_of
from benchmarks.trials.harness import Harness
from benchmarks.trials.training import Loop, WeightTraining
from methods.quantization.graph import one_line

_TEST_ACCURACY, _SECONDS, _IMAGES, _MACS = "_test_accuracy", "_seconds", "_images", "_macs"
"""Kept beside the weights in the cached state dict; published weights have neither images nor MACs."""


@dataclass(frozen=True)
class Start:
    """Float weights with recalibrated batch norm, their accuracy on test, and what their training took.

    images, macs: of training; None where that is not known, as of published weights.
    """

    state: dict[str, torch.Tensor]
    test_accuracy: float
    seconds: float
    images: int | None
    macs: int | None

    @property
    def digest(self) -> str:
        return network_digest(self.state)


class StartFailedError(Exception):
    """A float network that cannot be trained, by its own fault or its recipe's; `trace` has the traceback.

    Every trial that starts from it fails.
    """

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


def teacher_network(start: Start, spec: StartSpec, device: torch.device) -> nn.Module:
    """The start as a teacher: a network in eval mode, without gradients."""
    model = _fresh(spec)
    model.load_state_dict(start.state)
    return model.to(device).eval().requires_grad_(False)


def _fresh(spec: StartSpec) -> nn.Module:
    """The network with arbitrary weights; the state of torch's generators stays the same."""
    with torch.random.fork_rng(devices=[]):
        return build_model(spec.model, spec.data)


def float_start(
    spec: StartSpec, workspace: Workspace, runtime: Runtime, data: Dataset, ranks: Ranks = ALONE
) -> Generator[Progress, None, Start]:
    """Progress while it trains; returns the start. Of several trials one trains it, with its ranks; the others wait.

    A start that is damaged, or of another network, is made again. Raises StartFailedError, also if it failed before.
    """
    try:
        start = _kept(spec, workspace)
    except CheckpointError as error:
        yield Progress.noting(f"{error}; this float start is made again")
        start = None
    if not ranks.decided(start is not None):
        alone = workspace.lock(f"float-{spec.key}", wait=True) if ranks.rank == 0 else nullcontext(True)
        with alone:
            if not ranks.decided(_is_kept(spec, workspace)):  # by another trial
                yield from _made(spec, workspace, runtime, data, ranks)
            ranks.decided(True)  # all ranks wait until it is written
        start = _kept(spec, workspace)
    if start is None:
        raise CheckpointError(f"{workspace.start(spec.key)} was there and is gone; run the same command again")
    return start


def _kept(spec: StartSpec, workspace: Workspace) -> Start | None:
    """The start on disk, if any. Raises CheckpointError if it cannot be used, StartFailedError if it failed before."""
    path = workspace.start(spec.key)
    try:
        state = load_network(path)
    except FileNotFoundError:
        _raise_failure(workspace.start_failure(spec.key))
        return None
    accuracy, seconds = (float(state.pop(name, math.nan)) for name in (_TEST_ACCURACY, _SECONDS))
    images, macs = (int(state.pop(name)) if name in state else None for name in (_IMAGES, _MACS))
    wanted = {name: tensor.shape for name, tensor in _fresh(spec).state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in state.items()}:
        raise CheckpointError(f"{path}: of another network")
    return Start(state, accuracy, seconds, images, macs)


def _raise_failure(path: Path) -> None:
    """Raises StartFailedError if `path` notes that training the start failed."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        failure = StartFailedError(str(noted["message"]), str(noted["trace"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # an unreadable note does not count
        return
    raise failure


def _is_kept(spec: StartSpec, workspace: Workspace) -> bool:
    try:
        return _kept(spec, workspace) is not None
    except CheckpointError:
        return False


def _made(
    spec: StartSpec, workspace: Workspace, runtime: Runtime, data: Dataset, ranks: Ranks
) -> Generator[Progress, None, None]:
    """Make the start, or have the first rank note why that fails, for all trials that start from it."""
    path, failure = workspace.checkpoint(spec.key), workspace.start_failure(spec.key)
    try:
        yield from going_on(path, spec.key, partial(_make, spec, workspace, runtime, data, ranks))
    except Exception as error:
        if machine_s_fault(error):
            raise
        if ranks.rank and not comes(failure.exists):
            raise RanksDifferError(f"rank {ranks.rank}: {error}") from error
        what = f"its float network cannot be trained ({one_line(error)})"
        failed = StartFailedError(what, traceback_of(error))
        if not ranks.rank:
            write_text_atomic(failure, json.dumps({"message": what, "trace": failed.trace}))
            discard_checkpoint(path)
        raise failed from error


def _make(
    spec: StartSpec,
    workspace: Workspace,
    runtime: Runtime,
    data: Dataset,
    ranks: Ranks,
    saved: dict[str, Any] | None,
) -> Generator[Progress, None, None]:
    begun, device, taken = time.monotonic(), torch.device(runtime.device), {}
    torch.manual_seed(stream_seed(spec.seed, "pretrain/init"))
    model = build_model(spec.model, spec.data).to(device)
    if spec.pretraining is None:
        model.load_state_dict(published_weights(spec.model, spec.data, runtime.weights))
    else:
        taken = yield from _train(spec, workspace, runtime, data, model, ranks, saved)
    if ranks.rank:
        return
    if spec.pretraining is not None:
        recalibrate_bn(model, data.train, device, runtime.loaders)
    score = evaluate(model, data.test, device, runtime.loaders)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    state[_TEST_ACCURACY] = torch.tensor(score.accuracy, dtype=torch.float64)
    state[_SECONDS] = torch.tensor(time.monotonic() - begun, dtype=torch.float64)
    state |= {key: torch.tensor(number) for key, number in taken.items()}
    save_network(workspace.start(spec.key), state)
    workspace.start_failure(spec.key).unlink(missing_ok=True)
    discard_checkpoint(workspace.checkpoint(spec.key))


def _train(
    spec: StartSpec,
    workspace: Workspace,
    runtime: Runtime,
    data: Dataset,
    model: nn.Module,
    ranks: Ranks,
    saved: dict[str, Any] | None,
) -> Generator[Progress, None, dict[str, int]]:
    """Progress; returns images and MACs of the whole training, interrupted or not."""
    assert spec.pretraining is not None
    recipe = spec.pretraining.recipe
    harness = Harness(
        model=model,
        recipe=recipe,
        seed=stream_seed(spec.seed, "pretrain"),
        train=data.train,
        device=torch.device(runtime.device),
        augments=spec.data.augment != "none",
        loaders=runtime.loaders,
        ranks=ranks,
    )
    total = spec.pretraining.epochs * (len(data.train) // recipe.batch_size)
    training = WeightTraining(harness, None, total)
    loop = Loop(harness, training, "finetune", total=total)
    if saved:
        with resuming():
            loop.resume(saved)
    path = workspace.checkpoint(spec.key)
    seconds = math.inf if ranks.rank else runtime.checkpoint_seconds
    saver = Saver(seconds, lambda: save_checkpoint(path, spec.key, loop.saved()))
    for progress in loop.run():
        saver.tick()
        yield Progress("pretrain", progress.step, progress.total, progress.row)
    images = loop.step * recipe.batch_size
    return {_IMAGES: images, _MACS: images * harness.price_of(training, WeightTraining.PHASE).macs}
