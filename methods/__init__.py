"""The methods that the benchmark compares: one visible row each, loaded on first use."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

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


@cache
def known_methods() -> dict[str, str]:
    """Every method by name: the table above, then plug-ins; a plug-in cannot take a name from the table."""
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**plugins, **METHODS}


def load_method(name: str) -> type[Method]:
    """The method's class. Raises UnknownMethodError with the known names and the nearest one."""
    known = known_methods()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownMethodError(f"unknown method {name!r}; known: {', '.join(sorted(known))}{hint}")
    module, _, attribute = known[name].partition(":")
    method: type[Method] = getattr(import_module(module), attribute)
    return method
