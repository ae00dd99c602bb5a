"""Batches: which texts go together in which step, and their padded tensors.

The order of the data is a function of (seed, epoch) alone. A global batch decides the result; the share of one worker is
every size-th text of it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from model.data.dataset import Split
from model.data.labels import IGNORED, O
from model.data.tokenizer import PAD

RowIds = npt.NDArray[np.int64]
Item = TypeVar("Item")
Made = TypeVar("Made")
_TOKENS_AT_ONCE = 2**15  # in a batch without gradients, padding counted
_POOL = 50  # batches whose texts are sorted by length together: padding stays low, the order stays random


class Batch(NamedTuple):
    """Some texts, padded at their ends to the longest.

    Attributes:
        ids: (batch, time) vocabulary ids, PAD in the padding.
        lengths: (batch,) tokens of each text.
        keyword: (batch, time) 1 inside a keyphrase, 0 outside, IGNORED in the padding.
        keyphrase: (batch, time) BIOES tags, IGNORED in the padding.
        views: (batch, time, VIEWS) how each word is written, 0 in the padding; None where the split does not have it.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    keyword: torch.Tensor
    keyphrase: torch.Tensor
    views: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        ids, lengths, keyword, keyphrase = (each.to(device, non_blocking=True) for each in self[:4])
        views = None if self.views is None else self.views.to(device, non_blocking=True)
        return Batch(ids, lengths, keyword, keyphrase, views)


def collate(split: Split, rows: RowIds) -> Batch:
    """The padded tensors of some rows of a split."""
    begins, lengths = split.begins[rows], split.begins[rows + 1] - split.begins[rows]
    ids, tags = (padded(values, begins, lengths, fill) for values, fill in ((split.ids, PAD), (split.tags, IGNORED)))
    keyword = torch.where(tags == IGNORED, IGNORED, (tags != O).long())
    views = None if split.views is None else padded(split.views, begins, lengths, PAD)
    return Batch(ids, torch.from_numpy(lengths), keyword, tags, views)


def padded(values: npt.NDArray[Any], begins: RowIds, lengths: RowIds, fill: int) -> torch.Tensor:
    """Runs of an array (values, ...) as the rows of (runs, longest, ...), each filled up at its end."""
    steps = np.arange(lengths.max())
    real = steps < lengths[:, None]
    places = np.where(real, begins[:, None] + steps, 0)
    real = real.reshape(*real.shape, *[1] * (values.ndim - 1))
    return torch.from_numpy(np.where(real, values[places], fill).astype(np.int64))


def prefetch(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `make` gives of each item, made in a thread while the caller works on the one before it."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = None
        for item in items:
            made, coming = coming, thread.submit(make, item)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()


def count_batches(rows: int, batch: int) -> int:
    """How many global batches an epoch has."""
    return -(-rows // batch)


def min_batch_size(rows: int, batch: int) -> int:
    """The texts of the smallest global batch: more workers than this would leave one without work."""
    return rows // count_batches(rows, batch)


def epoch_batches(
    lengths: npt.NDArray[np.int64], batch: int, seed: int, epoch: int, bucket_by_length: bool = True
) -> list[RowIds]:
    """The global batches of an epoch, each the row numbers of texts of similar length.

    Every row comes once. The batches differ by at most one in size and are at most `batch` long.

    Args:
        lengths: (rows,) tokens of each text.
        batch: texts of a global batch.
        seed, epoch: what the order depends on.
        bucket_by_length: false for texts of any length in a batch, which makes for more padding.
    """
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    count = count_batches(len(lengths), batch)
    bounds = np.arange(count + 1) * len(lengths) // count
    for first in range(0, count, _POOL) if bucket_by_length else ():
        pool = slice(bounds[first], bounds[min(first + _POOL, count)])
        order[pool] = order[pool][np.argsort(lengths[order[pool]], kind="stable")]
    batches = np.split(order, bounds[1:-1])
    return [batches[i] for i in draw.permutation(count)]


def length_sorted_batches(lengths: npt.NDArray[np.int64], batch: int) -> list[RowIds]:
    """All rows in batches of similar length, for evaluation: at most `batch` texts, and fewer of very long ones."""
    order = np.argsort(lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        some = order[begin : begin + batch]
        fit = _TOKENS_AT_ONCE // np.maximum(lengths[some], 1) > np.arange(
            len(some)
        )  # true up to a place, false beyond it
        batches.append(some[: max(1, int(fit.sum()))])
        begin += len(batches[-1])
    return batches
