"""Batches: which texts form a step, and their padded tensors.

The order of the data is a function of (seed, epoch) alone. The global batch determines the result; of its N workers each
takes every N-th text.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from model.data.dataset import Split
from model.data.labels import IGNORED, O, TeacherTargets
from model.data.subword_batches import EncoderInputs, WordStates, subword_batch, word_keys
from model.data.tokenizer import PAD

RowIds = npt.NDArray[np.int64]
Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_EVALUATION_TOKENS = 2**15  # of a batch without gradients, padding included
_POOL_BATCHES = 50  # batches whose texts are sorted by length together: little padding, yet a random order


class TableRows(NamedTuple):
    """The rows of an embedding table that a training step uses.

    Attributes:
        ids: (U,) distinct, ascending: PAD, and those of the whole global batch.
        indices: (B, T), or (B, T, NUM_FEATURES): for each id of a batch its place in `ids`; 0 in the padding.
    """

    ids: torch.Tensor
    indices: torch.Tensor


class SoftTargets(NamedTuple):
    """The texts of a batch that a teacher labeled, L of B, and the others, which have gold tags.

    Attributes:
        labeled, gold: (L,) and (B - L,) their rows in the batch.
        keyword: (L, T) probability that a token is inside a keyphrase.
        keyphrase: (L, T, 5) probability of each tag.
    """

    labeled: torch.Tensor
    gold: torch.Tensor
    keyword: torch.Tensor
    keyphrase: torch.Tensor


class Batch(NamedTuple):
    """Some texts, padded at the end to the longest.

    Attributes:
        ids: (B, T) vocabulary ids, PAD in the padding.
        lengths: (B,) tokens of each text.
        keyword: (B, T) 1 inside a keyphrase, 0 outside, IGNORED in the padding.
        keyphrase: (B, T) BIOES tags, IGNORED in the padding.
        word_features: (B, T, NUM_FEATURES) rows of the feature table, 0 in the padding; None where the split has none.
        tables: in training by rows, the rows of each embedding table; else empty.
        encoder_inputs: for a tagger with an encoder, what it reads, or its states.
        teacher: what a teacher says of the texts that it labeled; None where the split has none of its labels.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    keyword: torch.Tensor
    keyphrase: torch.Tensor
    word_features: torch.Tensor | None = None
    tables: tuple[TableRows, ...] = ()
    encoder_inputs: EncoderInputs | None = None
    teacher: SoftTargets | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; the copy to a GPU does not wait for what the GPU computes."""
        if device.type == "cpu":
            return self

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        ids, lengths, keyword, keyphrase = map(copy, self[:4])
        features = None if self.word_features is None else copy(self.word_features)
        tables = tuple(TableRows(*map(copy, table)) for table in self.tables)
        inputs = None if self.encoder_inputs is None else type(self.encoder_inputs)(*map(copy, self.encoder_inputs))
        teacher = None if self.teacher is None else SoftTargets(*map(copy, self.teacher))
        return Batch(ids, lengths, keyword, keyphrase, features, tables, inputs, teacher)


def collate(split: Split, rows: RowIds) -> Batch:
    """Return some rows of a split as a batch."""
    begins, lengths = split.begins[rows], split.begins[rows + 1] - split.begins[rows]
    ids, tags = (padded(values, begins, lengths, fill) for values, fill in ((split.ids, PAD), (split.tags, IGNORED)))
    keyword = torch.where(tags == IGNORED, IGNORED, (tags != O).long())
    features = None if split.word_features is None else padded(split.word_features, begins, lengths, PAD)
    inputs = encoder_inputs(split, rows, ids)
    teacher = None if split.teacher is None else _soft_targets(split.teacher, rows, begins, lengths)
    return Batch(ids, torch.from_numpy(lengths), keyword, tags, features, encoder_inputs=inputs, teacher=teacher)


def _soft_targets(teacher: TeacherTargets, rows: RowIds, begins: RowIds, lengths: RowIds) -> SoftTargets:
    """Return the targets of a batch, given the rows, first tokens and lengths of its texts."""
    labeled = np.flatnonzero(teacher.labeled[rows])
    keyword, keyphrase = (
        padded(values, begins, lengths, 0, np.float32)[labeled] for values in (teacher.keyword, teacher.keyphrase)
    )
    gold = np.flatnonzero(~teacher.labeled[rows])
    return SoftTargets(torch.from_numpy(labeled), torch.from_numpy(gold), keyword, keyphrase)


def encoder_inputs(split: Split, rows: RowIds, ids: torch.Tensor) -> EncoderInputs | None:
    """Return what an encoder reads of some rows of a split, or its states where the split has them.

    Args:
        split: with sub-words, or the result is None.
        rows: (B,).
        ids: (B, T) their vocabulary ids, padded.
    """
    if split.subwords is None:
        return None
    begins, lengths = split.begins[rows], split.begins[rows + 1] - split.begins[rows]
    subwords = split.subwords.of_rows(rows, begins, lengths)
    if split.encoder_states is None:
        return subword_batch(subwords, ids, lengths)
    states = padded(split.encoder_states, begins, lengths, 0, np.float32)
    return WordStates(states, word_keys(subwords, ids, lengths))


def padded(
    values: npt.NDArray[np.generic], begins: RowIds, lengths: RowIds, fill: int, dtype: type[np.generic] = np.int64
) -> torch.Tensor:
    """Return slices of an array as one padded tensor.

    Args:
        values: (values, ...).
        begins, lengths: (B,) where each slice begins, and its length.
        fill: the value of the padding.
        dtype: of the tensor.

    Returns:
        (B, T, ...), T being the greatest length.
    """
    steps = np.arange(lengths.max())
    mask = steps < lengths[:, None]
    index = np.where(mask, begins[:, None] + steps, 0)
    mask = mask.reshape(*mask.shape, *[1] * (values.ndim - 1))
    return torch.from_numpy(np.where(mask, values[index], fill).astype(dtype))


def unique_ids(ids: npt.NDArray[np.integer], rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct ids, ascending, PAD always among them, and the index of each id among them.

    The same as np.unique(return_inverse=True) in a fifth of its time, for ids below a number of rows.
    """
    seen = np.zeros(rows, np.bool_)
    seen[ids] = seen[PAD] = True
    distinct = np.flatnonzero(seen)
    number = np.empty(rows, np.int64)
    number[distinct] = np.arange(len(distinct))
    return distinct, number[ids]


def prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the result for each item, computed in a thread while the caller uses the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        pending: Future[Result] | None = None
        for item in items:
            previous, pending = pending, thread.submit(function, item)
            if previous is not None:
                yield previous.result()
        if pending is not None:
            yield pending.result()


def count_batches(rows: int, batch_size: int) -> int:
    """Return the number of global batches in an epoch."""
    return -(-rows // batch_size)


def min_batch_size(rows: int, batch_size: int) -> int:
    """Return the size of the smallest global batch; with more workers than that, one would have nothing to do."""
    return rows // count_batches(rows, batch_size)


def epoch_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, seed: int, epoch: int, bucket_by_length: bool = True
) -> list[RowIds]:
    """Return the global batches of an epoch as row numbers.

    Every row occurs once. The sizes of the batches differ by at most one and are at most `batch_size`.

    Args:
        lengths: (rows,) tokens of each text.
        batch_size: texts of a global batch.
        seed, epoch: determine the order.
        bucket_by_length: whether the texts of a batch are of similar length, which reduces padding.
    """
    bounds = batch_bounds(len(lengths), batch_size)
    return shuffled_batches(lengths, bounds, np.random.default_rng([seed, epoch]), bucket_by_length)


def batch_bounds(rows: int, batch_size: int) -> RowIds:
    """Return (batches + 1,) where each global batch of an epoch begins, and where the last one ends."""
    count = count_batches(rows, batch_size)
    return np.arange(count + 1) * rows // count


def shuffled_batches(
    lengths: npt.NDArray[np.int64], bounds: RowIds, rng: np.random.Generator, bucket_by_length: bool
) -> list[RowIds]:
    """Return all rows in random batches, as row numbers.

    Args:
        lengths: (rows,) tokens of each text.
        bounds: (batches + 1,) the sums of the sizes of the batches, from 0 to `rows`.
        rng: determines the order.
        bucket_by_length: whether the texts of a batch are of similar length.
    """
    order, count = rng.permutation(len(lengths)), len(bounds) - 1
    for first in range(0, count, _POOL_BATCHES) if bucket_by_length else ():
        pool = slice(bounds[first], bounds[min(first + _POOL_BATCHES, count)])
        order[pool] = order[pool][np.argsort(lengths[order[pool]], kind="stable")]
    batches = np.split(order, bounds[1:-1])
    return [batches[i] for i in rng.permutation(count)]


def length_sorted_batches(lengths: npt.NDArray[np.int64], batch_size: int) -> list[RowIds]:
    """Return all rows in batches of similar length, for evaluation.

    Args:
        lengths: (rows,) tokens of each text.
        batch_size: the most texts of a batch; batches of very long texts are smaller.
    """
    order = np.argsort(lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        rows = order[begin : begin + batch_size]
        # Lengths rise, so this is true up to some row and false from there on.
        fits = _MAX_EVALUATION_TOKENS // np.maximum(lengths[rows], 1) > np.arange(len(rows))
        batches.append(rows[: max(1, int(fits.sum()))])
        begin += len(batches[-1])
    return batches
