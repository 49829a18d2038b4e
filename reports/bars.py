"""The compute account as stacked bars: what searching and fine-tuning took of each row's grant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.account import Account, account_of
from reports.comparison import Cell, Comparison
from reports.display import epochs

COLOURS = {"search": "#E69F00", "fine-tuning": "#0072B2"}


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
    """A bar per network and row; a full one is the grant, or the largest spending where searches are free."""
    found: dict[tuple[str, str], list[Account]] = {}
    for cell in comparison.cells:
        found.setdefault((cell.model, cell.row), []).extend(_accounts(cell))
    spent = {key: _means(accounts) for key, accounts in found.items() if accounts}
    longest = max((sum(means) for means in spent.values()), default=0.0)
    return [
        _bar(f"{model} · {row}", means, max(longest, found[model, row][0].granted_epochs))
        for (model, row), means in spent.items()
    ]


def _accounts(cell: Cell) -> list[Account]:
    return [account for outcome in cell.ok if (account := account_of(outcome))]


def _means(accounts: Sequence[Account]) -> tuple[float, float]:
    """Mean recipe epochs of searching and of fine-tuning."""
    search = math.fsum(account.epochs_of("search") for account in accounts) / len(accounts)
    return search, math.fsum(account.epochs_of("finetune") for account in accounts) / len(accounts)


def _bar(label: str, means: tuple[float, float], whole: float) -> Bar:
    parts = [Part(round(100 * mean / whole, 2), colour) for mean, colour in zip(means, COLOURS.values(), strict=True)]
    words = ", ".join(f"{name} {epochs(mean)} epochs" for name, mean in zip(COLOURS, means, strict=True))
    return Bar(label, tuple(part for part in parts if part.percent), f"{label}: {words}")
