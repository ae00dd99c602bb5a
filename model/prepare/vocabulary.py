"""The vocabulary of a dataset: words counted piece by piece, ordered, and written as a tokenizer."""

import json
from collections.abc import Iterator
from zlib import crc32

import pyarrow as pa
import pyarrow.compute as pc

from model import storage
from model.data.tokenizer import SPECIAL, new_tokenizer

# Distinct words that are counted exactly. Beyond it the rarest are forgotten, so that memory has a bound: a word that
# comes again after that counts from 0, and is behind those that were kept by what it had before.
COUNTED = 4_000_000
BUCKETS = 16  # words are counted apart by their checksum, for to count all of them at once takes much memory
_TOGETHER = 100_000  # words that wait at least before they are counted together with the rest
_LINES = 10_000


def bucket_of(word: str) -> int:
    """In which bucket a word is counted."""
    return crc32(word.encode()) % BUCKETS


class WordCounts:
    """Words and how often they occur. The same tables in the same order give the same result."""

    def __init__(self, most: int = COUNTED) -> None:
        """Takes how many distinct words are counted exactly."""
        self._buckets = [_Bucket(most // BUCKETS) for _ in range(BUCKETS)]

    def add(self, words: pa.Table) -> None:
        """Adds a table of `word`, `count` and `bucket`; a word stands in it once."""
        words = words.filter(pc.field("count") > 0)
        for number, bucket in enumerate(self._buckets):
            bucket.add(words.filter(pc.field("bucket") == number).select(["word", "count"]))

    def vocabulary(self, min_frequency: int, max_words: int) -> pa.Table:
        """`word` and `count` in the order of the ids, without the special words: by falling count, then by bytes.

        The counts are given up with it.

        Args:
            min_frequency: words seen less often are left out.
            max_words: the most frequent words are kept, the special ones counted in.
        """
        counted = pa.concat_tables([bucket.counted() for bucket in self._buckets])
        self._buckets = []
        kept = _ordered(counted.filter(pc.field("count") >= min_frequency))
        return kept.slice(0, max(max_words - len(SPECIAL), 0))


class _Bucket:
    """The words of one bucket."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counted = pa.table({"word": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
        self._waiting: list[pa.Table] = []

    def add(self, words: pa.Table) -> None:
        self._waiting.append(words)
        if sum(len(each) for each in self._waiting) >= max(_TOGETHER // BUCKETS, len(self._counted) // 4):
            self._count()

    def counted(self) -> pa.Table:
        self._count()
        return self._counted

    def _count(self) -> None:
        together = pa.concat_tables([self._counted, *self._waiting])
        sums = together.group_by("word", use_threads=False).aggregate([("count", "sum")])
        counted = pa.table({"word": sums["word"], "count": sums["count_sum"]})
        if len(counted) > self._most:
            counted = _ordered(counted).slice(0, self._most // 2)
        self._counted, self._waiting = counted, []


def _ordered(words: pa.Table) -> pa.Table:
    return words.sort_by([("count", "descending"), ("word", "ascending")])


def save_tokenizer(words: pa.ChunkedArray, location: str) -> None:
    """Writes `tokenizer.json` as the tokenizers library does, a few words at a time."""
    frame = new_tokenizer().to_str(pretty=True)
    first, last = (f"      {json.dumps(word)}: {i}" for i, word in enumerate(SPECIAL))
    before, after = frame.split(f"{first},\n{last}\n")
    with storage.open_atomic(location) as file:
        file.write(f"{before}{first},\n{last}".encode())
        for lines in _lines(words):
            file.write("".join(lines).encode())
        file.write(f"\n{after}".encode())


def _lines(words: pa.ChunkedArray) -> Iterator[list[str]]:
    for start in range(0, len(words), _LINES):
        some = words.slice(start, _LINES).to_pylist()
        yield [
            f",\n      {json.dumps(word, ensure_ascii=False)}: {i}" for i, word in enumerate(some, start + len(SPECIAL))
        ]
