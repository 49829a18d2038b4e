"""What is compared: suites, read from YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from benchmarks.messages import NAME, SuiteError, explain, quoted, unknown
from benchmarks.suites.plugins import MODELS, plugged
from benchmarks.suites.reading import YamlError, read_yaml
from benchmarks.suites.rows import MethodEntry, options_of, override, rows_of_grid, settled
from benchmarks.suites.spec import (
    AnyData,
    Config,
    DataSpec,
    ModelName,
    ModelSpec,
    Pretraining,
    QuantizerSpec,
    Recipe,
    Space,
    canonical_json,
)
from methods import known_methods, load_method

SUITES = Path(__file__).parent
YAML = (".yaml", ".yml")
MOST_BOPS = 10**24
MOST_SEEDS = 1000
"""Ten give an interval; planning a million would take too long."""
MOST_TRIALS = 100_000


class Resources(Config):
    """What one trial gets; not part of its identity.

    compile: fine-tuning runs the whole network through torch.compile, which takes minutes before the first step and
    needs a C++ compiler. Searches, probes and prices never do. loaders: processes that load image files ahead of their
    use; None takes one per core of the trial but one, and none for images that are in memory. workers_per_trial:
    processes that train a trial together, each on its share of every batch's micro-batches, with these resources each.
    checkpoint_seconds: how often a trial saves itself; 0 saves after every step.
    """

    cpus: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0)
    compile: bool = False
    loaders: int | None = Field(None, ge=0)
    workers_per_trial: int = Field(1, ge=1)
    checkpoint_seconds: float = Field(10.0, ge=0)

    def loaders_for(self, dataset: str) -> int:
        if self.loaders is not None:
            return self.loaders
        return self.cpus - 1 if dataset == "imagefolder" else 0


class ComputeGrant(Config):
    """epochs: recipe epochs per trial; search_share: by row or method, `default` for the rest; only searches have one.

    protocol: `charged`, fine-tuning gets what the search leaves; `free-search`, fine-tuning gets the whole grant.
    """

    epochs: float = Field(gt=0)
    search_share: dict[str, float] = Field(default_factory=lambda: {"default": 0.25})
    protocol: Literal["charged", "free-search"] = "charged"

    @field_validator("search_share", mode="before")
    @classmethod
    def _one_for_all(cls, share: Any) -> Any:
        return {"default": share} if isinstance(share, int | float) else share

    @field_validator("search_share")
    @classmethod
    def _shares(cls, share: dict[str, float]) -> dict[str, float]:
        if bad := {name: value for name, value in share.items() if not 0 < value < 1}:
            raise ValueError(f"shares must lie between 0 and 1, got {bad}")
        return share

    def share_of(self, entry: MethodEntry) -> float:
        """The search share of a row. Raises SuiteError if there is none for the row, for its method or by default."""
        for name in (entry.row, entry.name, "default"):
            if name in self.search_share:
                return self.search_share[name]
        raise SuiteError(f"compute.search_share has no share for {entry.row}; name {entry.name} in it, or `default`")


Ceiling = str | int | dict[ModelName, int]
"""`uniform:w4a4`, a number of BOPs, or a number per model."""

UNIFORM = re.compile(r"uniform:w([1-8])a([1-8])")


def _whole_bops(given: Any) -> Any:
    """A ceiling with its numbers whole; also what YAML reads as text, such as 5e6. Raises ValueError."""
    if isinstance(given, dict):
        return {name: _whole_bops(number) for name, number in given.items()}
    value = given
    if isinstance(given, str):
        with suppress(ValueError):
            value = float(given)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{given} is no number of BOPs")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(_no_ceiling(given))
    if not isinstance(value, str) and abs(value) > MOST_BOPS:
        raise ValueError(f"a ceiling of more than {MOST_BOPS:.0e} BOPs binds no network")
    return round(value) if isinstance(value, float) else value


def _no_ceiling(given: Any) -> str:
    return f"ceiling {quoted(given)}: write uniform:w4a4 (1 to 8 bits), a number of BOPs, or one per model"


class Suite(Config):
    """A comparison: methods x models x ceilings x seeds (x draws) under one recipe, space and compute grant.

    pairs: rows that the report sets against each other over all networks and ceilings, first minus second; without
    any, every row against uniform LSQ and every search against random policies. cut_pairs: how many more a larger suite
    has, from which this one was cut: a correction for their number counts them all the same.
    """

    suite: str = Field(pattern=NAME, max_length=100)
    description: str = ""
    data: AnyData
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    weights: Literal["given", "none"] = "given"
    teacher: ModelSpec | None = None
    pretraining: Pretraining
    space: Space
    ceilings: tuple[Ceiling, ...] = Field(min_length=1)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    pairs: tuple[tuple[str, str], ...] = ()
    cut_pairs: int = Field(0, ge=0)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(min_length=1, max_length=MOST_SEEDS)
    quantizer: QuantizerSpec = QuantizerSpec()
    recipe: Recipe
    compute: ComputeGrant
    resources: Resources = Resources()

    @field_validator("methods", mode="before")
    @classmethod
    def _names_alone(cls, entries: Any) -> Any:
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            return entries
        named = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
        return tuple(row for entry in named for row in (rows_of_grid(entry) if isinstance(entry, dict) else [entry]))

    @field_validator("ceilings", mode="before")
    @classmethod
    def _numbers_whole(cls, ceilings: Any) -> Any:
        return [_whole_bops(given) for given in ceilings] if isinstance(ceilings, list | tuple) else ceilings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for values, what in (
            ([entry.row for entry in self.methods], "method rows"),
            ([model.name for model in self.models], "models"),
            (list(self.seeds), "seeds"),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} must differ, got {values}")
        trials = len(self.models) * len(self.ceilings) * len(self.seeds) * sum(entry.draws for entry in self.methods)
        if trials > MOST_TRIALS:
            raise ValueError(f"{trials:,} trials, of networks, ceilings, seeds and draws; at most {MOST_TRIALS:,}")
        rows = [entry.row for entry in self.methods if load_method(entry.name).quantizes] if self.pairs else []
        for name in (name for pair in self.pairs for name in pair):
            if name not in rows:
                raise ValueError(f"pairs: {unknown('quantized row', name, rows)}")
        known = sorted({"default", *(entry.row for entry in self.methods), *known_methods()})
        for name in self.compute.search_share:
            if name not in known:
                raise ValueError(f"compute.search_share: {unknown('method', name, known)}")
        recipes = [settled(entry, self.quantizer, self.recipe)[1] for entry in self.methods]
        images = self.data.train_images
        for recipe in (self.recipe, self.pretraining.recipe, *recipes):
            if images is not None and recipe.batch_size > images:
                raise ValueError(f"batch_size {recipe.batch_size} exceeds the {images:,} images to train on; lower it")
            if (parts := recipe.batch_size // recipe.micro_batch) % self.resources.workers_per_trial:
                raise ValueError(
                    f"resources.workers_per_trial {self.resources.workers_per_trial} does not divide the {parts} "
                    f"micro-batches of a batch of {recipe.batch_size}; lower micro_batch, which is part of the trial"
                )
        same = [(entry.name, canonical_json([options_of(entry), entry.settings])) for entry in self.methods]
        if len(set(same)) != len(same):
            raise ValueError("two rows have the same method with the same options; drop one, or use draws")
        if any(model.name == "resnet101" for model in self.models):
            raise ValueError("models: resnet101 is a teacher; name it under teacher")
        for ceiling in self.ceilings:
            if isinstance(ceiling, str) and not UNIFORM.fullmatch(ceiling):
                raise ValueError(_no_ceiling(ceiling))
            if isinstance(ceiling, dict) and (missing := {m.name for m in self.models} - set(ceiling)):
                raise ValueError(f"ceiling {ceiling} gives no BOPs for {', '.join(sorted(missing))}")
        return self

    @property
    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """The pairs of rows to be judged, as `pairs` says."""
        return self.pairs if self.pairs or self.cut_pairs else tuple(_usual_pairs(self.methods))


def _usual_pairs(entries: Sequence[MethodEntry]) -> Iterator[tuple[str, str]]:
    quantized = [entry for entry in entries if load_method(entry.name).quantizes]
    for method in ("uniform-lsq", "random"):
        reference = next((entry for entry in quantized if entry.name == method), None)
        for entry in quantized:
            if reference and entry != reference and (method == "uniform-lsq" or load_method(entry.name).searches):
                yield entry.row, reference.row


def require_fit(model: ModelSpec, data: DataSpec) -> None:
    """Raises SuiteError unless published weights fit such a network; torchvision has them for one form of each."""
    if model.name in plugged(MODELS):
        raise SuiteError(f"{model.name} has no published weights here; train from scratch with --set weights=none")
    if model.width != 1.0 or model.form != "imagenet" or data.classes != 1000:
        raise SuiteError(
            f"{model.weights} fits {model.name} at width 1 and form imagenet with 1000 classes, not width "
            f"{model.width:g} and form {model.form} with {data.classes} classes; train from scratch with "
            "--set weights=none"
        )


def ceiling_name(ceiling: Ceiling) -> str:
    """How tables name a ceiling; numbers per model are one ceiling.

    >>> ceiling_name("uniform:w4a4"), ceiling_name(5_120_000_000)
    ('uniform:w4a4', '5.12 GBOPs')
    """
    if isinstance(ceiling, str):
        return ceiling
    if isinstance(ceiling, dict):
        return " / ".join(f"{value / 1e9:g}" for value in ceiling.values()) + " GBOPs"
    return f"{ceiling / 1e9:g} GBOPs"


def suite_names() -> list[str]:
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(name: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """A shipped suite by name, or one from a YAML file; `overrides` maps dotted keys to new values.

    Raises SuiteError naming what is unknown, what is known and the nearest of it.
    """
    path = Path(name) if name.endswith(YAML) else SUITES / f"{name}.yaml"
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.parent == SUITES:
            raise SuiteError(unknown("suite", name, suite_names())) from None
        what = f"no suite file {path}" if name.endswith(YAML) else f"no suite {name}"
        raise SuiteError(f"{what}; a suite is a name that `list` shows, or a file that ends in .yaml") from None
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise SuiteError(f"cannot read the suite {path}: {error}") from None
    if not isinstance(data, dict):
        raise SuiteError(f"{path} is not a suite: expected keys such as {', '.join(list(Suite.model_fields)[:6])}")
    for key, value in (overrides or {}).items():
        override(data, key, value)
    return build(Suite, data, str(path.name))


def build(kind: type[Suite], data: Any, where: str) -> Suite:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SuiteError(f"{where}: {explain(error, kind)}") from None


def select(suite: Suite, *, methods: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> Suite:
    """The suite cut down to some rows, models or seeds; empty sequences keep all.

    Pairs of rows are corrected for all pairs of the whole suite: choosing rows cannot make a difference significant.
    """
    rows = [entry.row for entry in suite.methods]
    for wanted in methods:
        if wanted not in rows and wanted not in known_methods():
            raise SuiteError(unknown("method", wanted, sorted({*rows, *known_methods()})))
    entries = [entry for entry in suite.methods if not methods or entry.row in methods]
    added = [MethodEntry(name=name) for name in methods if name not in rows]
    names = [model.name for model in suite.models]
    for wanted in models:
        if wanted not in names:
            raise SuiteError(unknown("model", wanted, names))
    kept = [model for model in suite.models if not models or model.name in models]
    chosen = suite.model_copy(update={"models": tuple(kept), "seeds": tuple(seeds) or suite.seeds})
    if not methods:
        return chosen
    there, new = {entry.row for entry in (*entries, *added)}, {entry.row for entry in added}
    pairs = [*suite.contrasts, *(pair for pair in _usual_pairs((*suite.methods, *added)) if not new.isdisjoint(pair))]
    left = [pair for pair in pairs if there.issuperset(pair)]
    cut = suite.cut_pairs + len(pairs) - len(left)
    return chosen.model_copy(update={"methods": (*entries, *added), "pairs": tuple(left), "cut_pairs": cut})
