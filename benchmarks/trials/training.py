"""The one training loop: float pretraining, search phases and fine-tuning all run in it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from benchmarks.data.stream import Stream
from benchmarks.events import Progress
from benchmarks.trials.checkpoint import random_state, set_random_state
from benchmarks.trials.compute import Account
from benchmarks.trials.harness import Harness, Trainee
from methods.contract import Batch, Phase
from methods.quantization.modules import apply_policy, initialise_weight_steps
from methods.quantization.policy import LayerBits

_CURVE_POINTS_PER_EPOCH = 10


class DivergedError(Exception):
    """Training gave a loss that is not finite; the trial has failed."""


def cosine(step: int, total: int, warmup_share: float) -> float:
    """The learning rate's factor at `step` of `total`: a linear warm-up, then half a cosine down to 0.

    >>> [round(cosine(step, 4, 0.0), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(total * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


@dataclass
class WeightTraining:
    """Training of weights under a policy, or of float weights, for a fixed number of steps, in the recipe's stages.

    With a policy and `recipe.activation_first`, a first stage quantizes activations only. Weight steps are
    initialised when weights begin to be quantized, from the weights of that moment. Optimizer state is reset
    between stages; each has one cosine schedule.
    """

    harness: Harness
    policy: Mapping[str, LayerBits] | None
    total: int
    taken: int = 0
    optimizer: Optimizer | None = None

    PHASE = Phase("finetune")

    @property
    def first_stage(self) -> int:
        """Steps with float weights."""
        share = self.harness.recipe.activation_first if self.policy is not None else 0.0
        return max(0, min(round(self.total * share), self.total - 1))

    def phase(self) -> Phase | None:
        return self.PHASE if self.taken < self.total else None

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        if self.taken in (0, self.first_stage):
            self._start_stage()
        optimizer, recipe = self._ready(), self.harness.recipe
        start, end = (0, self.first_stage) if self.taken < self.first_stage else (self.first_stage, self.total)
        factor = cosine(self.taken - start, end - start, recipe.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        mean = 0.0
        for micro in batch:
            loss = self.harness.loss(self.harness.forward(micro.images), micro)
            self.harness.backward(loss)
            mean += float(loss.detach()) / len(batch)
        self.harness.step(optimizer, recipe.max_norm)
        self.taken += 1
        return {"loss": mean, "lr": recipe.optimizer.lr * factor}

    def _start_stage(self) -> None:
        weights = self.taken >= self.first_stage
        if self.policy is not None:
            if weights:
                initialise_weight_steps(self.harness.model)
            apply_policy(self.harness.model, self.policy, weights=weights)
        self.optimizer = self.harness.weight_optimizer(self.harness.model.parameters())

    def _ready(self) -> Optimizer:
        if self.optimizer is None:
            self.optimizer = self.harness.weight_optimizer(self.harness.model.parameters())
        return self.optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "optimizer": None if self.optimizer is None else self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.optimizer = state["taken"], None
        if self.policy is not None and self.taken:
            apply_policy(self.harness.model, self.policy, weights=self.taken > self.first_stage)
        if state["optimizer"] is not None:
            self._ready().load_state_dict(state["optimizer"])


@dataclass
class Loop:
    """Drives a trainee: feeds batches, charges them, keeps the curve, and stops where the compute is used up.

    stage: `search` or `finetune`, the prefix of phases in the account. account: None for training that is not charged,
    as of float starts. limit: MACs that the account may have spent. seconds: wall time by phase in this process.
    """

    harness: Harness
    trainee: Trainee
    stage: str
    account: Account | None = None
    limit: int = 0
    total: int | None = None
    step: int = 0
    stopped: bool = False
    curve: list[dict[str, Any]] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Iterator[Progress]:
        """Train, and tell of every step. Raises DivergedError at the first loss that is not finite.

        Raises ValueError for a search with a phase named like fine-tuning's: prices are kept by the phases' names.
        """
        streams: dict[str, Stream] = {}
        while (phase := self.trainee.phase()) is not None:
            if self.stage == "search" and phase.name == WeightTraining.PHASE.name:
                raise ValueError(f"a search's phase cannot be called {phase.name}, as fine-tuning is; rename it")
            if not self._pays(phase):
                self.stopped = True
                return
            if phase.name not in streams:
                streams[phase.name] = self._stream(phase)
            yield self._step(phase, streams[phase.name])

    def _pays(self, phase: Phase) -> bool:
        """Whether the account has enough left for another step."""
        if self.account is None:
            return True
        price = self.harness.price_of(self.trainee, phase).macs * self.harness.recipe.batch_size
        return self.account.spent_macs + price <= self.limit

    def _stream(self, phase: Phase) -> Stream:
        position, harness = self.positions.get(phase.name, 0), self.harness
        return harness.batches(phase, self.stage, position, harness.loaders, harness.ranks)

    def _step(self, phase: Phase, stream: Stream) -> Progress:
        harness, name = self.harness, f"search/{phase.name}" if self.stage == "search" else self.stage
        begun = time.monotonic()
        batch = stream.next()
        harness.model.train(phase.train_mode)
        logs = harness.ranks.averages(harness.run(self.trainee, batch, phase))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
        self.positions[phase.name] = stream.position
        if self.account is not None:
            images = sum(len(micro.labels) for micro in batch) * harness.ranks.count
            self.account.charge(name, images, *harness.price_of(self.trainee, phase))
        self.step += 1
        row = {"step": self.step, "phase": phase.name, **logs}
        if not all(math.isfinite(value) for value in logs.values()):
            raise DivergedError(f"{self.stage} step {self.step} ({phase.name}): {dict(logs)} is not finite")
        if self.step % max(1, stream.steps_per_epoch // _CURVE_POINTS_PER_EPOCH) == 0:
            self.curve.append(row)
        return Progress(self.stage, self.step, self.total, row)

    def saved(self) -> dict[str, Any]:
        """All that a checkpoint needs to go on from here: network, loop and torch's generators."""
        model, rng = self.harness.model.state_dict(), random_state(self.harness.device)
        return {"model": model, "loop": self.state_dict(), "rng": rng}

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `saved` returned."""
        self.harness.model.load_state_dict(saved["model"])
        self.load_state_dict(saved["loop"])
        set_random_state(saved["rng"], self.harness.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "curve": self.curve,
            "positions": self.positions,
            "trainee": self.trainee.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.curve, self.positions = state["step"], state["curve"], state["positions"]
        self.trainee.load_state_dict(state["trainee"])
