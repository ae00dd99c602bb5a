"""The batches of a training step: words dropped alike on all workers, and the table rows that any of them uses."""

import numpy as np
import pytest
import torch

from model.config import TaggerConfig, TrainingConfig
from model.data.batching import Batch, collate
from model.data.dataset import Dataset, Split
from model.data.tokenizer import PAD, UNKNOWN
from model.data.training_batches import TrainingBatches

ROWS = np.arange(40)


@pytest.fixture(scope="module")
def data(small_dataset: str) -> tuple[Split, list[int]]:
    dataset = Dataset(small_dataset)
    return dataset.load("train", word_features=True), [dataset.info["words"], 24577]


def batches(
    data: tuple[Split, list[int]], rank: int = 0, size: int = 1, accumulate: int = 1, **tagger: float
) -> list[Batch]:
    training = TrainingConfig(accumulate=accumulate)
    assemble = TrainingBatches(TaggerConfig(**tagger), training, data[1], rank=rank, size=size)
    return assemble(data[0], ROWS, 0, 3)


def words(shares: list[Batch]) -> np.ndarray:
    """The vocabulary ids of a global batch's tokens by text, the texts in the order of the global batch."""
    texts = [[row[:length] for row, length in zip(batch.ids, batch.lengths, strict=True)] for batch in shares]
    return np.concatenate([text for turn in zip(*texts, strict=True) for text in turn])


def test_the_share_of_one_worker_is_the_batch(data):
    [batch], expected = batches(data), collate(data[0], ROWS)
    for name in ("ids", "lengths", "keyword", "keyphrase", "word_features"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))


def test_workers_drop_the_words_that_one_drops(data):
    [whole] = batches(data, word_dropout=0.3)
    shares = [batches(data, rank, 2, word_dropout=0.3)[0] for rank in range(2)]
    assert np.array_equal(words([whole]), words(shares))
    dropped = words([whole]) != words(batches(data))
    assert 0.2 < dropped.mean() < 0.4 and set(words([whole])[dropped]) == {UNKNOWN}


def test_rare_words_are_dropped_more_often(data):
    split, table_rows = data
    counts = np.bincount(split.ids, minlength=table_rows[0])
    assemble = TrainingBatches(TaggerConfig(rare_word_dropout=1.0), TrainingConfig(), table_rows, counts)
    word = int(counts.argmax())
    assert assemble.counts[word] == (split.ids == word).sum() > 100
    drawn = np.array([assemble._drop_words(np.full(4000, word, np.int32), 0, step) for step in range(2)])
    assert (drawn == UNKNOWN).mean() < 0.02 and not np.array_equal(drawn[0], drawn[1])
    assemble.counts[word] = 1
    assert (assemble._drop_words(np.full(4000, word, np.int32), 0, 0) == UNKNOWN).mean() == pytest.approx(0.5, abs=0.05)


def test_without_word_vectors_no_word_is_dropped(data):
    tagger = TaggerConfig(encoder="some", embedding_dim=0, word_dropout=0.3, rare_word_dropout=1.0)
    [batch] = TrainingBatches(tagger, TrainingConfig(), [])(data[0], ROWS, 0, 3)
    assert torch.equal(batch.ids, collate(data[0], ROWS).ids) and not batch.tables


def test_every_worker_knows_the_rows_that_any_uses(data):
    shares = [batches(data, rank, 2, word_dropout=0.3)[0] for rank in range(2)]
    for one, other, name in zip(*(share.tables for share in shares), ("ids", "word_features"), strict=True):
        assert torch.equal(one.ids, other.ids)
        used = torch.cat([getattr(share, name).flatten() for share in shares]).unique()
        assert torch.equal(one.ids, used) and one.ids[0] == PAD
    for share in shares:
        for table, ids in zip(share.tables, (share.ids, share.word_features), strict=True):
            assert torch.equal(table.ids[table.indices], ids)


def test_the_parts_of_a_share_are_the_share(data):
    [whole], parts = batches(data, 0, 3), batches(data, 0, 3, accumulate=4)
    assert [len(part.lengths) for part in parts] == [4, 4, 3, 3]
    assert torch.equal(torch.cat([part.lengths for part in parts]), whole.lengths)
    assert len(batches(data, 0, 20, accumulate=8)) == 2  # a worker with two texts has no more than two parts
