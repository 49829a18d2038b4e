"""Errors a user can act on: what came, what is known, and the nearest of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError


class SuiteError(ValueError):
    """A suite, trial or option that cannot be used; the message says what to change."""


_ELSEWHERE = {"epochs": "epochs of fine-tuning are compute.epochs, of float training pretraining.epochs"}
"""Where keys are that are often looked for in another place."""


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`unknown method 'metamx'; known: hawq, metamix; did you mean 'metamix'?`"""
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}; known: {', '.join(known)}{hint}"


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
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _walk(kind: Any, location: Sequence[int | str]) -> tuple[list[str], Any]:
    """Where `location` is in what was written, and the last model on the way there.

    Pydantic's locations also name which model of a union was meant, by its tag; what was written does not.
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
