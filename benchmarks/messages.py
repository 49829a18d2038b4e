"""Errors a user can act on: what was given, what is known, and the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError


class SuiteError(ValueError):
    """A suite, trial or option that cannot be used; the message says what to change."""


_ELSEWHERE = {"epochs": "epochs of fine-tuning are compute.epochs, of float training pretraining.epochs"}
"""For keys that are often put in the wrong place: where they belong."""


NAME = r"^[a-z0-9][a-z0-9._-]*$"
"""What a suite's name looks like: it names a folder."""


_QUOTED, _EXAMPLE = 200, 60


def quoted(given: Any) -> str:
    """What somebody gave, as a message repeats it: of what is long, the beginning.

    >>> quoted("metamx"), len(quoted(10**4000)) < 220
    ("'metamx'", True)
    """
    text = repr(given)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`unknown method 'metamx'; known: hawq, metamix; did you mean 'metamix'?`"""
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {quoted(name)}; known: {', '.join(known)}{hint}"


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing wrong, in one line; for an unknown key also the known keys and the nearest."""
    first = error.errors()[0]
    place, model = _walk(kind, first["loc"])
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        elsewhere = f"; {_ELSEWHERE[place[-1]]}" if place[-1] in _ELSEWHERE else ""
        return f"{where}: {unknown('key', place[-1], list(model.model_fields))}{elsewhere}"
    if first["type"] == "literal_error":
        known = [part.strip(" '") for part in re.split(r",| or ", first["ctx"]["expected"])]
        return f"{where}: {unknown('value', str(first['input']), known)}"
    message = _in_our_words(first, model)
    return f"{where}: {message}" if where else message


def _in_our_words(error: Any, model: type[BaseModel]) -> str:
    """Pydantic's message; types and patterns are described as one writes them in a suite."""
    given = error["input"]
    match error["type"]:
        case "tuple_type" | "list_type":
            written = str(given or "0, 1")
            example = written if written.isprintable() and len(written) <= _EXAMPLE else "0, 1"
            return f"got {quoted(given)}; write a list, such as [{example}]"
        case "too_short":
            return "the list is empty; write what shall be in it"
        case "model_type" | "model_attributes_type":
            return f"got {quoted(given)}; write values by key, of {', '.join(model.model_fields)}"
        case "dict_type":
            return f"got {quoted(given)}; write values by key, such as {{name: value}}"
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == NAME:
            return (
                f"got {quoted(given)}; write small letters, digits, dots, dashes and underscores, as in a folder's name"
            )
        case "missing":
            return "is missing"
    message = str(error["msg"])
    if error["type"] == "value_error" or not isinstance(given, str | int | float):
        return message.removeprefix("Value error, ")
    return f"{message}, got {quoted(given)}"


def explain_yaml(error: Exception) -> str:
    """What is wrong with a text, and in which line of it, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _walk(kind: Any, location: Sequence[int | str]) -> tuple[list[str], Any]:
    """The keys that lead to `location` in the suite as written, and the last model on the way there.

    Pydantic's locations also have the tag of the model chosen from a union; the suite as written has none.
    """
    place, models = [], [kind]
    for part in location:
        of_union = [model for model in models if len(models) > 1 and part == model.__name__]
        if of_union:
            models = of_union
            continue
        place.append(str(part))
        fields = models[0].model_fields
        if isinstance(part, str) and part in fields:
            models = _models_in(fields[part].annotation) or models
    return place, models[0]


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
