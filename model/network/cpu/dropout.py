"""Dropout masks from random bytes."""

import math
from collections.abc import Sequence

import numpy as np
import torch

_LEVELS = 2**16  # of two random bytes


def dropout_mask(shape: Sequence[int], share: float) -> torch.Tensor:
    """0 for a share of the places, and in the others what keeps the mean: drawn at random, on the CPU.

    A place takes one random bit, or two bytes where the share is not one half. torch takes a number of 64 bits for each, from a
    generator that makes one after the other: a third of a training step.
    """
    size = math.prod(shape)
    source = np.random.SFC64(int(torch.randint(2**62, ())))  # torch's generator decides, so that one seed is enough
    if share == 0.5:
        kept = np.unpackbits(source.random_raw(-(-size // 64)).view(np.uint8), count=size)
        scale = 2.0
    else:
        below = min(round(share * _LEVELS), _LEVELS - 1)
        kept = (source.random_raw(-(-size // 4)).view(np.uint16)[:size] >= below).view(np.uint8)
        scale = _LEVELS / (_LEVELS - below)
    return torch.from_numpy(kept).view(*shape) * scale
