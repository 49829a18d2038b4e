"""Batch norm during a search: running statistics held still, and variances compared across bit-widths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Batch norm in train mode uses batch statistics inside, and leaves its running statistics and counters alone.

    torch's own batch norm is set to do so. The buffers of all other modules, such as instance norm or a norm with a
    forward of its own, are restored afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and _obeys_its_flag(m)]
    tracking = [layer for layer in norms if layer.track_running_stats]
    others = set(model.modules()).difference(norms)
    kept = [(buffer, buffer.clone()) for m in others for buffer in m._buffers.values() if buffer is not None]
    try:
        for layer in tracking:
            layer.track_running_stats = False
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
        with torch.no_grad():
            for buffer, before in kept:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _obeys_its_flag(norm: _BatchNorm) -> bool:
    """Whether it runs torch's own forward, which heeds `track_running_stats`."""
    return type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@contextmanager
def batch_variances(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects, from the forward inside, the variance per channel of every batch norm's input: name -> (channels,)."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_layer: nn.Module, inputs: Any) -> None:
            value: Tensor = inputs[0].detach().float()
            found[name] = value.var(dim=[d for d in range(value.dim()) if d != 1])

        return hook

    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class WidthVariances:
    """Batch norms' variances under each bit-width, averaged over batches as recalibrated running statistics are."""

    def __init__(self) -> None:
        self.sums: dict[int, dict[str, Tensor]] = {}

    def add(self, bits: int, variances: dict[str, Tensor]) -> None:
        sums = self.sums.setdefault(bits, {})
        for name, variance in variances.items():
            sums[name] = sums[name].to(variance.device) + variance if name in sums else variance

    def discrepancies(self) -> dict[str, dict[str, float]]:
        """Per batch norm and width: the mean over channels of |ln(variance / variance at the highest width)|.

        Every width must have seen the same batches. Channels that are constant at the highest width are left out.
        """
        if not self.sums:
            return {}
        highest = max(self.sums)
        return {
            name: {
                str(bits): _mean_log_ratio(sums[name], reference)
                for bits, sums in sorted(self.sums.items())
                if bits != highest
            }
            for name, reference in self.sums[highest].items()
        }

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        return self.sums

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        self.sums = {bits: dict(sums) for bits, sums in state.items()}


def _mean_log_ratio(variance: Tensor, reference: Tensor) -> float:
    alive = reference > 0
    if not bool(alive.any()):
        return 0.0
    tiny = torch.finfo(torch.float32).tiny  # a channel that a low width silences counts as 87, not as infinity
    ratio = (variance[alive].double().clamp_min(tiny) / reference[alive].double()).log()
    return float(ratio.abs().mean())
