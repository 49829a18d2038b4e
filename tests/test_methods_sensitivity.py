"""Traces against autograd's own Hessian, and the step of least squared error against LSQ's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from statistics import median, stdev
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from benchmarks.models import build_model
from benchmarks.suites.spec import DataSpec, ModelSpec
from methods.contract import MicroBatch
from methods.quantization.convert import ledger_of
from methods.quantization.fake_quant import lsq_step
from methods.quantization.grid import Grid
from methods.sensitivity import (
    _STEP_SEARCH_VALUES,
    TraceEstimate,
    _CheaperDerivatives,
    _product,
    _rademacher,
    converged,
    hessian_samples,
    least_squares_step,
    squared_error,
)
from tests.strategies import grids, randn, seeds

PROBES = 600


class Small(nn.Module):
    """Two layers around a smooth non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


@pytest.fixture
def small() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Small().eval()
        with torch.no_grad():
            model.second.weight.mul_(4.0)  # else the first layer's trace drowns in its own sampling error
        return model


@pytest.fixture
def batch() -> MicroBatch:
    return MicroBatch(randn((5, 3), 1), torch.tensor([0, 1, 2, 1, 0]))


def estimates(
    model: nn.Module,
    readers: dict[str, list[nn.Module]],
    batch: MicroBatch,
    weights: dict[str, Tensor],
    *,
    separate: bool = False,
) -> dict[str, TraceEstimate]:
    found: dict[str, TraceEstimate] = {}
    probe = torch.Generator().manual_seed(0)
    for _ in range(PROBES):
        of_weights, of_inputs, _ = hessian_samples(model, readers, batch, weights, probe, separate=separate)
        for name, sample in {
            **{f"w {n}": s for n, s in of_weights.items()},
            **{f"a {n}": s for n, s in of_inputs.items()},
        }.items():
            found.setdefault(name, TraceEstimate()).samples.append(sample)
    return found


def exact_weight_trace(model: Small, name: str, batch: MicroBatch) -> float:
    """Tr(H) / n of one layer's weight by autograd's full Hessian."""
    weight = model.get_parameter(f"{name}.weight")

    def loss(value: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {f"{name}.weight": value}, (batch.images,))
        return F.cross_entropy(logits, batch.labels)

    hessian = torch.autograd.functional.hessian(loss, weight.detach())
    return float(hessian.reshape(weight.numel(), weight.numel()).trace()) / weight.numel()


def exact_input_trace(model: Small, batch: MicroBatch) -> float:
    """The mean over images of Tr(H_i) / features, H_i with respect to that image's input of the second layer."""
    inputs = torch.tanh(model.first(batch.images)).detach()
    traces = []
    for value, label in zip(inputs, batch.labels, strict=True):
        hessian = torch.autograd.functional.hessian(lambda v, y=label: F.cross_entropy(model.second(v), y), value)
        traces.append(float(hessian.trace()) / value.numel())
    return sum(traces) / len(traces)


@pytest.mark.parametrize("separate", [False, True], ids=["by kind", "separate"])
def test_traces_are_unbiased_for_weights_and_inputs_at_once(small, batch, separate):
    weights = {"first": small.first.weight, "second": small.second.weight}
    found = estimates(small, {"second": [small.second]}, batch, weights, separate=separate)
    exact = {f"w {name}": exact_weight_trace(small, name, batch) for name in weights}
    exact["a second"] = exact_input_trace(small, batch)
    assert found.keys() == exact.keys()
    for name, estimate in found.items():
        # 4 standard errors: a correct estimator fails with probability 6e-5; the probes are seeded.
        assert abs(estimate.mean - exact[name]) <= 4 * estimate.standard_error, name
        assert estimate.standard_error < 0.2 * abs(exact[name]), name  # else the line above says nothing


def test_a_product_per_block_is_free_of_the_other_blocks(small, batch):
    weights = {"first": small.first.weight, "second": small.second.weight}
    separate = estimates(small, {}, batch, weights, separate=True)
    alone = estimates(small, {}, batch, {"first": small.first.weight}, separate=True)
    # Probes are drawn block by block, so the first batch's first probe is the same in both.
    assert separate["w first"].samples[0] == alone["w first"].samples[0]
    together = estimates(small, {}, batch, weights)
    assert separate["w first"].standard_error < 0.9 * together["w first"].standard_error


def test_weights_and_inputs_have_products_of_their_own(small, batch):
    weights, readers = {"first": small.first.weight, "second": small.second.weight}, {"second": [small.second]}
    both = hessian_samples(small, readers, batch, weights, torch.Generator().manual_seed(0))
    probe = torch.Generator().manual_seed(0)
    assert hessian_samples(small, {}, batch, weights, probe)[0] == both[0]
    assert hessian_samples(small, readers, batch, {}, probe)[1] == both[1]


def test_in_one_product_the_weights_would_drown_the_inputs():
    model = built(ModelSpec(name="resnet18", width=0.1, form="small"))
    batch = MicroBatch(randn((16, 3, 16, 16), 1), torch.arange(16) % 10)
    inner = [layer for layer in ledger_of(model, (3, 16, 16)) if not layer.pinned]
    weights = {layer.name: model.get_submodule(layer.name).weight for layer in inner}
    readers = {layer.name: [model.get_submodule(layer.name)] for layer in inner if not layer.tie}
    spreads = []
    for beside in ({}, weights):
        probe = torch.Generator().manual_seed(0)
        samples = [_product(model, readers, batch, beside, probe)[1] for _ in range(12)]
        spreads.append({name: stdev(sample[name] for sample in samples) for name in readers})
    alone, together = spreads
    # 42 measured; the samples that an estimate needs grow with its square.
    assert median(together[name] / alone[name] for name in readers) > 5


class Branching(nn.Module):
    """A tensor that two layers and a skip connection read, behind weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor, moved: Tensor | None = None) -> Tensor:
        """moved: what is added to what both layers read, and to nothing else."""
        inner = torch.tanh(self.first(x))
        read = inner if moved is None else inner + moved
        out: Tensor = self.last(inner + torch.tanh(self.one(read)) * torch.sigmoid(self.other(read)))
        return out


def test_one_product_is_exact_and_an_input_varies_for_its_readers_alone(batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Branching().eval()
    readers, weights = {"inner": [model.one, model.other]}, {"first": model.first.weight}
    of_weights, of_inputs, _ = hessian_samples(model, readers, batch, weights, torch.Generator().manual_seed(0))

    def loss(weight: Tensor, moved: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {"first.weight": weight}, (batch.images, moved))
        return F.cross_entropy(logits, batch.labels)

    at = model.first.weight.detach(), torch.zeros(len(batch.images), 4)
    signs = torch.Generator().manual_seed(0)
    v = tuple(_rademacher(x, signs) for x in at)
    still = tuple(torch.zeros_like(x) for x in at)
    _, (product_w, _) = torch.autograd.functional.hvp(loss, at, (v[0], still[1]))
    _, (_, product_a) = torch.autograd.functional.hvp(loss, at, (still[0], v[1]))
    of_weight, of_input = float((product_w * v[0]).sum()), float((product_a * v[1]).sum())
    assert of_weights["first"] == pytest.approx(of_weight / v[0].numel(), rel=1e-4)
    assert of_inputs["inner"] == pytest.approx(of_input / 4, rel=1e-4)  # float32 sums of tens of terms


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18"])
def test_on_the_networks_it_equals_the_gradient_s_gradient(name):
    spec = ModelSpec(name=name, width=0.1, form="small")
    model, batch = built(spec), MicroBatch(randn((4, 3, 16, 16), 1), torch.tensor([0, 3, 1, 9]))
    ledger = ledger_of(model, (3, 16, 16))
    weights = {layer.name: model.get_submodule(layer.name).weight for layer in ledger}
    readers: dict[str, list[nn.Module]] = {}
    for layer in ledger:
        readers.setdefault(layer.tie or layer.name, []).append(model.get_submodule(layer.name))
    found_w, found_a, inputs = hessian_samples(model, readers, batch, weights, torch.Generator().manual_seed(0))
    probe, aliases = torch.Generator().manual_seed(0), dict[str, Tensor]()
    v = {f"w {n}": _rademacher(w, probe) for n, w in weights.items()}
    v |= {f"a {n}": _rademacher(x, probe) for n, x in inputs.items()}

    def alias(key: str) -> Callable[[nn.Module, Any], Any]:
        def hook(_layer: nn.Module, given: Any) -> Any:
            x = given[0]
            aliases.setdefault(key, x.view_as(x) if x.requires_grad else x.detach().requires_grad_())
            return (aliases[key],)

        return hook

    for key, layers in readers.items():
        for reader in layers:
            reader.register_forward_pre_hook(alias(key))
    loss = F.cross_entropy(model(batch.images), batch.labels)
    kinds = {"w": [*weights.values()], "a": [aliases[n] for n in inputs]}
    products: list[Tensor] = []
    for kind, variables in kinds.items():
        directions = [d for key, d in v.items() if key.startswith(kind)]
        gradients = torch.autograd.grad(loss, variables, create_graph=True)
        slope = torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()
        products += torch.autograd.grad(slope, variables, retain_graph=True)
    for (key, d), product in zip(v.items(), products, strict=True):
        kind, _, layer = key.partition(" ")
        found, count = (found_w, d.numel()) if kind == "w" else (found_a, d[0].numel())
        terms = float((product * d).abs().sum())  # float32, summed and differentiated in two different orders
        assert abs(found[layer] * count - float((product * d).sum())) <= 1e-3 * terms, key


def built(spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(spec, DataSpec(dataset="digits", image_size=16, classes=10))
    model.train()(randn((16, 3, 16, 16), 2))  # else batch norm's statistics are those of nothing
    return model.eval()


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1, "groups": 2}, {"padding": "same", "dilation": 2}])
def test_a_convolution_by_weights_that_stand_still_has_torch_s_own_derivative(geometry):
    x, v, weight, bias = randn((2, 4, 6, 6), 0), randn((2, 4, 6, 6), 1), randn((6, 4, 3, 3), 2), randn((6,), 3)
    weight = weight[:, : 4 // geometry.get("groups", 1)]
    seen = []
    for mode in (nullcontext(), _CheaperDerivatives()):
        with forward_ad.dual_level(), mode:
            moving = forward_ad.make_dual(x, v)
            out = forward_ad.unpack_dual(F.conv2d(input=moving, weight=weight, bias=bias, **geometry))
            seen.append((out.primal.clone(), out.tangent.clone()))
    for expected, found in zip(*seen, strict=True):
        assert torch.equal(found, expected)


def test_probes_are_fair_signs_laid_out_as_what_they_probe():
    like = torch.empty(8, 5, 7, 3).contiguous(memory_format=torch.channels_last)
    signs = _rademacher(like, torch.Generator().manual_seed(1))
    assert signs.stride() == like.stride()
    assert signs.abs().eq(1).all()
    drawn = _rademacher(torch.empty(100_000), torch.Generator().manual_seed(2))
    assert abs(float(drawn.mean())) < 4 / math.sqrt(100_000)
    pairs = (drawn[:-1] * drawn[1:]).mean()
    assert abs(float(pairs)) < 4 / math.sqrt(100_000)


class Separate(nn.Module):
    """Image i, a unit vector, meets weight i alone: the Hessian of the weights is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -1.2, 0.8, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.weight
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def test_a_diagonal_hessian_needs_one_probe():
    model = Separate()
    batch = MicroBatch(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    p = model.weight.detach().sigmoid()
    exact = float((p * (1 - p)).mean()) / 4  # d2/dw2 of one image's loss is p (1 - p); the loss is their mean
    for seed in range(5):
        sample, _, _ = hessian_samples(model, {}, batch, {"w": model.weight}, torch.Generator().manual_seed(seed))
        assert sample["w"] == pytest.approx(exact, rel=1e-5)  # float32 sums of four terms, each a few ulps off


def test_sampling_leaves_gradients_and_hooks_alone(small, batch):
    small.first.weight.grad = torch.ones_like(small.first.weight)
    hessian_samples(small, {"second": [small.second]}, batch, {"first": small.first.weight}, torch.Generator())
    assert torch.equal(small.first.weight.grad, torch.ones_like(small.first.weight))
    assert small.second.weight.grad is None
    assert not small.second._forward_pre_hooks


def test_the_captured_inputs_are_those_of_the_forward(small, batch):
    readers = {"first": [small.first], "second": [small.second]}
    _, _, inputs = hessian_samples(small, readers, batch, {"first": small.first.weight}, torch.Generator())
    assert torch.equal(inputs["first"], batch.images)
    assert torch.equal(inputs["second"], torch.tanh(small.first(batch.images)))
    assert not inputs["second"].requires_grad


def test_an_estimate_has_the_mean_and_the_standard_error_of_its_samples():
    estimate = TraceEstimate([1.0, 2.0, 6.0])
    assert estimate.mean == 3.0
    assert estimate.standard_error == pytest.approx(math.sqrt(((-2) ** 2 + (-1) ** 2 + 3**2) / 2 / 3))
    assert TraceEstimate([1.0]).standard_error == math.inf
    assert TraceEstimate([-1.0]).clamped == 0.0


class Watched(list[float]):
    """Samples that count how often they are gone through."""

    passes = 0

    def __iter__(self) -> Iterator[float]:
        self.passes += 1
        return super().__iter__()


def test_a_standard_error_takes_two_passes_however_many_samples_there_are():
    samples = Watched(map(float, range(100)))
    TraceEstimate(samples).standard_error  # noqa: B018 (a property)
    assert samples.passes == 2


def test_convergence_is_relative_to_the_trace_or_the_median():
    sure, small_but_unsure = TraceEstimate([10.0, 10.0]), TraceEstimate([0.1, 0.3])  # standard error 0.1
    assert converged([sure, sure, small_but_unsure], 0.05)
    assert not converged([small_but_unsure], 0.05)
    assert not converged([sure, TraceEstimate([1.0])], 0.05)


@given(grids(), seeds(), st.booleans(), st.sampled_from([0.01, 1.0, 30.0]))
def test_the_best_step_is_never_worse_than_lsqs(grid: Grid, seed: int, per_channel: bool, scale: float):
    x = randn((3, 7), seed) * scale
    if not grid.low:
        x = x.abs()
    flat = x if per_channel else x.reshape(1, -1)
    start = lsq_step((flat + grid.shift).abs().mean(1), grid)
    best = least_squares_step(x, grid, per_channel=per_channel)
    assert best.shape == start.shape
    # A factor of 1 is among those tried, but for its rounding in float32, and errors are summed in another order.
    assert squared_error(x, best, grid) <= squared_error(x, start, grid) * (1 + 1e-5) + 1e-12 * scale**2


def test_eight_bits_gain_from_the_search_for_a_step():
    x, grid = randn((20_000,), 0), Grid(-127, 127)
    start = lsq_step(x.abs().mean(), grid).reshape(1)
    best = least_squares_step(x, grid, per_channel=False)
    assert squared_error(x, start, grid) > 5 * squared_error(x, best, grid)


@pytest.mark.parametrize("shape", [(64, 8, 32, 32), (64, 24, 14, 14), (50, 64, 12, 12)])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_step_for_inputs_is_as_good_where_not_all_of_them_are_looked_at(shape: tuple[int, ...], bits: int):
    """Borders and some channels differ from the rest, as padding and depthwise filters have it."""
    x, grid = randn(shape, 0).abs(), Grid(0, 2**bits - 1)
    x[..., 0] *= 0.01
    x[..., 0, :] *= 30.0
    x[:, ::8] *= 0.1
    assert x.numel() > 2 * _STEP_SEARCH_VALUES
    every = least_squares_step(x.reshape(1, -1), grid, per_channel=True)  # which leaves nothing out
    some = least_squares_step(x, grid, per_channel=False)
    assert squared_error(x, some, grid) <= 1.2 * squared_error(x, every, grid)


def test_a_squared_error_is_the_sum_over_all_elements():
    x = torch.tensor([[0.4, 1.2], [0.9, -5.0]])
    # codes 0, 1, 1, 0 at step 1, unsigned 2 bits
    expected = 0.4**2 + 0.2**2 + 0.1**2 + 5.0**2
    assert squared_error(x, torch.tensor([1.0]), Grid(0, 3)) == pytest.approx(expected, rel=1e-6)
