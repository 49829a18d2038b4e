"""What a suite will take here: one step of each kind is timed on this machine, and the plan multiplied out.

Networks have fresh weights and nothing is kept. Trials run one at a time; with all cores at work each takes longer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.data import AHEAD, EVALUATION_BATCH, Subset
from benchmarks.data.stream import Stream, stream_seed
from benchmarks.messages import SuiteError
from benchmarks.models import build_model
from benchmarks.planning import Plan, Trial
from benchmarks.ranks import ALONE, Ranks
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.suites.spec import StartSpec, TrialSpec, digest
from benchmarks.suites.suite import Resources
from benchmarks.trials.environment import configure_torch, require_compiler
from benchmarks.trials.evaluation import RECALIBRATION_IMAGES, evaluate
from benchmarks.trials.harness import Harness, Trainee
from benchmarks.trials.setting import Setting
from benchmarks.trials.training import WeightTraining
from benchmarks.trials.trial import KEPT_PARAMETERS
from methods import load_method
from methods.contract import InapplicableError, Phase
from methods.quantization.cost import uniform_bits, with_pins

_STEPS = 3
"""Steps of each kind that are timed, after one that is not."""

_LONGEST_WAIT = 60.0
"""Seconds of fine-tuning below which no trial repays the compiling of a network, which takes about as long."""


_RECORD_BYTES = 70_000
_CHECKPOINTS = 6
"""Networks' sizes that two checkpoints of a trial take at most: one for the network and two for its optimizer, each."""


@dataclass(frozen=True)
class TrialTime:
    """Seconds of one trial: searching, fine-tuning, and looking at the result (recalibration, evaluation)."""

    search: float
    finetune: float
    evaluation: float

    @property
    def total(self) -> float:
        return self.search + self.finetune + self.evaluation


@dataclass(frozen=True)
class Row:
    """One method's trials on one network: how many are to run, what each takes, and the bytes that it leaves.

    saved_bytes: of its checkpoints while it runs. refused: why the method does not apply here; its trials then take
    next to nothing.
    """

    trial: Trial
    count: int
    time: TrialTime
    kept_bytes: int
    saved_bytes: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Estimate:
    """starts: how many float starts are not there yet; their seconds and bytes in all. slots: trials at a time."""

    rows: tuple[Row, ...]
    starts: int
    starts_seconds: float
    starts_bytes: int
    slots: int

    @property
    def seconds(self) -> float:
        """Seconds of all trials and float starts, one after the other."""
        return self.starts_seconds + sum(row.count * row.time.total for row in self.rows)

    @property
    def elapsed(self) -> float:
        """Seconds with all slots at work: the float starts, then the trials, at least as long as the longest trial."""
        starts = self.starts_seconds / max(1, min(self.slots, self.starts))
        longest = max((row.time.total for row in self.rows), default=0.0)
        return starts + max(longest, (self.seconds - self.starts_seconds) / self.slots)

    @property
    def kept_bytes(self) -> int:
        return self.starts_bytes + sum(row.count * row.kept_bytes for row in self.rows)

    @property
    def saved_bytes(self) -> int:
        """Most bytes of checkpoints, with all slots at work."""
        return self.slots * max((row.saved_bytes for row in self.rows), default=0)


class Compiling(NamedTuple):
    """Seconds of a trial's fine-tuning: eager, compiled, and the wait before the first compiled step."""

    eager: float
    compiled: float
    wait: float

    @property
    def saved(self) -> float:
        return self.eager - self.compiled - self.wait


def estimate(plan: Plan, missing: Sequence[Trial], workspace: Workspace, runtime: Runtime) -> Estimate:
    """Time one trial of each network and row among the missing ones, and the float starts that they need."""
    configure_torch(runtime.threads, runtime.device)
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in missing:
        groups.setdefault((trial.model, trial.row), []).append(trial)
    benches = _Benches(runtime)
    rows = tuple(_row(trials, benches.of(trials[0].spec)) for trials in groups.values())
    needed = {start.key: (start, trial.spec) for trial in missing for start in trial.spec.starts}
    lacking = [(start, of) for key, (start, of) in needed.items() if not workspace.done(start)]
    return Estimate(
        rows,
        len(lacking),
        sum(_start_seconds(start, of, benches) for start, of in lacking),
        sum(4 * _parameters(build_model(start.model, start.data)) for start, _ in lacking),
        _slots(plan.suite.resources, runtime),
    )


def compiling(row: Row, runtime: Runtime) -> Compiling | str:
    """What compiling would save one trial of `row`, or why that is not worth measuring."""
    finetune = row.time.finetune
    if finetune < _LONGEST_WAIT:
        return f"{finetune:.0f} s of fine-tuning cannot repay compiling the network, which takes about a minute or more"
    try:
        require_compiler(runtime.device)
    except SuiteError as error:
        return str(error)
    bench = _Benches(runtime).of(row.trial.spec)
    compiled, first = bench.training(quantized=True, compiled=True)
    return Compiling(finetune, finetune * compiled / bench.quantized_step, first - compiled)


@dataclass
class _Bench:
    """One network on its data under one recipe; each kind of work is timed when it is first asked for.

    share: the rank whose part of a step is timed.
    """

    setting: Setting
    share: Ranks = ALONE

    @property
    def untimed(self) -> int:
        """Steps that are not timed: the first, and those whose images were loaded meanwhile."""
        recipe = self.setting.spec.recipe
        return 1 + self.setting.loaders * AHEAD * recipe.micro_batch * self.share.count // recipe.batch_size

    @cached_property
    def float_step(self) -> float:
        return self.training(quantized=False)[0]

    @cached_property
    def quantized_step(self) -> float:
        return self.training(quantized=True)[0]

    @cached_property
    def image(self) -> float:
        """Seconds of evaluation per image, measured over more batches than are loaded ahead."""
        setting, split = self.setting, self.setting.data.validation
        model = build_model(setting.spec.model, setting.spec.data).to(setting.device)
        some = Subset(split, np.arange(min(EVALUATION_BATCH * (1 + AHEAD * setting.loaders), len(split))))
        evaluate(model, Subset(split, np.arange(1)), setting.device)
        return _timed(setting.device, lambda: evaluate(model, some, setting.device, setting.loaders)) / len(some)

    @property
    def validation(self) -> float:
        """Seconds of a recalibration and of scoring validation."""
        data = self.setting.data
        return self.image * (len(data.validation) + min(len(data.train), RECALIBRATION_IMAGES))

    @property
    def test(self) -> float:
        return self.image * len(self.setting.data.test)

    def training(self, *, quantized: bool, compiled: bool = False) -> tuple[float, float]:
        """Seconds of a fine-tuning step, the median, and of the first one."""
        ledger, space = self.setting.ledger, self.setting.spec.space
        bits = uniform_bits(ledger, space.weights[0], space.activations[-1])
        harness = self.setting.harness({name: [pair] for name, pair in bits.items()}, self.setting.spec.seed)
        if compiled:
            harness.compile()
        training = WeightTraining(harness, with_pins(ledger, bits) if quantized else None, total=self.untimed + _STEPS)
        harness.model.train()
        stream = harness.batches(WeightTraining.PHASE, "finetune", loaders=harness.loaders, ranks=self.share)

        step = partial(_step, harness, training, WeightTraining.PHASE, stream)
        first, *others = (_timed(self.setting.device, step) for _ in range(self.untimed + _STEPS))
        return median(others[-_STEPS:]), first


@dataclass
class _Benches:
    """One bench for all trials that have in common whatever the time of a step depends on."""

    runtime: Runtime
    made: dict[str, _Bench] = field(default_factory=dict)

    def of(self, spec: TrialSpec) -> _Bench:
        parts = (spec.model, spec.data, spec.teacher, spec.quantizer)
        shape = (spec.recipe.batch_size, spec.recipe.micro_batch, spec.recipe.precision, spec.recipe.optimizer.name)
        key = digest([[part and part.model_dump(mode="json") for part in parts], shape])
        if key not in self.made:
            self.made[key] = _Bench(self._setting(spec), Ranks(0, self.runtime.ranks))
        return self.made[key]

    def _setting(self, spec: TrialSpec) -> Setting:
        data, device = self.runtime.load_data(spec.data), torch.device(self.runtime.device)
        network, teacher = _fresh(spec.start, device), None
        if spec.teacher is not None:
            teacher = _fresh(spec.teacher, device).eval().requires_grad_(False)
        return Setting(spec, data, network.state_dict(), device, teacher, self.runtime.loaders)


def _row(trials: Sequence[Trial], bench: _Bench) -> Row:
    spec, kind = trials[0].spec, load_method(trials[0].spec.method.name)
    try:
        search = _search_seconds(spec, bench) if kind.searches else 0.0
    except InapplicableError as error:
        return Row(trials[0], len(trials), TrialTime(0.0, 0.0, 0.0), _RECORD_BYTES, refused=str(error))
    left = 1.0 if spec.compute.free_search else 1 - spec.compute.search_share
    steps = spec.compute.epochs * bench.setting.epoch_steps * left
    every = spec.recipe.validate_epochs
    looks = 1 + (int(spec.compute.epochs * left / every) if every else 0)
    finetune = steps * (bench.quantized_step if kind.quantizes else bench.float_step)
    parameters = sum(tensor.numel() for tensor in bench.setting.start.values())
    network = 4 * parameters if parameters <= KEPT_PARAMETERS else 0
    time = TrialTime(search, finetune, looks * bench.validation + bench.test)
    return Row(trials[0], len(trials), time, network + _RECORD_BYTES, _CHECKPOINTS * 4 * parameters)


def _search_seconds(spec: TrialSpec, bench: _Bench) -> float:
    """Seconds of a search: its phases that run once, then its share's other MACs at the speed of repeated phases."""
    setting = replace(bench.setting, spec=spec)
    problem = setting.problem(spec.seed)
    method = problem.build(load_method(spec.method.name), spec.method.options)
    times: dict[str, list[float]] = {}
    prices: dict[str, int] = {}
    streams: dict[str, Stream] = {}
    enough = bench.untimed + _STEPS
    while (phase := method.phase()) is not None and len(times.get(phase.name, ())) < enough:
        prices[phase.name] = problem.price(phase)
        if phase.name not in streams:
            streams[phase.name] = problem.batches(phase, "search", loaders=problem.loaders, ranks=bench.share)
        problem.model.train(phase.train_mode)
        step = partial(_step, problem, method, phase, streams[phase.name])
        times.setdefault(phase.name, []).append(_timed(setting.device, step))
    again = {name: median(steps[bench.untimed :]) for name, steps in times.items() if len(steps) >= enough - 1}
    once = {name: steps for name, steps in times.items() if name not in again}
    rest = problem.account.search_macs - sum(prices[name] * len(steps) for name, steps in once.items())
    per_mac = sum(again.values()) / sum(prices[name] for name in again) if again else 0.0
    return sum(sum(steps) for steps in once.values()) + rest * per_mac


def _start_seconds(start: StartSpec, of: TrialSpec, benches: _Benches) -> float:
    """Seconds of a float start that trials like `of` need: as many float steps as it has, and its evaluation."""
    if start.pretraining is None:
        return benches.of(of.model_copy(update={"model": start.model, "teacher": None})).test
    changes = {"model": start.model, "recipe": start.pretraining.recipe, "teacher": None}
    bench = benches.of(of.model_copy(update=changes))
    return start.pretraining.epochs * bench.setting.epoch_steps * bench.float_step + bench.validation + bench.test


def _fresh(start: StartSpec, device: torch.device) -> nn.Module:
    torch.manual_seed(stream_seed(start.seed, "pretrain/init"))
    return build_model(start.model, start.data).to(device)


def _slots(resources: Resources, runtime: Runtime) -> int:
    if runtime.gpu:
        return max(1, int(torch.cuda.device_count() / resources.gpus / resources.workers_per_trial))
    return max(1, len(os.sched_getaffinity(0)) // (resources.cpus * resources.workers_per_trial))


def _parameters(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _step(harness: Harness, trainee: Trainee, phase: Phase, stream: Stream) -> None:
    harness.run(trainee, stream.next(), phase)


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
