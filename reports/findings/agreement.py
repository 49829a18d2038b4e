"""How far the seeds of one cell agree on its policy, beside what chance alone would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from reports.findings.comparison import Cell, Comparison
from reports.findings.tables import Row, Table
from reports.numbers.display import percent

Bits = tuple[int, ...]

READING = (
    "Layers that got the same bits in two seeds (or draws), mean over layers and pairs. By chance: what two "
    "policies would agree on if every layer drew its bits from the widths that the cell uses, whichever layer "
    "they are in. Never otherwise: layers whose bits are the same in all policies; agreement.csv has every layer's "
    "share."
)


def agreement(policies: Sequence[Mapping[str, Bits]]) -> float:
    """Mean over layers and pairs of policies of whether their bits are the same. Raises ValueError below two.

    >>> agreement([{"a": (4, 3), "b": (4, 8)}, {"a": (4, 3), "b": (4, 4)}])
    0.5
    """
    if len(policies) < 2:
        raise ValueError("agreement needs two policies")
    found = [ours[name] == theirs[name] for ours, theirs in combinations(policies, 2) for name in ours]
    return sum(found) / len(found)


def by_layer(policies: Sequence[Mapping[str, Bits]]) -> dict[str, float]:
    """Layer -> share of pairs of policies that give it the same bits.

    >>> by_layer([{"a": (4, 3), "b": (4, 8)}, {"a": (4, 3), "b": (4, 4)}])
    {'a': 1.0, 'b': 0.0}
    """
    return {name: agreement([{name: policy[name]} for policy in policies]) for name in policies[0]}


def by_chance(policies: Sequence[Mapping[str, Bits]]) -> float:
    """The sum of squared shares of each width over all layers and policies.

    >>> by_chance([{"a": (4, 3), "b": (4, 8)}])
    0.5
    """
    counts = Counter(bits for policy in policies for bits in policy.values())
    return sum(number**2 for number in counts.values()) / counts.total() ** 2


def policies_of(cell: Cell) -> list[dict[str, Bits]]:
    """Layer -> bits of every ok trial, in the cell's order."""
    return [
        {name: tuple(bits) for name, bits in outcome.result["policy"]["layers"].items()}
        for outcome in cell.ok
        if outcome.result.get("policy")
    ]


def agreement_table(comparison: Comparison) -> Table:
    """Per cell with two policies or more that are not one width everywhere."""
    header = ("Network", "Ceiling", "Method", "Policies", "Layers alike, %", "By chance, %", "Never otherwise")
    lines = []
    for cell, policies in _varied(comparison):
        shares = (percent(agreement(policies), 1), percent(by_chance(policies), 1))
        always = sum(share == 1 for share in by_layer(policies).values())
        counts = (str(len(policies)), *shares, f"{always} of {len(policies[0])}")
        lines.append(Row((cell.model, cell.ceiling, cell.row, *counts)))
    return Table(header, tuple(lines), frozenset(header[3:]))


def agreement_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per layer of the same cells: the share of pairs of policies alike, and the widths with how often each."""
    rows = []
    for cell, policies in _varied(comparison):
        identity = {"model": cell.model, "ceiling": cell.ceiling, "row": cell.row}
        for layer, share in by_layer(policies).items():
            counts = sorted(Counter(f"w{policy[layer][0]}a{policy[layer][1]}" for policy in policies).items())
            chosen = " ".join(f"{bits}:{number}" for bits, number in counts)
            rows.append({**identity, "layer": layer, "policies": len(policies), "alike_share": share, "bits": chosen})
    return rows


def _varied(comparison: Comparison) -> Iterator[tuple[Cell, list[dict[str, Bits]]]]:
    found = ((cell, policies_of(cell)) for cell in comparison.cells)
    return ((cell, policies) for cell, policies in found if len(policies) > 1 and by_chance(policies) < 1)
