"""MetaMix: bit selection by alternating bit-meta and bit-search steps (Kim et al., AAAI 2024, arXiv 2311.06798)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field

from methods.contract import Batch, InapplicableError, MethodOptions, MicroBatch, Phase, Problem, Searched
from methods.quantization.cost import bops, uniform_bits

META = Phase("bit-meta")
SELECTION = Phase("bit-selection")
STATISTICS = Phase("bn-statistics", augment=False)

_COURSE_POINTS = 10
"""At how many search steps alpha's probabilities are kept."""

_PAPER_WEIGHT_BITS = 4
_PAPER_PENALTY = 4.0
_PAPER_TARGET_GBOPS = 3.31
_PAPER_ALPHA_RATE = 1e-4
_INITIAL_SPREAD = 1e-3


class MetaMixOptions(MethodOptions):
    """The choices that the paper, its summary and the public code leave open, with the reasons for our defaults.

    meta_loss: `mean` over the branches, as in the paper's text; `last`, the last branch only, which is all that the one
    public implementation back-propagates.
    branches: `all` widths in turn; `highest` trains at the highest width alone, which is plain training, the control
    of the claim that bit-meta training makes activation statistics alike across widths.
    mixture: `soft` as the code, `hard` (straight-through one-hot) as the summary.
    fixed_meta_state: the search step changes nothing but alpha; off, it also trains weights, batch norm and steps by
    the mixture's loss.
    warmup_share: share of the selection's steps before bit search begins.
    scale: `relative` penalty lambda * |BOPs/ceiling - 1| and an alpha rate of 0.5 over the search steps; `paper`:
    lambda * |GBOPs - T| and 1e-4, which hold for ImageNet only. lambda: None takes 4 * 3.31 (relative) or 4 (paper).
    start: where fine-tuning starts. lr_scale: the learning rate over the recipe's, 1e-4 / 5e-4 in the public script.
    weight_bits: where the space leaves weights free, the one width that this method uses.
    statistics_batches: measure batch norms' variances at every width on this many un-augmented batches, before and
    after the selection, charged to the search share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    meta_loss: Literal["mean", "last"] = "mean"
    branches: Literal["all", "highest"] = "all"
    mixture: Literal["soft", "hard"] = "soft"
    fixed_meta_state: bool = True
    warmup_share: float = Field(0.5, ge=0, lt=1)
    scale: Literal["relative", "paper"] = "relative"
    penalty: float | None = Field(None, ge=0, alias="lambda")
    start: Literal["selection", "float"] = "selection"
    lr_scale: float = Field(0.2, gt=0)
    max_norm: float = Field(10.0, gt=0)
    weight_bits: int = Field(_PAPER_WEIGHT_BITS, ge=2, le=8)
    statistics_batches: int = Field(0, ge=0)


class Branch(NamedTuple):
    """Widths that the bit-meta step runs all searchable layers at; weight None: float."""

    weight: int | None
    activation: int

    def __str__(self) -> str:
        return f"{self.activation}bit" if self.weight is None else f"w{self.weight}a{self.activation}"


class MetaMix:
    """Mixed precision of activations; weights stay full precision while bits are chosen.

    Per batch, bit-meta step: for each width b of the space all searchable activations run at b, and weights, batch
    norm and steps learn from the mean of the losses. After a warm-up, bit-search step: activations are mixtures by
    softmax(alpha), only alpha learns, from task + lambda * |BOPs(alpha)/ceiling - 1|, where BOPs(alpha) uses the
    straight-through one-hot; train mode with batch statistics, which leave the running ones alone.
    Then each layer takes its likeliest width, projected onto the ceiling, and keeps the step learned for it.
    Deviation: the penalty is relative to the ceiling and alpha's rate to the number of steps, so that both hold for any
    network and budget; `scale: paper` has the paper's.
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

        from methods.batch_norm import WidthVariances
        from methods.mixing import WidthLogits, select_pinned

        self.problem, self.options = problem, options
        self.weight_bits = self.charged_weight_bits()
        self.branches = self.all_branches() if options.branches == "all" else self.all_branches()[-1:]
        generator = problem.stream("search/alpha")
        self.alpha = WidthLogits(problem, weight_bits=self.weight_bits, spread=_INITIAL_SPREAD, generator=generator)
        select_pinned(problem, weights=self.weight_bits is None)
        self.weight_optimizer = problem.weight_optimizer(problem.model.parameters(), options.lr_scale)
        self.alpha_optimizer = torch.optim.Adam(
            self.alpha.parameters(), lr=_PAPER_ALPHA_RATE, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.taken, self.warmup, self.total, self.measured = 0, 0, 0, 0
        self.variances = {"before": WidthVariances(), "after": WidthVariances()}
        self.course: list[dict[str, Any]] = []

    def charged_weight_bits(self) -> int | None:
        """The one width that weights are charged at; None where they are searched too."""
        return _weight_width(self.problem, self.options)

    def all_branches(self) -> list[Branch]:
        """What the bit-meta step runs at, ascending: here every activation width over float weights."""
        return [Branch(None, bits) for bits in self._widths("activation")]

    def _widths(self, tensor: Literal["weight", "activation"]) -> list[int]:
        return sorted({getattr(bits, tensor) for choices in self.problem.candidates.values() for bits in choices})

    def phase(self) -> Phase | None:
        if not self.total:
            self._plan()
        batches = self.options.statistics_batches
        if self.measured < batches or (self.taken >= self.total and self.measured < 2 * batches):
            return STATISTICS
        if self.taken >= self.total:
            return None
        return META if self.taken < self.warmup else SELECTION

    def _plan(self) -> None:
        """Divide the search share into steps so that warm-up gets `warmup_share` of them; set alpha's rate."""
        share, problem = self.options.warmup_share, self.problem
        meta, selection = problem.price(META), problem.price(SELECTION)
        budget = problem.affordable(META) * meta
        if self.options.statistics_batches:
            budget -= 2 * self.options.statistics_batches * problem.price(STATISTICS)
            if budget < 2 * selection:
                raise InapplicableError(
                    f"{self.options.statistics_batches} statistics_batches leave its share no selection; take fewer"
                )
        self.total = max(1, int(budget / (share * meta + (1.0 - share) * selection)))
        self.warmup = int(share * self.total)
        if self.options.scale == "relative":
            for group in self.alpha_optimizer.param_groups:
                group["lr"] = 0.5 / max(self.total - self.warmup, 1)

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        if phase == STATISTICS:
            return self._measure_variances(batch)
        logs = {f"loss_{branch}": loss for branch, loss in self._meta_step(batch).items()}
        if phase == SELECTION:
            logs |= self._search_step(batch)
            self._note_course()
        self.taken += 1
        return logs

    def _meta_step(self, batch: Batch) -> dict[Branch, float]:
        """Weights, batch norm and steps learn from all widths at once; returns each branch's loss."""
        problem, losses = self.problem, dict.fromkeys(self.branches, 0.0)
        for micro in batch:
            for branch in self.branches:
                self._select(branch)
                loss = problem.loss(problem.model(micro.images), micro)
                losses[branch] += float(loss.detach()) / len(batch)
                if self.options.meta_loss == "mean":
                    problem.backward(loss / len(self.branches))
            if self.options.meta_loss == "last":
                problem.backward(loss)
        problem.step(self.weight_optimizer, max_norm=self.options.max_norm)
        return losses

    def _select(self, branch: Branch) -> None:
        for layer in self.alpha.layers.values():
            layer.input_quantizer.select(branch.activation)
            if branch.weight is not None:
                layer.weight_quantizer.select(branch.weight)

    def _measure_variances(self, batch: Batch) -> dict[str, float]:
        """Record batch norms' variances at every width, with the same weights and images."""
        import torch

        from methods.batch_norm import batch_variances, running_statistics_untouched

        meter = self.variances["before" if self.taken < self.total else "after"]
        with torch.no_grad(), running_statistics_untouched(self.problem.model):
            for micro in batch:
                for branch in {branch.activation: branch for branch in self.all_branches()}.values():
                    self._select(branch)
                    with batch_variances(self.problem.model) as found:
                        self.problem.model(micro.images)
                    averaged = {name: self.problem.average(variance) for name, variance in found.items()}
                    meter.add(branch.activation, averaged)
        self.measured += 1
        return {}

    def _note_course(self) -> None:
        """Keep alpha's probabilities at evenly spaced search steps."""
        searched, planned = self.taken + 1 - self.warmup, max(self.total - self.warmup, 1)
        if searched * _COURSE_POINTS // planned > (searched - 1) * _COURSE_POINTS // planned:
            self.course.append({"search_step": searched, "probabilities": self.alpha.activation_shares()})

    def _search_step(self, batch: Batch) -> dict[str, float]:
        """Alpha learns; unless `fixed_meta_state` is off, nothing else changes."""
        problem, task = self.problem, 0.0
        for micro in batch:
            if self.options.fixed_meta_state:
                from methods.batch_norm import running_statistics_untouched

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
            "course": self.course,
        }
        if self.options.statistics_batches:
            report["variances"] = {when: meter.discrepancies() for when, meter in self.variances.items()}
        if note := self.note():
            report["note"] = note
        state = self.problem.model.state_dict() if self.options.start == "selection" else None
        return Searched(policy, state, report)

    def note(self) -> str:
        """The note that its row in tables shows beside the numbers."""
        free = len(self._widths("weight")) > 1
        return f"searches a part of the space: activations at {self.weight_bits}-bit weights" if free else ""

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "warmup": self.warmup,
            "total": self.total,
            "measured": self.measured,
            "variances": {when: meter.state_dict() for when, meter in self.variances.items()},
            "course": self.course,
            "alpha": self.alpha.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.warmup, self.total = state["taken"], state["warmup"], state["total"]
        self.measured, self.course = state["measured"], list(state["course"])
        for when, meter in self.variances.items():
            meter.load_state_dict(state["variances"][when])
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


class MetaMixJoint(MetaMix):
    """MetaMix's alternation over weights and activations together; an extension of ours, not of the paper.

    The bit-meta step quantizes weights too: its branches pair the k-th weight width with the k-th activation width,
    counted from the highest, the lowest of the shorter list repeated, so that every width is trained. The bit-search
    step mixes both, with logits for each weight and each input. Fine-tuning keeps the activation steps; weight steps
    start anew from the weights.
    """

    def charged_weight_bits(self) -> int | None:
        return None

    def all_branches(self) -> list[Branch]:
        weights, activations = self._widths("weight")[::-1], self._widths("activation")[::-1]
        pairs = [
            Branch(weights[min(k, len(weights) - 1)], activations[min(k, len(activations) - 1)])
            for k in range(max(len(weights), len(activations)))
        ]
        return pairs[::-1]

    def note(self) -> str:
        return "an extension of this benchmark, not of the paper"
