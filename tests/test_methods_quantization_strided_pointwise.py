"""Strided 1x1 convolutions of few channels: their gradients are right under every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.trials.compute import measure_macs
from methods.quantization import strided_pointwise
from tests.harness import ROOT

SHAPES = [  # input channels, filters, side, images, stride; those of a narrow ResNet's shortcuts and around them
    *(
        (channels, filters, side, images, (2, 2))
        for channels, filters in ((2, 4), (4, 8), (5, 10))
        for side in (8, 16, 32)
        for images in (1, 16)
    ),
    (1, 16, 8, 16, (2, 2)),
    (3, 16, 9, 8, (2, 2)),
    (7, 10, 16, 16, (2, 2)),
    (6, 8, 15, 4, (3, 3)),
    (5, 8, 12, 4, (1, 2)),
    (8, 16, 16, 16, (2, 2)),
]

CHILD = """
import torch
from tests.test_methods_quantization_strided_pointwise import SHAPES, error_of
torch.set_num_threads(1)
for shape in SHAPES:
    print(error_of(shape), flush=True)
    noise = [torch.randn(997) for _ in range(20)]  # allocations notice a heap that was written past
"""


def error_of(shape: tuple[int, int, int, int, tuple[int, int]]) -> float:
    """The largest error of the three gradients against float64, over each one's largest element."""
    channels, filters, side, images, stride = shape
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(images, channels, side, side),
        torch.randn(filters, channels, 1, 1),
        torch.randn(filters),
    )
    ours = [leaf(x), leaf(weight), bias.clone().requires_grad_()]
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    out, reference = F.conv2d(*ours, stride=stride), F.conv2d(*exact, stride=stride)
    g = torch.randn_like(out)
    out.backward(g)
    reference.backward(g.double())
    pairs = zip([tensor.grad for tensor in ours], [tensor.grad for tensor in exact], strict=True)
    return max(float((own - true).abs().max() / true.abs().max()) for own, true in pairs)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last).requires_grad_()


# A weight gradient sums up to 16 * 16 * 16 products of random signs: sqrt(4096) * 2^-24 of its spread is 4e-6.
TOLERANCE = 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_float64_s_here(shape):
    assert error_of(shape) < TOLERANCE


def test_gradients_are_float64_s_without_avx512():
    checks = {
        "MALLOC_CHECK_": "3",
        "LD_PRELOAD": "libc_malloc_debug.so.0",
    }  # of glibc: it ends at its first fault
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, **checks, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"after {len(done.stdout.splitlines())} shapes: {done.stderr}"
    errors = [float(line) for line in done.stdout.splitlines()]
    assert len(errors) == len(SHAPES)
    assert max(errors) < TOLERANCE


def test_it_serves_every_convolution_on_the_cpu():
    assert strided_pointwise.serves_the_cpu()


def test_only_what_is_asked_for_is_computed_and_it_costs_the_macs_of_a_convolution():
    x, weight = torch.randn(4, 4, 8, 8), torch.randn(8, 4, 1, 1)
    one = 4 * 16 * 8 * 4  # images x positions x filters x channels

    def backward(of_input: bool, of_weight: bool) -> None:
        ours = x.clone().requires_grad_(of_input), weight.clone().requires_grad_(of_weight)
        F.conv2d(*ours, stride=2).sum().backward()
        assert [tensor.grad is not None for tensor in ours] == [of_input, of_weight]

    assert measure_macs(lambda: backward(True, False)) == measure_macs(lambda: backward(False, True)) == 2 * one
    assert measure_macs(lambda: backward(True, True)) == 3 * one


def test_second_derivatives_are_float64_s():
    """As Hessian products take them: of the gradient's inner product with a direction."""

    def of_direction(*leaves: Tensor) -> list[Tensor]:
        out = F.conv2d(*leaves, stride=2).square().sum()
        first = torch.autograd.grad(out, leaves, create_graph=True)
        return list(torch.autograd.grad(sum((g * g).sum() for g in first), leaves))

    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 8, 8), torch.randn(6, 3, 1, 1)
    ours = of_direction(leaf(x), leaf(weight))
    exact = of_direction(*(tensor.double().requires_grad_() for tensor in (x, weight)))
    for own, true in zip(ours, exact, strict=True):
        # Three sums of at most 64 products in a row: 3 * 8 * 2^-24 of the largest element is 1.5e-6.
        assert float((own - true).abs().max() / true.abs().max()) < 1e-5
