"""The gradient traffic of a step, computed from a dataset's batches."""

from dataclasses import dataclass

import numpy as np

from model.config import Config
from model.data.batching import epoch_batches
from model.data.dataset import Dataset, Split
from model.network.tagger import new_tagger


@dataclass(frozen=True)
class ExchangeRow:
    """Megabytes that each of `workers` workers sends in a step, with a vocabulary of `words`: the whole table, or rows."""

    workers: int
    words: int
    whole_mb: float
    rows_mb: float


def exchange_table(data: str) -> list[ExchangeRow]:
    """Compute the megabytes that each worker sends in a step, with the whole embedding table or with its rows.

    Per worker, all-reduce sends 2 (N - 1) / N times the size of its input. The rows that a batch uses are counted in the
    dataset's own batches, for every vocabulary.
    """
    split, default = Dataset(data).load("train"), Config(data=data)
    tagger, size = default.tagger, default.tagger.embedding_dim
    weights = new_tagger(tagger, 2, 0).named_parameters()
    network = sum(each.numel() for name, each in weights if name != "embedding.weight")
    rows = _rows_per_step(split, default.training.global_batch_size)
    table = []
    for workers in (2, 4, 8, 16, 32, 64):
        reduced = 2 * (workers - 1) / workers * 4 / 1e6
        by_rows = reduced * (network + rows * size)
        for words in (30_000, 300_000, 3_000_000):
            whole = reduced * (network + words * size)
            table.append(ExchangeRow(workers, words, round(whole, 3), round(by_rows, 3)))
    return table


def _rows_per_step(split: Split, batch: int) -> float:
    steps = epoch_batches(split.lengths, batch, 0, 0)[:20]
    return float(np.mean([len(np.unique(split.take(rows).ids)) for rows in steps]))
