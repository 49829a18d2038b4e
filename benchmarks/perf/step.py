"""What a quantized training step costs over a float step: `python -m benchmarks.perf.step`.

W4A4, first and last layer at 8 bits, weights per channel, batch norm in train mode. All implementations take a few
steps each per round, in one process; ratios are to the same round's float steps, those of compiled ones to compiled
float. Memory is what the forward pass keeps for the backward pass; on a GPU, a step's peak, the network's own included.
Brevitas is measured where it is installed (`pip install '.[peers]'`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.perf.peers import BITS, peers
from benchmarks.perf.rounds import interleaved, ratio
from methods.quantization.convert import QuantizerOptions, convert, ledger_of, replace_activations
from methods.quantization.cost import uniform_bits, with_pins
from methods.quantization.modules import (
    apply_policy,
    initialise_activation_steps,
    initialise_weight_steps,
    project_steps,
)
from methods.quantization.paths import path_on, plain_path
from methods.quantization.policy import LayerBits

MODELS = ("mobilenet_v2", "mobilenet_v3_large", "resnet18")
PRECISIONS = ("float32", "bfloat16")

PREPARE = """
import time, torch; begun = time.perf_counter()
from methods.quantization import kernels
print(time.perf_counter() - begun)
"""


@dataclass(frozen=True)
class Row:
    """One implementation on one network.

    seconds: median over rounds. ratio, low, high: median and quartiles of seconds over float's. memory: bytes.
    memory_ratio: over float's. first: seconds of its first step, with whatever it compiles.
    """

    implementation: str
    model: str
    image_size: int
    batch: int
    precision: str
    seconds: float
    ratio: float
    low: float
    high: float
    memory: int
    memory_ratio: float
    first: float


@dataclass
class Contender:
    """A network in training, and the context of its steps. compiled: its compiled form, if that runs instead."""

    model: nn.Module
    context: Callable[[], Any] = nullcontext
    compiled: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) if self.compiled is None else self.compiled(images)

    def step(self, images: Tensor, labels: Tensor) -> None:
        with self.context():
            F.cross_entropy(self.forward(images).float(), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            project_steps(self.model)
        if images.is_cuda:
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = "; several are separated by commas"
    parser.add_argument("--models", default=",".join(MODELS), help=f"names of torchvision's{several}")
    parser.add_argument("--image-size", default="96", help=f"pixels{several}")
    parser.add_argument("--batch", default="16", help=f"images{several}")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of autocast")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="also compile whole networks, which takes minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepared = preparation() if options.device == "cpu" and path_on("cpu") == "fused" else {}
    cases = product(*(text.split(",") for text in (options.models, options.image_size, options.batch)))
    rows = [row for model, size, batch in cases for row in measured(model, int(size), int(batch), options)]
    if options.json:
        print(json.dumps({"preparation": prepared, "rows": [asdict(row) for row in rows]}))
        return
    for what, seconds in prepared.items():
        print(f"kernels, {what}: {seconds:.1f} s")
    for row in rows:
        of_float = f"{row.ratio:5.2f} [{row.low:.2f}, {row.high:.2f}]"
        memory = f"{row.memory / 2**20:6.0f} MiB {row.memory_ratio:5.2f}"
        case = f"{row.model:20s} {row.image_size:4d} x {row.batch:<3d} {row.implementation:24s}"
        print(f"{case} {row.seconds * 1e3:8.1f} ms {of_float} {memory}   first step {row.first:5.1f} s")


def preparation() -> dict[str, float]:
    """Seconds until the kernels are there, the first time and from the cache, each in a process that has torch."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        command, root = [sys.executable, "-c", PREPARE], Path(__file__).resolve().parents[2]
        first, cached = (float(subprocess.check_output(command, env=environment, cwd=root)) for _ in range(2))
    return {"first time": first, "cached": cached}


def measured(name: str, size: int, batch: int, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one network on batches of one shape."""
    images, labels = batch_of(batch, size, torch.device(options.device))
    contenders = contenders_on(name, images, options.precision, compiled=options.compile)
    first = {key: warm_up(partial(contender.step, images, labels)) for key, contender in contenders.items()}
    memory = {key: step_bytes(contender, images, labels) for key, contender in contenders.items()}
    works = {key: partial(contender.step, images, labels) for key, contender in contenders.items()}
    times = interleaved(works, options.rounds)
    for key, seconds in times.items():
        base = "float compiled" if key.endswith("compiled") else "float"
        of_float, share = ratio(seconds, times[base]), memory[key] / memory[base]
        case = (key, name, size, batch, options.precision)
        yield Row(*case, median(seconds), *of_float, memory[key], share, first[key])
    del contenders
    gc.collect()


def batch_of(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise and labels, always the same; also seeds what is built next."""
    torch.manual_seed(0)
    images = torch.randn(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 1000, (count,), device=device)


def contenders_on(name: str, images: Tensor, precision: str, *, compiled: bool) -> dict[str, Contender]:
    """Every implementation of one network, by name."""
    network = getattr(torchvision.models, name)(num_classes=1000)
    ledger = ledger_of(replace_activations(deepcopy(network)), tuple(images.shape[1:]))  # type: ignore[arg-type]
    bits = uniform_bits(ledger, BITS, BITS)
    ours = replace_activations(deepcopy(network))
    convert(ours, ledger, {layer: [pair] for layer, pair in bits.items()}, QuantizerOptions())
    ours.to(images.device)
    initialise_weight_steps(ours)
    initialise_activation_steps(ours, [images])
    apply_policy(ours, {layer: LayerBits(*pair) for layer, pair in with_pins(ledger, bits).items()})
    signed = {layer.name: layer.kind != "unsigned" for layer in ledger}
    networks = {"float": network, "ours": ours, "ours plain": ours}
    networks |= {peer: build(deepcopy(network)) for peer, build in peers(signed)}
    cast = partial(autocast, images.device, precision)
    made = {
        key: Contender(_trained(model, images), partial(_plain, cast) if key == "ours plain" else cast)
        for key, model in networks.items()
    }
    if compiled:
        for key in ("float", "ours"):
            model = deepcopy(made[key].model)
            made[f"{key} compiled"] = Contender(model, cast, torch.compile(model))
    return made


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """As training has it."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


@contextmanager
def _plain(cast: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    with cast(), plain_path():
        yield


def _trained(model: nn.Module, images: Tensor) -> nn.Module:
    return deepcopy(model).to(images.device).to(memory_format=torch.channels_last).train()


def warm_up(step: Callable[[], None]) -> float:
    """Seconds of the first step; a second, untimed one reuses what the first has compiled."""
    begun = time.perf_counter()
    step()
    first = time.perf_counter() - begun
    step()
    return first


def step_bytes(contender: Contender, images: Tensor, labels: Tensor) -> int:
    """On a GPU, peak memory of a step as if the network were alone there; else see `kept_bytes`."""
    if not images.is_cuda:
        return kept_bytes(contender, images)
    others = torch.cuda.memory_allocated() - sum(each.nbytes for each in contender.model.state_dict().values())
    torch.cuda.reset_peak_memory_stats()
    contender.step(images, labels)
    return int(torch.cuda.max_memory_allocated() - others)


def kept_bytes(contender: Contender, images: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass keeps beside parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in contender.model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), contender.context():
        loss = contender.forward(images).sum()
    total = sum(found.values())
    del loss
    return total


if __name__ == "__main__":
    main()
