"""Batch-norm recalibration and evaluation: alike for every network, float or quantized, and never charged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.data import EVALUATION_BATCH, Split
from benchmarks.data.loading import Request, fetched

RECALIBRATION_IMAGES = 4096
TOP5_CLASSES = 100
"""With fewer classes, top-5 accuracy says little."""


class Score(NamedTuple):
    """Top-1 accuracy in 0..1 and mean cross-entropy over `images` images; top5 is None below TOP5_CLASSES classes."""

    accuracy: float
    loss: float
    images: int
    top5: float | None = None


@torch.no_grad()
def recalibrate_bn(model: nn.Module, train: Split, device: torch.device, loaders: int = 0) -> int:
    """Set batch-norm statistics to their cumulative average over the first un-augmented images of train.

    These are min(train, 4096), cut to whole batches of 200 where there are more than that. Only batch norm runs in
    train mode; dropout stays off. Returns the number of images.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    was_training = model.training
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    count = min(len(train), RECALIBRATION_IMAGES)
    if count > EVALUATION_BATCH:
        count -= count % EVALUATION_BATCH  # every batch weighs the same in the average, so all have one size
    for images, _ in fetched(train, _in_order(count), loaders=loaders, device=device):
        model(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.train(was_training)
    return count


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, device: torch.device, loaders: int = 0) -> Score:
    """Accuracy and loss in eval mode, un-augmented."""
    was_training = model.training
    model.eval()
    correct, among_five, loss = 0, 0, 0.0
    for images, labels in fetched(split, _in_order(len(split)), loaders=loaders, device=device):
        logits = model(images).float()
        correct += int((logits.argmax(1) == labels).sum())
        if logits.shape[1] >= TOP5_CLASSES:
            among_five += int((logits.topk(5).indices == labels[:, None]).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    model.train(was_training)
    top5 = among_five / len(split) if logits.shape[1] >= TOP5_CLASSES else None
    return Score(correct / len(split), loss / len(split), len(split), top5)


def _in_order(count: int) -> Iterator[Request]:
    """The first `count` images, un-augmented, batch by batch."""
    for start in range(0, count, EVALUATION_BATCH):
        yield Request(np.arange(start, min(start + EVALUATION_BATCH, count)), None)
