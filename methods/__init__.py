"""The methods that the benchmark compares: one visible row each, loaded on first use."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.contract import Method

METHODS: dict[str, str] = {  # naming a method must not import torch
    "uniform-lsq": "methods.uniform_lsq:UniformLSQ",  # Esser et al. 2020
    "hawq": "methods.hawq:Hawq",  # Dong et al. 2020, Yao et al. 2021
    "differentiable": "methods.differentiable:Differentiable",  # Cai & Vasconcelos 2020
    "metamix": "methods.metamix:MetaMix",  # Kim et al. 2024
    "metamix-joint": "methods.metamix:MetaMixJoint",  # an extension of ours
    "float": "methods.controls:Float",
    "given": "methods.controls:Given",
    "random": "methods.controls:Random",
    "mac-greedy": "methods.controls:MacGreedy",
    "reversed": "methods.hawq:Reversed",
    "shuffled": "methods.hawq:Shuffled",
}

ENTRY_POINTS = "mixed_precision.methods"


class UnknownMethodError(ValueError):
    """A method's name that is neither registered nor brought by a plug-in."""


class BrokenPluginError(ValueError):
    """An installed plug-in that cannot be used; the message says which and why."""


@cache
def known_methods() -> dict[str, str]:
    """Every method by name: the table above, then plug-ins; a plug-in cannot take a name from the table."""
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**plugins, **METHODS}


def load_method(name: str) -> type[Method]:
    """The method's class.

    Raises UnknownMethodError with the known names and the nearest one, BrokenPluginError for a plug-in that cannot be
    loaded or is no method.
    """
    known = known_methods()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownMethodError(f"unknown method {name!r}; known: {', '.join(sorted(known))}{hint}")
    point = EntryPoint(name, known[name], ENTRY_POINTS)
    method: type[Method] = point.load() if name in METHODS else _checked(point)
    return method


def _checked(point: EntryPoint) -> Any:
    from methods.contract import Method

    method = load_entry(point)
    wanted = [name for name in {**Method.__annotations__, **vars(Method)} if not name.startswith("_")]
    if missing := [name for name in wanted if not hasattr(method, name)]:
        raise BrokenPluginError(
            f"plug-in {point.name!r} ({point.value}) is no method: it lacks {', '.join(missing)} "
            "(see methods/contract.py); fix or uninstall it"
        )
    return method


def load_entry(point: EntryPoint) -> Any:
    """Loads what a plug-in's entry point names. Raises BrokenPluginError for any error while it is imported."""
    try:
        return point.load()
    except Exception as error:
        raise BrokenPluginError(
            f"plug-in {point.name!r} ({point.value}): {str(error) or repr(error)}; fix or uninstall it"
        ) from error
