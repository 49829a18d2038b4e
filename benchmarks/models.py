"""Networks: torchvision's MobileNetV2, MobileNetV3 and ResNet-18, at any width, as published or for small images."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torchvision import models as zoo
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks.messages import SuiteError
from benchmarks.suites.plugins import MODELS, load_plugin
from benchmarks.suites.spec import DataSpec, ModelSpec
from benchmarks.suites.suite import require_fit
from methods.quantization.convert import (
    QuantizerOptions,
    convert,
    float_work_of,
    ledger_of,
    replace_activations,
)
from methods.quantization.cost import PINNED_BITS, Ledger
from methods.quantization.graph import NetworkError, one_line, training_flags_kept
from methods.quantization.modules import apply_policy, initialise_activation_steps, initialise_weight_steps

CHANNELS = 3

_IMAGES_DIM = 4


def build_model(spec: ModelSpec, data: DataSpec) -> nn.Module:
    """A float network with fresh weights from torch's global generator; no in-place activations.

    Weights are channels-last, and so is what convolutions put out: depthwise steps take half the time on CPUs.
    """
    return replace_activations(_build(spec, data))


def _build(spec: ModelSpec, data: DataSpec) -> nn.Module:
    own = _BUILDERS.get(spec.name)
    model = own(spec, data.classes) if own else _built_by_plugin(spec, data)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise SuiteError(f"{spec.name}: {name} has no shape before the first forward; give its layer its sizes")
    # Not model.to(memory_format=...), which refuses networks with weights of five dimensions.
    model._apply(lambda t: t.to(memory_format=torch.channels_last) if t.dim() == _IMAGES_DIM else t)
    return model


def _built_by_plugin(spec: ModelSpec, data: DataSpec) -> nn.Module:
    build = load_plugin(MODELS, spec.name)
    try:
        model = build(spec, data.classes)
    except (OSError, MemoryError, SuiteError):
        raise
    except Exception as error:  # whatever a plug-in's own code raises
        raise NetworkError(f"it cannot be built: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise NetworkError(f"its plug-in builds a {type(model).__name__}, not a torch.nn.Module")
    return model


def published_weights(spec: ModelSpec, data: DataSpec, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """The state dict of a torchvision weights enum, from a folder of its files or, with None, from torch's own cache.

    Weights missing in the cache are downloaded. Raises SuiteError if they are unknown, absent, damaged or do not fit.
    """
    require_weights(spec, data)
    file = weights_file(spec, folder)
    url = zoo.get_model_weights(spec.name)[spec.weights].url
    if not file.exists():
        if folder is not None:
            raise SuiteError(f"no {file.name} in {folder}; download {url} to it, or leave out --weights")
        _download(url, file, f"{spec.name} {spec.weights}")
    if not sha256_of(file).startswith(file.stem.rpartition("-")[2]):
        raise SuiteError(f"{file} is damaged: its SHA-256 is not the one in its name; delete it and fetch {url} again")
    try:
        state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise SuiteError(f"{file} holds more than weights and is not opened; fetch {url} again") from error
    return state


def require_weights(spec: ModelSpec, data: DataSpec) -> None:
    """Raises SuiteError unless torchvision has such weights, for this width and this number of classes."""
    assert spec.weights is not None
    known = zoo.get_model_weights(spec.name).__members__ if spec.name in _BUILDERS else {}
    if known and spec.weights not in known:
        raise SuiteError(f"{spec.name} has no weights {spec.weights!r}; known: {', '.join(known)}")
    require_fit(spec, data)


def weights_file(spec: ModelSpec, folder: Path | None) -> Path:
    """Where a torchvision weights enum is, or has to be: named as torchvision names it, with its digest's beginning."""
    assert spec.weights is not None
    url: str = zoo.get_model_weights(spec.name)[spec.weights].url
    return (folder or Path(torch.hub.get_dir(), "checkpoints")) / url.rpartition("/")[2]


def _download(url: str, file: Path, what: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), file.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: the download has another digest
        raise SuiteError(
            f"cannot fetch {what} ({error}); download {url} elsewhere and name its folder with --weights, or train "
            "from scratch with --set weights=none"
        ) from error


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def measure_ledger(spec: ModelSpec, data: DataSpec) -> Ledger:
    """The network's layers with MACs for one image of the dataset's size.

    Raises SuiteError, in one line, where it cannot be counted or quantized as it is.
    """
    with torch.random.fork_rng(devices=[]), _named(spec), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # inspect_network reports them
        return ledger_of(build_model(spec, data), _image_shape(data), spec.stays_float)


def inspect_network(spec: ModelSpec, data: DataSpec) -> tuple[str, ...]:
    """Warnings about a network without a committed ledger, found by running it once as trials will.

    Raises SuiteError, in one line, where that fails.
    """
    with torch.random.fork_rng(devices=[]), _named(spec), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        original = _build(spec, data)
        model = replace_activations(deepcopy(original))
        images = torch.randn(_TRIED_IMAGES, *_image_shape(data)).to(memory_format=torch.channels_last)
        ledger = ledger_of(model, _image_shape(data), spec.stays_float)
        work = float_work_of(model, _image_shape(data))
        failure = _training_failure(deepcopy(original), images)
        _require_same_function(original, model, images)
        if failure is None:
            _try(model, ledger, images, data.classes)
    whole = sum(layer.macs for layer in ledger) + sum(each.macs for each in work)
    said = [str(warning.message) for warning in caught if warning.category is UserWarning]
    said += [f"{each} per image stay float and are in no BOPs, {each.macs / whole:.1%} of all" for each in work]
    said += [] if failure is None else [f"it does not train as a float network, so its trials will fail: {failure}"]
    return tuple(f"{spec.name}: {each}" for each in dict.fromkeys(said))


_TRIED_IMAGES = 2  # batch norm over one image of one pixel has no variance


@contextmanager
def _named(spec: ModelSpec) -> Iterator[None]:
    try:
        yield
    except NetworkError as error:
        raise SuiteError(f"{spec.name}: {error}") from error


def _image_shape(data: DataSpec) -> tuple[int, int, int]:
    return CHANNELS, data.image_size, data.image_size


def _training_failure(original: nn.Module, images: torch.Tensor) -> str | None:
    """The error that the float network raises in a training step, if any.

    Then its trials fail; the suite is not refused, as its other networks can still run.
    """
    try:
        original.train()(images.clone()).sum().backward()
    except Exception as error:  # noqa: BLE001 (whatever a network's own code raises)
        return one_line(error)
    return None


@torch.no_grad()
def _require_same_function(original: nn.Module, model: nn.Module, images: torch.Tensor) -> None:
    """Raises NetworkError unless a network computes the same with our activations as with its own."""
    try:
        with training_flags_kept(model):
            expected, found = original.eval()(images.clone()), model.eval()(images.clone())
    except Exception as error:  # whatever a network's own code raises
        raise NetworkError(
            f"it runs on one image and not on a batch of shape {tuple(images.shape)}: {one_line(error)}"
        ) from error
    # The last bits of activations differ, and layers amplify that; another function differs in the first digit.
    if expected.shape != found.shape or not torch.allclose(
        expected, found, rtol=1e-3, atol=1e-3 * float(expected.abs().max()), equal_nan=True
    ):
        raise NetworkError(
            "it computes something else once its activations do not work in place: use what they return, as in "
            "x = self.relu(x)"
        )


def _try(model: nn.Module, ledger: Ledger, images: torch.Tensor, classes: int) -> None:
    """One step and one forward of the quantized network. Raises NetworkError where they fail."""
    candidates = {layer.name: [PINNED_BITS] for layer in ledger if not layer.pinned}
    try:
        convert(model, ledger, candidates, QuantizerOptions())
        initialise_weight_steps(model)
        initialise_activation_steps(model, [images])
        apply_policy(model, {layer.name: PINNED_BITS for layer in ledger})
        logits = model.train()(images)
        if logits.shape != (len(images), classes):
            raise NetworkError(f"it puts out a tensor of shape {tuple(logits.shape)}, not {(len(images), classes)}")
        logits.sum().backward()
        model.eval()(images)
    except NetworkError:
        raise
    except Exception as error:  # whatever a network's own code raises
        raise NetworkError(f"it does not run once it is quantized: {one_line(error)}") from error


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
    if (base := round(64 * spec.width)) < 1:
        raise SuiteError(f"resnet18 at width {spec.width:g} has no channels; its first width is 64 times that")
    model: ResNet = zoo.resnet18(num_classes=classes) if base == 64 else NarrowResNet18(base, classes)
    if spec.form == "small":
        model.conv1 = nn.Conv2d(CHANNELS, base, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    network: nn.Module = model
    return network


def _resnet101(spec: ModelSpec, classes: int) -> nn.Module:
    """A teacher: at its own width, for images of ImageNet's size."""
    network: nn.Module = zoo.resnet101(num_classes=classes)
    return network


_BUILDERS = {
    "mobilenet_v2": _mobilenet,
    "mobilenet_v3_small": _mobilenet,
    "mobilenet_v3_large": _mobilenet,
    "resnet18": _resnet18,
    "resnet101": _resnet101,
}
