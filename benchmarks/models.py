"""Networks: torchvision's MobileNetV2, MobileNetV3 and ResNet-18, at any width, as published or for small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision import models as zoo
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks.messages import SuiteError
from benchmarks.plugins import MODELS, load_plugin
from benchmarks.spec import DataSpec, ModelSpec
from methods.quantization.convert import ledger_of, replace_activations
from methods.quantization.cost import Ledger

CHANNELS = 3


def build_model(spec: ModelSpec, data: DataSpec) -> nn.Module:
    """A float network with fresh weights from torch's global generator; no in-place activations.

    Weights are channels-last, and so is what convolutions put out: depthwise steps take half the time on CPUs.
    """
    build = _BUILDERS.get(spec.name) or load_plugin(MODELS, spec.name)
    model = replace_activations(build(spec, data.classes))
    return model.to(memory_format=torch.channels_last)


def published_weights(spec: ModelSpec, data: DataSpec) -> dict[str, torch.Tensor]:
    """The state dict of a torchvision weights enum. Raises SuiteError if it is unknown, absent or does not fit."""
    assert spec.weights is not None
    if spec.name not in _BUILDERS:
        raise SuiteError(f"{spec.name} has no published weights here; train from scratch with --set weights=none")
    enum = zoo.get_model_weights(spec.name)
    if spec.weights not in enum.__members__:
        raise SuiteError(f"{spec.name} has no weights {spec.weights!r}; known: {', '.join(enum.__members__)}")
    if spec.width != 1.0 or spec.form != "imagenet" or data.classes != 1000:
        raise SuiteError(
            f"{spec.weights} fits {spec.name} at width 1 with 1000 classes, not width {spec.width:g} with "
            f"{data.classes} classes; train from scratch with --set weights=none"
        )
    weights = enum[spec.weights]
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        folder = torch.hub.get_dir()
        raise SuiteError(
            f"cannot fetch {spec.name} {spec.weights} ({error}); download {weights.url} to {folder}/checkpoints, "
            "or train from scratch with --set weights=none"
        ) from error
    return state


def measure_ledger(spec: ModelSpec, data: DataSpec) -> Ledger:
    """The network's layers with MACs for one image of the dataset's size."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(spec, data)
    return ledger_of(model, (CHANNELS, data.image_size, data.image_size))


def _mobilenet(spec: ModelSpec, classes: int) -> nn.Module:
    build = getattr(zoo, spec.name)
    model: Any = build(weights=None, width_mult=spec.width, num_classes=classes)
    if spec.form == "small":
        model.features[0][0].stride = (1, 1)
    network: nn.Module = model
    return network


class NarrowResNet18(ResNet):
    """ResNet-18 with first width `base` instead of 64; torchvision's BasicBlock refuses any other way."""

    def __init__(self, base: int, classes: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=classes)
        self.inplanes = base
        self.conv1 = nn.Conv2d(CHANNELS, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.layer1 = self._make_layer(BasicBlock, base, 2)
        self.layer2 = self._make_layer(BasicBlock, 2 * base, 2, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 4 * base, 2, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 8 * base, 2, stride=2)
        self.fc = nn.Linear(8 * base, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _resnet18(spec: ModelSpec, classes: int) -> nn.Module:
    base = round(64 * spec.width)
    model: ResNet = zoo.resnet18(num_classes=classes) if base == 64 else NarrowResNet18(base, classes)
    if spec.form == "small":
        model.conv1 = nn.Conv2d(CHANNELS, base, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    network: nn.Module = model
    return network


_BUILDERS = {
    "mobilenet_v2": _mobilenet,
    "mobilenet_v3_small": _mobilenet,
    "mobilenet_v3_large": _mobilenet,
    "resnet18": _resnet18,
}
