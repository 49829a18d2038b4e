"""Rows of a suite: a method, its options, how often it is drawn, and settings of its own."""

from __future__ import annotations

from itertools import product
from typing import Any

from pydantic import Field, ValidationError

from benchmarks.messages import SuiteError, explain
from benchmarks.suites.spec import Config, QuantizerSpec, Recipe
from methods import load_method

MOST_DRAWS = 1000


class MethodEntry(Config):
    """A method in a suite. label: the name of its row, where one method stands in several; draws: trials per cell.

    settings: this row's own values of keys of the suite's quantizer and recipe, such as `recipe.optimizer.lr`. A suite
    may write `grid` instead, lists of values by key, for one row per combination.
    """

    name: str
    label: str = ""
    draws: int = Field(1, ge=1, le=MOST_DRAWS)
    options: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def row(self) -> str:
        return self.label or self.name


def options_of(entry: MethodEntry) -> dict[str, Any]:
    """The method's options with defaults filled in, as JSON. Raises ValueError naming the unknown and the known."""
    options = load_method(entry.name).Options
    if entry.options and not options.model_fields:
        raise ValueError(f"{entry.name} has no options, got {', '.join(entry.options)}")
    try:
        return options.model_validate(entry.options).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(f"options of {entry.name}: {explain(error, options)}") from None


def rows_of_grid(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an entry's grid, each with its settings and named for them. Raises ValueError."""
    if not (grid := entry.get("grid")):
        return [entry]
    if not isinstance(grid, dict) or not all(
        isinstance(key, str) and isinstance(values, list) and values for key, values in grid.items()
    ):
        raise ValueError("grid: give lists of values by key, such as {recipe.optimizer.lr: [0.001, 0.003]}")
    plain = {key: value for key, value in entry.items() if key != "grid"}
    try:
        whole = MethodEntry.model_validate(plain)
    except ValidationError as error:
        raise ValueError(explain(error, MethodEntry)) from None
    return [
        {
            **plain,
            "label": ", ".join([whole.row, *map(_value_name, grid, values)]),
            "settings": {**whole.settings, **dict(zip(grid, values, strict=True))},
        }
        for values in product(*grid.values())
    ]


def _value_name(key: str, value: Any) -> str:
    """`lr 0.001`; names, and flags that are on, stand for themselves."""
    if isinstance(value, dict):
        return " ".join(str(v) if isinstance(v, str) else str(k) for k, v in value.items() if v)
    return value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"


def settled(entry: MethodEntry, quantizer: QuantizerSpec, recipe: Recipe) -> tuple[QuantizerSpec, Recipe]:
    """The quantizer and the recipe of a row: the suite's, but for the row's own settings. Raises SuiteError."""
    parts: dict[str, Any] = {"quantizer": quantizer.model_dump(), "recipe": recipe.model_dump()}
    for key, value in entry.settings.items():
        if key.partition(".")[0] not in parts:
            raise SuiteError(f"settings of {entry.row}: {key!r} is no key of quantizer or recipe")
        override(parts, key, value)
    try:
        return QuantizerSpec.model_validate(parts["quantizer"]), Recipe.model_validate(parts["recipe"])
    except ValidationError as error:
        kind = QuantizerSpec if error.title == "QuantizerSpec" else Recipe
        raise SuiteError(f"settings of {entry.row}: {explain(error, kind)}") from None


def override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of nested mappings, in place. Raises SuiteError where a key on the way holds none."""
    whole = ""
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        whole = f"{whole}.{parent}".strip(".")
        if isinstance(data, list):
            raise SuiteError(f"{key}: {parent!r} is a list, which is set as a whole: --set '{whole}=[...]'")
        if not isinstance(data, dict):
            raise SuiteError(f"{key}: {parent!r} holds no keys")
    data[last] = value
