"""Differentiable search: a softmax over bit-widths trained with the weights (Cai & Vasconcelos, CVPR 2020, EdMIPS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from methods.contract import Batch, MethodOptions, MicroBatch, Phase, Problem, Searched

MIXTURE = Phase("mixture")
WEIGHTS = Phase("mixture-weights", split="rest")
THETA = Phase("mixture-theta", split="search")


class DifferentiableOptions(MethodOptions):
    """penalty: lambda of |E[BOPs]/ceiling - 1|. reach: how far Adam may carry a logit, rate x steps.

    relaxation: `softmax`, the mixture of EdMIPS; `gumbel`, softmax((theta + Gumbel noise) / temperature), sampled anew
    for each quantizer and micro-batch, as in DNAS (Wu et al., arXiv 1812.00090). temperature: where `gumbel` starts; it
    falls geometrically to 1 / temperature over the search, through 1 half-way.
    alternate: weights and logits learn from disjoint images in turn, as DARTS does.
    """

    penalty: float = Field(1.0, ge=0)
    reach: float = Field(3.0, gt=0)
    relaxation: Literal["softmax", "gumbel"] = "softmax"
    temperature: float = Field(5.0, ge=1)
    alternate: bool = False


class Differentiable:
    """Bits learned with the weights: every layer mixes its bit-widths, and the mixture's weights are trained.

    Weights and inputs are mixtures of their quantized versions, weighted by softmax(theta); one convolution per layer.

    Weights and theta learn from the same batch and loss, task + penalty * |E[BOPs]/ceiling - 1|, by two optimizers.
    The policy is the argmax, projected exactly onto the ceiling. Fine-tuning goes on from the mixture's weights and
    activation steps; weight steps start anew from those weights.
    Deviation: E[BOPs] counts depthwise layers by their groups, which EdMIPS's own complexity term does not.
    Deviation: `alternate` trains theta on images of its own.
    Deviation: under `gumbel` E[BOPs] is that of softmax(theta), the expectation over the noise of the one-hot that
    sampling tends to, instead of the sample's own BOPs; and there is one convolution a layer, not parallel branches.
    """

    version: ClassVar[int] = 1
    searches: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    min_steps: ClassVar[int] = 2
    Options: ClassVar[type[MethodOptions]] = DifferentiableOptions

    def __init__(self, problem: Problem, options: DifferentiableOptions) -> None:
        import torch

        from methods.mixing import WidthLogits, select_pinned

        self.problem, self.options = problem, options
        generator = problem.stream("search/theta")
        self.noise = problem.stream("search/gumbel")
        self.theta = WidthLogits(problem, weight_bits=None, spread=0.0, generator=generator)
        select_pinned(problem, weights=True)
        self.weight_optimizer = problem.weight_optimizer(problem.model.parameters())
        self.theta_optimizer = torch.optim.Adam(self.theta.parameters(), lr=options.reach)
        self.taken, self.total = 0, 0

    def phase(self) -> Phase | None:
        if not self.total:
            self._plan()
        if self.taken >= self.total:
            return None
        if not self.options.alternate:
            return MIXTURE
        return THETA if self.taken % 2 else WEIGHTS

    def _plan(self) -> None:
        """Find how many steps the share pays, and set theta's learning rate accordingly."""
        if self.options.alternate:
            pair = self.problem.price(WEIGHTS) + self.problem.price(THETA)
            self.total = 2 * (self.problem.affordable(WEIGHTS) * self.problem.price(WEIGHTS) // pair)
            theta_steps = self.total // 2
        else:
            self.total = theta_steps = self.problem.affordable(MIXTURE)
        for group in self.theta_optimizer.param_groups:
            group["lr"] = self.options.reach / max(theta_steps, 1)

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        problem, task = self.problem, 0.0
        for micro in batch:
            self._mix(micro)
            loss = problem.loss(problem.model(micro.images), micro)
            task += float(loss.detach()) / len(batch)
            bops = self.theta.relative_bops()
            total = loss + self.options.penalty * (bops - 1.0).abs().to(loss.dtype)
            if phase == THETA:
                problem.grad(total, self.theta.parameters())
            else:
                problem.backward(total)
        if phase != THETA:
            problem.step(self.weight_optimizer)
        if phase == WEIGHTS:
            self.theta_optimizer.zero_grad(set_to_none=True)
        else:
            problem.step(self.theta_optimizer)
        self.taken += 1
        return {"loss": task, "relative_bops": float(bops.detach())}

    def _mix(self, micro: MicroBatch) -> None:
        if self.options.relaxation == "softmax":
            return self.theta.mix()
        progress = self.taken / max(self.total - 1, 1)
        self.theta.sample(self.problem.draws(self.noise, micro), self.options.temperature ** (1.0 - 2.0 * progress))

    def result(self) -> Searched:
        policy, report = self.theta.project()
        return Searched(policy, self.problem.model.state_dict(), {**report, "margins": self.theta.margins()})

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "total": self.total,
            "noise": self.noise.get_state(),
            "theta": self.theta.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "theta_optimizer": self.theta_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.total = state["taken"], state["total"]
        self.noise.set_state(state["noise"])
        self.theta.load_state_dict(state["theta"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.theta_optimizer.load_state_dict(state["theta_optimizer"])
