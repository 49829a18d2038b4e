"""A network and a dataset of one's own."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks.data import Dataset, permutation


def three_layers(spec, classes):
    """Two convolutions and a classifier; `spec.width` scales the channels. Traceable by torch.fx."""
    width = max(2, round(8 * spec.width))
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


@dataclass(frozen=True)
class Images:
    """One split in memory. Augmentation: brightness, by the first of an image's draws."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def load(self, indices, draws):
        chosen = torch.from_numpy(indices)
        shift = 0.0 if draws is None else torch.from_numpy(draws[:, :1, None, None] - 0.5).float()
        return self.images[chosen] + shift, self.labels[chosen]


def stripes(spec, folder):
    """Stripes whose distance is the class, under noise; a dataset with files would read `folder`."""
    count, generator = 240, np.random.Generator(np.random.PCG64(0))
    labels = np.arange(count) % spec.classes
    places = np.arange(spec.image_size)
    images = ((places[None, :] % (labels[:, None] + 2)) == 0)[:, None, None, :].astype(np.float32)
    images = np.broadcast_to(images, (count, 3, spec.image_size, spec.image_size))
    images = images + generator.integers(-64, 65, images.shape).astype(np.float32) / 64
    order = permutation(0, count=count)
    parts = [(order[:160], "train"), (order[160:200], "validation"), (order[200:], "test")]
    splits = {name: Images(torch.from_numpy(images[part]), torch.from_numpy(labels[part])) for part, name in parts}
    return Dataset(**splits, digest=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())
