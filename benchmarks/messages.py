"""Errors a user can act on: what came, what is known, and the nearest of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError


class SuiteError(ValueError):
    """A suite, trial or option that cannot be used; the message says what to change."""


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`unknown method 'metamx'; known: hawq, metamix; did you mean 'metamix'?`"""
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}; known: {', '.join(known)}{hint}"


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing wrong, in one line; for an unknown key also the known keys and the nearest."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: {unknown('key', str(first['loc'][-1]), _keys_at(kind, first['loc'][:-1]))}"
    if first["type"] == "literal_error":
        known = [part.strip(" '") for part in re.split(r",| or ", first["ctx"]["expected"])]
        return f"{where}: {unknown('value', str(first['input']), known)}"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _keys_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """Field names of the model that sits at `location` inside `kind`."""
    for part in location:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _model_in(kind.model_fields[part].annotation)
    return list(kind.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)
