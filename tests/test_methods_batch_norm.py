"""Batch norm's variances across widths, against the running statistics that recalibration gives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods.batch_norm import WidthVariances, batch_variances, running_statistics_untouched
from tests.strategies import randn


def test_averaged_variances_are_recalibrated_running_variances():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4))
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)}
    meter, batches = WidthVariances(), [randn((5, 2, 6, 6), seed) for seed in range(3)]
    for layer in norms.values():
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
    with torch.no_grad():
        for batch in batches:
            with running_statistics_untouched(model), batch_variances(model) as found:
                model(batch)
            meter.add(8, found)
            assert all(int(layer.num_batches_tracked or 0) == 0 for layer in norms.values())
        for batch in batches:
            model(batch)
    for name, layer in norms.items():
        # Both average three variances of at most 80 values in float32.
        torch.testing.assert_close(meter.sums[8][name] / 3, layer.running_var, rtol=1e-5, atol=0)


def test_a_discrepancy_is_the_mean_log_ratio_to_the_highest_width():
    meter = WidthVariances()
    meter.add(8, {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor([0.0])})
    meter.add(8, {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor([0.0])})
    meter.add(3, {"a": torch.tensor([4.0, 1.0, 5.0]), "b": torch.tensor([1.0])})  # the sums 2 and 4 against 4 and 1
    found = meter.discrepancies()
    assert found["a"]["3"] == pytest.approx((math.log(4 / 2) + math.log(4 / 1)) / 2, rel=1e-6)
    assert found["b"] == {"3": 0.0}
    assert WidthVariances().discrepancies() == {}


def test_a_silenced_channel_counts_much_but_not_infinitely():
    meter = WidthVariances()
    meter.add(8, {"a": torch.tensor([1.0])})
    meter.add(2, {"a": torch.tensor([0.0])})
    assert 80 < meter.discrepancies()["a"]["2"] < 90


class OwnNorm(nn.Module):
    """Keeps a running mean without being batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x - self.mean[:, None, None]


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        self.running_mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x * self.weight[:, None, None]


@pytest.mark.parametrize(
    "norm", [OwnNorm, lambda: OwnForward(3), lambda: nn.InstanceNorm2d(3, track_running_stats=True)]
)
def test_statistics_of_other_norms_stay_as_they_were_too(norm: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm(), nn.BatchNorm2d(3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with running_statistics_untouched(model):
        model(randn((5, 2, 6, 6), 0)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model(randn((5, 2, 6, 6), 0))  # outside they move, as ever
    assert not all(torch.equal(buffer, before[name]) for name, buffer in model[1].named_buffers(prefix="1"))
