"""Do this processor's convolutions compute what float64 does? `python -m benchmarks.perf.convolutions [--isa AVX2]`.

Every convolution shape of the shipped suites' networks, forward and both gradients, in both memory formats, at several
batch sizes, as oneDNN dispatches it under each named instruction set. Shapes run in a process of their own, which
glibc's heap checks watch where they are installed: a kernel that writes past its memory ends that process, and is
named. `--bare` leaves out this project's own kernel, `methods/quantization/strided_pointwise.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ISAS = ("SSE41", "AVX2", "AVX512_CORE")
BATCHES = (1, 5, 16, 64)
TOLERANCE = 1e-4
"""Of the largest element. Rounding of float32 sums of up to 10^6 products stays below; a wrong kernel is off by 1."""
_MOST_MACS = 2_000_000_000
"""Of one convolution over a batch; larger ones are tried with fewer images."""
_CHECKS = {"MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}


class Shape(NamedTuple):
    """One convolution of a network: all that its kernel depends on but the batch and the memory format."""

    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def macs(self, images: int) -> int:
        positions = self.height * self.width // (self.stride[0] * self.stride[1])
        return images * positions * self.filters * self.channels // self.groups * self.kernel[0] * self.kernel[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", action="append", choices=ISAS, help="may be repeated; default: all three")
    parser.add_argument("--bare", action="store_true", help="torch's kernels alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _work(bare=options.bare)
        return
    cases = [(shape, images, last) for shape in shapes() for images in _batches(shape) for last in (False, True)]
    for isa in options.isa or ISAS:
        worst, faults = _hold(cases, isa, bare=options.bare)
        print(f"{isa}: {len(cases)} cases, worst error {worst:.1e} of the largest element, {len(faults)} faults")
        for fault in faults:
            print(f"    {fault}")


def shapes() -> list[Shape]:
    """Every convolution of every network in the shipped suites, each once, small ones first."""
    from benchmarks.models import build_model
    from benchmarks.suites.suite import load_suite, suite_names

    found: set[Shape] = set()
    for suite in map(load_suite, suite_names()):
        for model in suite.models:
            network = build_model(model, suite.data).to("meta")
            found |= set(_seen(network, suite.data.image_size))
    return sorted(found, key=lambda shape: shape.macs(1))


def _seen(network: nn.Module, size: int) -> Iterator[Shape]:
    seen: list[Shape] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        _, channels, height, width = inputs[0].shape
        found: Any = layer  # a size that was given as a pair is typed as any number of them
        size = channels, height, width, layer.out_channels
        seen.append(Shape(*size, found.kernel_size, found.stride, found.padding, found.dilation, layer.groups))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(note)
    network.eval()(torch.empty(1, 3, size, size, device="meta"))
    return iter(seen)


def _batches(shape: Shape) -> list[int]:
    return [images for images in BATCHES if images == 1 or shape.macs(images) <= _MOST_MACS]


def _hold(cases: Sequence[tuple[Shape, int, bool]], isa: str, *, bare: bool) -> tuple[float, list[str]]:
    """Worst error and what went wrong, over processes: each does what it can until a kernel ends it."""
    worst, faults, done = 0.0, list[str](), 0
    command = [sys.executable, "-m", "benchmarks.perf.convolutions", "--child", *(["--bare"] if bare else [])]
    while done < len(cases):
        text = "\n".join(json.dumps(case) for case in cases[done:])
        environment = {**os.environ, **_CHECKS, "ONEDNN_MAX_CPU_ISA": isa}
        child = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
        errors = [json.loads(line) for line in child.stdout.splitlines()]
        for case, error in zip(cases[done:], errors, strict=False):
            worst = max(worst, *error)
            if not max(error) < TOLERANCE:
                faults.append(f"wrong by {max(error):.1e} (output, input's, weight's gradient: {error}): {case}")
        done += len(errors)
        if done < len(cases):
            last = child.stderr.strip().rpartition("\n")[2]
            faults.append(f"process ended by {child.returncode} ({last}): {cases[done]}")
            done += 1
    return worst, faults


def _work(*, bare: bool) -> None:
    """Errors of each case on standard input, a line each."""
    torch.set_num_threads(1)
    if not bare:
        import methods.quantization.strided_pointwise  # noqa: F401 (registers a kernel)
    for line in sys.stdin:
        shape, images, last = json.loads(line)
        print(json.dumps(errors_of(Shape(*shape), images, channels_last=last)), flush=True)


def errors_of(shape: Shape, images: int, *, channels_last: bool) -> list[float]:
    """Largest error of output, input's gradient and weight's gradient against float64, over the largest element."""
    torch.manual_seed(0)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(images, shape.channels, shape.height, shape.width)
    weight = torch.randn(shape.filters, shape.channels // shape.groups, *shape.kernel)
    ours = [tensor.to(memory_format=memory).requires_grad_() for tensor in (x, weight)]
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    out, reference = (
        F.conv2d(inputs, filters, None, shape.stride, shape.padding, shape.dilation, shape.groups)
        for inputs, filters in (ours, exact)
    )
    gradient = torch.randn_like(out)
    out.backward(gradient)
    reference.backward(gradient.double())
    pairs = [(out, reference), *((own.grad, true.grad) for own, true in zip(ours, exact, strict=True))]
    return [
        float((own - true).abs().max() / true.abs().max())
        for own, true in pairs
        if own is not None and true is not None
    ]


if __name__ == "__main__":
    main()
