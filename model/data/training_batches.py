"""The batches of training steps: one worker's share, and what all workers must know of the global batch.

Every worker knows the whole global batch. It finds without communication which rows of the embedding tables any worker uses,
and which words all of them drop.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from model.config import TaggerConfig, TrainingConfig
from model.data.batching import Batch, RowIds, TableRows, collate, padded, unique_ids
from model.data.dataset import Split
from model.data.tokenizer import PAD, UNKNOWN


class TrainingBatches:
    """Assembles a worker's batches."""

    def __init__(
        self,
        tagger: TaggerConfig,
        training: TrainingConfig,
        table_rows: list[int],
        counts: npt.NDArray[np.int64] | None = None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        """
        Args:
            tagger: with the dropout of words.
            training: with the seed, and whether tables are trained by rows.
            table_rows: rows of each embedding table: words, and word features where the tagger uses them.
            counts: (V,) how often each word occurs in the training texts; needed where rare words are dropped.
            rank, size: this worker, and the number of workers.
        """
        self.tagger, self.training = tagger, training
        self.table_rows, self.rank, self.size = table_rows, rank, size
        self.counts = np.ones(1, np.int64) if counts is None else counts.clip(min=1)

    def __call__(self, split: Split, rows: RowIds, epoch: int, step: int) -> list[Batch]:
        """Return this worker's share of a global batch, in `training.accumulate` parts.

        Args:
            split, rows: the texts of the global batch.
            epoch, step: from 0; with the seed they determine which words are dropped.
        """
        texts = split.take(rows)
        texts = replace(texts, ids=self._drop_words(texts.ids, epoch, step))
        own = np.arange(len(rows))[self.rank :: self.size]
        parts = np.array_split(own, min(self.training.accumulate, len(own)))
        batches = [collate(texts, part) for part in parts]
        if self.training.sparse_embedding:
            tables = [unique_ids(ids, count) for ids, count in zip(_table_ids(texts), self.table_rows, strict=False)]
            batches = [
                batch._replace(tables=tuple(_rows(*table, texts, part) for table in tables))
                for batch, part in zip(batches, parts, strict=True)
            ]
        return batches

    def _drop_words(self, ids: npt.NDArray[np.int32], epoch: int, step: int) -> npt.NDArray[np.int32]:
        """Replace random words by <unk>, rare ones more often (Kiperwasser and Goldberg, TACL 2016, section 4).

        The vector of <unk>, which represents words that training never saw, is then learned from words that it hardly saw.
        """
        probability, rare = self.tagger.word_dropout, self.tagger.rare_word_dropout
        if not self.table_rows or not (probability or rare):  # without a table, no word has a vector
            return ids
        kept = (1 - probability) * (1 - (rare / (rare + self.counts[ids]) if rare else 0.0))
        draws = np.random.default_rng([self.training.seed, epoch, step]).random(len(ids))
        return np.where(draws < kept, ids, np.int32(UNKNOWN))


def _table_ids(texts: Split) -> list[npt.NDArray[np.integer]]:
    return [texts.ids] if texts.word_features is None else [texts.ids, texts.word_features]


def _rows(distinct: npt.NDArray[np.int64], index: npt.NDArray[np.int64], texts: Split, rows: RowIds) -> TableRows:
    """Return the rows of a table with the index of some texts, given that of all tokens of the global batch."""
    begins = texts.begins[rows]
    assert distinct[0] == PAD
    return TableRows(torch.from_numpy(distinct), padded(index, begins, texts.begins[rows + 1] - begins, 0))
