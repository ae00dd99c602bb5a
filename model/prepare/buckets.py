"""What is counted over all shards, on any machine: words, and texts that occur more than once.

Each shard leaves its words and its texts in buckets by checksum. What is equal lies in the same bucket, so each bucket is
counted by itself.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.data.dataset import SPLITS
from model.prepare.vocabulary import BUCKETS, BucketCounts, bucket_of
from model.prepare.writers import read_draft, write_draft

_COUNTS = pa.schema([("word", pa.string()), ("count", pa.int64())])
_TEXTS = pa.schema([("split", pa.int8()), ("text", pa.int64()), ("labeling", pa.int64())])  # index in SPLITS; digests
_OPEN_FILES = 16  # that are read at a time
_DIGEST_SHIFT = 31  # the bits above are a checksum of the text


class Duplicates(NamedTuple):
    """Texts that occur more than once.

    Attributes:
        shared: rows of a split whose text is in an earlier one too, by both splits.
        contradicting: texts that are labeled in more than one way.
    """

    shared: Counter[tuple[str, str]]
    contradicting: int


def write_counts(folder: str, origin: str, number: int, words: list[str], counts: npt.NDArray[np.int64]) -> None:
    """Write how often the words of a shard occur in training texts. Raises OSError."""
    chosen = np.flatnonzero(counts)
    names = [words[i] for i in chosen]
    batch = pa.RecordBatch.from_arrays([pa.array(names, pa.string()), pa.array(counts[chosen])], schema=_COUNTS)
    buckets = np.array([bucket_of(name) for name in names], np.int64)
    write_draft(folder, f"{origin}-counts", number, _COUNTS, _divided(batch, buckets))


def write_digests(folder: str, origin: str, number: int, digests: dict[str, list[npt.NDArray[np.int64]]]) -> None:
    """Write the texts of a shard: for each split digests (rows, 2) of texts and of their keyphrases. Raises OSError."""
    splits = np.repeat([SPLITS.index(split) for split in digests], [sum(map(len, own)) for own in digests.values()])
    rows = np.concatenate([np.zeros((0, 2), np.int64), *(part for own in digests.values() for part in own)])
    columns = [splits.astype(np.int8), *np.ascontiguousarray(rows.T)]
    batch = pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=_TEXTS)
    write_draft(folder, f"{origin}-digests", number, _TEXTS, _divided(batch, (rows[:, 0] >> _DIGEST_SHIFT) % BUCKETS))


def _divided(batch: pa.RecordBatch, buckets: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of each bucket."""
    sorted_rows, begin = batch.take(pa.array(np.argsort(buckets, kind="stable"))), 0
    for size in np.bincount(buckets, minlength=BUCKETS).tolist():
        yield sorted_rows.slice(begin, size)
        begin += size


def count_buckets(folder: str, shards: Sequence[tuple[str, int]], buckets: Sequence[int]) -> Duplicates | OSError:
    """Count the words of some buckets and write them, and count their texts. Return the error that stopped it.

    Args:
        folder: location of the drafts.
        shards: origin and number of each shard.
        buckets: their numbers.
    """
    training = [shard for shard in shards if shard[0] == "train"]
    found = []
    try:
        for bucket in buckets:
            counts = BucketCounts()
            for words in _read(folder, "counts", training, bucket):
                counts.add(pa.Table.from_batches([words]))
            write_draft(folder, "counted", bucket, _COUNTS, counts.counted().to_batches())
            texts = pa.Table.from_batches(_read(folder, "digests", shards, bucket), _TEXTS)
            found.append(find_duplicates(*(texts[name].to_numpy() for name in _TEXTS.names)))
    except OSError as error:
        return error
    return add_duplicates(found)


def add_duplicates(parts: Sequence[Duplicates]) -> Duplicates:
    """Return the sum over buckets."""
    shared: Counter[tuple[str, str]] = Counter()
    for part in parts:
        shared.update(part.shared)
    return Duplicates(shared, sum(part.contradicting for part in parts))


def read_counted(folder: str) -> pa.Table:
    """Return the columns `word` and `count` of all buckets, which `count_buckets` has written. Raises OSError."""
    batches = [batch for bucket in range(BUCKETS) for batch in read_draft(folder, "counted", bucket)]
    return pa.Table.from_batches(batches, _COUNTS)


def distinct_texts(folder: str, shards: Sequence[tuple[str, int]]) -> dict[str, set[int]]:
    """Return the digests of the texts of each split, of datasets that are small. Raises OSError."""
    found: dict[str, set[int]] = {split: set() for split in SPLITS}
    for origin, number in shards:
        for batch in read_draft(folder, f"{origin}-digests", number):
            for split, text in zip(batch["split"].to_pylist(), batch["text"].to_pylist(), strict=True):
                found[SPLITS[split]].add(text)
    return found


def _read(folder: str, name: str, shards: Sequence[tuple[str, int]], bucket: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a bucket that each shard has, in the order of the shards."""

    def read(shard: tuple[str, int]) -> pa.RecordBatch:
        origin, number = shard
        [batch] = read_draft(folder, f"{origin}-{name}", number, bucket)
        return batch

    with ThreadPoolExecutor(_OPEN_FILES) as threads:  # remote files are mostly waited for
        for begin in range(0, len(shards), _OPEN_FILES):
            yield from threads.map(read, shards[begin : begin + _OPEN_FILES])


def find_duplicates(
    splits: npt.NDArray[np.int8], texts: npt.NDArray[np.int64], labelings: npt.NDArray[np.int64]
) -> Duplicates:
    """Return which texts occur more than once.

    Args:
        splits: (rows,) indices in SPLITS.
        texts: (rows,) digests.
        labelings: (rows,) digests of the keyphrases.
    """
    order = np.lexsort((labelings, texts))
    same = np.diff(texts[order]) == 0
    repeated = np.zeros(len(order), np.bool_)
    repeated[1:] |= same
    repeated[:-1] |= same
    order = order[repeated]  # far fewer, in most datasets
    splits, texts, labelings = splits[order], texts[order], labelings[order]
    own = [texts[splits == number] for number in range(len(SPLITS))]
    shared = {
        (SPLITS[later], SPLITS[earlier]): int(np.isin(own[later], own[earlier]).sum())
        for later in range(len(SPLITS))
        for earlier in range(later)
    }
    differs = (np.diff(texts) == 0) & (np.diff(labelings) != 0)
    return Duplicates(Counter(shared), len(np.unique(texts[1:][differs])))
