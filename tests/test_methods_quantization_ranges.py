"""Ranges: an operation's output lies in the range that is predicted for it, in training and in evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.quantization.convert import ledger_of, replace_activations
from methods.quantization.graph import walks_of
from methods.quantization.ranges import ANY, VIEWS, Range
from tests.strategies import randn, seeds

Step = Callable[[Tensor, float], Tensor]

STARTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "linear": nn.Identity,
    "dropout": lambda: nn.Sequential(nn.Hardswish(), nn.Dropout(0.2)),
    "no dropout": lambda: nn.Sequential(nn.Hardswish(), nn.Dropout(0.0)),
    "dropout of channels": lambda: nn.Sequential(nn.ReLU6(), nn.Dropout2d(0.5, inplace=True)),
}

# Operations by a number, by another tensor made of the same one, and by nothing; as functions, methods, operators and
# in place. What is done in place is done to a copy, since autograd keeps what an activation puts out.
STEPS: dict[str, Step] = {
    "x + c": lambda x, c: x + c,
    "c + x": lambda x, c: c + x,
    "add(alpha)": lambda x, c: torch.add(x, x, alpha=c),
    "x - c": lambda x, c: x - c,
    "c - x": lambda x, c: c - x,
    "rsub": lambda x, c: torch.rsub(x, c),
    "rsub(alpha)": lambda x, c: torch.rsub(x, c, alpha=2),
    "sub": lambda x, c: x.sub(c, alpha=-1),
    "c * x": lambda x, c: c * x,
    "mul": lambda x, c: torch.mul(x, c),
    "x.mul": lambda x, c: x.mul(c),
    "x / c": lambda x, c: x / (c or 1.0),
    "div": lambda x, c: torch.div(x, c or 1.0, rounding_mode="floor"),
    "c / (1 + x*x)": lambda x, c: c / (1 + x * x),
    "-x": lambda x, _c: -x,
    "neg": lambda x, _c: torch.neg(x),
    "x.neg": lambda x, _c: x.negative(),
    "pow 2": lambda x, _c: x**2,
    "pow 3": lambda x, _c: torch.pow(x, 3),
    "x * x": lambda x, _c: x * x,
    "x * relu(x)": lambda x, _c: x * torch.relu(x),
    "abs": lambda x, _c: x.abs(),
    "clamp": lambda x, c: x.clamp(min=c),
    "clamp both": lambda x, c: torch.clamp(x, c - 1, c),
    "clamp_max": lambda x, c: x.clamp_max(c),
    "hardtanh": lambda x, c: F.hardtanh(x, abs(c), abs(c) + 1),
    "relu6": lambda x, _c: F.relu6(x),
    "hardswish": lambda x, _c: F.hardswish(x),
    "hardsigmoid": lambda x, _c: F.hardsigmoid(x),
    "gate": lambda x, _c: x * F.hardsigmoid(x),
    "sigmoid": lambda x, _c: x.sigmoid(),
    "tanh": lambda x, _c: torch.tanh(x),
    "maximum": lambda x, _c: torch.maximum(x, -x),
    "min": lambda x, _c: torch.min(x, x * x),
    "mean": lambda x, _c: x - x.mean(1, keepdim=True),
    "sum": lambda x, _c: x.sum(1, keepdim=True) + 0 * x,
    "cat": lambda x, c: torch.cat([x[:, :2], c * x[:, 2:]], 1),
    "chunk": lambda x, c: _halves(x) * c,
    "pad": lambda x, c: F.pad(x, (1, 1), value=c)[..., 1:-1],
    "where": lambda x, c: torch.where(x > c, x, c * x),
    "masked_fill": lambda x, c: x.masked_fill(x > 0.5, c),
    "avg_pool": lambda x, _c: F.avg_pool2d(x, 3, 1, 1),
    "max_pool": lambda x, _c: F.max_pool2d(x, 3, 1, 1),
    "resized": lambda x, _c: F.interpolate(x, scale_factor=2.0, mode="bilinear")[:, :, ::2, ::2],
    "of shapes": lambda x, _c: x.sum((2, 3), keepdim=True) / (x.shape[2] * x.size(3)) + 0 * x,
    "add_": lambda x, c: x.clone().add_(c),
    "mul_ seen by another name": lambda x, c: _changed(x, c),
    "+=": lambda x, c: _added(x, c),
    "[:] =": lambda x, c: _set(x, c),
    "relu_": lambda x, c: (x + c).relu_(),
    "relu(True)": lambda x, c: F.relu(x + c, True),
    "neg through a view": lambda x, _c: _through_a_view(x),
    "dropout": lambda x, _c: F.dropout(x, 0.6),
    "dropout2d": lambda x, _c: F.dropout2d(x, p=0.25, training=True),
    "alpha_dropout": lambda x, _c: F.alpha_dropout(x, 0.5, training=True),
    "sin": lambda x, _c: torch.sin(x),
    "largest by name": lambda x, _c: x.max(1, keepdim=True).values + 0 * x,
    "sorted by name": lambda x, _c: x.sort(1, descending=True).values,
    "places": lambda x, _c: x - torch.topk(x, 4, 1).indices,
    "places by number": lambda x, _c: -torch.sort(x, 1)[1] + 0 * x,
    "middle": lambda x, c: x.median(1, keepdim=True).values + c + 0 * x,
    "avg_pool of another divisor": lambda x, c: F.avg_pool2d(x, 3, 1, 1, divisor_override=int(c) or 2),
    "softplus": lambda x, c: F.softplus(x, beta=c or 1.0),
    "numpy": lambda x, c: np.float32(c) * x + np.int64(-1),
    "neg through ravel": lambda x, _c: _through(x, torch.ravel),
    "neg through diagonals": lambda x, _c: _through(x, lambda y: y.diagonal(0, 2, 3)),
    "neg through +x": lambda x, _c: _through(x, lambda y: +y),
    "neg through an unknown operation": lambda x, _c: _through(x, lambda y: torch.einsum("abcd->dabc", y)),
    "relu behind which its input changes": lambda x, c: _late(x, c),
}


def _halves(x: Tensor) -> Tensor:
    first, second = x.repeat(1, 2, 1, 1).chunk(2, 1)
    return first + second


def _changed(x: Tensor, c: float) -> Tensor:
    x = x.clone()
    x.mul_(c)  # what it returns is not used
    return x


def _added(x: Tensor, c: float) -> Tensor:
    x = other = x.clone()
    other += c
    return x


def _set(x: Tensor, c: float) -> Tensor:
    x = x.clone()
    x[:, 0] = c
    return x


def _through_a_view(x: Tensor) -> Tensor:
    x = x.clone()
    x.flatten(1).neg_()
    return x


def _through(x: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.clone()
    view(x).neg_()
    return x


def _late(x: Tensor, c: float) -> Tensor:
    x = x + c
    out = torch.abs(x)
    torch.einsum("abcd->abdc", x).neg_()
    return out + x * 0


@dataclass(frozen=True)
class Plan:
    start: str
    steps: tuple[tuple[str, float], ...]


def plans() -> st.SearchStrategy[Plan]:
    """Up to three operations in a row: each meets every kind of input. Constants of both signs, 0 and beyond 1."""
    constants = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])
    steps = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), constants), min_size=1, max_size=3).map(tuple)
    return st.builds(Plan, st.sampled_from(sorted(STARTS)), steps)


class Chain(nn.Module):
    """A convolution, an activation, operations, and a convolution whose input they make."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, self.start = plan, STARTS[plan.start]()
        self.first, self.norm, self.inner = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(3 * self.norm(self.first(x)))
        for name, constant in self.plan.steps:
            x = STEPS[name](x, constant)
        out: Tensor = self.inner(x)
        return out


def observed(model: nn.Module, images: Tensor) -> Range:
    """The smallest and largest value that `inner` reads, in training and in evaluation."""
    seen: list[Tensor] = []
    handle = model.get_submodule("inner").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for mode in (True, False):
        model.train(mode)(images)
    handle.remove()
    values = torch.cat([value.flatten() for value in seen])
    return Range(values.min().item(), values.max().item())


# A handful of float32 operations in a row, on values whose cubes of cubes may be large: 1e-5 of the larger bound.
ROUNDING = 1e-5


def holds(promised: Range, found: Range) -> bool:
    slack = ROUNDING * (1 + max(abs(end) for end in (*promised, *found) if math.isfinite(end)))
    return promised.low - slack <= found.low and found.high <= promised.high + slack


@settings(max_examples=300)
@given(plans(), seeds())
def test_no_value_lies_outside_of_what_is_promised(plan: Plan, seed: int) -> None:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        model = replace_activations(Chain(plan))
        found = observed(model, randn((8, 4, 6, 6), seed))
        walks = walks_of(model)
        (layer,) = [layer for layer in ledger_of(model, (4, 6, 6)) if layer.name == "inner"]
    promised = walks[0].sites[1].range.hull(walks[1].sites[1].range)
    assert holds(promised, found), (promised, found)
    least = {"unsigned": 0.0, "shifted": -0.375, "signed": -math.inf}[layer.kind]
    assert holds(Range(least, math.inf), found), (layer.kind, found)


def promised(start: str, step: Step) -> Range:
    model = Chain(Plan(start, ()))
    model.start = nn.Sequential(STARTS[start](), _Step(step))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return walks_of(replace_activations(model))[0].sites[1].range


class _Step(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, 0.0)


# Promises that are more than safe: the grids that these give would otherwise cost half of their codes.
@pytest.mark.parametrize(
    ("start", "step", "expected"),
    [
        ("relu", lambda x, _: x * 2, Range(0, math.inf)),
        ("relu", lambda x, _: x / x.shape[1], Range(0, math.inf)),
        ("relu", lambda x, _: -(x * -3.0), Range(0, math.inf)),
        ("relu", lambda x, _: x + (-1.0), Range(-1, math.inf)),
        ("relu6", lambda x, _: 6 - x, Range(0, 6)),
        ("relu6", lambda x, _: 1 - x / 6, Range(0, 1)),
        ("relu6", lambda x, _: torch.neg(x), Range(-6, 0)),
        ("hardswish", lambda x, _: x * 2, Range(-0.75, math.inf)),
        ("hardswish", lambda x, _: x * 0.5, Range(-0.1875, math.inf)),
        ("hardswish", lambda x, _: x.mean((2, 3), keepdim=True), Range(-0.375, math.inf)),
        ("hardswish", lambda x, _: x.clamp(min=0), Range(0, math.inf)),
        ("hardswish", lambda x, _: F.dropout(x, 0.25), Range(-0.5, math.inf)),
        ("hardswish", lambda x, _: F.dropout(x, 0.0), Range(-0.375, math.inf)),
        ("relu6", lambda x, _: F.dropout(1 + x, 0.5), Range(0, 14)),
        ("relu6", lambda x, _: F.dropout2d(x, 1.0), Range(0, 6)),
        ("hardsigmoid", lambda x, _: 1 - x, Range(0, 1)),
        ("relu6", lambda x, _: x.amax(1) + x.min(1).values, Range(0, 12)),
        ("relu", lambda x, _: F.avg_pool2d(x, 2, divisor_override=3), Range(0, math.inf)),
        ("linear", lambda x, _: F.softplus(x, 2.0), Range(0, math.inf)),
        ("linear", lambda x, _: x**2, Range(0, math.inf)),
        ("linear", lambda x, _: x.clamp(0, 1), Range(0, 1)),
        ("linear", lambda x, _: F.hardswish(x.clamp(min=-1.0)), Range(-1 / 3, math.inf)),
    ],
)
def test_promises_are_as_narrow_as_can_be(start: str, step: Step, expected: Range) -> None:
    assert promised(start, step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (0.0, math.inf, "unsigned"),
        (0.0, 0.0, "unsigned"),
        (-0.375, math.inf, "shifted"),
        (-0.376, math.inf, "signed"),
        (-0.1, 0.375, "shifted"),
        (-0.1, 0.3, "signed"),  # the shift alone would take more than half of the grid
        (-math.inf, 0.0, "signed"),
    ],
)
def test_the_grid_is_the_narrowest_that_holds_the_range(low: float, high: float, kind: str) -> None:
    assert Range(low, high).kind == kind


class Scaled(nn.Module):
    """A ReLU's output times a parameter or a buffer, which training may make negative."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        if learned:
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.scale * torch.relu(self.first(x)))
        return out


@pytest.mark.parametrize("learned", [True, False])
def test_a_tensor_of_the_network_s_own_may_have_either_sign_and_that_is_said(learned: bool) -> None:
    with pytest.warns(UserWarning, match="'mul' reads scale, of either sign"):
        assert ledger_of(Scaled(learned=learned), (4, 6, 6))[1].kind == "signed"


# By type alone nothing follows for a subclass: it may compute anything.


class Lowered(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 1


class Mirrored(nn.Hardswish):
    def forward(self, x: Tensor) -> Tensor:
        return -F.hardswish(x)


class Doubled(nn.ReLU6):
    def forward(self, x: Tensor) -> Tensor:
        return -2 * F.hardtanh(x, 0.0, 6.0)


class Rectified(nn.BatchNorm2d):
    """As other libraries have it: a batch norm with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Renamed(nn.ReLU):
    """Inherits its forward."""


class Deeper(nn.ReLU6):
    """Inherits its forward, which reads the ends from here."""

    def __init__(self) -> None:
        super().__init__()
        self.min_val = -2.0


def altered() -> nn.Module:
    activation = nn.ReLU6(inplace=True)
    activation.min_val, activation.max_val = -1.0, 7.0
    return activation


class Watched(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda _m, _i, out: -out)


@pytest.mark.parametrize(
    "activation", [Lowered, Mirrored, Doubled, Watched, lambda: Rectified(4), Renamed, Deeper, altered]
)
@pytest.mark.filterwarnings("ignore:layer .* is unknown here")
def test_a_subclass_keeps_its_own_forward_and_its_range_holds(activation: Callable[[], nn.Module]) -> None:
    model = Chain(Plan("linear", ()))
    model.start = activation()
    images = randn((8, 4, 6, 6), 0)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(replace_activations(model)(images), expected)
    kind = ledger_of(model, (4, 6, 6))[1].kind
    found = observed(model, images)
    assert found.low >= {"unsigned": 0.0, "shifted": -0.375, "signed": -math.inf}[kind]
    assert kind == ("unsigned" if isinstance(model.start, Renamed) else "signed")


@pytest.mark.filterwarnings("ignore:layer .* is unknown here")
@pytest.mark.parametrize("between", [nn.Softplus(beta=-3.0), nn.AvgPool2d(3, 1, 1, divisor_override=-1)])
def test_settings_of_modules_that_turn_signs_count(between: nn.Module) -> None:
    model = Chain(Plan("relu", ()))
    model.start = nn.Sequential(nn.ReLU(), between)
    assert observed(model, randn((8, 4, 6, 6), 0)).high <= 0.0
    assert ledger_of(model, (4, 6, 6))[1].kind == "signed"


# Not for dense tensors of real numbers, or no methods that a network would call.
_OTHER_VIEWS = {
    *("ccol_indices", "col_indices", "crow_indices", "row_indices", "indices", "values", "coalesce", "slice_inverse"),
    *("imag", "view_as_complex", "view_as_real", "mH", "mT"),  # the last two are attributes
}


def test_all_that_torch_says_to_put_out_its_input_s_memory_is_known_as_a_view() -> None:
    names = {full.removeprefix("aten::").split(".")[0] for full in torch._C._dispatch_get_all_op_names()}
    views = set()
    for name in names:
        if name.startswith("_") or not (hasattr(Tensor, name) or hasattr(torch, name)):
            continue
        packet = getattr(torch.ops.aten, name, None)
        schemas = [getattr(packet, overload)._schema for overload in packet.overloads()] if packet else []
        infos = [returned.alias_info for schema in schemas for returned in schema.returns]
        if any(info is not None and not info.is_write for info in infos):
            views.add(name)
    assert len(views) > 40
    assert views - VIEWS == _OTHER_VIEWS


def test_a_subclass_that_inherits_its_forward_is_what_it_derives_from() -> None:
    class Norm(nn.BatchNorm2d):
        pass

    model = Chain(Plan("linear", ()))
    model.norm = Norm(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert walks_of(model)[0].sites[1].range == ANY
