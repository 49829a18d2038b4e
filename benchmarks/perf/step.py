"""What a quantized training step costs over a float step: `python -m benchmarks.perf.step`.

W4A4, first and last layer at 8 bits, weights per channel, float32, batch norm in train mode. All implementations take
a few steps each per round, in one process; ratios are to the same round's float steps. Memory is what the forward pass
keeps for the backward pass (on a GPU, peak memory of a step). Brevitas is measured where it is installed
(`pip install '.[peers]'`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
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
from methods.quantization.modules import apply_policy, initialise_activation_steps, initialise_weight_steps
from methods.quantization.paths import path_on, plain_path
from methods.quantization.policy import LayerBits

MODELS = ("mobilenet_v2", "mobilenet_v3_large", "resnet18")
_WARM_UP = 2

PREPARE = """
import time, torch; begun = time.perf_counter()
from methods.quantization import kernels
print(time.perf_counter() - begun)
"""


@dataclass(frozen=True)
class Row:
    """One implementation on one network. ratio, low, high: median and quartiles over rounds. kept: bytes."""

    implementation: str
    model: str
    seconds: float
    ratio: float
    low: float
    high: float
    kept: int


@dataclass
class Contender:
    """A network in training, and under which context it takes its steps."""

    model: nn.Module
    context: Callable[[], Any] = nullcontext
    compiled: Any = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)

    def step(self, images: Tensor, labels: Tensor) -> None:
        with self.context():
            self.optimizer.zero_grad(set_to_none=True)
            network = self.model if self.compiled is None else self.compiled  # a compiled module has no truth value
            F.cross_entropy(network(images).float(), labels).backward()
            self.optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas, names of torchvision's")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="also compile whole networks, which takes minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepared = preparation() if options.device == "cpu" and path_on("cpu") == "fused" else {}
    rows = [row for name in options.models.split(",") for row in measured(name, options)]
    if options.json:
        print(json.dumps({"preparation": prepared, "rows": [asdict(row) for row in rows]}))
        return
    for what, seconds in prepared.items():
        print(f"kernels, {what}: {seconds:.1f} s")
    for row in rows:
        ratio = f"{row.ratio:5.2f} [{row.low:.2f}, {row.high:.2f}]"
        cost = f"{row.seconds * 1e3:8.1f} ms {ratio} {row.kept / 2**20:8.0f} MiB"
        print(f"{row.model:20s} {row.implementation:24s} {cost}")


def preparation() -> dict[str, float]:
    """Seconds until the kernels are there, the first time and from the cache, each in a process that has torch."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        command, root = [sys.executable, "-c", PREPARE], Path(__file__).resolve().parents[2]
        first, cached = (float(subprocess.check_output(command, env=environment, cwd=root)) for _ in range(2))
    return {"first time": first, "cached": cached}


def measured(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one network."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (options.batch,), device=device)
    contenders = contenders_on(name, images, compiled=options.compile)
    for contender in contenders.values():
        for _ in range(_WARM_UP):
            contender.step(images, labels)
    kept = {key: kept_bytes(contender, images, labels) for key, contender in contenders.items()}
    works = {key: partial(contender.step, images, labels) for key, contender in contenders.items()}
    times = interleaved(works, options.rounds)
    for key, seconds in times.items():
        base = times["float compiled" if key.endswith("compiled") else "float"]
        over_float = ratio(seconds, base)
        yield Row(key, name, median(seconds), over_float.median, over_float.low, over_float.high, kept[key])
    del contenders
    gc.collect()


def contenders_on(name: str, images: Tensor, *, compiled: bool) -> dict[str, Contender]:
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
    made = {"float": Contender(_trained(network, images))}
    made["ours"] = Contender(_trained(ours, images))
    made["ours plain"] = Contender(_trained(ours, images), plain_path)
    for peer, build in peers(signed):
        made[peer] = Contender(_trained(build(deepcopy(network)), images))
    if compiled:
        for key in ("float", "ours"):
            model = deepcopy(made[key].model)
            made[f"{key} compiled"] = Contender(model, compiled=torch.compile(model))
    return made


def _trained(model: nn.Module, images: Tensor) -> nn.Module:
    return deepcopy(model).to(images.device).to(memory_format=torch.channels_last).train()


def kept_bytes(contender: Contender, images: Tensor, labels: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass keeps beside parameters; on a GPU, peak memory of a step."""
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        contender.step(images, labels)
        return torch.cuda.max_memory_allocated()
    own = {parameter.untyped_storage().data_ptr() for parameter in contender.model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), contender.context():
        loss = contender.model(images).sum()
    total = sum(found.values())
    del loss
    return total


if __name__ == "__main__":
    main()
