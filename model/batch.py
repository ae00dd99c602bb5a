"""Batches: which texts go together in which step, and their padded tensors.

The order of the data is a function of (seed, epoch) alone. A global batch decides the result; the share of one worker is
every size-th text of it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.dataset import Split
from model.tags import IGNORED, O
from model.tokenizer import PAD

Rows = npt.NDArray[np.int64]
_POOL = 50  # batches whose texts are sorted by length together: padding stays low, the order stays random


class Batch(NamedTuple):
    """Some texts, padded at their ends to the longest.

    Attributes:
        ids: (batch, time) vocabulary ids, PAD in the padding.
        lengths: (batch,) tokens of each text.
        keyword: (batch, time) 1 inside a keyphrase, 0 outside, IGNORED in the padding.
        keyphrase: (batch, time) BIOES tags, IGNORED in the padding.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    keyword: torch.Tensor
    keyphrase: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate(split: Split, rows: Rows) -> Batch:
    """The padded tensors of some rows of a split."""
    lengths = split.begins[rows + 1] - split.begins[rows]
    steps = np.arange(lengths.max())
    real = steps < lengths[:, None]
    places = np.where(real, split.begins[rows][:, None] + steps, 0)
    ids = np.where(real, split.ids[places], PAD).astype(np.int64)
    tags = np.where(real, split.tags[places], IGNORED).astype(np.int64)
    keyword = np.where(real, tags != O, IGNORED)
    return Batch(torch.from_numpy(ids), torch.from_numpy(lengths), torch.from_numpy(keyword), torch.from_numpy(tags))


def count_batches(rows: int, batch: int) -> int:
    """How many global batches an epoch has."""
    return -(-rows // batch)


def smallest_batch(rows: int, batch: int) -> int:
    """The texts of the smallest global batch: more workers than this would leave one without work."""
    return rows // count_batches(rows, batch)


def epoch_batches(lengths: npt.NDArray[np.int64], batch: int, seed: int, epoch: int) -> list[Rows]:
    """The global batches of an epoch, each the row numbers of texts of similar length.

    Every row comes once. The batches differ by at most one in size and are at most `batch` long.

    Args:
        lengths: (rows,) tokens of each text.
        batch: texts of a global batch.
        seed, epoch: what the order depends on.
    """
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    count = count_batches(len(lengths), batch)
    bounds = np.arange(count + 1) * len(lengths) // count
    for first in range(0, count, _POOL):
        pool = slice(bounds[first], bounds[min(first + _POOL, count)])
        order[pool] = order[pool][np.argsort(lengths[order[pool]], kind="stable")]
    batches = np.split(order, bounds[1:-1])
    return [batches[i] for i in draw.permutation(count)]


def ordered_batches(lengths: npt.NDArray[np.int64], batch: int) -> list[Rows]:
    """All rows in batches of similar length, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch] for i in range(0, len(order), batch)]
