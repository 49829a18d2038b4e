"""MetaMix: bit selection by alternating bit-meta and bit-search steps (Kim et al., AAAI 2024, arXiv 2311.06798)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from methods.contract import Batch, InapplicableError, MethodOptions, MicroBatch, Phase, Problem, Searched
from methods.quantization.cost import bops, uniform_bits

META = Phase("bit-meta")
SELECTION = Phase("bit-selection")

_PAPER_WEIGHT_BITS = 4
_PAPER_PENALTY = 4.0
_PAPER_TARGET_GBOPS = 3.31
_PAPER_ALPHA_RATE = 1e-4
_INITIAL_SPREAD = 1e-3


class MetaMixOptions(MethodOptions):
    """Every place where paper, summary and public code leave a choice; defaults are argued in the fields.

    meta_loss: `mean` over the branches, as the paper's text; `last`: the one public implementation back-propagates the
    last branch only. mixture: `soft` as the code, `hard` (straight-through one-hot) as the summary. fixed_meta_state:
    the search step changes nothing but alpha; off, it also trains weights, batch norm and steps by the mixture's loss.
    warmup_share: share of the selection's steps before bit search begins. scale: `relative` penalty
    lambda * |BOPs/ceiling - 1| and an alpha rate of 0.5 over the search steps; `paper`: lambda * |GBOPs - T| and 1e-4,
    which hold for ImageNet only. lambda: None takes 4 * 3.31 (relative) or 4 (paper). start: where fine-tuning starts.
    lr_scale: the learning rate over the recipe's, 1e-4 / 5e-4 in the public script. weight_bits: where the space
    leaves weights free, the one width that this method uses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    meta_loss: Literal["mean", "last"] = "mean"
    mixture: Literal["soft", "hard"] = "soft"
    fixed_meta_state: bool = True
    warmup_share: float = Field(0.5, ge=0, lt=1)
    scale: Literal["relative", "paper"] = "relative"
    penalty: float | None = Field(None, ge=0, alias="lambda")
    start: Literal["selection", "float"] = "selection"
    lr_scale: float = Field(0.2, gt=0)
    max_norm: float = Field(10.0, gt=0)
    weight_bits: int = Field(_PAPER_WEIGHT_BITS, ge=2, le=8)


class MetaMix:
    """Mixed precision of activations; weights stay full precision while bits are chosen.

    Per batch, bit-meta step: for each width b of the space all searchable activations run at b, and weights, batch
    norm and steps learn from the mean of the losses. After a warm-up, bit-search step: activations are mixtures by
    softmax(alpha), only alpha learns, from task + lambda * |BOPs(alpha)/ceiling - 1|, where BOPs(alpha) uses the
    straight-through one-hot; train mode with batch statistics, which leave the running ones alone.
    Then each layer takes its likeliest width, projected onto the ceiling, and keeps the step learned for it.
    Deviation: one public implementation lets batch norm drift in the search step; ours leaves it bit-equal.
    """

    version: ClassVar[int] = 1
    searches: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    min_steps: ClassVar[int] = 2
    Options: ClassVar[type[MethodOptions]] = MetaMixOptions

    def __init__(self, problem: Problem, options: MetaMixOptions) -> None:
        import torch

        from methods.mixing import WidthLogits, select_pinned

        self.problem, self.options = problem, options
        self.weight_bits = _weight_width(problem, options)
        self.widths = sorted({bits.activation for choices in problem.candidates.values() for bits in choices})
        generator = problem.stream("search/alpha")
        self.alpha = WidthLogits(problem, weight_bits=self.weight_bits, spread=_INITIAL_SPREAD, generator=generator)
        select_pinned(problem, weights=False)
        self.weight_optimizer = problem.weight_optimizer(problem.model.parameters(), options.lr_scale)
        self.alpha_optimizer = torch.optim.Adam(
            self.alpha.parameters(), lr=_PAPER_ALPHA_RATE, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.taken, self.warmup, self.total = 0, 0, 0

    def phase(self) -> Phase | None:
        if not self.total:
            self._plan()
        if self.taken >= self.total:
            return None
        return META if self.taken < self.warmup else SELECTION

    def _plan(self) -> None:
        """Spread the share over both phases so that warm-up is its share of the steps; alpha's rate follows."""
        share, problem = self.options.warmup_share, self.problem
        meta, selection = problem.price(META), problem.price(SELECTION)
        budget = problem.affordable(META) * meta
        self.total = max(1, int(budget / (share * meta + (1.0 - share) * selection)))
        self.warmup = int(share * self.total)
        if self.options.scale == "relative":
            for group in self.alpha_optimizer.param_groups:
                group["lr"] = 0.5 / max(self.total - self.warmup, 1)

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        logs = {f"loss_{bits}bit": loss for bits, loss in self._meta_step(batch).items()}
        if phase == SELECTION:
            logs |= self._search_step(batch)
        self.taken += 1
        return logs

    def _meta_step(self, batch: Batch) -> dict[int, float]:
        """Weights, batch norm and steps learn from all widths at once; returns each width's loss."""
        problem, losses = self.problem, dict.fromkeys(self.widths, 0.0)
        for micro in batch:
            for bits in self.widths:
                self._select(bits)
                loss = problem.loss(problem.model(micro.images), micro)
                losses[bits] += float(loss.detach()) / len(batch)
                if self.options.meta_loss == "mean":
                    problem.backward(loss / len(self.widths))
            if self.options.meta_loss == "last":
                problem.backward(loss)
        problem.step(self.weight_optimizer, max_norm=self.options.max_norm)
        return losses

    def _select(self, bits: int) -> None:
        for layer in self.alpha.layers.values():
            layer.input_quantizer.select(bits)

    def _search_step(self, batch: Batch) -> dict[str, float]:
        """Alpha learns; unless `fixed_meta_state` is off, nothing else changes."""
        problem, task = self.problem, 0.0
        for micro in batch:
            if self.options.fixed_meta_state:
                with running_statistics_untouched(problem.model):
                    loss = self._mixture_loss(micro)
                problem.grad(loss + self._cost_penalty(), self.alpha.parameters())
            else:
                loss = self._mixture_loss(micro)
                problem.backward(loss + self._cost_penalty())
            task += float(loss.detach()) / len(batch)
        problem.step(self.alpha_optimizer)
        if not self.options.fixed_meta_state:
            problem.step(self.weight_optimizer, max_norm=self.options.max_norm)
        relative = self.alpha.relative_bops(hard=True)
        return {"mixture_loss": task, "relative_bops": float(relative.detach())}

    def _mixture_loss(self, micro: MicroBatch) -> Any:
        self.alpha.mix(hard=self.options.mixture == "hard")
        return self.problem.loss(self.problem.model(micro.images), micro)

    def _cost_penalty(self) -> Any:
        excess = (self.alpha.relative_bops(hard=True) - 1.0).abs()
        paper = self.options.scale == "paper"
        penalty = self.options.penalty
        if penalty is None:
            penalty = _PAPER_PENALTY if paper else _PAPER_PENALTY * _PAPER_TARGET_GBOPS
        return (penalty * excess * (self.problem.ceiling / 1e9 if paper else 1.0)).float()

    def result(self) -> Searched:
        policy, report = self.alpha.project()
        margins = self.alpha.margins()
        report |= {
            "margins": margins,
            "undecided_layers": [name for name, margin in margins.items() if margin < _INITIAL_SPREAD],
            "weight_bits": self.weight_bits,
        }
        if len({bits.weight for choices in self.problem.candidates.values() for bits in choices}) > 1:
            report["subspace"] = f"activations at {self.weight_bits}-bit weights"
        state = self.problem.model.state_dict() if self.options.start == "selection" else None
        return Searched(policy, state, report)

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "warmup": self.warmup,
            "total": self.total,
            "alpha": self.alpha.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.warmup, self.total = state["taken"], state["warmup"], state["total"]
        self.alpha.load_state_dict(state["alpha"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])


def _weight_width(problem: Problem, options: MetaMixOptions) -> int:
    """The space's one weight width, or the option's where there are several."""
    widths = sorted({bits.weight for choices in problem.candidates.values() for bits in choices})
    if len(widths) == 1:
        return widths[0]
    if options.weight_bits not in widths:
        raise InapplicableError(f"weight_bits {options.weight_bits} is not in the space's widths {widths}")
    lowest = min(bits.activation for choices in problem.candidates.values() for bits in choices)
    cheapest = bops(problem.ledger, uniform_bits(problem.ledger, options.weight_bits, lowest))
    if cheapest > problem.ceiling:
        raise InapplicableError(
            f"with {options.weight_bits}-bit weights the cheapest policy costs {cheapest:,} BOPs, above the ceiling of "
            f"{problem.ceiling:,}; lower weight_bits"
        )
    return options.weight_bits


@contextmanager
def running_statistics_untouched(model: Any) -> Iterator[None]:
    """Batch norm in train mode uses batch statistics inside, and leaves its running statistics and counters alone."""
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
