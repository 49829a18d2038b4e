"""What any training runs in: model, batches, losses, gradients, random streams, and what its steps cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from benchmarks.data import Split, Subset, permutation
from benchmarks.data.stream import Stream, stream_seed, torch_stream
from benchmarks.ranks import ALONE, Ranks
from benchmarks.suites.spec import OptimizerSpec, Recipe
from benchmarks.trials.compute import ForwardMeter, measure_macs
from methods.contract import Batch, MicroBatch, Phase
from methods.quantization.macs import MacCounter
from methods.quantization.modules import project_steps
from methods.quantization.quantizer import Quantizer

SEARCH_SPLIT = 0.2
"""Share of the training images that phases with split `search` see, and those with split `rest` do not."""

_PRICED_IMAGES = 8


class Trainee(Protocol):
    """What the loop drives: a method's search, or weight training."""

    def phase(self) -> Phase | None: ...
    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def make_optimizer(
    spec: OptimizerSpec, model: nn.Module, params: Iterable[nn.Parameter], step_scale: float
) -> Optimizer:
    """The recipe's optimizer over `params` of `model`.

    Weight decay falls on weights of two and more dimensions, hence never on quantizer steps, batch norm or biases;
    quantizer steps learn at `step_scale` times the rate.
    """
    wanted = {id(p) for p in params}
    step_ids = {id(p) for module in model.modules() if isinstance(module, Quantizer) for p in module.parameters()}
    chosen = [p for p in model.parameters() if id(p) in wanted]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in chosen if p.dim() > 1], "weight_decay": spec.weight_decay, "lr": spec.lr},
        {"params": [p for p in chosen if p.dim() <= 1 and id(p) not in step_ids], "lr": spec.lr},
        {"params": [p for p in chosen if id(p) in step_ids], "lr": spec.lr * step_scale},
    ]
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    if spec.name == "sgd":
        return SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=0.0)
    return Adam(groups, lr=spec.lr, weight_decay=0.0)


class Price(NamedTuple):
    """MACs per image of a step. teacher: those of them that the teacher's forward takes."""

    macs: int
    teacher: int


@dataclass(kw_only=True)
class Harness:
    """One network and all that its training needs, alike in float pretraining, search and fine-tuning.

    train: the training split; no other images are within reach. seed: of its random streams. teacher: None without
    distillation. augments: whether the suite augments at all. loaders: processes that load images ahead. ranks: the
    processes that share each batch. meter: watches a method's work. compiled: the model as torch.compile runs it in
    weight training, where the suite asks for it.
    """

    model: nn.Module
    recipe: Recipe
    seed: int
    train: Split
    device: torch.device
    teacher: nn.Module | None = None
    augments: bool = True
    loaders: int = 0
    ranks: Ranks = ALONE
    meter: ForwardMeter | None = None
    compiled: Callable[[Tensor], Tensor] | None = None
    micro_batches: int = field(default=1, init=False)
    _prices: dict[str, Price] = field(default_factory=dict, init=False)
    _teacher_counter: list[int] | None = field(default=None, init=False)
    _soft_labels: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)
    """Address of images -> the images, held so that the address stays theirs, and the teacher's probabilities."""

    def compile(self) -> None:
        """Have weight training run the model through torch.compile."""
        torch._dynamo.reset()  # else a worker's next network counts as a recompilation, of which torch allows a few
        self.compiled = torch.compile(self.model, dynamic=False)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of weight training, shape (n, classes)."""
        return self.model(images) if self.compiled is None else self.compiled(images)

    def loss(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """Cross-entropy with the labels or, where there is a teacher, with its probabilities alone."""
        if self.teacher is not None:
            return F.cross_entropy(logits.float(), self._taught(self.teacher, batch.images))
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.recipe.label_smoothing)

    @torch.no_grad()
    def _taught(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """The teacher's probabilities, (n, classes): asked for once per batch, and only where a step uses them."""
        if id(images) not in self._soft_labels:
            with MacCounter() if self._teacher_counter is not None else nullcontext() as counter:
                self._soft_labels[id(images)] = images, teacher(images).float().softmax(1)
            if self._teacher_counter is not None and counter is not None:
                self._teacher_counter.append(counter.macs)
        return self._soft_labels[id(images)][1]

    def backward(self, loss: Tensor) -> None:
        (loss / self.micro_batches).backward()

    def grad(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        for param, gradient in zip(params, torch.autograd.grad(loss / self.micro_batches, params), strict=True):
            param.grad = gradient if param.grad is None else param.grad + gradient

    def step(self, optimizer: Optimizer, max_norm: float | None = None) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        self.ranks.add(param.grad for param in params if param.grad is not None)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(params, max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        project_steps(self.model)

    def weight_optimizer(self, params: Iterable[nn.Parameter], lr_scale: float = 1.0) -> Optimizer:
        spec = self.recipe.optimizer
        scaled = spec.model_copy(update={"lr": spec.lr * lr_scale})
        return make_optimizer(scaled, self.model, params, self.recipe.step_lr_scale)

    def stream(self, name: str) -> torch.Generator:
        return torch_stream(self.seed, name)

    def draws(self, stream: torch.Generator, micro: MicroBatch) -> torch.Generator:
        return stream if micro.place == 0 else torch.Generator().manual_seed(micro.seed)

    def average(self, values: Tensor) -> Tensor:
        return self.ranks.average(values)

    def common(self, values: Tensor) -> Tensor:
        return self.ranks.common(values)

    def price_of(self, trainee: Trainee, phase: Phase) -> Price:
        """What a step of `phase` costs, kept by the phase's name: one step is run on a few images and undone."""
        if phase.name not in self._prices:
            images = min(_PRICED_IMAGES, self.recipe.micro_batch)
            sample = replace(self.batches(phase, "price"), batch_size=images, micro_batch=images).next()[0]
            batch = [MicroBatch(sample.images, sample.labels)]
            teacher: list[int] = []
            self._teacher_counter = teacher
            with self._undone(trainee), self._alone():
                self.model.train(phase.train_mode)
                macs = measure_macs(lambda: self.run(trainee, batch, phase))
            self._teacher_counter = None
            self._prices[phase.name] = Price(macs // images, sum(teacher) // images)
        return self._prices[phase.name]

    def run(self, trainee: Trainee, batch: Batch, phase: Phase) -> Mapping[str, float]:
        """One step of the trainee."""
        self.micro_batches = len(batch) * self.ranks.count
        self._soft_labels.clear()
        images = sum(len(micro.labels) for micro in batch)
        metered = self.meter.step(phase.name, images) if self.meter else nullcontext()
        # Without autocast's cache of cast weights: a method may update weights within a step and go on.
        lowered = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lowered, cache_enabled=False), metered:
            return trainee.step(batch, phase)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, nothing is compiled, so that operations are counted one by one, and no rank talks to another."""
        compiled, self.compiled = self.compiled, None
        ranks, self.ranks = self.ranks, ALONE
        try:
            yield
        finally:
            self.compiled, self.ranks = compiled, ranks

    @contextmanager
    def _undone(self, trainee: Trainee) -> Iterator[None]:
        """Undoes all changes made inside to model, gradients, trainee and generators."""
        model_state = deepcopy(self.model.state_dict())
        gradients = [(param, param.grad) for param in self.model.parameters()]
        state, training = deepcopy(trainee.state_dict()), self.model.training
        for param, _ in gradients:
            param.grad = None  # else backward would add to the kept ones in place
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            self.model.load_state_dict(model_state)
            self.model.train(training)
            for param, gradient in gradients:
                param.grad = gradient
            trainee.load_state_dict(state)

    def batches(self, phase: Phase, stage: str, position: int = 0, loaders: int = 0, ranks: Ranks = ALONE) -> Stream:
        """The stream of a phase, from its `position`-th batch on; whole batches, or those of one of the ranks."""
        train = self.train
        if phase.split != "train":
            order = permutation(stream_seed(0, "search-split"), count=len(train))
            cut = max(self.recipe.batch_size, round(len(train) * SEARCH_SPLIT))
            train = Subset(train, order[:cut] if phase.split == "search" else order[cut:])
        return Stream(
            split=train,
            seed=stream_seed(self.seed, f"{stage}/{phase.name}"),
            batch_size=self.recipe.batch_size,
            micro_batch=self.recipe.micro_batch,
            augment=phase.augment and self.augments,
            device=self.device,
            position=position,
            loaders=loaders,
            ranks=ranks,
        )
