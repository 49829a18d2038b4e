"""Plans and records made up for tests of the reports: no training, no methods, no networks."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.planning import FLOAT_CEILING, Plan, Trial
from benchmarks.records.record import Record, Records
from benchmarks.suites.rows import MethodEntry
from benchmarks.suites.spec import (
    ComputeSpec,
    DataSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    Pretraining,
    QuantizerSpec,
    Recipe,
    Space,
    TrialSpec,
)
from benchmarks.suites.suite import ComputeGrant, Suite
from methods.quantization.cost import CONVENTIONS, Layer, Ledger, bops, uniform_bits, weight_bytes
from methods.quantization.policy import LayerBits

TEST_IMAGES = 360
EPOCH_MACS = 2_000_000_000
RECIPE = Recipe(optimizer=OptimizerSpec(lr=0.001))
SPACE = Space(weights=(4,), activations=(3, 4, 8))
DATA = DataSpec(dataset="digits", image_size=32, classes=10)

Change = Callable[[Trial, dict[str, Any], dict[str, Any]], None]
"""Alters the result and the observed part of one trial's record in place."""


def ledger(layers: int = 20) -> Ledger:
    """A chain of convolutions and depthwise convolutions, pinned at both ends."""
    kinds = ("conv", "depthwise", "conv")
    inner = [
        Layer(f"features.{i}.conv", kinds[i % 3], 90_000 * (1 + i % 5), 400 + 10 * i, "unsigned")  # type: ignore[arg-type]
        for i in range(1, layers - 1)
    ]
    first = Layer("features.0.0", "conv", 200_000, 432, "signed", pinned=True)
    return (first, *inner, Layer("classifier.1", "linear", 12_800, 12_800, "unsigned", pinned=True))


def make_suite(
    methods: Iterable[str | MethodEntry],
    *,
    models: Sequence[str] = ("mobilenet_v2",),
    ceilings: Sequence[str] = ("uniform:w4a4",),
    seeds: Sequence[int] = (0,),
) -> Suite:
    """A suite whose methods need not exist: nothing here is validated against them."""
    entries = [MethodEntry(name=entry) if isinstance(entry, str) else entry for entry in methods]
    return Suite.model_construct(
        suite="fabricated",
        description="Numbers made up for a test.",
        data=DATA,
        models=tuple(ModelSpec(name=name) for name in models),  # type: ignore[arg-type]
        weights="none",
        pretraining=Pretraining(epochs=2, recipe=RECIPE),
        space=SPACE,
        ceilings=tuple(ceilings),
        methods=tuple(entries),
        seeds=tuple(seeds),
        compute=ComputeGrant(epochs=8),
        recipe=RECIPE,
    )


def make_plan(suite: Suite, layers: Ledger | None = None) -> Plan:
    """Every trial of the suite, the float control once per model and seed, as `benchmarks.planning.plan` gives them."""
    trials: dict[str, Trial] = {}
    for model in suite.models:
        for ceiling in suite.ceilings:
            for entry in suite.methods:
                for seed in suite.seeds:
                    for draw in range(entry.draws):
                        trial = make_trial(suite, model, entry, str(ceiling), seed, draw, layers or ledger())
                        trials.setdefault(trial.id, trial)
    return Plan(suite, tuple(trials.values()), ())


def make_trial(
    suite: Suite, model: ModelSpec, entry: MethodEntry, ceiling: str, seed: int, draw: int, layers: Ledger
) -> Trial:
    is_float = entry.name == "float"
    weight, activation = int(ceiling[-3]), int(ceiling[-1])
    budget = bops(layers, uniform_bits(layers, weight, activation))
    spec = TrialSpec(
        method=MethodSpec(name=entry.name, version=1, options=entry.options),
        model=model,
        data=suite.data,
        pretraining=suite.pretraining,
        space=suite.space,
        ceiling_bops=None if is_float else budget,
        quantizer=QuantizerSpec(),
        recipe=suite.recipe,
        compute=ComputeSpec(epochs=suite.compute.epochs, search_share=0.0 if _plain(entry.name) else 0.25),
        seed=seed,
        draw=draw,
    )
    return Trial(spec, entry.row, FLOAT_CEILING if is_float else ceiling, layers)


def _plain(method: str) -> bool:
    return method in ("float", "uniform-lsq", "given", "random")


class Shelf:
    """Records in memory."""

    def __init__(self, plan: Plan, change: Change | None = None) -> None:
        self.records = {trial.id: make_record(trial, change) for trial in plan.trials}

    def get(self, trial_id: str) -> Record | None:
        return self.records.get(trial_id)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def disputed(self) -> tuple[Record, ...]:
        return ()

    def others(self, trial_ids: Container[str]) -> list[Record]:
        return [record for key, record in self.records.items() if key not in trial_ids]


def write_records(
    plan: Plan, folder: Path, change: Change | None = None, *, leave_out: Callable[[Trial], bool] = lambda trial: False
) -> Records:
    """A record for every trial of the plan but those left out; `change` alters each before it is written."""
    records = Records(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for trial in plan.trials:
        if not leave_out(trial):
            records.put(make_record(trial, change))
    return records


def make_record(trial: Trial, change: Change | None = None) -> Record:
    result, observed = _result(trial), _observed(trial)
    if change:
        change(trial, result, observed)
    return Record(trial.id, trial.spec.model_dump(mode="json"), result, observed)


def fail(
    result: dict[str, Any], observed: dict[str, Any], *, message: str = "loss is nan", status: str = "failed"
) -> None:
    """Turn an ok record into one of a trial that ended early."""
    result.clear()
    reason = {"type": "FloatingPointError", "message": message}
    result.update(status=status, reason=reason, search_stopped=False, account=None, curves={})
    observed["traceback"] = f"Traceback (most recent call last):\n  {message}"


def with_label(entry: str, label: str, **more: Any) -> MethodEntry:
    return MethodEntry(name=entry, label=label, **more)


def shuffled(plan: Plan, seed: int) -> Plan:
    trials = list(plan.trials)
    random.Random(seed).shuffle(trials)
    return replace(plan, trials=tuple(trials))


def _result(trial: Trial) -> dict[str, Any]:
    dice = random.Random(trial.id)
    is_float = trial.spec.ceiling_bops is None
    bits = None if is_float else _policy(trial, dice)
    right = round(TEST_IMAGES * (0.965 if is_float else 0.925 + 0.03 * dice.random()))
    return {
        "status": "ok",
        "reason": None,
        "search_stopped": False,
        **_chosen(trial, bits),
        "account": _account(trial),
        "curves": {"search": [], "finetune": [{"step": 0, "loss": 2.3, "lr": 0.001}]},
        "metrics": {
            "test_accuracy": right / TEST_IMAGES,
            "test_loss": 0.2,
            "validation_accuracy": 0.95,
            "validation_loss": 0.21,
            "start_test_accuracy": (340 + trial.spec.seed) / TEST_IMAGES,
            "test_images": TEST_IMAGES,
            "validation_images": 300,
        },
        "search": {"margins": [0.1, 0.2]},
        "audit": [{"layer": "features.0.0", "tensor": "weight", "bits": 8, "levels": 201, "low": -127, "high": 127}],
        "network_digest": f"net{trial.id}",
    }


def set_policy(trial: Trial, result: dict[str, Any], bits: dict[str, LayerBits]) -> None:
    """Another policy than was made up, with the costs that it comes to."""
    result.update(_chosen(trial, bits))


def _chosen(trial: Trial, bits: dict[str, LayerBits] | None) -> dict[str, Any]:
    return {
        "policy": None if bits is None else {"schema": 1, "layers": {name: list(pair) for name, pair in bits.items()}},
        "layers": [_layer(layer, bits) for layer in trial.ledger],
        "cost": None if bits is None else _cost(trial, bits),
    }


def _policy(trial: Trial, dice: random.Random) -> dict[str, LayerBits]:
    """4-bit weights; activations raised from 3 to 8 bits at random while the ceiling allows it."""
    budget = trial.spec.ceiling_bops
    assert budget is not None
    if trial.spec.method.name == "uniform-lsq":
        return uniform_bits(trial.ledger, 4, 4)
    bits = uniform_bits(trial.ledger, 4, 3)
    for width in (8, 4):
        for name in dice.sample(sorted(bits), len(bits)):
            raised = {**bits, name: LayerBits(4, max(width, bits[name].activation))}
            if bops(trial.ledger, raised) <= budget:
                bits = raised
    return bits


def _layer(layer: Layer, bits: dict[str, LayerBits] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": layer.name,
        "type": layer.type,
        "macs": layer.macs,
        "weights": layer.weights,
        "kind": layer.kind,
        "pinned": layer.pinned,
    }
    if bits is None:
        return {**row, "weight_bits": None, "activation_bits": None, "bops": None, "weight_bytes": None}
    weight, activation = (8, 8) if layer.pinned else bits[layer.name]
    size = -(-layer.weights * weight // 8)
    row.update(weight_bits=weight, activation_bits=activation, bops=layer.macs * weight * activation, weight_bytes=size)
    return row


def _cost(trial: Trial, bits: dict[str, LayerBits]) -> dict[str, Any]:
    budget = trial.spec.ceiling_bops
    assert budget is not None
    counted = {name: bops(trial.ledger, bits, name) for name in CONVENTIONS}
    return {
        "bops": counted,
        "weight_bytes": weight_bytes(trial.ledger, bits),
        "ceiling_bops": budget,
        "unused_share": 1 - counted["edges8"] / budget,
    }


def _account(trial: Trial) -> dict[str, Any]:
    granted = 8 * EPOCH_MACS
    search = round(granted * trial.spec.compute.search_share)
    phases = [{"name": "search/select", "steps": 40, "images": 2560, "macs": search, "macs_per_image": 800_000}]
    tune = {"name": "finetune", "steps": 170, "images": 10_880, "macs": granted - search, "macs_per_image": 650_000}
    shown = {"evaluation": 660, "recalibration": 1137}
    return {
        "granted_macs": granted,
        "epoch_macs": EPOCH_MACS,
        "phases": [*(phases if search else []), tune],
        "shown": [{"name": name, "images": images, "macs": 650_000 * images} for name, images in shown.items()],
    }


def _observed(trial: Trial) -> dict[str, Any]:
    search = 12.5 if trial.spec.compute.search_share else 0.0
    return {
        "seconds": {"search": search, "finetune": 61.2, "evaluation": 1.5, "total": 63 + search},
        "start_seconds": 28.0,
        "start_images": 2240,
        "start_macs": 2240 * 630_000,
        "peak_memory_bytes": 700_000_000,
        "environment": {
            "python": "3.11.7",
            "torch": "2.11.0",
            "platform": "Linux",
            "processor": "x86_64",
            "threads": 1,
            "device": "cpu",
            "commit": "101778b" + 33 * "0",
            "dirty": False,
        },
        "data_digest": "d1g1t5",
        "weights_digest": f"weights-{trial.model}-{trial.spec.seed}",
        "restarts": 0,
        "engine": "local",
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:01:00+00:00",
    }
