"""Multiply-accumulates from layer shapes alone, by taps on tensors: an independent count to check the account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Tally:
    """What convolutions and linear layers have cost: output elements times weights per output, for each product.

    A forward is one product, and one more each for an input and a weight that move along a direction (forward-mode
    derivatives). A gradient that comes back to a product's weight, or to its input, is one more each. Where a gradient
    is itself differentiated, what reaches the gradient of the input costs a product for the output's gradient and one
    for the weight's; likewise the gradient of the weight, with the input's in place of the weight's. Linear layers are
    spared the second where nobody asks for it; torch's convolutions compute it all the same.
    """

    def __init__(self) -> None:
        self.macs = 0
        self.running = True

    def add(self, macs: int) -> None:
        self.macs += macs if self.running else 0

    def tapped(self, layer: Callable[..., Tensor], *, spares: bool) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
            (x, moving_x), (weight, moving_weight) = forward_ad.unpack_dual(x), forward_ad.unpack_dual(weight)
            out = product(x, weight, bias, *rest)
            moved = [] if moving_x is None else [product(moving_x, weight, None, *rest)]
            moved += [] if moving_weight is None else [product(x, moving_weight, None, *rest)]
            return forward_ad.make_dual(out, sum(moved[1:], moved[0])) if moved else out

        def product(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
            grads = torch.is_grad_enabled()
            x_learns, w_learns = grads and x.requires_grad, grads and weight.requires_grad
            cost = [0]
            tapped_x = _Tap.apply(x, self, cost, 1 + (w_learns or not spares)) if x_learns else x
            tapped_w = _Tap.apply(weight, self, cost, 1 + (x_learns or not spares)) if w_learns else weight
            out = layer(tapped_x, tapped_w, *rest)
            cost[0] = out.numel() * weight[0].numel()
            self.add(cost[0])
            return out

        return run

    @contextmanager
    def pausing(self, owner: Any, name: str) -> Iterator[None]:
        """Inside, calls of `owner.name` are not counted: what they run is undone, and nobody pays for it."""
        original = getattr(owner, name)

        def paused(*args: Any, **kwargs: Any) -> Any:
            before, self.running = self.running, False
            try:
                return original(*args, **kwargs)
            finally:
                self.running = before

        with mock.patch.object(owner, name, paused):
            yield


class _Tap(torch.autograd.Function):
    """The identity; counts when a gradient comes back through it, and when that gradient is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tally: Tally, cost: list[int], again: int) -> Tensor:
        ctx.tally, ctx.cost, ctx.again = tally, cost, again
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.tally.add(ctx.cost[0])
        return _TapOfGradient.apply(g, ctx.tally, ctx.cost, ctx.again), None, None, None


class _TapOfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, tally: Tally, cost: list[int], again: int) -> Tensor:
        ctx.tally, ctx.cost, ctx.again = tally, cost, again
        return g.view_as(g)

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.tally.add(ctx.again * ctx.cost[0])
        return gg, None, None, None


@contextmanager
def tallied() -> Iterator[Tally]:
    tally = Tally()
    functional = torch.nn.functional
    with (
        mock.patch.object(functional, "conv2d", tally.tapped(functional.conv2d, spares=False)),
        mock.patch.object(functional, "linear", tally.tapped(functional.linear, spares=True)),
    ):
        yield tally
