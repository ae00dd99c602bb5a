"""The vocabulary of a dataset: words counted bucket by bucket, ordered, and written as a tokenizer."""

import json
from collections.abc import Iterator, Mapping
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model import storage
from model.data.tokenizer import SPECIAL, new_tokenizer

# Distinct words that are counted exactly. Beyond it the rarest are dropped, to bound the memory: a dropped word that
# occurs again counts from 0, and so ends up with less than its true count.
MAX_COUNTED_WORDS = 4_000_000
BUCKETS = 64  # words are counted in groups by checksum: one after the other to save memory, or by several processes
_MIN_PENDING_WORDS = 100_000  # words to collect before they are added to the counts
_WORDS_PER_WRITE = 10_000


def bucket_of(word: str) -> int:
    """Return the bucket in which a word is counted."""
    return crc32(word.encode()) % BUCKETS


class BucketCounts:
    """The words of one bucket and how often they occur. Equal tables in equal order give equal results."""

    def __init__(self, limit: int = MAX_COUNTED_WORDS // BUCKETS) -> None:
        """Count up to `limit` distinct words exactly."""
        self._limit = limit
        self._counted = pa.table({"word": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
        self._pending: list[pa.Table] = []  # not yet added to the counts

    def add(self, words: pa.Table) -> None:
        """Add a table of `word` and `count`, in which each word occurs once."""
        self._pending.append(words)
        if sum(map(len, self._pending)) >= max(_MIN_PENDING_WORDS // BUCKETS, len(self._counted) // 4):
            self._count()

    def counted(self) -> pa.Table:
        """Return all words with their counts."""
        self._count()
        return self._counted

    def _count(self) -> None:
        words = pa.concat_tables([self._counted, *self._pending])
        sums = words.group_by("word", use_threads=False).aggregate([("count", "sum")])
        counted = pa.table({"word": sums["word"], "count": sums["count_sum"]})
        if len(counted) > self._limit:
            counted = _ordered(counted).slice(0, self._limit // 2)
        self._counted, self._pending = counted, []


class WordCounts:
    """Words of all buckets and how often they occur."""

    def __init__(self) -> None:
        self._buckets = [BucketCounts() for _ in range(BUCKETS)]

    def add(self, words: Mapping[str, int]) -> None:
        """Add words with their counts."""
        names, counts = list(words), np.fromiter(words.values(), np.int64, len(words))
        table, buckets = pa.table({"word": names, "count": counts}), np.array([bucket_of(word) for word in names])
        for number in np.unique(buckets):
            self._buckets[number].add(table.filter(buckets == number))

    def counted(self) -> pa.Table:
        """Return all words with their counts."""
        return pa.concat_tables([bucket.counted() for bucket in self._buckets])


def vocabulary(counted: pa.Table, min_frequency: int, max_words: int) -> pa.ChunkedArray:
    """Return words in the order of their ids: by falling count, then by bytes.

    Args:
        counted: `word` and `count`.
        min_frequency: less frequent words are dropped.
        max_words: size of the vocabulary, including the special words, which are not returned.
    """
    frequent = _ordered(counted.filter(pc.field("count") >= min_frequency))
    return frequent.slice(0, max(max_words - len(SPECIAL), 0))["word"]


def _ordered(words: pa.Table) -> pa.Table:
    return words.sort_by([("count", "descending"), ("word", "ascending")])


def save_tokenizer(words: pa.ChunkedArray, location: str) -> None:
    """Write `tokenizer.json` with the bytes of the tokenizers library, without holding all words in memory.

    Args:
        words: the vocabulary in the order of the ids, without the special words.
        location: path or URI of the file.

    Raises:
        OSError: the file cannot be written.
    """
    empty = new_tokenizer().to_str(pretty=True)
    first, last = (f"      {json.dumps(word)}: {i}" for i, word in enumerate(SPECIAL))
    before, after = empty.split(f"{first},\n{last}\n")
    with storage.open_atomic(location) as file:
        file.write(f"{before}{first},\n{last}".encode())
        for entries in _vocabulary_entries(words):
            file.write(entries.encode())
        file.write(f"\n{after}".encode())


def _vocabulary_entries(words: pa.ChunkedArray) -> Iterator[str]:
    for start in range(0, len(words), _WORDS_PER_WRITE):
        chunk = enumerate(words.slice(start, _WORDS_PER_WRITE).to_pylist(), start + len(SPECIAL))
        yield "".join(f",\n      {json.dumps(word, ensure_ascii=False)}: {i}" for i, word in chunk)
