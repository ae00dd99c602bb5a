"""The two passes over each shard of the input, on any machine: tokenize it into drafts, then encode them as parts.

In between, `model.prepare.buckets` counts what the drafts of all shards contain.
"""

import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.data.characters import Span
from model.data.examples import locate_keyphrases, require_characters
from model.data.labeled_text import LabeledText, SkipCounts
from model.data.tokenizer import CachedTokenizer, TokenizedTexts
from model.errors import UserError
from model.prepare.buckets import write_counts, write_digests
from model.prepare.writers import open_drafts, to_record_batch, vocabulary_ids, write_part, write_words
from model.readers.readers import Reader
from model.shards import FileRange, checksum

_CHUNK_TEXTS = 4096  # texts tokenized at a time


class InputShard(NamedTuple):
    """A shard of the input.

    Attributes:
        origin: the split for which its files were given.
        number: its number among the shards of that split.
        ranges: its ranges of lines.
    """

    origin: str
    number: int
    ranges: list[FileRange]

    @property
    def key(self) -> tuple[str, int]:
        """Return its origin and number, by which its drafts are found."""
        return self.origin, self.number


class ShardOptions(NamedTuple):
    """What is the same for all shards.

    Attributes:
        tenths: the split of each tenth of the training files, by a hash of the text.
        max_tokens: longer texts are skipped.
        skip_bad_lines: whether to skip lines that cannot be used instead of raising an error.
        drafts: location of the folder for drafts.
        pinned: the split of some texts by their digest, so that no split is empty.
    """

    tenths: dict[int, str]
    max_tokens: int
    skip_bad_lines: bool
    drafts: str
    pinned: dict[int, str]

    def splits(self, origin: str) -> list[str]:
        """Return the splits that the texts of some files are divided among."""
        return list(dict.fromkeys(self.tenths.values())) if origin == "train" else [origin]


@dataclass
class ShardStats:
    """The result of tokenizing a shard. Line numbers start at 1 in each range.

    Attributes:
        lines: the number of lines of each range.
        checksums: size in bytes and SHA-256 of the whole file, for each range that is the first of its file.
        skips: what was skipped in each range, by split.
        counts: rows, tokens and keyphrases of each split.
        error: what stopped the pass, in the range after the last of `lines`.
    """

    lines: list[int] = field(default_factory=list)
    checksums: list[tuple[int, str] | None] = field(default_factory=list)
    skips: list[dict[str, SkipCounts]] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    error: UserError | OSError | None = None


def tokenize_shard(options: ShardOptions, shard: InputShard) -> ShardStats:
    """Read a shard, and write its drafts."""
    splits = options.splits(shard.origin)
    stats = ShardStats(counts={split: Counter(rows=0, tokens=0, keyphrases=0) for split in splits})
    try:
        with open_drafts(options.drafts, shard.number, splits) as writers:
            draft = _Draft(options, shard, writers, stats)
            for file_range in shard.ranges:
                draft.add(file_range)
        draft.finish()
    except (UserError, OSError) as error:
        stats.error = error
    return stats


def encode_shard(options: ShardOptions, folder: str, shard: InputShard) -> OSError | None:
    """Write a shard's parts to the dataset directory, with vocabulary ids. Return the error that stopped it."""
    try:
        ids = vocabulary_ids(options.drafts, shard.origin, shard.number)
        for split in options.splits(shard.origin):
            write_part(options.drafts, split, shard.number, folder, ids)
    except OSError as error:
        return error
    return None


def text_digest(text: str) -> int:
    """Return a number of 63 bits that is the same for texts that differ in case alone."""
    content = text.lower().encode()
    return (zlib.crc32(content) << 31) ^ zlib.adler32(content)  # a cryptographic digest takes ten times as long


class _Draft:
    """The drafts of a shard while they are written."""

    def __init__(
        self,
        options: ShardOptions,
        shard: InputShard,
        writers: dict[str, pa.RecordBatchFileWriter],
        stats: ShardStats,
    ) -> None:
        self._options, self._shard, self._writers, self._stats = options, shard, writers, stats
        self._ids: dict[str, int] = {}  # of the words of this shard
        self._train_counts = np.zeros(0, np.int64)  # by id: occurrences in training texts
        self._digests: dict[str, list[npt.NDArray[np.int64]]] = {split: [] for split in writers}
        self._tokenize = CachedTokenizer(lambda word: self._ids.setdefault(word, len(self._ids)))

    def add(self, file_range: FileRange) -> None:
        """Add the texts of a range."""
        reader = Reader(file_range, self._options.skip_bad_lines)
        skips = {split: SkipCounts() for split in self._writers}
        # What the reader skips has no split of its own, and is counted once, with the split of the file.
        texts = reader.read(skips[self._shard.origin])
        while chunk := list(islice(texts, _CHUNK_TEXTS)):
            self._add_texts(chunk, skips)
        self._stats.checksums.append(checksum(file_range) if file_range.start == 0 else None)
        self._stats.skips.append(skips)
        self._stats.lines.append(reader.lines)

    def finish(self) -> None:
        """Write the words and the digests of all texts that were added."""
        drafts, origin, number, words = self._options.drafts, self._shard.origin, self._shard.number, list(self._ids)
        write_words(drafts, origin, number, words)
        write_counts(drafts, origin, number, words, self._train_counts)
        write_digests(drafts, origin, number, self._digests)

    def _add_texts(self, chunk: list[LabeledText], skips: dict[str, SkipCounts]) -> None:
        require_characters(chunk)
        texts = [each.text for each in chunk]
        tokens = self._tokenize(texts)
        digests = [text_digest(text) for text in texts]
        splits = [self._split_of(text, digest) for text, digest in zip(texts, digests, strict=True)]
        self._count_words(tokens, np.array([split == "train" for split in splits]))
        rows: dict[str, list[int]] = {split: [] for split in self._writers}
        spans: dict[str, list[list[Span]]] = {split: [] for split in self._writers}
        starts, ends, begins = tokens.starts.tolist(), tokens.ends.tolist(), tokens.begins.tolist()
        for i, (labeled, split) in enumerate(zip(chunk, splits, strict=True)):
            own = slice(begins[i], begins[i + 1])
            located = locate_keyphrases(labeled, starts[own], ends[own], skips[split], self._options.max_tokens)
            if located is not None:
                rows[split].append(i)
                spans[split].append(located)
        for split, writer in self._writers.items():
            if rows[split]:
                batch = to_record_batch(texts, tokens, rows[split], spans[split])
                writer.write_batch(batch)
                labelings = [hash(tuple(own)) for own in spans[split]]
                pairs = np.array([[digests[row] for row in rows[split]], labelings], np.int64).T
                self._digests[split].append(pairs)
                self._stats.counts[split].update(
                    rows=len(rows[split]),
                    tokens=len(batch["ids"].values),
                    keyphrases=len(batch["span_starts"].values),
                )

    def _split_of(self, text: str, digest: int) -> str:
        if self._shard.origin != "train":
            return self._shard.origin
        if digest in self._options.pinned:
            return self._options.pinned[digest]
        return self._options.tenths[int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 10]

    def _count_words(self, tokens: TokenizedTexts, is_train: npt.NDArray[np.bool_]) -> None:
        """Count the words of training texts, including the texts that are skipped later."""
        ids = tokens.ids[np.repeat(is_train, np.diff(tokens.begins))]
        counts = np.bincount(ids, minlength=len(self._ids))
        counts[: len(self._train_counts)] += self._train_counts
        self._train_counts = counts
