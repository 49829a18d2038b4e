"""Policies as strips: the bits of every layer of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.planning import Trial
from reports.findings.comparison import Comparison, Outcome
from reports.numbers.display import scaled

COLOURS = ("#f4f7fb", "#dfeaf5", "#c3daee", "#9cc4e4", "#6aaad6", "#3f88bf", "#22659f", "#0b3f70")
"""1 to 8 bits: one hue, darker for more bits."""


@dataclass(frozen=True)
class Tile:
    """One layer of a strip."""

    name: str
    weight: int
    activation: int
    pinned: bool
    tip: str


@dataclass(frozen=True)
class Strip:
    """One trial's layers in graph order."""

    id: str
    label: str
    tiles: tuple[Tile, ...]

    @property
    def spoken(self) -> str:
        """The strip in words, for a screen reader: how many layers have which bits."""
        counts: dict[str, int] = {}
        for tile in self.tiles:
            key = f"w{tile.weight}a{tile.activation}"
            counts[key] = counts.get(key, 0) + 1
        return ", ".join(f"{number} layers at {key}" for key, number in sorted(counts.items()))


def strips_of(comparison: Comparison, model: str) -> list[Strip]:
    """A strip for every trial of the network whose record holds bits per layer."""
    outcomes = [outcome for cell in comparison.of(model) for outcome in cell.outcomes]
    return [strip for outcome in outcomes if (strip := strip_of(outcome))]


def strip_of(outcome: Outcome) -> Strip | None:
    """The bits of one trial's layers; None for the float control and for trials that chose none."""
    layers: Sequence[Mapping[str, Any]] = outcome.result.get("layers") or ()
    tiles = [_tile(layer) for layer in layers if layer.get("weight_bits") and layer.get("activation_bits")]
    trial = outcome.trial
    draw = f" · draw {trial.spec.draw}" if trial.spec.draw else ""
    state = "" if outcome.ok else f" · {outcome.state.replace('_', ' ')}"
    label = f"{trial.ceiling} · {trial.row} · seed {trial.spec.seed}{draw}{state}"
    return Strip(strip_id(trial), label, tuple(tiles)) if tiles else None


def strip_id(trial: Trial) -> str:
    """The anchor of a trial's strip on the page."""
    return f"strip-{trial.id}"


def _tile(layer: Mapping[str, Any]) -> Tile:
    weight, activation = int(layer["weight_bits"]), int(layer["activation_bits"])
    pinned = bool(layer.get("pinned"))
    parts = [str(layer["name"]), str(layer.get("type", "")), scaled(int(layer.get("macs", 0)), "MACs")]
    parts.append(f"weights {weight} bits, input {activation} bits" + (", pinned" if pinned else ""))
    return Tile(str(layer["name"]), weight, activation, pinned, " · ".join(filter(None, parts)))


def colour(bits: int) -> str:
    return COLOURS[min(max(bits, 1), 8) - 1]
