"""Dropout masks from random bytes."""

import math
from collections.abc import Sequence

import numpy as np
import torch

_LEVELS = 2**16  # values of two random bytes


def dropout_mask(shape: Sequence[int], p: float) -> torch.Tensor:
    """Return a float32 mask on the CPU: 0 with probability p, else 1 / (1 - p), which keeps the mean.

    An element takes one random bit, or two bytes where p is not 0.5. torch draws 64 bits for each element from a sequential
    generator, which takes a third of a training step.

    Args:
        shape: of the mask.
        p: probability to drop, in 0 to 1, exclusive of 1; rounded to 1 / 65,536.
    """
    size = math.prod(shape)
    source = np.random.SFC64(int(torch.randint(2**62, ())))  # seeded by torch's generator, so that one seed is enough
    if p == 0.5:
        kept = np.unpackbits(source.random_raw(-(-size // 64)).view(np.uint8), count=size)
        scale = 2.0
    else:
        below = min(round(p * _LEVELS), _LEVELS - 1)
        kept = (source.random_raw(-(-size // 4)).view(np.uint16)[:size] >= below).view(np.uint8)
        scale = _LEVELS / (_LEVELS - below)
    return torch.from_numpy(kept).view(*shape) * scale
