"""The float network that trials start from: trained once per model and seed, or published; cached."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.data import Dataset
from benchmarks.data.stream import stream_seed
from benchmarks.events import Progress
from benchmarks.models import build_model, published_weights
from benchmarks.ranks import ALONE, Ranks
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import StartSpec
from benchmarks.trials.checkpoint import (
    Saver,
    discard_checkpoint,
    load_checkpoint,
    load_network,
    network_digest,
    save_checkpoint,
    save_network,
)
from benchmarks.trials.evaluation import evaluate, recalibrate_bn
from benchmarks.trials.harness import Harness
from benchmarks.trials.training import Loop, WeightTraining

_TEST_ACCURACY, _SECONDS, _IMAGES, _MACS = "_test_accuracy", "_seconds", "_images", "_macs"
"""Kept beside the weights in the cached state dict; earlier versions kept neither images nor MACs."""


@dataclass(frozen=True)
class Start:
    """Float weights with recalibrated batch norm, how they do on test as they are, and what they took.

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


def teacher_network(start: Start, spec: StartSpec, device: torch.device) -> nn.Module:
    """The start as a network that only answers: in eval mode, without gradients."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(spec.model, spec.data)
    model.load_state_dict(start.state)
    return model.to(device).eval().requires_grad_(False)


def float_start(
    spec: StartSpec, workspace: Workspace, runtime: Runtime, data: Dataset, ranks: Ranks = ALONE
) -> Generator[Progress, None, Start]:
    """Progress while it trains; returns the start. Of several trials one trains it, with its ranks; the others wait."""
    path = workspace.start(spec.key)
    if not ranks.decided(path.exists()):
        alone = workspace.lock(f"float-{spec.key}", wait=True) if ranks.rank == 0 else nullcontext(True)
        with alone:
            if not ranks.decided(path.exists()):
                yield from _make(spec, workspace, runtime, data, ranks)
            ranks.decided(True)  # nobody goes on before it is written
    state = load_network(path)
    accuracy, seconds = float(state.pop(_TEST_ACCURACY)), float(state.pop(_SECONDS))
    images, macs = (int(state.pop(key)) if key in state else None for key in (_IMAGES, _MACS))
    return Start(state, accuracy, seconds, images, macs)


def _make(spec: StartSpec, workspace: Workspace, runtime: Runtime, data: Dataset, ranks: Ranks) -> Iterator[Progress]:
    begun, device, taken = time.monotonic(), torch.device(runtime.device), {}
    torch.manual_seed(stream_seed(spec.seed, "pretrain/init"))
    model = build_model(spec.model, spec.data).to(device)
    if spec.pretraining is None:
        model.load_state_dict(published_weights(spec.model, spec.data, runtime.weights))
    else:
        taken = yield from _train(spec, workspace, runtime, data, model, ranks)
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
    discard_checkpoint(workspace.checkpoint(spec.key))


def _train(
    spec: StartSpec, workspace: Workspace, runtime: Runtime, data: Dataset, model: nn.Module, ranks: Ranks
) -> Generator[Progress, None, dict[str, int]]:
    """Progress; returns the images and MACs of it all, whether or not it has been interrupted."""
    assert spec.pretraining is not None
    recipe, device = spec.pretraining.recipe, torch.device(runtime.device)
    harness = Harness(
        model=model,
        recipe=recipe,
        seed=stream_seed(spec.seed, "pretrain"),
        train=data.train,
        device=device,
        augments=spec.data.augment != "none",
        loaders=runtime.loaders,
        ranks=ranks,
    )
    total = spec.pretraining.epochs * (len(data.train) // recipe.batch_size)
    training = WeightTraining(harness, None, total)
    loop = Loop(harness, training, "finetune", total=total)

    path = workspace.checkpoint(spec.key)
    seconds = math.inf if ranks.rank else runtime.checkpoint_seconds
    saver = Saver(seconds, lambda: save_checkpoint(path, spec.key, loop.saved()))
    if saved := load_checkpoint(path, spec.key):
        loop.resume(saved)
    for progress in loop.run():
        saver.tick()
        yield Progress("pretrain", progress.step, progress.total, progress.row)
    images = loop.step * recipe.batch_size
    return {_IMAGES: images, _MACS: images * harness.price_of(training, WeightTraining.PHASE).macs}
