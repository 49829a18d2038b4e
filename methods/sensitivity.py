"""How much a layer's bits matter: Hutchinson traces of the loss's Hessian, and the perturbation of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.contract import MicroBatch
from methods.quantization.fake_quant import fake_quantize, lsq_step, spread
from methods.quantization.grid import Grid

_STEP_SEARCH = tuple(0.05 + 0.05 * k for k in range(24))
"""Factors of LSQ's initial step, 0.05..1.2; LSQ's own start has 21 times the least error at 8 bits."""

_STEP_SEARCH_VALUES = 16_384
"""Values of an activation tensor that the search for its step looks at."""


@dataclass
class TraceEstimate:
    """Samples of one mean trace, v'Hv / n; Hutchinson's estimate is their mean."""

    samples: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.samples) / len(self.samples)

    @property
    def standard_error(self) -> float:
        """s / sqrt(count) with the sample deviation s; infinite below two samples."""
        count = len(self.samples)
        if count < 2:
            return math.inf
        return math.sqrt(sum((x - self.mean) ** 2 for x in self.samples) / (count - 1) / count)

    @property
    def clamped(self) -> float:
        """The mean, or 0 where it is negative: a layer cannot gain from error."""
        return max(self.mean, 0.0)


def hessian_samples(
    model: nn.Module,
    inputs_of: Mapping[str, nn.Module],
    batch: MicroBatch,
    weights: Mapping[str, Tensor],
    probe: torch.Generator,
    *,
    separate: bool = False,
) -> tuple[dict[str, float], dict[str, float], dict[str, Tensor]]:
    """One Hutchinson sample of every trace at once, from one shared-probe Hessian-vector product (Rademacher probe).

    inputs_of: name -> layer whose input is meant; weights: name -> weight. Returns v'Hv/n per weight, the same per
    input (mean over images of the per-image Hessian's, n features of one image), and the inputs themselves.
    H is that of the hard cross-entropy in the model's current mode. Cross terms between blocks have mean 0 and only
    add variance; `separate` takes one product per block instead, free of them. Gradients of parameters are left alone.
    """
    captured: dict[str, Tensor] = {}
    # Curvature is a difference of differences: float32, whatever precision the recipe trains in.
    with _captured_inputs(inputs_of, captured), torch.autocast(batch.images.device.type, enabled=False):
        loss = F.cross_entropy(model(batch.images).float(), batch.labels)
    variables = {**{("weight", n): w for n, w in weights.items()}, **{("input", n): a for n, a in captured.items()}}
    gradients = torch.autograd.grad(loss, list(variables.values()), create_graph=True)
    probes = [_rademacher(variable, probe) for variable in variables.values()]
    products = [(g * v).sum() for g, v in zip(gradients, probes, strict=True)]
    curvature: Sequence[Tensor]
    if separate:
        curvature = [
            torch.autograd.grad(product, variable, retain_graph=True)[0]
            for product, variable in zip(products, variables.values(), strict=True)
        ]
    else:
        curvature = torch.autograd.grad(torch.stack(products).sum(), list(variables.values()))
    samples: dict[str, dict[str, float]] = {"weight": {}, "input": {}}
    for (kind, name), h, v in zip(variables, curvature, probes, strict=True):
        # The loss is a mean over images, so v'Hv over the stacked inputs already is the mean over images.
        count = v.numel() if kind == "weight" else v[0].numel()
        samples[kind][name] = float((h * v).sum()) / count
    return samples["weight"], samples["input"], {name: a.detach() for name, a in captured.items()}


@contextmanager
def _captured_inputs(layers: Mapping[str, nn.Module], captured: dict[str, Tensor]) -> Iterator[None]:
    def keep(name: str) -> Callable[[nn.Module, Any], Any]:
        def hook(_layer: nn.Module, inputs: Any) -> Any:
            value = inputs[0] if inputs[0].requires_grad else inputs[0].requires_grad_()
            captured[name] = value
            return (value,)

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return signs.to(like.device, like.dtype).mul_(2).sub_(1)


def converged(estimates: Sequence[TraceEstimate], tolerance: float) -> bool:
    """Whether every standard error is below `tolerance` times its trace or the median trace, whichever is larger."""
    means = sorted(abs(estimate.mean) for estimate in estimates)
    median = means[len(means) // 2]
    return all(e.standard_error <= tolerance * max(abs(e.mean), median) for e in estimates)


@torch.no_grad()
def least_squares_step(x: Tensor, grid: Grid, *, per_channel: bool) -> Tensor:
    """The step of least squared error among 0.05..1.2 times LSQ's initial step; shape (channels,) or (1,).

    Activations are searched on evenly spaced values only; weights on all.
    """
    flat = x.flatten(1) if per_channel else _thinned(x).reshape(1, -1)
    start = lsq_step((flat + grid.shift).abs().mean(1), grid)
    errors = torch.stack([(fake_quantize(flat, start * f, grid) - flat).square().sum(1) for f in _STEP_SEARCH])
    factors = torch.tensor(_STEP_SEARCH, device=x.device)[errors.argmin(0)]
    return start * factors


def _thinned(x: Tensor) -> Tensor:
    flat = x.reshape(-1)
    return flat[:: max(1, flat.numel() // _STEP_SEARCH_VALUES)]


@torch.no_grad()
def squared_error(x: Tensor, step: Tensor, grid: Grid) -> float:
    """||Q(x) - x||^2, summed over all elements."""
    assert spread(step, x).dim() in (0, x.dim())
    return float((fake_quantize(x, step, grid) - x).double().square().sum())
