"""One trial as a method sees it: the harness, and beside it the layers, the bits to choose from, and both budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.trials.compute import Account
from benchmarks.trials.harness import Harness
from methods.contract import Method, Phase
from methods.quantization.cost import Ledger
from methods.quantization.policy import Candidates


@dataclass(kw_only=True)
class Problem(Harness):
    """The harness's side of methods.contract.Problem."""

    ledger: Ledger
    candidates: Candidates
    ceiling: int
    account: Account
    _method: Method | None = field(default=None, init=False)

    @classmethod
    def of(cls, harness: Harness, *, ledger: Ledger, candidates: Candidates, ceiling: int, account: Account) -> Problem:
        """A search's view of a harness, which nothing else uses from then on."""
        shared = {part.name: getattr(harness, part.name) for part in fields(Harness) if part.init}
        return cls(**shared, ledger=ledger, candidates=candidates, ceiling=ceiling, account=account)

    def build(self, kind: type[Method], options: Mapping[str, Any]) -> Method:
        """The method that is to solve this problem; `price` measures its steps."""
        self._method = kind(self, kind.Options.model_validate(dict(options)))
        return self._method

    def price(self, phase: Phase) -> int:
        """MACs of one step of `phase`."""
        if self._method is None:
            raise RuntimeError(f"no step of {phase.name} can be run while the method is built; plan in phase()")
        return self.price_of(self._method, phase).macs * self.recipe.batch_size

    def affordable(self, phase: Phase) -> int:
        """Steps of `phase` that the unspent part of the search share pays."""
        return max(0, self.account.search_macs - self.account.spent_macs) // self.price(phase)
