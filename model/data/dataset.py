"""The dataset directory: what `prepare` writes and everything else reads.

    dataset.json                       format version, rows, sources with checksums, what was left out and why
    tokenizer.json                     see model/data/tokenizer.py
    vectors.safetensors                optional: pretrained word vectors, one row per word of the vocabulary
    train|valid|test/part-*.parquet    text, ids, token offsets, keyphrase spans

A local directory is moved into place when it is complete; on other storage `dataset.json` is written last. So a
directory with a `dataset.json` is whole.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load
from tokenizers import Tokenizer

from model import storage
from model.data.examples import Example, LabelledText
from model.data.features import Views, WordFeatures
from model.data.labels import spans_to_tags
from model.data.tokenizer import parse_tokenizer
from model.errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
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


@dataclass(frozen=True)
class Split:
    """The texts of one split as flat arrays: what the tagger is trained and measured on.

    Attributes:
        ids: (tokens,) vocabulary ids of all texts, one after the other.
        tags: (tokens,) BIOES tags.
        begins: (rows + 1,) where each text begins in them; the last entry is their end.
        views: (tokens, VIEWS) how each word is written, see model/data/features.py; None where it was not asked for.
    """

    ids: npt.NDArray[np.int32]
    tags: npt.NDArray[np.int8]
    begins: npt.NDArray[np.int64]
    views: Views | None = None

    def __len__(self) -> int:
        return len(self.begins) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) tokens of each text."""
        return np.diff(self.begins)


class Dataset:
    """A dataset directory that exists.

    Attributes:
        location: path or URI.
        info: the content of dataset.json.
    """

    def __init__(self, location: str) -> None:
        """Raises UserError where there is no dataset, or one that a newer version wrote."""
        self.location = location
        try:
            self.info: dict[str, Any] = json.loads(storage.read(storage.join(location, "dataset.json")))
            version = self.info["format_version"]
        except (FileNotFoundError, NotADirectoryError):
            missing = "no such directory" if not storage.exists(location) else "is no dataset: it has no dataset.json"
            raise UserError(f"{location}: {missing}; make one with `python -m jobs prepare FILES --out DIR`") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{location}/dataset.json: is damaged ({error}); prepare the dataset again") from None
        if version > FORMAT_VERSION:
            raise UserError(
                f"{location}: has dataset format {version}, and this Tandem reads up to {FORMAT_VERSION}; "
                f"update Tandem, or prepare the dataset again"
            )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises UserError where it is missing or damaged."""
        return parse_tokenizer(*self._file("tokenizer.json"))

    def tokenizer_bytes(self) -> bytes:
        """The content of tokenizer.json, for a bundle."""
        return self._file("tokenizer.json")[0]

    def vectors(self) -> npt.NDArray[np.float32] | None:
        """(words, size) pretrained vectors, or None where the dataset has none."""
        if not self.info.get("vectors"):
            return None
        content, location = self._file("vectors.safetensors")
        try:
            return load(content)["vectors"]
        except SafetensorError as error:
            raise UserError(f"{location}: is damaged: {error}; prepare the dataset again") from error

    def rows(self, split: str) -> int:
        """How many texts a split has; 0 where the dataset does not have it."""
        return int(self.info["splits"].get(split, {}).get("rows", 0))

    def require(self, split: str) -> None:
        """Raises UserError where a split has no texts."""
        if not self.rows(split):
            has = ", ".join(name for name in SPLITS if self.rows(name))
            raise UserError(f"{self.location}: has no {split} split (it has {has}); prepare it with --{split} FILE")

    def load(self, split: str, spelled: bool = False) -> Split:
        """A split's ids and tags, in the order of its files; and how its words are written where `spelled`."""
        self.require(split)
        table = self._table(
            split, ["ids", "span_starts", "span_ends", *(["text", "starts", "ends"] if spelled else [])]
        )
        ids, begins = _flat(table["ids"])
        first, span_begins = _flat(table["span_starts"])
        end, _ = _flat(table["span_ends"])
        shift = np.repeat(begins[:-1], np.diff(span_begins))  # spans count tokens within their own text
        spans = np.stack([first + shift, end + shift], axis=1)
        views = None
        if spelled:
            starts, ends = _flat(table["starts"])[0], _flat(table["ends"])[0]
            texts = (text for chunk in table["text"].chunks for text in chunk.to_pylist())
            views = WordFeatures()(texts, starts, ends, begins)
        return Split(ids, spans_to_tags(spans, len(ids)), begins, views)

    def texts(self, split: str) -> Iterator[LabelledText]:
        """A split's texts with their keyphrases as characters, so that another tokenizer can read them."""
        self.require(split)
        filesystem, path = storage.resolve(storage.join(self.location, split))
        for part in self._parts(split):
            with filesystem.open_input_file(f"{path}/{part}") as file:
                columns = ["text", "starts", "ends", "span_starts", "span_ends"]
                batches = pq.ParquetFile(file).iter_batches(columns=columns)
                for number, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
                    spans = zip(row["span_starts"], row["span_ends"], strict=True)
                    characters = tuple((row["starts"][start], row["ends"][end - 1]) for start, end in spans)
                    yield LabelledText(row["text"], f"{self.location}/{split}/{part}:{number}", characters)

    def _parts(self, split: str) -> list[str]:
        return [part_name(i) for i in range(self.info["splits"][split]["parts"])]

    def _table(self, split: str, columns: list[str]) -> pa.Table:
        filesystem, path = storage.resolve(storage.join(self.location, split))
        try:
            parts = [
                pq.read_table(f"{path}/{part}", columns=columns, filesystem=filesystem) for part in self._parts(split)
            ]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.location}/{split}: is damaged ({error}); prepare the dataset again") from error
        return pa.concat_tables(parts)

    def _file(self, name: str) -> tuple[bytes, str]:
        location = storage.join(self.location, name)
        try:
            return storage.read(location), location
        except FileNotFoundError:
            raise UserError(f"{location}: is missing; prepare the dataset again") from None


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The values of a list column in one array, and where each row begins in it."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # no rows at all
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    begins = np.concatenate([[0], np.cumsum(np.asarray(lists.value_lengths()))]).astype(np.int64)
    return np.asarray(lists.flatten()), begins


def split_from_examples(examples: Iterable[Example], spelled: bool = False) -> Split:
    """Examples in memory as a Split; `spelled` as in `Dataset.load`."""
    ids: list[int] = []
    texts: list[str] = []
    offsets: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    begins = [0]
    for example in examples:
        spans += [(start + begins[-1], end + begins[-1]) for start, end in example.spans]
        ids += example.ids
        begins.append(len(ids))
        if spelled:
            texts.append(example.text)
            offsets += example.offsets
    tags = spans_to_tags(np.array(spans, np.int64).reshape(-1, 2), len(ids))
    bounds = np.array(begins, np.int64)
    starts, ends = np.array(offsets, np.int32).reshape(-1, 2).T
    views = WordFeatures()(texts, starts, ends, bounds) if spelled else None
    return Split(np.array(ids, np.int32), tags, bounds, views)


def part_name(number: int) -> str:
    """The file name of a split's part."""
    return f"part-{number:05d}.parquet"
