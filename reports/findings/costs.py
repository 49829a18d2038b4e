"""Bit-operations under every convention in use, and what no convention counts."""

from __future__ import annotations

from collections.abc import Sequence

from methods.quantization.cost import CONVENTIONS
from reports.findings.summary import Summary
from reports.findings.tables import Row, Table
from reports.numbers import display

STAYS_FLOAT = (
    "residual additions",
    "squeeze-and-excitation multiplications",
    "pooling",
    "batch normalization",
    "activation functions",
)

CONVENTION_WORDS = {
    "edges8": "every layer at the bits it runs with, first and last at 8×8: ceilings and rankings use this one",
    "inner": "first and last layer left out",
    "edges4": "first and last layer counted at 4×4 although they run at 8×8",
    "edges32": "first and last layer counted as float, 32×32",
}


def conventions_table() -> Table:
    """Every convention of counting bit-operations, in words."""
    return Table(("Convention", "What it counts"), tuple(Row((name, CONVENTION_WORDS[name])) for name in CONVENTIONS))


def bops_table(summaries: Sequence[Summary]) -> Table:
    """Per cell: means of the BOPs under every convention, the ceiling and the weight bytes."""
    header = ("Network", "Ceiling", "Method", "Ceiling, GBOPs", *(f"{name}, GBOPs" for name in CONVENTIONS), "Weights")
    quantized = [summary.cell for summary in summaries if summary.cell.ok and not summary.cell.is_float]
    rows = tuple(
        (
            cell.model,
            cell.ceiling,
            cell.row,
            display.gbops(cell.outcomes[0].trial.spec.ceiling_bops),
            *(display.gbops(cell.mean(lambda o, name=name: o.cost["bops"].get(name))) for name in CONVENTIONS),  # type: ignore[misc]
            display.size(cell.mean(lambda o: o.cost.get("weight_bytes"))),
        )
        for cell in quantized
    )
    return Table(header, tuple(map(Row, rows)), frozenset(header[3:]))
