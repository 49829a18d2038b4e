"""What a trial gives a method: the network, made quantizable, and the two budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.data import Dataset
from benchmarks.data.stream import stream_seed
from benchmarks.ledgers import ledger_for
from benchmarks.models import build_model
from benchmarks.planning import candidates_of
from benchmarks.ranks import ALONE, Ranks
from benchmarks.suites.spec import TrialSpec
from benchmarks.trials.compute import Account
from benchmarks.trials.harness import Harness
from benchmarks.trials.problem import Problem
from benchmarks.trials.training import WeightTraining
from methods.quantization.convert import QuantizerOptions, convert
from methods.quantization.cost import Ledger, uniform_bits, with_pins
from methods.quantization.modules import initialise_activation_steps, initialise_weight_steps, quantization_off
from methods.quantization.policy import Candidates


@dataclass(frozen=True)
class Setting:
    """A trial's data and networks, loaded. start: state of the float network; teacher: None without distillation.

    loaders: processes that load images ahead. ranks: the processes that train the trial together.
    """

    spec: TrialSpec
    data: Dataset
    start: dict[str, torch.Tensor]
    device: torch.device
    teacher: nn.Module | None = None
    loaders: int = 0
    ranks: Ranks = ALONE

    @property
    def ledger(self) -> Ledger:
        return ledger_for(self.spec.model, self.spec.data)

    @property
    def epoch_steps(self) -> int:
        """Steps in one recipe epoch."""
        return len(self.data.train) // self.spec.recipe.batch_size

    def harness(self, candidates: Candidates, seed: int) -> Harness:
        """A fresh quantizable network from the float start, steps initialised, and the harness around it."""
        spec = self.spec
        with torch.random.fork_rng(devices=[]):
            model = build_model(spec.model, spec.data).to(self.device)
        model.load_state_dict(self.start)
        convert(model, self.ledger, candidates, quantizer_options(spec))
        model.to(self.device)
        harness = Harness(
            model=model,
            recipe=spec.recipe,
            seed=seed,
            train=self.data.train,
            device=self.device,
            teacher=self.teacher,
            augments=spec.data.augment != "none",
            loaders=self.loaders,
            ranks=self.ranks,
        )
        initialise_weight_steps(model)
        torch.manual_seed(stream_seed(spec.seed, "calibration/dropout"))
        first = harness.batches(WeightTraining.PHASE, "finetune").next()
        initialise_activation_steps(model, [micro.images for micro in first])
        return harness

    def problem(self, seed: int) -> Problem:
        """What the method is given: a fresh network with all the bits of the space, and its account."""
        candidates = candidates_of(self.spec.space, self.ledger)
        harness = self.harness(candidates, seed)
        account, ceiling = self.account(harness), self.spec.ceiling_bops or 0
        return Problem.of(harness, ledger=self.ledger, candidates=candidates, ceiling=ceiling, account=account)

    def account(self, harness: Harness) -> Account:
        """E recipe epochs at the measured price of one fine-tuning step of the quantized network."""
        spec, compute = self.spec, self.spec.compute
        lowest = uniform_bits(self.ledger, spec.space.weights[0], spec.space.activations[0])
        training = WeightTraining(harness, with_pins(self.ledger, lowest), total=1)
        per_image = harness.price_of(training, WeightTraining.PHASE).macs
        quantization_off(harness.model)
        images = self.epoch_steps * spec.recipe.batch_size
        granted = round(compute.epochs * images) * per_image
        return Account(granted, images * per_image, compute.search_share, free_search=compute.free_search)


def quantizer_options(spec: TrialSpec) -> QuantizerOptions:
    quantizer = spec.quantizer
    return QuantizerOptions(
        gradient_scale=quantizer.gradient_scale,
        narrow=quantizer.signed == "narrow",
        pad_with_zero=quantizer.padding == "zero",
        parameterisation=quantizer.parameterisation,
        sigmoid=quantizer.sigmoid,
        integer_offset=quantizer.offset == "integer",
    )
