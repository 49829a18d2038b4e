"""RandAugment (Cubuk et al., NeurIPS 2020) as torchvision has it, decided by an image's own draws."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import RandAugment

_DRAW = 5
"""Index of the draw that decides; the draws before it decide crop and flip."""


def randaugmented(pixels: Tensor, draws: NDArray[np.float64]) -> Tensor:
    """Two operations at magnitude 9 of 31 on (3, height, width) bytes.

    torchvision draws from torch's generator of the CPU, which is seeded by the image's draw and put back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draws[_DRAW] * 2**53))  # torch.manual_seed would seed every GPU too
        augmented: Tensor = RandAugment()(pixels)
    return augmented
