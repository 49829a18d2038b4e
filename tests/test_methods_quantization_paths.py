"""Kernels against plain PyTorch: the same codes to the bit, the same gradients to rounding, and what they accept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from methods.quantization import paths
from methods.quantization.activations import Activation, ActivationName, HardSwish, ReLU6, activate
from methods.quantization.convert import QuantizerOptions, convert, ledger_of, replace_activations
from methods.quantization.cost import with_pins
from methods.quantization.fake_quant import fake_quantize, fake_quantize_together, mixture, step_slope
from methods.quantization.grid import Grid, make_grid
from methods.quantization.kernels import BLOCK
from methods.quantization.modules import (
    apply_policy,
    initialise_activation_steps,
    initialise_weight_steps,
    quant_layers,
)
from methods.quantization.paths import kernels_for, path_on, plain_path
from methods.quantization.policy import LayerBits
from tests.harness import ROOT
from tests.problems import BLOCKS
from tests.strategies import FLOAT32_ROUNDING, TinyNetwork, grids, kinds, randn, seeds, tiny_network, values

ACTIVATIONS: tuple[ActivationName, ...] = ("none", "relu", "relu6", "hardswish")
SCALES = (0.5, 0.25, 0.125)
SHAPES = [(1,), (7,), (3, 5), (4, 6, 5, 3), (1, 1, 1, 1), (2, BLOCK + 3), (3, 8, 41, 37)]


def made(shape: tuple[int, ...], seed: int, *, channels_last: bool) -> Tensor:
    x = 4 * randn(shape, seed)
    return x.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else x


def gradients(run: Callable[..., Tensor], *leaves: Tensor, seed: int) -> tuple[Tensor, ...]:
    """The output and each leaf's gradient under an upstream of its own."""
    own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = run(*own)
    out.backward(randn(tuple(out.shape), seed))
    return out.detach(), *(leaf.grad for leaf in own if leaf.grad is not None)


def both(run: Callable[..., Tensor], *leaves: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Output and gradients, each by kernels and by plain PyTorch."""
    fused = gradients(run, *leaves, seed=seed)
    with plain_path():
        plain = gradients(run, *leaves, seed=seed)
    return list(zip(fused, plain, strict=True))


def assert_sums(pair: tuple[Tensor, Tensor], terms: Tensor) -> None:
    """Either sum of float32 `terms`, over all but the first dimension, is as exact as sums in a tree of blocks are.

    No term takes part in more than 128 additions: the kernels halve blocks, and torch adds at most 16 at each of four
    levels, in several lanes. Each addition, and the few operations that make a term, round once.
    """
    terms = terms.double().flatten(1)
    bound = (128 + 8) * FLOAT32_ROUNDING * terms.abs().sum(1)
    for found in pair:
        off = (found.double().reshape(-1) - terms.sum(1)).abs()
        assert bool((off <= bound).all()), f"off by {off.tolist()}, at most {bound.tolist()}"


def slopes(x: Tensor, step: Tensor, grid: Grid, seed: int, *, offset: float = 0.0) -> Tensor:
    """Each element's share of the gradient of its step under `gradients`' upstream: (channels, ...) like `step`."""
    return (step_slope(x - offset, step, grid) * randn(tuple(x.shape), seed)).reshape(step.numel(), -1)


@given(st.sampled_from(SHAPES), grids(), seeds(), st.booleans(), st.booleans(), st.sampled_from(ACTIVATIONS))
def test_one_quantizer(
    shape: tuple[int, ...], grid: Grid, seed: int, per_channel: bool, channels_last: bool, activation: ActivationName
) -> None:
    x = made(shape, seed, channels_last=channels_last)
    assert kernels_for(x) is not None
    step = 0.05 + randn((shape[0] if per_channel else 1,), seed + 1).abs()
    run = lambda x, step: fake_quantize(x, step, grid, scale=0.5, activation=activation)  # noqa: E731
    (out, plain), (grad_x, plain_x), of_step = both(run, x, step, seed=seed + 2)
    assert torch.equal(out, plain)
    assert out.stride() == plain.stride()
    # An h-swish's slope, at most 1.5, is rounded four times on either side; a gradient is at most 6 or so.
    torch.testing.assert_close(grad_x, plain_x, rtol=0, atol=8 * FLOAT32_ROUNDING * 1.5 * 6)
    assert_sums(of_step, 0.5 * slopes(activate(x, activation), step, grid, seed + 2))


@given(st.data(), grids(), st.floats(0.0625, 2.0, width=32))
def test_on_codes_half_way_between_them_and_at_the_bounds(data: st.DataObject, grid: Grid, size: float) -> None:
    x, step = data.draw(values(grid, size)), torch.tensor([size])
    (out, plain), (grad_x, plain_x), of_step = both(lambda x, s: fake_quantize(x, s, grid), x, step, seed=0)
    assert torch.equal(out, plain)
    assert torch.equal(grad_x, plain_x)
    assert_sums(of_step, slopes(x, step, grid, 0))


@given(st.sampled_from(SHAPES), st.integers(2, 8), seeds(), st.sampled_from(ACTIVATIONS))
def test_a_learned_offset(shape: tuple[int, ...], bits: int, seed: int, activation: ActivationName) -> None:
    x, grid = made(shape, seed, channels_last=True), make_grid("unsigned", bits)
    step, offset = 0.05 + randn((1,), seed + 1).abs(), randn((1,), seed + 2)
    run = lambda x, step, offset: fake_quantize(x, step, grid, offset=offset, activation=activation)  # noqa: E731
    (out, plain), (grad_x, plain_x), of_step, of_offset = both(run, x, step, offset, seed=seed + 3)
    assert torch.equal(out, plain)
    torch.testing.assert_close(grad_x, plain_x, rtol=0, atol=8 * FLOAT32_ROUNDING * 1.5 * 6)
    x = activate(x, activation)
    assert_sums(of_step, slopes(x, step, grid, seed + 3, offset=float(offset)))
    u = (x - offset) / step
    outside = torch.where((u >= grid.low) & (u <= grid.high), 0.0, randn(shape, seed + 3))
    assert_sums(of_offset, outside.reshape(1, -1))


@given(st.sampled_from(SHAPES), kinds(), seeds(), st.booleans(), st.sampled_from(ACTIVATIONS))
def test_a_mixture(shape, kind, seed: int, per_channel: bool, activation: ActivationName) -> None:
    x, widths = made(shape, seed, channels_last=True), (2, 4, 8)
    chosen = [make_grid(kind, bits) for bits in widths]
    channels = shape[0] if per_channel else 1
    steps = [0.05 + randn((channels,), seed + bits).abs() for bits in widths]
    weights = torch.softmax(randn((3,), seed + 1), 0)

    def run(x: Tensor, weights: Tensor, *steps: Tensor) -> Tensor:
        return mixture(x, steps, chosen, weights, scales=SCALES, activation=activation)

    (out, plain), (grad_x, plain_x), of_weights, *of_steps = both(run, x, weights, *steps, seed=seed + 2)
    assert torch.equal(out, plain)
    torch.testing.assert_close(grad_x, plain_x, rtol=0, atol=16 * FLOAT32_ROUNDING * 1.5 * 6)
    x, upstream = activate(x, activation), randn(shape, seed + 2)
    branches = [fake_quantize(x, step, grid) for step, grid in zip(steps, chosen, strict=True)]
    assert_sums(of_weights, torch.stack([upstream * branch for branch in branches]))
    factors = (weights * torch.tensor(SCALES)).tolist()
    for of_step, step, grid, factor in zip(of_steps, steps, chosen, factors, strict=True):
        assert_sums(of_step, factor * slopes(x, step, grid, seed + 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(activation: ActivationName, value: float) -> None:
    x, step = torch.tensor([0.5, value, -0.5]), torch.tensor([0.1])
    run = lambda x: fake_quantize(x, step, make_grid("signed", 4), activation=activation)  # noqa: E731
    for fused, plain in both(run, x, seed=0):
        assert torch.equal(fused.isnan(), plain.isnan())
        if not (activation == "hardswish" and value == -float("inf")):  # -inf * 0 / 6: NaN, which either may keep
            torch.testing.assert_close(fused, plain, equal_nan=True)


def test_results_do_not_hang_on_the_number_of_threads() -> None:
    x, step = made((16, 32, 24, 24), 0, channels_last=True), torch.tensor([0.1])
    run = lambda x, step: fake_quantize(x, step, make_grid("unsigned", 4), activation="relu6")  # noqa: E731
    found = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            found.append(gradients(run, x, step, seed=1))
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def halved(terms: NDArray[np.float32]) -> np.float32:
    """The sum that the kernels promise, whatever the processor and its vector width: halves added elementwise."""
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        terms = np.concatenate([terms[: len(terms) - half] + terms[half:], terms[len(terms) - half : half]])
    return terms[0]


@pytest.mark.parametrize("size", [1, 7, BLOCK, 3 * BLOCK + 17])
def test_sums_have_one_order_on_every_machine(size: int) -> None:
    x, upstream, step = 4 * randn((size,), 0), randn((size,), 1), torch.tensor([0.1], requires_grad=True)
    fake_quantize(x, step, Grid(0, 15), scale=0.5).backward(upstream)
    u = x.numpy() / np.float32(0.1)
    v = u.clip(0, 15)
    terms = ((np.rint(v) - np.where(v == u, u, np.float32(0))) * upstream.numpy()).astype(np.float32)
    blocks = [float(halved(terms[start : start + BLOCK])) for start in range(0, size, BLOCK)]
    assert step.grad is not None
    assert step.grad.item() == np.float32(sum(blocks) * 0.5)


@pytest.mark.complete
def test_compiled_afresh_and_read_from_a_cache_they_give_the_same(tmp_path) -> None:
    """Inlining differs between the two, and so may what a compiler is free to reorder."""
    program = """
import hashlib, torch
from methods.quantization.fake_quant import fake_quantize, mixture
from methods.quantization.grid import Grid, make_grid
parts = []
for shape in ((16, 1, 3, 3), (10, 33), (5, 5000)):  # rows that fill whole vectors, and rows that do not
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(shape, generator=generator)).requires_grad_()
    upstream = torch.randn(shape, generator=generator)
    for channels in (1, shape[0]):
        steps = [torch.full((channels,), 0.1 * k, requires_grad=True) for k in (1, 2, 3)]
        weights = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
        fake_quantize(x, steps[0], Grid(-7, 7)).backward(upstream)
        grids = [make_grid("shifted", bits) for bits in (2, 4, 8)]
        mixture(x, steps, grids, weights, activation="hardswish").backward(upstream)
        parts += [x.grad, weights.grad, *(step.grad for step in steps)]
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def digest() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    afresh, cached = digest(), digest()
    for kept in tmp_path.rglob("*"):  # the parts are there, what calls them is not
        if "_rows" in kept.name:
            kept.unlink()
    assert afresh == cached == digest()


def test_an_upstream_of_other_strides_is_taken() -> None:
    x, step = made((2, 4, 6, 5), 0, channels_last=True), torch.tensor([0.1])
    own = x.clone().requires_grad_()
    fake_quantize(own, step, make_grid("signed", 4)).sum().backward()  # expanded: strides of 0
    with plain_path():
        plain = x.clone().requires_grad_()
        fake_quantize(plain, step, make_grid("signed", 4)).sum().backward()
    assert torch.equal(own.grad, plain.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["strided", "expanded"])
def test_steps_of_any_strides_are_read_right(layout: str) -> None:
    x, grid = made((4, 3, 5, 5), 0, channels_last=False), make_grid("signed", 4)
    wide = torch.tensor([0.1, 9.0, 0.2, 9.0, 0.3, 9.0, 0.4, 9.0])
    steps = wide[::2] if layout == "strided" else wide[0].expand(4)
    for run in (
        lambda x, step: fake_quantize(x, step, grid),
        lambda x, step: fake_quantize_together([x], [step], [grid], [1.0])[0],
        lambda x, step: mixture(x, [step, step], [grid, grid], torch.tensor([0.5, 0.5])),
    ):
        given = at_step(run, x, steps)
        assert all(map(torch.equal, given, at_step(run, x, steps.contiguous())))


def at_step(run: Callable[..., Tensor], x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the step's gradient; `step` is passed as it is, strides and all."""
    leaf = step.detach().requires_grad_()
    out = run(x, leaf)
    (gradient,) = torch.autograd.grad(out, leaf, randn(tuple(x.shape), 1))
    return out.detach(), gradient


def test_torch_s_default_dtype_changes_nothing() -> None:
    x, step, grid = made((3, 8, 5, 5), 0, channels_last=False), torch.tensor([0.1]), make_grid("unsigned", 4)
    upstream = randn((3, 8, 5, 5), 1)

    def gradient() -> Tensor:
        leaf = step.clone().requires_grad_()
        return torch.autograd.grad(fake_quantize(x, leaf, grid), leaf, upstream)[0]

    expected = gradient()
    try:
        torch.set_default_dtype(torch.float64)
        found = gradient()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32


def test_steps_that_fit_no_channels_are_refused_unasked() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fake_quantize(torch.ones(4, 6), torch.ones(8), make_grid("signed", 4), check=False)


def test_tensors_without_memory_are_left_to_torch() -> None:
    with FakeTensorMode():
        out = fake_quantize(torch.empty(2, 3), torch.empty(1), make_grid("signed", 4), check=False)
    assert out.shape == (2, 3)


def test_the_threads_are_those_of_torch_s_own_runtime() -> None:
    program = """
import ctypes, sklearn.linear_model, torch
from methods.quantization.kernels import _openmp
address = ctypes.cast(_openmp(), ctypes.c_void_p).value
for line in open("/proc/self/maps"):
    first, last = (int(end, 16) for end in line.split()[0].split("-"))
    if first <= address < last:
        print(line.split()[-1])
"""
    command = [sys.executable, "-c", program]
    place = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "scikit" not in place
    assert "omp" in place


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 6)[:, ::2],
        torch.randn(3).expand(2, 3),
        torch.empty(0),
        torch.randn(3).double(),
        torch.ones(3).half(),
    ],
    ids=["strided", "expanded", "empty", "float64", "float16"],
)
def test_other_tensors_are_left_to_plain_pytorch(x: Tensor) -> None:
    assert kernels_for(x) is None
    assert fake_quantize(x, torch.tensor([0.1]), make_grid("signed", 4)).shape == x.shape


def test_without_numba_plain_pytorch_does_it_and_says_so_once(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "methods.quantization.kernels", None)
    monkeypatch.delattr("methods.quantization.kernels", raising=False)
    paths._kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="plain PyTorch") as warned:
            assert [kernels_for(torch.ones(3)), kernels_for(torch.ones(3))] == [None, None]
        assert len(warned) == 1
        assert path_on("cpu") == "plain"
    finally:
        paths._kernels.cache_clear()


@pytest.mark.complete
def test_a_damaged_cache_of_kernels_costs_time_and_no_trial(tmp_path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def path_found() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from methods.quantization.paths import path_on; print(path_on('cpu'))"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    assert path_found().stdout == "fused\n"
    for kept in tmp_path.rglob("*.nb?"):
        kept.write_bytes(kept.read_bytes()[:100])
    damaged = path_found()
    assert damaged.stdout == "plain\n"
    assert damaged.stderr.count("delete the *.nbi and *.nbc files") == 1


def test_the_path_of_a_device() -> None:
    assert (path_on("cpu"), path_on("cuda:0")) == ("fused", "plain")
    with plain_path():
        assert path_on("cpu") == "plain"


# Activations that quantizers take over.


class Chain(nn.Module):
    """conv, activation, conv, activation, and a sum that reads the last one too; `twice` uses one module for both."""

    def __init__(self, kind: type[nn.Module], *, twice: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.fourth = nn.Conv2d(3, 2, 1)
        self.one = kind()
        self.two = self.one if twice else kind()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        x = self.two(self.second(x))
        out: Tensor = self.fourth(self.third(x) + x)
        return out


def converted(kind: type[nn.Module], *, twice: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = replace_activations(Chain(kind, twice=twice))
    ledger = ledger_of(model, (3, 6, 6))
    candidates = {layer.name: [LayerBits(4, 3), LayerBits(4, 4)] for layer in ledger if not layer.pinned}
    convert(model, ledger, candidates, QuantizerOptions())
    initialise_weight_steps(model)
    initialise_activation_steps(model, [torch.randn(4, 3, 6, 6)])
    return model


def select(model: nn.Module) -> None:
    for layer in quant_layers(model).values():
        layer.weight_quantizer.select(layer.weight_quantizer.widths[0])
        layer.input_quantizer.select(layer.input_quantizer.widths[0])


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_a_network_computes_the_same_whoever_does_its_activations(kind: type[nn.Module]) -> None:
    model, images = converted(kind), torch.randn(4, 3, 6, 6)
    float_output = model(images)
    select(model)
    with torch.no_grad():
        fused = model(images)
        assert model.one.owed != "none"
        with plain_path():
            plain = model(images)
            assert model.one.owed == "none"
    torch.testing.assert_close(fused, plain, rtol=0, atol=0)
    assert not torch.equal(fused, float_output)


def test_an_activation_that_others_read_does_its_own_work() -> None:
    model = converted(nn.ReLU6)
    select(model)
    model(torch.randn(4, 3, 6, 6))
    assert (model.one.owed, model.two.owed) == ("relu6", "none")


def test_an_activation_that_runs_twice_does_its_own_work() -> None:
    model = converted(nn.ReLU6, twice=True)
    select(model)
    model(torch.randn(4, 3, 6, 6))
    assert model.one.owed == "none"


def test_a_quantizer_that_is_off_leaves_the_activation_to_itself() -> None:
    model = converted(nn.ReLU6)
    select(model)
    seen = []
    model.second.register_forward_pre_hook(lambda _layer, inputs: seen.append(float(inputs[0].detach().min())))
    model.second.input_quantizer.off()
    model(torch.randn(4, 3, 6, 6))
    assert seen[0] >= 0.0
    assert isinstance(model.one, Activation)


def test_hard_swish_has_a_second_derivative_and_torch_s_first() -> None:
    x = torch.tensor([-4.0, -2.0, 0.5, 2.0, 4.0], requires_grad=True)
    (first,) = torch.autograd.grad(HardSwish()(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first.detach(), torch.tensor([0.0, -1 / 6, 2 / 3, 7 / 6, 1.0]))
    torch.testing.assert_close(second, torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]))
    (quick,) = torch.autograd.grad(activate(x, "hardswish").sum(), x)
    torch.testing.assert_close(quick, first.detach())


def test_replaced_activations_are_ours() -> None:
    model = replace_activations(nn.Sequential(nn.ReLU6(inplace=True), nn.ReLU(), nn.Hardswish()))
    assert [type(module).__name__ for module in model] == ["ReLU6", "ReLU", "HardSwish"]
    assert isinstance(model[0], ReLU6)


def test_a_quantized_network_in_training_compiles_into_one_graph() -> None:
    """Breaks would compile every layer's shape for itself: that made MobileNetV3 slower than not compiling.

    The backend `aot_eager` traces forward and backward and runs both as they are, which needs no C++ compiler.
    """
    network = replace_activations(tiny_network(list(BLOCKS)))  # all activations, a gate, groups and a residual
    ledger = ledger_of(network, TinyNetwork.image_shape)
    bits = {layer.name: LayerBits(4, 4) for layer in ledger if not layer.pinned}
    convert(network, ledger, {layer: [chosen] for layer, chosen in bits.items()}, QuantizerOptions())
    images = randn((4, *TinyNetwork.image_shape), 0)
    initialise_weight_steps(network)
    initialise_activation_steps(network, [images])
    apply_policy(network, with_pins(ledger, bits))
    torch._dynamo.reset()
    network.train()
    with plain_path():
        expected = gradients_of(network, network(images))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    found = gradients_of(network, compiled(images))
    assert found.keys() == expected.keys()
    assert len(found) > 20
    for name, gradient in expected.items():
        # Rounded in another order: float32 sums over at most some thousand terms of a batch.
        assert float((found[name] - gradient).abs().max()) <= 1e-4 * float(gradient.abs().max()) + 1e-6, name


@cache
def compiled_quantizer(grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
    """Compiled once for all shapes, by the compiler that training uses."""
    torch._dynamo.reset()
    run = torch.compile(lambda x, step: fake_quantize(x, step, grid, scale=0.5, check=False), dynamic=True)
    return run  # type: ignore[no-any-return]


@pytest.mark.complete
@pytest.mark.parametrize("grid", [make_grid("signed", 4), make_grid("unsigned", 3), make_grid("shifted", 8)], ids=str)
@given(rows=st.integers(2, 9), columns=st.integers(2, 400), seed=seeds(), per_channel=st.booleans())
def test_compiled_and_plain_agree_to_rounding(
    grid: Grid, rows: int, columns: int, seed: int, per_channel: bool
) -> None:
    x, step = 4 * randn((rows, columns), seed), 0.05 + randn((rows if per_channel else 1,), seed + 1).abs()
    out, grad_x, grad_step = gradients(compiled_quantizer(grid), x, step, seed=seed + 2)
    with plain_path():
        plain, plain_x, plain_step = gradients(
            lambda x, s: fake_quantize(x, s, grid, scale=0.5), x, step, seed=seed + 2
        )
    u = (x.double() + grid.shift) / step.double().reshape(-1, 1)
    near = 4 * FLOAT32_ROUNDING * u.abs()  # u is a sum and a quotient, rounded once each
    undecided = ((u - u.floor() - 0.5).abs() <= near) | ((u - grid.low).abs() <= near) | ((u - grid.high).abs() <= near)
    assert int(undecided.sum()) <= 2
    scale = step.reshape(-1, 1) * grid.high + grid.shift
    assert bool(
        ((out - plain).abs() <= torch.where(undecided, step.reshape(-1, 1), 4 * FLOAT32_ROUNDING * scale)).all()
    )
    assert torch.equal(grad_x[~undecided], plain_x[~undecided])
    if not undecided.any():
        assert_sums((grad_step, plain_step), 0.5 * slopes(x, step, grid, seed + 2))


def gradients_of(network: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """The logits, and every parameter's gradient of their sum of squares; gradients are cleared."""
    logits.square().sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return {"logits": logits.detach(), **found}
