"""What searching costs over training: `python -m benchmarks.perf.search`.

Ratios per network, measured side by side in one process, 4-bit weights, activations of 3, 4 or 8 bits:
- a MetaMix selection step over (|B| + 1) quantized training steps, |B| the number of widths;
- a forward through mixtures of all widths, weights and inputs, over one through a single width;
- Hessian products for all weights' traces and for all inputs' over a float training step, and both over probing block
  by block (`--separate`: as many products as there are weights and inputs, which takes minutes).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.perf.rounds import Ratio, interleaved, ratio
from benchmarks.perf.step import MODELS, PRECISIONS, Contender, autocast, batch_of, warm_up
from benchmarks.planning import candidates_of
from benchmarks.suites.spec import OptimizerSpec, Recipe, Space
from benchmarks.trials.compute import Account
from benchmarks.trials.problem import Problem
from methods.contract import MicroBatch
from methods.metamix import SELECTION, MetaMix
from methods.quantization.convert import QuantizerOptions, convert, ledger_of, replace_activations
from methods.quantization.cost import bops, uniform_bits, with_pins
from methods.quantization.modules import (
    apply_policy,
    initialise_activation_steps,
    initialise_weight_steps,
    quant_layers,
    quantizers,
)
from methods.quantization.policy import LayerBits
from methods.sensitivity import hessian_samples

WIDTHS = (3, 4, 8)
_SPACE, _JOINT = Space(weights=(4,), activations=WIDTHS), Space(weights=WIDTHS, activations=WIDTHS)


@dataclass(frozen=True)
class Row:
    """What was set against what, on one network. ratio, low, high: median and quartiles over rounds."""

    work: str
    base: str
    model: str
    precision: str
    seconds: float
    ratio: float
    low: float
    high: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas, names of torchvision's")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of autocast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--separate", action="store_true", help="also probe block by block, once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for name in options.models.split(",") for row in measured(name, options)]
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        of_base = Ratio(row.ratio, row.low, row.high)
        print(f"{row.model:20s} {row.work:28s} {row.seconds * 1e3:8.1f} ms {of_base} of {row.base}")


def measured(name: str, options: argparse.Namespace) -> Iterator[Row]:
    device = torch.device(options.device)
    batch = MicroBatch(*batch_of(options.batch, options.image_size, device))
    network = getattr(torchvision.models, name)(num_classes=1000)
    cast = partial(autocast, device, options.precision)
    works = {work: _as_trained(run, cast, device) for work, run in works_on(network, batch).items()}
    once = {work: works.pop(work) for work in (_OF_BOTH, _SEPARATE)}
    for run in works.values():
        warm_up(run)
    seconds = interleaved(works, options.rounds)

    def row(work: str, base: str, times: float, label: str) -> Row:
        of_base = ratio(seconds[work], seconds[base], times)
        return Row(work, label, name, options.precision, median(seconds[work]), *of_base)

    branches = len(WIDTHS) + 1
    yield row("quantized step", "float step", 1, "a float step")
    yield row("MetaMix selection step", "quantized step", branches, f"{branches} quantized steps")
    yield row("mixture forward", "forward at one width", 1, "a forward at one width")
    yield row(_OF_WEIGHTS, "float step", 1, "a float step")
    yield row(_OF_INPUTS, "float step", 1, "a float step")
    if options.separate:
        seconds |= interleaved(once, 1, 1)
        yield row(_OF_BOTH, _SEPARATE, 1, "probing block by block")


_OF_WEIGHTS, _OF_INPUTS, _OF_BOTH = (f"Hessian traces of {what}" for what in ("weights", "inputs", "both"))
_SEPARATE = "Hessian traces, block by block"


def _as_trained(
    run: Callable[[], Any], cast: Callable[[], AbstractContextManager[Any]], device: torch.device
) -> Callable[[], None]:
    def work() -> None:
        with cast():
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return work


def works_on(network: nn.Module, batch: MicroBatch) -> dict[str, Callable[[], Any]]:
    """Name -> what is to be timed, each on a copy of `network` of its own."""
    own = deepcopy(network).to(batch.images.device).to(memory_format=torch.channels_last).train()
    float_step = partial(Contender(own).step, batch.images, batch.labels)
    fixed, single, mixed = (problem_on(network, batch, space) for space in (_SPACE, _JOINT, _JOINT))
    _select_four_bits(fixed)
    _select_four_bits(single)
    for quantizer in quantizers(mixed.model):
        quantizer.mix(torch.full((len(quantizer.widths),), 1.0 / len(quantizer.widths), device=batch.images.device))
    searching = problem_on(network, batch, _SPACE)
    metamix = searching.build(MetaMix, {})
    probed = problem_on(network, batch, _SPACE)
    probed.model.eval()  # as HAWQ's phase has it
    layers = {layer: quant_layers(probed.model)[layer] for layer in probed.candidates}
    weights, probe = {layer: module.weight for layer, module in layers.items()}, torch.Generator().manual_seed(0)
    readers: dict[str, list[nn.Module]] = {}
    for row in probed.ledger:
        if not row.pinned:
            readers.setdefault(row.tie or row.name, []).append(layers[row.name])

    def hessian(
        inputs_of: dict[str, list[nn.Module]], of_weights: dict[str, Tensor], *, separate: bool = False
    ) -> Callable[[], Any]:
        return lambda: hessian_samples(probed.model, inputs_of, batch, of_weights, probe, separate=separate)

    return {
        "float step": float_step,
        "quantized step": partial(Contender(fixed.model).step, batch.images, batch.labels),
        "MetaMix selection step": lambda: metamix.step([batch], SELECTION),
        "forward at one width": lambda: single.model(batch.images),
        "mixture forward": lambda: mixed.model(batch.images),
        _OF_WEIGHTS: hessian({}, weights),
        _OF_INPUTS: hessian(readers, {}),
        _OF_BOTH: hessian(readers, weights),
        _SEPARATE: hessian(readers, weights, separate=True),
    }


def problem_on(network: nn.Module, batch: MicroBatch, space: Space) -> Problem:
    """A copy of `network`, quantizable in `space`, as a method gets it; without training data."""
    model = replace_activations(deepcopy(network))
    ledger = ledger_of(model, tuple(batch.images.shape[1:]))  # type: ignore[arg-type]
    candidates = candidates_of(space, ledger)
    convert(model, ledger, candidates, QuantizerOptions())
    model.to(batch.images.device).to(memory_format=torch.channels_last).train()
    initialise_weight_steps(model)
    initialise_activation_steps(model, [batch.images])
    count = len(batch.labels)
    return Problem(
        model=model,
        ledger=ledger,
        candidates=candidates,
        ceiling=bops(ledger, uniform_bits(ledger, 4, 4)),
        recipe=Recipe(optimizer=OptimizerSpec(name="sgd", lr=1e-6), batch_size=count, micro_batch=count),
        seed=0,
        train=_NoData(),
        device=batch.images.device,
        account=Account(0, 0, 0.0),
    )


class _NoData:
    """A split that must not be read: batches are made here."""

    def __len__(self) -> int:
        return 0

    def load(self, indices: Any, draws: Any) -> tuple[Tensor, Tensor]:
        raise AssertionError("works are timed on one batch")


def _select_four_bits(problem: Problem) -> None:
    bits = with_pins(problem.ledger, uniform_bits(problem.ledger, 4, 4))
    apply_policy(problem.model, {layer: LayerBits(*pair) for layer, pair in bits.items()})


if __name__ == "__main__":
    main()
