"""The parts of a dataset: the columns of a row, and how rows are written.

A part is written twice. The draft, an Arrow file, has ids that count the words of its own piece, for the vocabulary is
known only when all pieces are read. The part itself is Parquet, with the ids of the vocabulary.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model import storage
from model.data.dataset import SCHEMA, part_name
from model.data.examples import Span
from model.data.tokenizer import SPECIAL, UNKNOWN, TokenizedTexts
from model.prepare.vocabulary import bucket_of

_ROWS_PER_GROUP = 10_000
_WORDS_AT_ONCE = 50_000
_VOCABULARY = "vocabulary"

_WORDS = pa.schema([("word", pa.string()), ("count", pa.int64()), ("bucket", pa.int8())])


def to_record_batch(texts: list[str], cut: TokenizedTexts, rows: list[int], spans: list[list[Span]]) -> pa.RecordBatch:
    """Some of a run of texts, as rows.

    Args:
        texts: all texts of the run.
        cut: their tokens.
        rows: which of them are wanted.
        spans: the keyphrases of those, as spans of tokens.
    """
    chosen = np.array(rows, np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.diff(cut.begins)[chosen])])
    tokens = np.repeat(cut.begins[chosen] - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    places = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int32).reshape(-1, 2)
    span_offsets = np.concatenate([[0], np.cumsum([len(each) for each in spans])])
    columns = [
        pa.array([texts[row] for row in rows], pa.string()),
        *(_lists(values[tokens], offsets) for values in (cut.ids, cut.starts, cut.ends)),
        *(_lists(np.ascontiguousarray(side), span_offsets) for side in places.T),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _lists(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


@contextmanager
def open_drafts(folder: str, number: int, splits: list[str]) -> Iterator[dict[str, Any]]:
    """The drafts of a piece's parts to fill, each by its split: what has `write_batch`."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        writers = {}
        for split in splits:
            file = stack.enter_context(storage.open_atomic(_draft(folder, split, number)))
            writers[split] = stack.enter_context(pa.ipc.new_file(file, SCHEMA, options=options))
        yield writers


def write_words(folder: str, origin: str, number: int, words: Iterable[str], counts: Any) -> None:
    """Writes the words of a piece in the order of their ids, with how often they occur in training."""
    table = pa.table([pa.array(words, pa.string()), counts, [bucket_of(word) for word in words]], schema=_WORDS)
    with (
        storage.open_atomic(_draft(folder, f"{origin}-words", number)) as file,
        pa.ipc.new_file(file, _WORDS) as writer,
    ):
        writer.write_table(table, max_chunksize=_WORDS_AT_ONCE)


def read_words(folder: str, origin: str, number: int) -> pa.Table:
    """What `write_words` has written."""
    return pa.Table.from_batches(list(_read(_draft(folder, f"{origin}-words", number))), _WORDS)


def write_vocabulary(folder: str, words: pa.ChunkedArray) -> None:
    """Writes the words that have an id, in the order of their ids."""
    schema = pa.schema([_WORDS.field("word")])
    with storage.open_atomic(_draft(folder, _VOCABULARY, 0)) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.table([words], schema=schema), max_chunksize=_WORDS_AT_ONCE)


def vocabulary_ids(folder: str, origin: str, number: int) -> npt.NDArray[np.int32]:
    """The vocabulary id of each word of a piece."""
    words = read_words(folder, origin, number)["word"]
    ids, first = np.full(len(words), UNKNOWN, np.int32), len(SPECIAL)
    for some in _read(_draft(folder, _VOCABULARY, 0)):  # a table to look up all of them would be large
        found = pc.index_in(words, value_set=some["word"]).to_numpy()
        known = ~np.isnan(found)
        ids[known] = found[known] + first
        first += some.num_rows
    return ids


def write_part(draft_folder: str, split: str, number: int, folder: str, ids: npt.NDArray[np.int32]) -> None:
    """Writes a part from its draft.

    Args:
        draft_folder: where its draft is.
        split, number: which part.
        folder: the dataset directory.
        ids: the vocabulary id of each word of the piece.
    """
    with (
        storage.open_atomic(storage.join(folder, split, part_name(number))) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer,
    ):
        for table in _grouped(_read(_draft(draft_folder, split, number))):
            column = table["ids"].combine_chunks()
            known = pa.ListArray.from_arrays(column.offsets, pa.array(ids[np.asarray(column.values)]))
            writer.write_table(table.set_column(1, SCHEMA.field("ids"), known))


def _draft(folder: str, name: str, number: int) -> str:
    return storage.join(folder, f"{name}-{number:05d}.arrow")


def _read(location: str) -> Iterator[pa.RecordBatch]:
    filesystem, path = storage.resolve(location)
    with filesystem.open_input_file(path) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _grouped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in groups of about _ROWS_PER_GROUP."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) >= _ROWS_PER_GROUP:
            yield pa.Table.from_batches(held).combine_chunks()
            held = []
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
