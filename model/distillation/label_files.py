"""The label folder: what a teacher says of every word of many texts. `label` writes it, `train --teacher` reads it.

    part-*.parquet    a row per text, in the order of the texts; its words are those of the teacher's tokenizer
    labels.json       counts, digests of the teacher and of each part, and the files; written last

A folder without a `labels.json` is not finished. A part is written completely or not at all.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model import storage
from model.errors import UserError
from model.inference.batch_inference import SourceLines

LABELS_FORMAT = 1
MANIFEST = "labels.json"
TEACHER = b"teacher_digest"  # in the metadata of each part
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("keyword", pa.list_(pa.float16())),  # of each word: probability that it is inside a keyphrase
        ("keyphrase", pa.list_(pa.float16())),  # of each word: probabilities of O, B, I, E and S
    ]
)
_PART = re.compile(r"part-\d{5,}\.parquet")
_OURS = re.compile(rf"({_PART.pattern}|{re.escape(MANIFEST)})(\.\w+\.part)?")  # the end: of a write that was cut off
Floats = npt.NDArray[np.float16]


class PartInfo(TypedDict):
    """A part: numbers of texts, words and bytes, and the SHA-256 of the file."""

    texts: int
    words: int
    bytes: int
    sha256: str


class LabelsInfo(TypedDict):
    """The content of labels.json.

    Attributes:
        format_version: LABELS_FORMAT.
        texts, words, bytes: of all parts.
        teacher: location of the bundle.
        teacher_digest: see `model.inference.bundle.bundle_digest`.
        tokenizer_digest: SHA-256 of its tokenizer.json.
        rules_digest: see `rules_digest`.
        sources: the input files.
        parts: in their order.
    """

    format_version: int
    texts: int
    words: int
    bytes: int
    teacher: str
    teacher_digest: str
    tokenizer_digest: str
    rules_digest: str
    sources: list[SourceLines]
    parts: list[PartInfo]


class LabeledTexts(NamedTuple):
    """Texts with a teacher's probabilities.

    Attributes:
        texts: as they were given.
        lengths: (texts,) words of each.
        keyword: (words,) of all texts, concatenated.
        keyphrase: (words, 5).
    """

    texts: list[str]
    lengths: npt.NDArray[np.int64]
    keyword: Floats
    keyphrase: Floats


def part_name(number: int) -> str:
    """Return the file name of a part."""
    return f"part-{number:05d}.parquet"


def rules_digest(tokenizer: bytes) -> str:
    """Return the SHA-256 of the rules in a tokenizer.json, by which a text is divided into words, without the vocabulary."""
    content = json.loads(tokenizer)
    rules = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def require_same_words(rules: str, teacher: str, tokenizer: bytes, data: str) -> None:
    """Raise UserError where a teacher divides texts into other words than a dataset.

    Args:
        rules: `rules_digest` of the teacher's tokenizer.
        teacher: location of the bundle or of its labels, for the message.
        tokenizer: content of the dataset's tokenizer.json.
        data: location of the dataset, for the message.
    """
    if rules_digest(tokenizer) != rules:
        raise UserError(
            f"{teacher}: the teacher divides texts into other words than {data}: their tokenizers have different rules; "
            f"prepare the dataset again with this version and train the teacher on it, or take another teacher"
        )


def to_table(texts: list[str], begins: npt.NDArray[np.int64], keyword: Floats, keyphrase: Floats) -> pa.Table:
    """Return texts as rows of SCHEMA; text number i has the words from begins[i] to begins[i + 1]."""
    offsets = (begins - begins[0]).astype(np.int32)
    columns = [
        pa.array(texts, pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(keyword)),
        pa.ListArray.from_arrays(pa.array(offsets * 5), pa.array(keyphrase.ravel())),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def part_metadata(content: bytes) -> dict[bytes, bytes]:
    """Return what a part tells of itself besides its rows; nothing where it is damaged."""
    try:
        return dict(pq.read_metadata(io.BytesIO(content)).metadata or {})
    except (pa.ArrowException, OSError):
        return {}


def part_names(location: str) -> list[str]:
    """Return the names of the parts in a folder, sorted."""
    return [name for name in storage.list_directory(location) if _PART.fullmatch(name)]


def other_names(location: str) -> list[str]:
    """Return the names in a folder that `label` does not write, sorted."""
    return [name for name in storage.list_directory(location) if not _OURS.fullmatch(name)]


class TeacherLabels:
    """A finished label folder.

    Attributes:
        location: path or URI.
        info: the content of labels.json.
    """

    def __init__(self, location: str) -> None:
        """Open a folder. Raises UserError where there is none, it is not finished, or parts are missing or added."""
        self.location = location
        self.info: LabelsInfo = _manifest(location)
        wanted, found = [part_name(i) for i in range(len(self.info["parts"]))], part_names(location)
        for name in sorted({*wanted} ^ {*found}):
            problem = "is missing: the folder was cut" if name in wanted else f"is not in {MANIFEST}: labels were mixed"
            raise UserError(
                f"{storage.join(location, name)}: {problem}; copy the folder again, or label the texts again"
            )

    @property
    def digest(self) -> str:
        """The SHA-256 of the labels and the teacher, wherever the folder and the texts are."""
        names = ("format_version", "teacher_digest", "rules_digest", "parts")
        return hashlib.sha256(json.dumps([self.info[name] for name in names]).encode()).hexdigest()  # type: ignore[literal-required]

    def check_words(self, tokenizer: bytes, data: str) -> None:
        """Raise UserError where the teacher divides texts into other words than a dataset.

        Args:
            tokenizer: content of the dataset's tokenizer.json.
            data: location of the dataset, for the message.
        """
        require_same_words(self.info["rules_digest"], self.location, tokenizer, data)

    def read(self) -> Iterator[LabeledTexts]:
        """Yield the texts of each part. Raises UserError where a part is not the one that labels.json names."""
        for number, part in enumerate(self.info["parts"]):
            yield _labeled_texts(self._content(part_name(number), part))

    def _content(self, name: str, part: PartInfo) -> bytes:
        content = storage.read(storage.join(self.location, name))
        if hashlib.sha256(content).hexdigest() == part["sha256"]:
            return content
        teacher = part_metadata(content).get(TEACHER, b"").decode()
        if teacher and teacher != self.info["teacher_digest"]:
            problem = f"was labeled by another teacher ({teacher[:12]}...) than {MANIFEST} says"
        else:
            problem = f"is damaged: its SHA-256 is not that of {MANIFEST}"
        raise UserError(
            f"{storage.join(self.location, name)}: {problem}; copy the folder again, or label the texts again"
        )


def _manifest(location: str) -> Any:
    place = storage.join(location, MANIFEST)
    try:
        info = json.loads(storage.read(place))
        version = info["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        if not storage.exists(location):
            raise UserError(f"{location}: no such folder; make one with `python -m jobs label TEACHER FILES`") from None
        state = "is not finished: the same `label` command goes on" if part_names(location) else "is no label folder"
        raise UserError(f"{location}: {state}; it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: is damaged ({error}); label the texts again") from None
    if version > LABELS_FORMAT:
        raise UserError(
            f"{location}: has label format {version}, but this Tandem reads up to {LABELS_FORMAT}; update Tandem, or label "
            f"the texts again"
        )
    return info


def _labeled_texts(content: bytes) -> LabeledTexts:
    table = pq.read_table(io.BytesIO(content)).combine_chunks()
    keyword, keyphrase = (_values(table[name]) for name in ("keyword", "keyphrase"))
    lengths = np.asarray(pc.list_value_length(table["keyword"]), np.int64)
    return LabeledTexts(table["text"].to_pylist(), lengths, keyword, keyphrase.reshape(-1, 5))


def _values(column: pa.ChunkedArray) -> Floats:
    parts = [np.asarray(chunk.flatten(), np.float16) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, np.float16)
