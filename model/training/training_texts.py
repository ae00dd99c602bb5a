"""The texts of an epoch in the order of its global batches: from memory, or read from storage window by window.

The order is a function of (seed, epoch), of the files and of the size of a batch, not of the number of workers. So is the
number of steps, which is the same in every epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.config import TrainingConfig
from model.data.batching import RowIds, batch_bounds, count_batches, epoch_batches, prefetch, shuffled_batches
from model.data.dataset import Dataset, RowGroup, RowRange, Split
from model.data.subwords import SubwordTokenizer, ranges
from model.training.communicator import Communicator

WordCounts = npt.NDArray[np.int64]
WINDOW_TEXTS = (
    2**17
)  # read and shuffled together, about 13 row groups; 14 MB at 21 tokens a text, twice that with features


class GlobalBatch(NamedTuple):
    """The texts of one step: some rows of a split."""

    split: Split
    rows: RowIds

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return int((self.split.begins[self.rows + 1] - self.split.begins[self.rows]).sum())


class TextsInMemory:
    """A training split in memory.

    Attributes:
        tokens: of the texts that are trained on.
    """

    def __init__(self, split: Split, config: TrainingConfig) -> None:
        """
        Args:
            split: the training texts.
            config: which of a teacher's texts to train on, and the order.
        """
        self._split, self._config = split, config
        self._rows = training_rows(split, config)
        self.tokens = int(split.lengths[self._rows].sum())

    @property
    def steps(self) -> int:
        """Return the number of global batches of an epoch."""
        return count_batches(len(self._rows), self._config.global_batch_size)

    def word_counts(self, words: int, communicator: Communicator, device: torch.device) -> WordCounts:
        """Return (words,) how often each word of the vocabulary occurs in the texts."""
        split, rows = self._split, self._rows
        ids = split.ids if len(rows) == len(split) else split.ids[ranges(split.begins[rows], split.lengths[rows])]
        return np.bincount(ids, minlength=words)

    def batches(self, epoch: int, first: int = 0) -> Iterator[GlobalBatch]:
        """Yield the global batches of an epoch (from 0), from a step on."""
        config, lengths = self._config, self._split.input_lengths[self._rows]
        order = epoch_batches(lengths, config.global_batch_size, config.seed, epoch, config.bucket_by_length)
        return (GlobalBatch(self._split, self._rows[rows]) for rows in order[first:])


@dataclass(frozen=True)
class StreamedSplit:
    """A training split that stays on storage: what to read, and no text.

    Attributes:
        dataset: has the split.
        row_groups: of its files.
        word_features, subwords: what to add to the texts, see `Dataset.load`.
    """

    dataset: Dataset
    row_groups: list[RowGroup]
    word_features: bool
    subwords: SubwordTokenizer | None

    @classmethod
    def open(
        cls, dataset: Dataset, word_features: bool = False, subwords: SubwordTokenizer | None = None
    ) -> "StreamedSplit":
        """Find the row groups of a dataset's training split. Raises UserError if it is missing or damaged."""
        return cls(dataset, dataset.row_groups("train"), word_features, subwords)

    def __len__(self) -> int:
        return sum(group.rows for group in self.row_groups)

    def load(self, ranges: list[RowRange]) -> Split:
        """Return some rows. Raises UserError if they are damaged."""
        return self.dataset.load_rows("train", ranges, self.word_features, self.subwords)


class StreamedTexts:
    """A training split on storage.

    An epoch strings the row groups together in random order and cuts the string into windows of about WINDOW_TEXTS texts,
    each a whole number of global batches. A window is read, shuffled and batched like a split in memory while the one before
    it is trained on; no more lies in memory.

    Attributes:
        tokens: of the texts that are trained on.
    """

    def __init__(self, split: StreamedSplit, config: TrainingConfig) -> None:
        """
        Args:
            split: the training texts.
            config: the order.
        """
        self._split, self._config = split, config
        self._bounds = batch_bounds(len(split), config.global_batch_size)
        self._window_steps = max(WINDOW_TEXTS // config.global_batch_size, 1)
        self.tokens = split.dataset.info["splits"]["train"]["tokens"]

    @property
    def steps(self) -> int:
        """Return the number of global batches of an epoch."""
        return len(self._bounds) - 1

    def word_counts(self, words: int, communicator: Communicator, device: torch.device) -> WordCounts:
        """Return (words,) how often each word of the vocabulary occurs in the texts; each worker reads a share of them."""
        own = self._split.row_groups[communicator.rank :: communicator.size]
        counts = torch.from_numpy(self._split.dataset.word_counts("train", own)).to(device)
        return communicator.all_reduce(counts).cpu().numpy()

    def batches(self, epoch: int, first: int = 0) -> Iterator[GlobalBatch]:
        """Yield the global batches of an epoch (from 0), from a step on. Raises UserError where a file is damaged."""
        config = self._config
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self._split.row_groups))
        groups = [self._split.row_groups[number] for number in order]
        windows = range(first // self._window_steps, -(-self.steps // self._window_steps))
        for window, split in zip(windows, prefetch(lambda window: self._load(groups, window), windows), strict=True):
            begin = window * self._window_steps
            bounds = self._bounds[begin : begin + self._window_steps + 1]
            rng = np.random.default_rng([config.seed, epoch, window])
            found = shuffled_batches(split.input_lengths, bounds - bounds[0], rng, config.bucket_by_length)
            for rows in found[max(first - begin, 0) :]:
                yield GlobalBatch(split, rows)

    def _load(self, groups: list[RowGroup], window: int) -> Split:
        """Return the texts of a window of an epoch, given its order of row groups."""
        first = window * self._window_steps
        begin, end = self._bounds[first], self._bounds[min(first + self._window_steps, self.steps)]
        return self._split.load(row_ranges(groups, int(begin), int(end)))


TrainingTexts = TextsInMemory | StreamedTexts


def training_texts(split: Split | StreamedSplit, config: TrainingConfig) -> TrainingTexts:
    """Return the texts of a training split, in the order that a configuration asks for."""
    return TextsInMemory(split, config) if isinstance(split, Split) else StreamedTexts(split, config)


def training_rows(split: Split, config: TrainingConfig) -> RowIds:
    """Return the texts of a split to train on: gold ones, and those that a teacher labeled with enough confidence."""
    rows = np.arange(len(split))
    gold, used = np.ones(len(split), np.bool_), np.zeros(len(split), np.bool_)
    if split.teacher is not None:
        gold = ~split.teacher.labeled
        used = (
            split.teacher.labeled
            & (split.teacher.confidence >= config.teacher_confidence)
            & (config.teacher is not None)
        )
    if config.held_out_fold is not None:
        gold &= ~in_fold(rows, config.held_out_fold)  # gold texts are the first ones
    return rows[gold | used]


def in_fold(rows: RowIds, fold: str) -> npt.NDArray[np.bool_]:
    """Return which rows of a training split are in fold K of N, written K/N: each Nth row from the Kth on."""
    number, folds = map(int, fold.split("/"))
    return rows % folds == number - 1


def row_ranges(groups: list[RowGroup], begin: int, end: int) -> list[RowRange]:
    """Return the rows `begin` to `end` of row groups that are strung together."""
    found, first = [], 0
    for group in groups:
        if first < end and first + group.rows > begin:
            found.append(RowRange(group, max(begin - first, 0), min(end - first, group.rows)))
        first += group.rows
    return found
