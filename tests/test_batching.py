import numpy as np
import pytest
import torch

from model.data.batching import collate, epoch_batches, length_sorted_batches, min_batch_size, prefetch
from model.data.dataset import Split
from model.data.labels import IGNORED, B, E, O, S

LENGTHS = np.random.default_rng(0).integers(5, 41, 5003)


def test_every_row_comes_once_and_batches_are_even():
    batches = epoch_batches(LENGTHS, 64, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    assert {len(batch) for batch in batches} <= {63, 64}
    assert min(len(batch) for batch in batches) == min_batch_size(len(LENGTHS), 64)


def test_order_depends_on_seed_and_epoch_alone():
    one, same = epoch_batches(LENGTHS, 64, 1, 2), epoch_batches(LENGTHS, 64, 1, 2)
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    for seed, epoch in ((1, 3), (2, 2)):
        other = epoch_batches(LENGTHS, 64, seed, epoch)
        assert not (np.concatenate(one) == np.concatenate(other)).all()


def test_padding_is_under_five_percent():
    batches = epoch_batches(LENGTHS, 64, 0, 0)
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    assert 1 - LENGTHS.sum() / padded < 0.05


@pytest.mark.parametrize(("rows", "batch", "sizes"), [(5, 4, [2, 3]), (3, 64, [3]), (64, 64, [64]), (1, 1, [1])])
def test_few_rows(rows: int, batch: int, sizes: list[int]):
    assert sorted(len(each) for each in epoch_batches(np.ones(rows, np.int64), batch, 0, 0)) == sizes


def test_batches_at_random_hold_the_same_rows():
    batches = epoch_batches(LENGTHS, 64, seed=1, epoch=0, bucket_by_length=False)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    spread = [np.ptp(LENGTHS[batch]) for batch in batches]
    assert np.mean(spread) > 5 * np.mean([np.ptp(LENGTHS[batch]) for batch in epoch_batches(LENGTHS, 64, 1, 0)])


def test_what_is_made_ahead_comes_in_order_and_so_do_errors():
    begun: list[int] = []

    def make(item: int) -> int:
        begun.append(item)
        return 10 // item

    made = prefetch(make, [5, 2, 1, 0, 3])
    assert [next(made) for _ in range(3)] == [2, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert begun[:3] == [5, 2, 1] and list(prefetch(make, [])) == []


def test_batches_of_very_long_texts_have_fewer():
    batches = length_sorted_batches(np.array([10] * 300 + [1000] * 70 + [10**6]), 256)
    assert [len(batch) for batch in batches] == [256, 44, 32, 32, 6, 1]
    assert sorted(np.concatenate(batches)) == list(range(371))


def test_ordered_batches_hold_all_rows():
    assert sorted(np.concatenate(length_sorted_batches(LENGTHS, 256))) == list(range(len(LENGTHS)))


def test_collate_pads_at_the_end_and_ignores_the_padding():
    split = Split(np.arange(2, 8, dtype=np.int32), np.array([O, S, B, E, O, O], np.int8), np.array([0, 2, 5, 6]))
    batch = collate(split, np.array([1, 0]))
    assert batch.ids.tolist() == [[4, 5, 6], [2, 3, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.keyphrase.tolist() == [[B, E, O], [O, S, IGNORED]]
    assert batch.keyword.tolist() == [[1, 1, 0], [0, 1, IGNORED]]
    assert batch.ids.dtype == torch.long
