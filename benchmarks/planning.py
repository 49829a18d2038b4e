"""The trials that a suite expands to, each with its budget in BOPs. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.ledgers import ledger_for, notes_for
from benchmarks.messages import SuiteError
from benchmarks.suites.rows import MethodEntry, options_of, settled
from benchmarks.suites.spec import ComputeSpec, MethodSpec, ModelSpec, Space, StartSpec, TrialSpec, digest
from benchmarks.suites.suite import UNIFORM, Ceiling, Suite, ceiling_name
from methods import load_method
from methods.quantization.cost import Ledger, bops, uniform_bits
from methods.quantization.policy import Candidates, LayerBits

FEW_POLICIES = 100


@dataclass(frozen=True)
class Trial:
    """One cell of a suite. row: the method's row in tables; ceiling: as the suite writes it."""

    spec: TrialSpec
    row: str
    ceiling: str
    ledger: Ledger

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def model(self) -> str:
        return self.spec.model.name

    @property
    def label(self) -> str:
        parts = [self.model, self.row, self.ceiling, f"seed {self.spec.seed}"]
        return " · ".join(parts + ([f"draw {self.spec.draw}"] if self.spec.draw else []))

    @property
    def work(self) -> float:
        """A rough measure of its length, for starting long trials first."""
        return self.spec.compute.epochs * math.sqrt(sum(layer.macs for layer in self.ledger))


FLOAT_CEILING = "float"
"""In place of a ceiling, for the float control, which every ceiling shares."""


@dataclass(frozen=True)
class Plan:
    """A suite's trials, each once, and warnings about them."""

    suite: Suite
    trials: tuple[Trial, ...]
    warnings: tuple[str, ...]

    @property
    def starts(self) -> tuple[StartSpec, ...]:
        """The float networks that the trials share, each once."""
        return tuple({start.key: start for trial in self.trials for start in trial.spec.starts}.values())


def plan(suite: Suite) -> Plan:
    """Expand a suite.

    Raises SuiteError where a network cannot be quantized as it is, where a ceiling lies below the cheapest policy, with
    both figures, where a method's options do not fit a network, and where a search has no share.
    """
    trials: dict[str, Trial] = {}
    warnings: list[str] = []
    for model in suite.models:
        ledger = ledger_for(model, suite.data)
        warnings += notes_for(model, suite.data)
        _check_ties(model.name, ledger)
        for entry in suite.methods:
            _check_options(entry, model, ledger)
        for ceiling in suite.ceilings:
            budget = ceiling_bops(ceiling, model, ledger)
            warnings += _check_ceiling(ceiling_name(ceiling), budget, model.name, ledger, suite)
            for trial in _cell(suite, model, ledger, ceiling_name(ceiling), budget):
                trials.setdefault(trial.id, trial)
    return Plan(suite, tuple(trials.values()), tuple(warnings))


def _check_ties(model: str, ledger: Ledger) -> None:
    """Raises SuiteError where a searchable layer has no widths of its own to be searched."""
    held = {layer.tie: layer.name for layer in ledger if layer.pinned and layer.tie}
    for layer in ledger:
        if not layer.pinned and layer.tie in held:
            raise SuiteError(
                f"{model}: {layer.name} reads the same input as {held[layer.tie]}, which is held at 8x8 as a first or "
                "last layer; networks with such layers cannot be compared here"
            )


def _check_options(entry: MethodEntry, model: ModelSpec, ledger: Ledger) -> None:
    try:
        options = options_of(entry)
    except ValueError as error:
        raise SuiteError(str(error)) from None
    try:
        load_method(entry.name).Options.model_validate(options).check(ledger)
    except ValueError as error:
        raise SuiteError(f"options of {entry.row} do not fit {model.name}: {error}") from None


def _cell(suite: Suite, model: ModelSpec, ledger: Ledger, ceiling: str, budget: int) -> Iterator[Trial]:
    published, kinds = _published(suite, model), _kinds(model, ledger)
    for entry in suite.methods:
        method, options = load_method(entry.name), options_of(entry)
        quantizer, recipe = settled(entry, suite.quantizer, suite.recipe)
        share = suite.compute.share_of(entry) if method.searches else 0.0
        free = method.searches and suite.compute.protocol == "free-search"
        for seed in suite.seeds:
            for draw in range(entry.draws):
                spec = TrialSpec(
                    method=MethodSpec(name=entry.name, version=method.version, options=options),
                    model=model if published else model.model_copy(update={"weights": None}),
                    data=suite.data,
                    pretraining=None if published else suite.pretraining,
                    teacher=_teacher(suite),
                    space=suite.space,
                    ceiling_bops=budget if method.quantizes else None,
                    kinds=kinds,
                    quantizer=quantizer,
                    recipe=recipe,
                    compute=ComputeSpec(epochs=suite.compute.epochs, search_share=share, free_search=free),
                    seed=seed,
                    draw=draw,
                )
                yield Trial(spec, entry.row, ceiling if method.quantizes else FLOAT_CEILING, ledger)


KINDS_OF_OLD = ("mobilenet_v2", "resnet18")
"""Networks whose kinds have never changed: their trials keep the ids from before kinds were part of them."""


def _kinds(model: ModelSpec, ledger: Ledger) -> str | None:
    """A digest of the ledger's kinds and ties for a trial's id, so that a trial on other grids has another id."""
    if model.name in KINDS_OF_OLD:
        return None
    return digest([[layer.name, layer.kind, layer.tie] for layer in ledger])


def _published(suite: Suite, model: ModelSpec) -> bool:
    return suite.weights == "given" and model.weights is not None


def _teacher(suite: Suite) -> StartSpec | None:
    """One teacher for all seeds and networks, as published weights would be."""
    if suite.teacher is None:
        return None
    if _published(suite, suite.teacher):
        return StartSpec(model=suite.teacher, data=suite.data, pretraining=None, seed=0)
    model = suite.teacher.model_copy(update={"weights": None})
    return StartSpec(model=model, data=suite.data, pretraining=suite.pretraining, seed=0)


def ceiling_bops(ceiling: Ceiling, model: ModelSpec, ledger: Ledger) -> int:
    if isinstance(ceiling, dict):
        return ceiling[model.name]
    if isinstance(ceiling, int):
        return ceiling
    match = UNIFORM.fullmatch(ceiling)
    assert match, ceiling
    return bops(ledger, uniform_bits(ledger, int(match[1]), int(match[2])))


def candidates_of(space: Space, ledger: Ledger) -> Candidates:
    """The bits that every searchable layer may get, cheapest first."""
    pairs = sorted((LayerBits(w, a) for w in space.weights for a in space.activations), key=lambda b: (b[0] * b[1], b))
    return {layer.name: pairs for layer in ledger if not layer.pinned}


def _check_ceiling(name: str, budget: int, model: str, ledger: Ledger, suite: Suite) -> list[str]:
    space = suite.space
    cheapest = bops(ledger, uniform_bits(ledger, space.weights[0], space.activations[0]))
    dearest = bops(ledger, uniform_bits(ledger, space.weights[-1], space.activations[-1]))
    if budget < cheapest:
        raise SuiteError(
            f"{model}: the ceiling {name} is {budget:,} BOPs, below the cheapest policy of this space "
            f"(w{space.weights[0]}a{space.activations[0]}: {cheapest:,} BOPs); raise the ceiling or add lower widths"
        )
    if not any(load_method(entry.name).chooses for entry in suite.methods):
        return []  # no method here picks among the policies that are left
    if budget >= dearest:
        return [f"{model}: the ceiling {name} ({budget:,} BOPs) binds nothing: the dearest policy costs {dearest:,}"]
    from methods.allocation import count_feasible  # imports numpy, which --help does without

    feasible = count_feasible(ledger, candidates_of(space, ledger), budget, limit=FEW_POLICIES)
    if feasible >= FEW_POLICIES:
        return []
    return [f"{model}: only {feasible} {'policy fits' if feasible == 1 else 'policies fit'} the ceiling {name}"]
