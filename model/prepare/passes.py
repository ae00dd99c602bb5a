"""What is done to each piece of the input, on any machine: a first pass to drafts, a second to the parts themselves."""

import hashlib
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.data.examples import Span, locate_keyphrases
from model.data.labelled_text import LabelledText, SkipCounts
from model.data.tokenizer import CachedTokenizer, TokenizedTexts
from model.errors import UserError
from model.prepare.readers import Reader
from model.prepare.writers import open_drafts, to_record_batch, vocabulary_ids, write_part, write_words
from model.shards import FileRange, checksum

_TEXTS = 4096  # held and cut at a time


class InputShard(NamedTuple):
    """A piece of the input: the `number`-th of the files that are given for the split `origin`."""

    origin: str
    number: int
    ranges: list[FileRange]


class ShardOptions(NamedTuple):
    """What holds for all pieces.

    Attributes:
        shares: which tenths (by a hash of the text) of the training files go to which split.
        max_tokens: longer texts are left out.
        skip_bad_lines: leave out lines that cannot be used.
        drafts: where drafts are written.
    """

    shares: dict[int, str]
    max_tokens: int
    skip_bad_lines: bool
    drafts: str

    def splits(self, origin: str) -> list[str]:
        """The splits to which the texts of some files go."""
        return list(dict.fromkeys(self.shares.values())) if origin == "train" else [origin]


@dataclass
class ShardStats:
    """What a first pass found. Lines are counted from the beginning of each range.

    Attributes:
        lines: of each range.
        checksums: bytes and SHA-256 of the whole file, for each range that is the first of its file.
        tallies: for each range, what was left out of each split.
        counts: rows, tokens and keyphrases of each split.
        error: what stopped the pass, in the range after the last of `lines`.
    """

    lines: list[int] = field(default_factory=list)
    checksums: list[tuple[int, str] | None] = field(default_factory=list)
    tallies: list[dict[str, SkipCounts]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    error: UserError | OSError | None = None


def tokenize_shard(rules: ShardOptions, piece: InputShard) -> ShardStats:
    """Reads a piece, and writes its drafts and its words."""
    facts = ShardStats(
        counts={split: {"rows": 0, "tokens": 0, "keyphrases": 0} for split in rules.splits(piece.origin)}
    )
    try:
        with open_drafts(rules.drafts, piece.number, rules.splits(piece.origin)) as writers:
            draft = _Draft(rules, piece, writers, facts)
            for part in piece.ranges:
                draft.read(part)
        draft.write_words()
    except (UserError, OSError) as error:
        facts.error = error
    return facts


def encode_shard(rules: ShardOptions, folder: str, piece: InputShard) -> OSError | None:
    """Writes a piece's parts into the dataset directory, with the ids of the vocabulary. Returns what stopped it."""
    try:
        ids = vocabulary_ids(rules.drafts, piece.origin, piece.number)
        for split in rules.splits(piece.origin):
            write_part(rules.drafts, split, piece.number, folder, ids)
    except OSError as error:
        return error
    return None


class _Draft:
    """A piece on its way to its drafts."""

    def __init__(self, rules: ShardOptions, piece: InputShard, writers: dict[str, Any], facts: ShardStats) -> None:
        self._rules, self._piece, self._writers, self._facts = rules, piece, writers, facts
        self._ids: dict[str, int] = {}  # of the piece's own words
        self._trained = np.zeros(0, np.int64)  # how often each of them occurs in training
        self._cut = CachedTokenizer(lambda word: self._ids.setdefault(word, len(self._ids)))

    def read(self, part: FileRange) -> None:
        """Adds the texts of a range."""
        reader = Reader(part, self._rules.skip_bad_lines)
        tallies = {split: SkipCounts() for split in self._writers}
        # What a reader leaves out belongs to the file, and is told once: with the split that has the file.
        texts = reader.read(tallies[self._piece.origin])
        while chunk := list(islice(texts, _TEXTS)):
            self._add(chunk, tallies)
        self._facts.checksums.append(checksum(part) if part.start == 0 else None)
        self._facts.tallies.append(tallies)
        self._facts.lines.append(reader.lines)

    def write_words(self) -> None:
        """Writes the words of all texts that were added."""
        write_words(
            self._rules.drafts,
            self._piece.origin,
            self._piece.number,
            list(self._ids),
            self._trained,
        )

    def _add(self, chunk: list[LabelledText], tallies: dict[str, SkipCounts]) -> None:
        texts = [each.text for each in chunk]
        cut = self._cut(texts)
        given_to = [self._split(text) for text in texts]
        self._count(cut, np.array([split == "train" for split in given_to]))
        rows: dict[str, list[int]] = {split: [] for split in self._writers}
        spans: dict[str, list[list[Span]]] = {split: [] for split in self._writers}
        starts, ends, begins = cut.starts.tolist(), cut.ends.tolist(), cut.begins.tolist()
        for i, (labelled, split) in enumerate(zip(chunk, given_to, strict=True)):
            of_text = slice(begins[i], begins[i + 1])
            found = locate_keyphrases(labelled, starts[of_text], ends[of_text], tallies[split], self._rules.max_tokens)
            if found is not None:
                rows[split].append(i)
                spans[split].append(found)
        for split, writer in self._writers.items():
            if rows[split]:
                written = to_record_batch(texts, cut, rows[split], spans[split])
                writer.write_batch(written)
                counts = self._facts.counts[split]
                counts["rows"] += len(rows[split])
                counts["tokens"] += len(written["ids"].values)
                counts["keyphrases"] += len(written["span_starts"].values)

    def _split(self, text: str) -> str:
        if self._piece.origin != "train":
            return self._piece.origin
        return self._rules.shares[int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 10]

    def _count(self, cut: TokenizedTexts, trained: npt.NDArray[np.bool_]) -> None:
        """Counts the words of the training texts, of those too that will be left out."""
        ids = cut.ids[np.repeat(trained, np.diff(cut.begins))]
        counts = np.bincount(ids, minlength=len(self._ids))
        counts[: len(self._trained)] += self._trained
        self._trained = counts
