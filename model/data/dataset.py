"""The dataset directory: `prepare` writes it, everything else reads it.

    dataset.json                       see model/data/dataset_info.py
    tokenizer.json                     see model/data/tokenizer.py
    vectors.safetensors                optional: initial word vectors, one row per word of the vocabulary
    train|valid|test/part-*.parquet    text, ids, token offsets, keyphrase spans

A local directory is renamed into place when it is complete; on other storage `dataset.json` is written last. A directory
with a `dataset.json` is therefore complete.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load
from tokenizers import Tokenizer

from model import storage
from model.data.dataset_info import DatasetInfo
from model.data.examples import Example
from model.data.features import FeatureIds, WordFeatures
from model.data.labeled_text import LabeledText
from model.data.labels import TeacherTargets, spans_to_tags
from model.data.subwords import Subwords, SubwordTokenizer, ranges
from model.data.tokenizer import parse_tokenizer
from model.errors import StorageError, UserError

DATASET_FORMAT = 1
SPLITS = ("train", "valid", "test")
NAMES = ("tokenizer.json", "vectors.safetensors", *SPLITS)  # in a dataset directory, beside dataset.json
_FOOTERS_AT_A_TIME = 16  # each is a request or two to the storage
_INTS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("ids", _INTS),  # vocabulary ids
        ("starts", _INTS),  # first character of each token
        ("ends", _INTS),  # one after its last
        ("span_starts", _INTS),  # first token of each keyphrase
        ("span_ends", _INTS),  # one after its last
    ]
)


def part_name(number: int) -> str:
    """Return the file name of a split's part."""
    return f"part-{number:05d}.parquet"


class RowGroup(NamedTuple):
    """A row group of a file of a split: the number of the file, its own number in it, and how many rows it has."""

    part: int
    number: int
    rows: int


class RowRange(NamedTuple):
    """Some consecutive rows of a row group: the first, and the one after the last."""

    group: RowGroup
    begin: int
    end: int


@dataclass(frozen=True)
class Split:
    """The texts of one split as flat arrays, for training and evaluation.

    Attributes:
        ids: (tokens,) vocabulary ids of all texts, concatenated.
        tags: (tokens,) BIOES tags.
        begins: (rows + 1,) index of the first token of each text; the last entry is the number of tokens.
        word_features: (tokens, NUM_FEATURES) rows of the feature table, see model/data/features.py, or None if not
            requested.
        subwords: of a pretrained encoder, or None if not requested.
        encoder_states: (tokens, D) of a frozen encoder, where they are computed before.
        teacher: of a training split with texts that a teacher labeled; their `tags` are the most probable ones.
    """

    ids: npt.NDArray[np.int32]
    tags: npt.NDArray[np.int8]
    begins: npt.NDArray[np.int64]
    word_features: FeatureIds | None = None
    subwords: Subwords | None = None
    encoder_states: npt.NDArray[np.float16] | None = None
    teacher: TeacherTargets | None = None

    def __len__(self) -> int:
        return len(self.begins) - 1

    def take(self, rows: npt.NDArray[np.int64]) -> "Split":
        """Return some rows, in their order, as a split of their own."""
        begins, lengths = self.begins[rows], self.begins[rows + 1] - self.begins[rows]
        own = np.concatenate([[0], lengths.cumsum()])
        tokens = ranges(begins, lengths)
        return Split(
            self.ids[tokens],
            self.tags[tokens],
            own,
            None if self.word_features is None else self.word_features[tokens],
            None if self.subwords is None else self.subwords.take(rows, tokens, lengths),
            None if self.encoder_states is None else self.encoder_states[tokens],
            None if self.teacher is None else self.teacher.take(rows, tokens),
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) tokens of each text."""
        return np.diff(self.begins)

    @property
    def input_lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) what the tagger reads of each text: sub-words where its encoder runs, else tokens."""
        if self.subwords is None or self.encoder_states is not None:
            return self.lengths
        return self.subwords.lengths


class Dataset:
    """An existing dataset directory.

    Attributes:
        location: path or URI.
        info: the content of dataset.json.
    """

    def __init__(self, location: str) -> None:
        """Open a dataset. Raises UserError if there is none, or if a newer version wrote it."""
        self.location = location
        place = storage.join(location, "dataset.json")
        try:
            self.info: DatasetInfo = json.loads(storage.read(place))
            version = self.info["format_version"]
            if version <= DATASET_FORMAT:
                _require_sizes(self.info)
        except (FileNotFoundError, NotADirectoryError):
            missing = "no such directory" if not storage.exists(location) else "is no dataset: it has no dataset.json"
            raise UserError(f"{location}: {missing}; make one with `python -m jobs prepare FILES --out DIR`") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place}: is damaged ({error}); prepare the dataset again") from None
        if version > DATASET_FORMAT:
            raise UserError(
                f"{location}: has dataset format {version}, but this Tandem reads up to {DATASET_FORMAT}; "
                f"update Tandem, or prepare the dataset again"
            )

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises UserError where it is missing or damaged."""
        return parse_tokenizer(*self._read("tokenizer.json", self.info.get("tokenizer_sha256")))

    def tokenizer_bytes(self) -> bytes:
        """Return the content of tokenizer.json. Raises UserError where it is missing or damaged."""
        return self._read("tokenizer.json", self.info.get("tokenizer_sha256"))[0]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content of the input files, the sizes of the splits and the vocabulary.

        A dataset that is prepared again from the same files has the same one, wherever the files are.
        """
        files = {split: [file["sha256"] for file in files] for split, files in self.info["sources"].items()}
        sizes = {name: [each["rows"], each["tokens"], each["keyphrases"]] for name, each in self.info["splits"].items()}
        content = json.dumps([files, sizes], sort_keys=True).encode() + self.tokenizer_bytes()
        return hashlib.sha256(content).hexdigest()

    def vectors(self) -> npt.NDArray[np.float32] | None:
        """Return the initial word vectors (words, size), or None where the dataset has none.

        Raises:
            UserError: the file is missing or damaged.
        """
        vectors = self.info.get("vectors")
        if not vectors:
            return None
        content, location = self._read("vectors.safetensors", vectors.get("sha256"))
        try:
            return load(content)["vectors"]
        except SafetensorError as error:
            raise UserError(f"{location}: is damaged: {error}; prepare the dataset again") from error

    def rows(self, split: str) -> int:
        """Return the number of texts of a split, 0 where the dataset does not have it."""
        splits = self.info["splits"]
        return splits[split]["rows"] if split in splits else 0

    def require(self, split: str) -> None:
        """Raise UserError where a split has no texts."""
        if not self.rows(split):
            available = ", ".join(name for name in SPLITS if self.rows(name))
            raise UserError(
                f"{self.location}: has no {split} split (it has {available}); prepare it with --{split} FILE"
            )

    def load(self, split: str, word_features: bool = False, subwords: SubwordTokenizer | None = None) -> Split:
        """Return a split, in the order of its files.

        Args:
            split: its name.
            word_features: whether to add the features of words.
            subwords: adds the sub-words of a pretrained encoder.

        Raises:
            UserError: the split is missing or damaged.
        """
        self.require(split)
        return self._arrays(self._table(split, self._columns(word_features, subwords)), word_features, subwords)

    def row_groups(self, split: str) -> list[RowGroup]:
        """Return the row groups of a split's files, in the order of its texts; reads only the footers of the files.

        Raises:
            UserError: the split is missing or damaged.
        """
        self.require(split)

        def of_part(number: int) -> list[RowGroup]:
            with self._part(split, number) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                return [RowGroup(number, group, rows) for group, rows in enumerate(sizes)]

        parts = range(self.info["splits"][split]["parts"])
        with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as threads:
            return list(chain.from_iterable(threads.map(of_part, parts)))

    def load_rows(
        self,
        split: str,
        ranges: Sequence[RowRange],
        word_features: bool = False,
        subwords: SubwordTokenizer | None = None,
    ) -> Split:
        """Return some rows of a split, with what `load` adds.

        Args:
            split: its name.
            ranges: the rows, in the order in which they are wanted.
            word_features, subwords: see `load`.

        Raises:
            UserError: the split is damaged.
        """
        columns = self._columns(word_features, subwords)
        tables = []
        for group, begin, end in ranges:
            with self._part(split, group.part) as file:
                tables.append(file.read_row_group(group.number, columns=columns).slice(begin, end - begin))
        return self._arrays(pa.concat_tables(tables), word_features, subwords)

    def word_counts(self, split: str, groups: Iterable[RowGroup]) -> npt.NDArray[np.int64]:
        """Return (words,) how often each word of the vocabulary occurs in some row groups of a split.

        Raises:
            UserError: the split is damaged.
        """
        counts = np.zeros(self.info["words"], np.int64)
        for group in groups:
            with self._part(split, group.part) as file:
                ids, _ = _flatten(file.read_row_group(group.number, columns=["ids"])["ids"])
                counts += np.bincount(ids, minlength=len(counts))
        return counts

    @staticmethod
    def _columns(word_features: bool, subwords: SubwordTokenizer | None) -> list[str]:
        columns = ["ids", "span_starts", "span_ends"]
        return [*columns, "text", "starts", "ends"] if word_features or subwords is not None else columns

    @staticmethod
    def _arrays(table: pa.Table, word_features: bool, subwords: SubwordTokenizer | None) -> Split:
        ids, begins = _flatten(table["ids"])
        span_starts, span_begins = _flatten(table["span_starts"])
        span_ends, _ = _flatten(table["span_ends"])
        first_tokens = np.repeat(begins[:-1], np.diff(span_begins))  # spans are relative to their own text
        tags = spans_to_tags(np.stack([span_starts + first_tokens, span_ends + first_tokens], axis=1), len(ids))
        if "text" not in table.column_names:
            return Split(ids, tags, begins)
        place = (_flatten(table["starts"])[0], _flatten(table["ends"])[0], begins)

        def texts() -> Iterator[str]:
            return (text for chunk in table["text"].chunks for text in chunk.to_pylist())

        features = WordFeatures()(texts(), *place) if word_features else None
        return Split(ids, tags, begins, features, subwords(texts(), *place) if subwords else None)

    def texts(self, split: str) -> Iterator[LabeledText]:
        """Yield a split's texts with their keyphrases as character spans, so that any tokenizer can read them.

        Raises:
            UserError: the split is missing.
        """
        self.require(split)
        for index, part in enumerate(self._parts(split)):
            with self._part(split, index) as file:
                columns = ["text", "starts", "ends", "span_starts", "span_ends"]
                batches = file.iter_batches(columns=columns)
                for number, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
                    spans = zip(row["span_starts"], row["span_ends"], strict=True)
                    characters = tuple((row["starts"][start], row["ends"][end - 1]) for start, end in spans)
                    yield LabeledText(row["text"], f"{self.location}/{split}/{part}:{number}", characters)

    def _parts(self, split: str) -> list[str]:
        return [part_name(i) for i in range(self.info["splits"][split]["parts"])]

    def _table(self, split: str, columns: list[str]) -> pa.Table:
        filesystem, path = storage.resolve(storage.join(self.location, split))
        with self._damage_as_user_error(split):
            return pa.concat_tables(
                pq.read_table(f"{path}/{part}", columns=columns, filesystem=filesystem, page_checksum_verification=True)
                for part in self._parts(split)
            )

    @contextmanager
    def _part(self, split: str, number: int) -> Iterator[pq.ParquetFile]:
        """Open a file of a split."""
        filesystem, path = storage.resolve(storage.join(self.location, split))
        with self._damage_as_user_error(split), filesystem.open_input_file(f"{path}/{part_name(number)}") as file:
            yield pq.ParquetFile(file, page_checksum_verification=True)

    @contextmanager
    def _damage_as_user_error(self, split: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.location}/{split}: is damaged ({error}); prepare the dataset again") from error

    def _read(self, name: str, sha256: str | None) -> tuple[bytes, str]:
        """Return the content of a file, which has this digest if one is known, and its location."""
        location = storage.join(self.location, name)
        try:
            content = storage.read(location)
        except FileNotFoundError:
            raise UserError(f"{location}: is missing; prepare the dataset again") from None
        if sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise UserError(f"{location}: does not match its digest in dataset.json; prepare the dataset again")
        return content, location


def _require_sizes(info: DatasetInfo) -> None:
    """Raise KeyError, TypeError or AttributeError where a number that reading needs is missing or is none."""
    for split in info["splits"].values():
        _ = split["rows"] + split["tokens"] + split["keyphrases"] + split["parts"]
    _ = info["words"] + info["recipe"]["max_tokens"]


def _flatten(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the values of a list column as one array, and (rows + 1,) where each row begins in it."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # no rows at all
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    begins = np.concatenate([[0], np.cumsum(np.asarray(lists.value_lengths()))]).astype(np.int64)
    return np.asarray(lists.flatten()), begins


def split_from_examples(
    examples: Iterable[Example], word_features: bool = False, subwords: SubwordTokenizer | None = None
) -> Split:
    """Return examples in memory as a split, with what `Dataset.load` adds."""
    needs_text = word_features or subwords is not None
    ids: list[int] = []
    texts: list[str] = []
    offsets: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    bounds = [0]
    for example in examples:
        spans += [(start + bounds[-1], end + bounds[-1]) for start, end in example.spans]
        ids += example.ids
        bounds.append(len(ids))
        if needs_text:
            texts.append(example.text)
            offsets += example.offsets
    tags = spans_to_tags(np.array(spans, np.int64).reshape(-1, 2), len(ids))
    begins = np.array(bounds, np.int64)
    if not needs_text:
        return Split(np.array(ids, np.int32), tags, begins)
    starts, ends = np.array(offsets, np.int32).reshape(-1, 2).T
    features = WordFeatures()(texts, starts, ends, begins) if word_features else None
    found = subwords(texts, starts, ends, begins) if subwords else None
    return Split(np.array(ids, np.int32), tags, begins, features, found)
