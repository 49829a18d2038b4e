"""Best bits under a ceiling: the multiple-choice knapsack, solved exactly, with ties between layers.

Each group (a layer, or layers tied to one input grid) takes one of its choices; minimise the sum of values subject
to the sum of integer costs staying within the ceiling. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from methods.quantization.cost import PINNED_BITS, Ledger, bops
from methods.quantization.policy import Candidates, LayerBits, Policy, PolicyError


class CeilingError(ValueError):
    """No policy fits the ceiling."""


@dataclass(frozen=True)
class Group:
    """Layers that choose together, and their joint choices: each gives every layer of the group its bits."""

    layers: tuple[str, ...]
    choices: tuple[tuple[LayerBits, ...], ...]


def groups_of(ledger: Ledger, candidates: Candidates) -> list[Group]:
    """Searchable layers grouped by tie, in graph order; within a group all activation bits are equal.

    Weight bits of tied layers stay free of one another: only the input grid is shared. Layers tied to a pinned one
    get its activation bits. Raises PolicyError if tied layers have no activation bits in common.
    """
    members: dict[str, list[str]] = {}
    for layer in ledger:
        if not layer.pinned:
            members.setdefault(layer.tie or layer.name, []).append(layer.name)
    held = {layer.tie for layer in ledger if layer.pinned and layer.tie}
    groups = []
    for key, names in members.items():
        joint = _joint(names, candidates)
        choices = tuple(bits for bits in joint if key not in held or bits[0].activation == PINNED_BITS.activation)
        if not choices:
            raise PolicyError(f"layers that share an input grid have no activation bits in common: {', '.join(names)}")
        groups.append(Group(tuple(names), choices))
    return groups


def _joint(names: Sequence[str], candidates: Candidates) -> Iterator[tuple[LayerBits, ...]]:
    for bits in candidates[names[0]]:
        tails = _joint(names[1:], candidates) if len(names) > 1 else iter([()])
        for tail in tails:
            if all(other.activation == bits.activation for other in tail):
                yield (bits, *tail)


def allocate(costs: Sequence[Sequence[int]], values: Sequence[Sequence[float]], ceiling: int) -> list[int]:
    """The index of each group's choice that minimises the summed value with summed cost <= ceiling, exactly.

    costs: integers >= 0, values: finite floats, one row per group. Ties in value go to the lower cost.
    Dynamic programming over undominated (cost, value) states. A state is also dropped if its linear relaxation
    (Dantzig's bound over the convex hulls of the groups still to come) cannot beat a known solution. Both prunings
    keep an optimum. Raises CeilingError if even the cheapest choices exceed the ceiling.

    >>> allocate([[1, 4], [1, 4]], [[5.0, 0.0], [3.0, 0.0]], ceiling=5)
    [1, 0]
    """
    rows = [_undominated(cost, value) for cost, value in zip(costs, values, strict=True)]
    cheapest = sum(int(row.cost[0]) for row in rows)
    if cheapest > ceiling:
        raise CeilingError(f"the cheapest policy costs {cheapest}, above the ceiling {ceiling}")
    bounds = [_Relaxation.of(rows[index:]) for index in range(len(rows) + 1)]
    # Summation order differs between bound and state: leave room for rounding, so that no optimum is cut off.
    scale = sum(float(np.abs(row.value).max()) for row in rows)
    slack = 1e-12 * max(scale, np.finfo(float).tiny)

    state_cost, state_value = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    best = np.inf
    for row, rest in zip(rows, bounds[1:], strict=True):
        cost = (state_cost[:, None] + row.cost).ravel()
        value = (state_value[:, None] + row.value).ravel()
        lower, upper = rest.bounds(ceiling - cost)
        best = min(best, float(np.min(value + upper)))
        alive = np.flatnonzero(value + lower <= best + slack)
        order = alive[np.lexsort((value[alive], cost[alive]))]
        keep = order[_strictly_falling(value[order])]
        trail.append((keep // len(row.cost), row.index[keep % len(row.cost)]))
        state_cost, state_value = cost[keep], value[keep]
    position = int(np.argmin(state_value))
    chosen: list[int] = []
    for parents, indices in reversed(trail):
        chosen.append(int(indices[position]))
        position = int(parents[position])
    return chosen[::-1]


@dataclass(frozen=True)
class _Row:
    """One group's choices without the dominated ones: cost rises, value falls."""

    cost: NDArray[np.int64]
    value: NDArray[np.float64]
    index: NDArray[np.int64]


def _undominated(cost: Sequence[int], value: Sequence[float]) -> _Row:
    costs, values = np.asarray(cost, np.int64), np.asarray(value, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    order = np.lexsort((values, costs))
    order = order[_strictly_falling(values[order])]
    return _Row(costs[order], values[order], order.astype(np.int64))


def _strictly_falling(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True where a value is below every one before it."""
    before = np.minimum.accumulate(np.concatenate(([np.inf], values)))[:-1]
    return np.asarray(values < before)


@dataclass(frozen=True)
class _Relaxation:
    """Least summed value of some groups as a function of the budget, choices made divisible.

    It is piecewise linear and convex: all groups start at their cheapest choice, then the steps along their convex
    hulls are taken steepest first. `spent` and `value` are its corners; corners are themselves solutions.
    """

    spent: NDArray[np.float64]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Sequence[_Row]) -> _Relaxation:
        steps = sorted((step for row in rows for step in _hull_steps(row)), key=lambda step: step[1] / step[0])
        start = [(float(sum(int(row.cost[0]) for row in rows)), float(sum(row.value[0] for row in rows)))]
        corners = np.cumsum(np.array(start + steps, np.float64), axis=0)
        return cls(corners[:, 0], corners[:, 1])

    def bounds(self, budget: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bounds of the least value within each budget; both infinite where nothing fits."""
        lower = np.interp(budget, self.spent, self.value, left=np.inf)
        corner = np.searchsorted(self.spent, budget, side="right") - 1
        upper = np.where(corner >= 0, self.value[corner], np.inf)
        return lower, upper


def _hull_steps(row: _Row) -> list[tuple[float, float]]:
    """(extra cost, change of value) along the lower convex hull of a group's choices."""
    hull: list[int] = []
    for point in range(len(row.cost)):
        while len(hull) >= 2 and _slope(row, hull[-2], hull[-1]) >= _slope(row, hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(float(row.cost[b] - row.cost[a]), float(row.value[b] - row.value[a])) for a, b in pairwise(hull)]


def _slope(row: _Row, a: int, b: int) -> float:
    return float(row.value[b] - row.value[a]) / float(row.cost[b] - row.cost[a])


def best_policy(
    ledger: Ledger, candidates: Candidates, ceiling: int, penalty: Callable[[str, LayerBits], float]
) -> Policy:
    """The policy within `ceiling` BOPs that minimises the summed `penalty(layer, bits)`, exactly, respecting ties.

    Raises CeilingError, in BOPs of the whole network, if no policy fits.
    """
    groups = groups_of(ledger, candidates)
    costs, values, pinned = _priced(groups, ledger, penalty)
    try:
        picks = allocate(costs, values, ceiling - pinned)
    except CeilingError:
        raise _too_dear(costs, pinned, ceiling) from None
    return _picked(groups, picks, ledger)


def best_ordered_policy(
    ledger: Ledger,
    candidates: Candidates,
    ceiling: int,
    penalty: Callable[[str, LayerBits], float],
    rank: Mapping[str, float],
) -> Policy:
    """As `best_policy`, among policies whose bits rise with `rank` and are alike in tied layers; exactly.

    rank: layer -> number; tied layers count as their mean, and layers of equal rank are taken in graph order. One pair
    of bits is above another if it has more weight bits x activation bits. Layers without a choice stand outside it.
    """
    groups = [Group(g.layers, tuple(c for c in g.choices if len(set(c)) == 1)) for g in groups_of(ledger, candidates)]
    groups.sort(key=lambda group: sum(rank[name] for name in group.layers) / len(group.layers))
    costs, values, pinned = _priced(groups, ledger, penalty)
    levels = sorted(
        {choice[0] for group in groups for choice in group.choices}, key=lambda b: (b.weight * b.activation, b)
    )
    # By the last layer's level: undominated (cost, value, picks so far) of the layers so far.
    fronts: list[list[_Partial]] = [[] for _ in levels]
    fronts[0] = [(pinned, 0.0, ())]
    for group, cost, value in zip(groups, costs, values, strict=True):
        reached: list[_Partial] = []
        place = {levels.index(choice[0]): index for index, choice in enumerate(group.choices)}
        for level, front in enumerate(fronts):
            reached = _front(reached + front)
            before = front if len(place) == 1 else reached
            picks = [next(iter(place.values()))] if len(place) == 1 else [place[level]] if level in place else []
            fronts[level] = [
                (spent + cost[pick], total + value[pick], (*earlier, pick))
                for pick in picks
                for spent, total, earlier in before
                if spent + cost[pick] <= ceiling
            ]
    ends = [end for front in fronts for end in front]
    if not ends:
        raise _too_dear(costs, pinned, ceiling)
    return _picked(groups, min(ends, key=lambda end: (end[1], end[0]))[2], ledger)


_Partial = tuple[int, float, tuple[int, ...]]


def _front(states: list[_Partial]) -> list[_Partial]:
    """The states for which no other state of at most their cost has a value as low."""
    kept: list[_Partial] = []
    for state in sorted(states):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept


def _priced(
    groups: Sequence[Group], ledger: Ledger, penalty: Callable[[str, LayerBits], float]
) -> tuple[list[list[int]], list[list[float]], int]:
    """BOPs and penalty of every choice of every group, and the pinned layers' BOPs."""
    macs = {layer.name: layer.macs for layer in ledger}
    costs = [
        [sum(macs[n] * b.weight * b.activation for n, b in zip(g.layers, c, strict=True)) for c in g.choices]
        for g in groups
    ]
    values = [[sum(penalty(n, b) for n, b in zip(g.layers, c, strict=True)) for c in g.choices] for g in groups]
    return costs, values, bops(tuple(layer for layer in ledger if layer.pinned), {})


def _too_dear(costs: Sequence[Sequence[int]], pinned: int, ceiling: int) -> CeilingError:
    cheapest = pinned + sum(min(row) for row in costs)
    return CeilingError(f"the cheapest policy costs {cheapest} BOPs, above the ceiling of {ceiling} BOPs")


def _picked(groups: Sequence[Group], picks: Sequence[int], ledger: Ledger) -> Policy:
    chosen = {
        name: bits
        for group, pick in zip(groups, picks, strict=True)
        for name, bits in zip(group.layers, group.choices[pick], strict=True)
    }
    return Policy({layer.name: chosen[layer.name] for layer in ledger if not layer.pinned})


def count_feasible(ledger: Ledger, candidates: Candidates, ceiling: int, *, limit: int) -> int:
    """How many policies fit the ceiling, counted up to `limit`."""
    macs = {layer.name: layer.macs for layer in ledger}
    rows = [
        sorted(sum(macs[n] * b.weight * b.activation for n, b in zip(g.layers, c, strict=True)) for c in g.choices)
        for g in groups_of(ledger, candidates)
    ]
    rest = [sum(row[0] for row in rows[index + 1 :]) for index in range(len(rows))]

    def count(index: int, budget: int, room: int) -> int:
        if index == len(rows):
            return 1
        found = 0
        for cost in rows[index]:
            if found >= room or cost + rest[index] > budget:
                break
            found += count(index + 1, budget - cost, room - found)
        return found

    pinned = bops(tuple(layer for layer in ledger if layer.pinned), {})
    budget = ceiling - pinned
    return 0 if sum(row[0] for row in rows) > budget else count(0, budget, limit)
