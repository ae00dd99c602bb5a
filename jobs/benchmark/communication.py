"""The gradient traffic of a step, computed from a dataset's batches."""

from dataclasses import dataclass

import numpy as np

from jobs.benchmark.reference import flops_per_token
from model.config import Config
from model.data.batching import epoch_batches
from model.data.dataset import Dataset, Split


@dataclass(frozen=True)
class ExchangeRow:
    """Megabytes that each of `workers` workers sends in a step, with a vocabulary of `words`: the whole table, or rows."""

    workers: int
    words: int
    whole_mb: float
    rows_mb: float


def exchange_table(data: str) -> list[ExchangeRow]:
    """Compute the megabytes that each worker sends in a step, with the whole embedding table or with its rows.

    Per worker, all-reduce sends 2 (N - 1) / N times the size of its input, and all-gather N - 1 times the worker's own part.
    The rows that a worker's part of a batch uses are counted in the dataset's own batches, for every vocabulary.
    """
    split, default = Dataset(data).load("train"), Config(data=data)
    tagger, size = default.tagger, default.tagger.embedding_dim
    network = flops_per_token(tagger) / 6 + 2 * 2 * (tagger.keyword_hidden + tagger.keyphrase_hidden) + 7
    table = []
    for workers in (2, 4, 8, 16, 32, 64):
        rows = _rows_per_worker(split, default.training.global_batch_size, workers)
        reduced = 2 * (workers - 1) / workers * 4 / 1e6
        by_rows = reduced * network + (workers - 1) * rows * (size + 1) * 4 / 1e6
        for words in (30_000, 300_000, 3_000_000):
            whole = reduced * (network + words * size)
            table.append(ExchangeRow(workers, words, round(whole, 3), round(by_rows, 3)))
    return table


def _rows_per_worker(split: Split, batch: int, workers: int) -> float:
    counts = []
    for rows in epoch_batches(split.lengths, batch, 0, 0)[:20]:
        tokens = [split.ids[split.begins[row] : split.begins[row + 1]] for row in rows[::workers]]
        counts.append(len(np.unique(np.concatenate(tokens))))
    return float(np.mean(counts))
