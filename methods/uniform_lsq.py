"""Uniform LSQ: one bit-width everywhere, no search (Esser et al., ICLR 2020, arXiv 1902.08153)."""

from __future__ import annotations

from methods.allocation import CeilingError
from methods.contract import FixedChoice, Problem, Searched
from methods.quantization.cost import bops, uniform_bits
from methods.quantization.policy import LayerBits, Policy

_ACTIVATION_BITS = range(2, 9)
_MAX_DISTANCE = 1
"""Of weight and activation bits, where the space leaves weight bits free."""


class UniformLSQ(FixedChoice):
    """The pair of widths with the most BOPs that fits the ceiling; on a tie the higher activation width.

    Activation bits are any of 2..8, not only the space's candidates, so that the baseline is not handicapped by a
    coarse space. The record lists the pairs that fit. Raises CeilingError if none does.
    """

    def result(self) -> Searched:
        ledger = self.problem.ledger
        fitting = [
            (cost, pair.activation, pair)
            for pair in _pairs(self.problem)
            if (cost := bops(ledger, uniform_bits(ledger, *pair))) <= self.problem.ceiling
        ]
        if not fitting:
            raise CeilingError(f"no uniform pair of widths fits the ceiling of {self.problem.ceiling} BOPs")
        best = max(fitting)[-1]
        report = {
            "fitting": [{"weight_bits": p.weight, "activation_bits": p.activation, "bops": c} for c, _, p in fitting]
        }
        return Searched(Policy(uniform_bits(ledger, *best)), report=report)


def _pairs(problem: Problem) -> list[LayerBits]:
    weights = sorted({bits.weight for candidates in problem.candidates.values() for bits in candidates})
    return [
        LayerBits(w, a) for w in weights for a in _ACTIVATION_BITS if len(weights) == 1 or abs(w - a) <= _MAX_DISTANCE
    ]
