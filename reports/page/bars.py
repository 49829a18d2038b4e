"""The compute account as stacked bars: the share of its grant that each row spent on each phase, and on the teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reports.findings.comparison import Comparison
from reports.findings.phases import FINETUNE, Spending, phase_words, spendings
from reports.numbers.display import epochs

FINETUNE_COLOUR, TEACHER_COLOUR = "#0072B2", "#7f8790"
SEARCH_COLOURS = ("#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#009E73", "#56B4E9")
TEACHER = "teacher"


@dataclass(frozen=True)
class Part:
    """A stretch of a bar."""

    percent: float
    colour: str


@dataclass(frozen=True)
class Bar:
    """One row on one network: means over all its trials. spoken: the same in words."""

    label: str
    parts: tuple[Part, ...]
    spoken: str


def bars_of(comparison: Comparison) -> list[Bar]:
    """A bar per network and row; a full bar is the grant or, where searches are free, the largest spending."""
    found = [(spending, _stretches(spending)) for spending in spendings(comparison)]
    longest = max((math.fsum(stretches.values()) for _, stretches in found), default=0.0)
    colours = colours_of(comparison)
    return [_bar(spending, stretches, colours, max(longest, spending.granted_epochs)) for spending, stretches in found]


def colours_of(comparison: Comparison) -> dict[str, str]:
    """Phase, in words -> colour, for the legend: searches, fine-tuning, the teacher where there is one."""
    names = dict.fromkeys(name for spending in spendings(comparison) for name in _stretches(spending))
    fixed = {phase_words(FINETUNE): FINETUNE_COLOUR, TEACHER: TEACHER_COLOUR}
    searches = [name for name in names if name not in fixed]
    colours = {name: SEARCH_COLOURS[index % len(SEARCH_COLOURS)] for index, name in enumerate(searches)}
    return colours | {name: colour for name, colour in fixed.items() if name in names}


def _stretches(spending: Spending) -> dict[str, float]:
    """Phase, in words -> recipe epochs without the teacher, whose own come last."""
    own = {phase_words(phase.name): phase.epochs - phase.teacher_epochs for phase in spending.phases}
    taught = math.fsum(phase.teacher_epochs for phase in spending.phases)
    return own | ({TEACHER: taught} if taught else {})


def _bar(spending: Spending, stretches: Mapping[str, float], colours: Mapping[str, str], whole: float) -> Bar:
    label = f"{spending.model} · {spending.row}"
    parts = [Part(round(100 * length / whole, 2), colours[name]) for name, length in stretches.items()]
    words = ", ".join(f"{name} {epochs(length)} epochs" for name, length in stretches.items())
    return Bar(label, tuple(part for part in parts if part.percent), f"{label}: {words}")
