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
from benchmarks.trials.problem import Problem, Trainee
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

    problem: Problem
    policy: Mapping[str, LayerBits] | None
    total: int
    taken: int = 0
    optimizer: Optimizer | None = None

    PHASE = Phase("finetune")

    @property
    def first_stage(self) -> int:
        """Steps with float weights."""
        share = self.problem.recipe.activation_first if self.policy is not None else 0.0
        return max(0, min(round(self.total * share), self.total - 1))

    def phase(self) -> Phase | None:
        return self.PHASE if self.taken < self.total else None

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        if self.taken in (0, self.first_stage):
            self._start_stage()
        optimizer, recipe = self._ready(), self.problem.recipe
        start, end = (0, self.first_stage) if self.taken < self.first_stage else (self.first_stage, self.total)
        factor = cosine(self.taken - start, end - start, recipe.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        mean = 0.0
        for micro in batch:
            loss = self.problem.loss(self.problem.forward(micro.images), micro)
            self.problem.backward(loss)
            mean += float(loss.detach()) / len(batch)
        self.problem.step(optimizer, recipe.max_norm)
        self.taken += 1
        return {"loss": mean, "lr": recipe.optimizer.lr * factor}

    def _start_stage(self) -> None:
        weights = self.taken >= self.first_stage
        if self.policy is not None:
            if weights:
                initialise_weight_steps(self.problem.model)
            apply_policy(self.problem.model, self.policy, weights=weights)
        self.optimizer = self.problem.weight_optimizer(self.problem.model.parameters())

    def _ready(self) -> Optimizer:
        if self.optimizer is None:
            self.optimizer = self.problem.weight_optimizer(self.problem.model.parameters())
        return self.optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "optimizer": None if self.optimizer is None else self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.optimizer = state["taken"], None
        if self.policy is not None and self.taken:
            apply_policy(self.problem.model, self.policy, weights=self.taken > self.first_stage)
        if state["optimizer"] is not None:
            self._ready().load_state_dict(state["optimizer"])


@dataclass
class Loop:
    """Drives a trainee: feeds batches, charges them, keeps the curve, and stops where the money ends.

    stage: `search` or `finetune`, the prefix of phases in the account. limit: MACs that the account may have spent.
    seconds: wall time by phase since the process began.
    """

    problem: Problem
    trainee: Trainee
    stage: str
    limit: int
    total: int | None = None
    step: int = 0
    stopped: bool = False
    curve: list[dict[str, Any]] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Iterator[Progress]:
        """Raises DivergedError at the first loss that is not finite.

        Raises ValueError for a search whose phase is called as fine-tuning is: prices are known by the names of phases.
        """
        problem, account = self.problem, self.problem.account
        problem.trainee = self.trainee
        streams: dict[str, Stream] = {}
        while (phase := self.trainee.phase()) is not None:
            if self.stage == "search" and phase.name == WeightTraining.PHASE.name:
                raise ValueError(f"a search's phase cannot be called {phase.name}, as fine-tuning is; rename it")
            per_image = problem.price_per_image(phase)
            if account.spent_macs + per_image * problem.recipe.batch_size > self.limit:
                self.stopped = True
                return
            if phase.name not in streams:
                position = self.positions.get(phase.name, 0)
                streams[phase.name] = problem.batches(phase, self.stage, position, problem.loaders, problem.ranks)
            stream = streams[phase.name]
            name = f"search/{phase.name}" if self.stage == "search" else self.stage
            begun = time.monotonic()
            batch = stream.next()
            problem.model.train(phase.train_mode)
            logs = problem.ranks.averages(problem.run(self.trainee, batch, phase))
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
            self.positions[phase.name] = stream.position
            images = sum(len(micro.labels) for micro in batch) * problem.ranks.count
            account.charge(name, images, per_image, problem.teacher_price_per_image(phase))
            self.step += 1
            row = {"step": self.step, "phase": phase.name, **logs}
            if not all(math.isfinite(value) for value in logs.values()):
                raise DivergedError(f"{self.stage} step {self.step} ({phase.name}): {dict(logs)} is not finite")
            if self.step % max(1, stream.steps_per_epoch // _CURVE_POINTS_PER_EPOCH) == 0:
                self.curve.append(row)
            yield Progress(self.stage, self.step, self.total, row)

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
