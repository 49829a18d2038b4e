"""Softmax over candidate widths: logits, mixtures, expected BOPs and the exact projection. Support of two methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from methods.allocation import best_policy
from methods.contract import Problem
from methods.quantization.cost import bops, with_pins
from methods.quantization.modules import quant_layers
from methods.quantization.policy import LayerBits, Policy
from methods.quantization.quantizer import Quantizer


class WidthLogits:
    """One vector of logits per quantizer, one for each of its candidate widths in ascending order.

    Tied layers share their input quantizer, hence its logits. weights: whether weights are mixed too; otherwise
    only activations are. All sums of BOPs are in float64 and relative to the ceiling.
    """

    def __init__(self, problem: Problem, *, weight_bits: int | None, spread: float, generator: torch.Generator) -> None:
        """weight_bits: the one width that weights are charged at, or None to mix weights too."""
        self.problem, self.weight_bits = problem, weight_bits
        self.layers = {name: layer for name, layer in quant_layers(problem.model).items() if name in problem.candidates}
        self.logits: dict[Quantizer, nn.Parameter] = {}
        for layer in self.layers.values():
            mixed = [layer.input_quantizer] + ([] if weight_bits is not None else [layer.weight_quantizer])
            for quantizer in mixed:
                if quantizer not in self.logits:
                    noise = torch.randn(len(quantizer.widths), generator=generator) * spread
                    self.logits[quantizer] = nn.Parameter(noise.to(layer.weight.device))

    def parameters(self) -> list[nn.Parameter]:
        return list(self.logits.values())

    def mix(self, *, hard: bool = False) -> None:
        """Set every quantizer with logits to their mixture; the others stay as they are."""
        for quantizer in self.logits:
            _use(quantizer, self.probabilities(quantizer, hard=hard))

    def sample(self, noise: torch.Generator, temperature: float) -> None:
        """As `mix`, by softmax((logits + g) / temperature), g Gumbel noise (Jang et al., arXiv 1611.01144)."""
        for quantizer, logits in self.logits.items():
            uniform = torch.rand(logits.shape, generator=noise, dtype=torch.float64).clamp_min(torch.finfo().tiny)
            gumbel = -(-uniform.log()).log()
            _use(quantizer, ((logits + gumbel.to(logits.device, logits.dtype)) / temperature).softmax(0))

    def probabilities(self, quantizer: Quantizer, *, hard: bool) -> Tensor:
        """softmax(logits), shape (widths,); `hard`: the one-hot of its maximum with the softmax's gradient."""
        soft = self.logits[quantizer].softmax(0)
        if not hard:
            return soft
        one_hot = torch.zeros_like(soft).index_fill(0, soft.argmax().reshape(1), 1.0)
        return one_hot + (soft - soft.detach())  # plus exactly 0: the mixture is exactly one branch

    def relative_bops(self, *, hard: bool = False) -> Tensor:
        """Expected BOPs of the whole network over the ceiling, shape (), differentiable in the logits."""
        problem = self.problem
        total = torch.tensor(float(bops(tuple(layer for layer in problem.ledger if layer.pinned), {}))).double()
        for row in problem.ledger:
            if not row.pinned:
                layer = self.layers[row.name]
                total = total + row.macs * self._expected(layer.weight_quantizer, hard) * self._expected(
                    layer.input_quantizer, hard
                )
        return total / problem.ceiling

    def _expected(self, quantizer: Quantizer, hard: bool) -> Tensor | float:
        if quantizer not in self.logits:
            return float(self.weight_bits or quantizer.widths[0])
        probabilities = self.probabilities(quantizer, hard=hard).double()
        return probabilities @ probabilities.new_tensor(quantizer.widths)

    def argmax(self) -> Policy:
        rows = [(row.name, self.layers[row.name]) for row in self.problem.ledger if not row.pinned]  # in graph order
        return Policy(
            {
                name: LayerBits(self._likeliest(layer.weight_quantizer), self._likeliest(layer.input_quantizer))
                for name, layer in rows
            }
        )

    def _likeliest(self, quantizer: Quantizer) -> int:
        if quantizer not in self.logits:
            return self.weight_bits or quantizer.widths[0]
        return quantizer.widths[int(self.logits[quantizer].argmax())]

    def margins(self) -> dict[str, float]:
        """Per layer with a choice, the likeliest activation logit minus the next."""
        inputs = {name: layer.input_quantizer for name, layer in self.layers.items()}
        return {name: _margin(self.logits[q]) for name, q in inputs.items() if len(q.widths) > 1}

    def activation_shares(self) -> dict[str, list[float]]:
        """Per layer with a choice, the probability of each activation width, to four decimals."""
        shares = {n: self.probabilities(layer.input_quantizer, hard=False) for n, layer in self.layers.items()}
        return {name: [round(p, 4) for p in share.tolist()] for name, share in shares.items() if share.numel() > 1}

    def project(self) -> tuple[Policy, dict[str, Any]]:
        """The argmax policy or, if it exceeds the ceiling, the likeliest policy within it; and a report.

        The projection minimises the sum of -log p over quantizers under the ceiling, exactly.
        """
        problem, likeliest = self.problem, self.argmax()
        cost = bops(problem.ledger, likeliest)
        policy = likeliest
        if cost > problem.ceiling:
            candidates = {
                name: [b for b in choices if self.weight_bits in (None, b.weight)]
                for name, choices in problem.candidates.items()
            }
            policy = best_policy(problem.ledger, candidates, problem.ceiling, self._surprise)
        changed = sum(policy[name] != likeliest[name] for name in policy)
        with torch.no_grad():
            expected = float(self.relative_bops()) * problem.ceiling
        return policy, {
            "expected_bops": expected,
            "bops_before_projection": cost,
            "bops_after_projection": bops(problem.ledger, policy),
            "layers_changed_by_projection": changed,
        }

    def _surprise(self, name: str, bits: LayerBits) -> float:
        """-log p of a layer's bits; a shared input's term is split between those that share it."""
        layer = self.layers[name]
        sharing = sum(other.input_quantizer is layer.input_quantizer for other in self.layers.values())
        total = self._minus_log(layer.input_quantizer, bits.activation) / sharing
        return total + self._minus_log(layer.weight_quantizer, bits.weight)

    def _minus_log(self, quantizer: Quantizer, bits: int) -> float:
        if quantizer not in self.logits:
            return 0.0
        return -float(self.logits[quantizer].detach().double().log_softmax(0)[quantizer.widths.index(bits)])

    def state_dict(self) -> list[Tensor]:
        return [logits.detach() for logits in self.logits.values()]

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        for logits, saved in zip(self.logits.values(), state, strict=True):
            logits.copy_(saved)


def _use(quantizer: Quantizer, probabilities: Tensor) -> None:
    """Use the mixture of several widths; a single one is selected, which is bit-identical and costs less."""
    if len(quantizer.widths) > 1:
        quantizer.mix(probabilities)
    else:
        quantizer.select(quantizer.widths[0])


def _margin(logits: Tensor) -> float:
    first, second = logits.detach().topk(2).values.tolist()
    return float(first - second)


def select_pinned(problem: Problem, *, weights: bool) -> None:
    """Switch the pinned layers' quantizers on, at 8 bits; `weights=False` leaves their weights float."""
    searchable: Mapping[str, Any] = problem.candidates
    pinned = with_pins(tuple(layer for layer in problem.ledger if layer.pinned), {})
    for name, layer in quant_layers(problem.model).items():
        if name not in searchable:
            layer.input_quantizer.select(pinned[name].activation)
            if weights:
                layer.weight_quantizer.select(pinned[name].weight)
