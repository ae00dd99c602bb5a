"""The parts of a dataset: how rows are written.

A part is written twice. The draft, an Arrow file, has word ids of its own shard, because the vocabulary is known only when
all shards are read. The part itself is Parquet, with vocabulary ids.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model import storage
from model.data.characters import Span
from model.data.dataset import SCHEMA, part_name
from model.data.tokenizer import SPECIAL, UNKNOWN, TokenizedTexts

_ROWS_PER_GROUP = 10_000
_WORDS_PER_BATCH = 50_000
_VOCABULARY = "vocabulary"
_WORDS = pa.schema([("word", pa.string())])


def to_record_batch(
    texts: list[str], tokens: TokenizedTexts, rows: list[int], spans: list[list[Span]]
) -> pa.RecordBatch:
    """Return some of the texts as rows of SCHEMA.

    Args:
        texts: all texts.
        tokens: their tokens.
        rows: numbers of the texts to return.
        spans: the keyphrases of those, in tokens of their own text.
    """
    chosen = np.array(rows, np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.diff(tokens.begins)[chosen])])
    index = np.repeat(tokens.begins[chosen] - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    bounds = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int32).reshape(-1, 2)
    span_offsets = np.concatenate([[0], np.cumsum([len(each) for each in spans])])
    columns = [
        pa.array([texts[row] for row in rows], pa.string()),
        *(_list_array(values[index], offsets) for values in (tokens.ids, tokens.starts, tokens.ends)),
        *(_list_array(np.ascontiguousarray(side), span_offsets) for side in bounds.T),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _list_array(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


@contextmanager
def open_drafts(folder: str, number: int, splits: list[str]) -> Iterator[dict[str, pa.RecordBatchFileWriter]]:
    """Open the drafts of a shard's parts; yield the writer of each split.

    Raises:
        OSError: a draft cannot be written.
    """
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        writers = {}
        for split in splits:
            file = stack.enter_context(storage.open_atomic(_draft_path(folder, split, number)))
            writers[split] = stack.enter_context(pa.ipc.new_file(file, SCHEMA, options=options))
        yield writers


def write_words(folder: str, origin: str, number: int, words: list[str]) -> None:
    """Write the words of a shard in the order of their ids. Raises OSError."""
    _write_in_order(folder, f"{origin}-words", number, pa.array(words, pa.string()))


def write_vocabulary(folder: str, words: pa.ChunkedArray) -> None:
    """Write the words of the vocabulary in the order of their ids, without the special ones. Raises OSError."""
    _write_in_order(folder, _VOCABULARY, 0, words)


def _write_in_order(folder: str, name: str, number: int, words: pa.Array | pa.ChunkedArray) -> None:
    table = pa.table([words], schema=_WORDS)
    write_draft(folder, name, number, _WORDS, table.to_batches(max_chunksize=_WORDS_PER_BATCH))


def vocabulary_ids(folder: str, origin: str, number: int) -> npt.NDArray[np.int32]:
    """Return (words,) the vocabulary id of each word of a shard."""
    words = pa.Table.from_batches(read_draft(folder, f"{origin}-words", number), _WORDS)["word"]
    ids, first_id = np.full(len(words), UNKNOWN, np.int32), len(SPECIAL)
    for batch in read_draft(folder, _VOCABULARY, 0):  # one index of all words would be large
        matches = pc.index_in(words, value_set=batch["word"]).to_numpy()
        known = ~np.isnan(matches)
        ids[known] = matches[known] + first_id
        first_id += batch.num_rows
    return ids


def write_part(draft_folder: str, split: str, number: int, folder: str, ids: npt.NDArray[np.int32]) -> None:
    """Write a part from its draft.

    Args:
        draft_folder: location of the drafts.
        split, number: identify the part.
        folder: the dataset directory.
        ids: (words,) the vocabulary id of each word of the shard.
    """
    with (
        storage.open_atomic(storage.join(folder, split, part_name(number))) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in _row_groups(read_draft(draft_folder, split, number)):
            column = table["ids"].combine_chunks()
            encoded = pa.ListArray.from_arrays(column.offsets, pa.array(ids[np.asarray(column.values)]))
            writer.write_table(table.set_column(1, SCHEMA.field("ids"), encoded))


def write_draft(folder: str, name: str, number: int, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a file of record batches among the drafts. Raises OSError."""
    with storage.open_atomic(_draft_path(folder, name, number)) as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_draft(folder: str, name: str, number: int, only: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a file among the drafts, or only the one of that number. Raises OSError."""
    filesystem, path = storage.resolve(_draft_path(folder, name, number))
    with filesystem.open_input_file(path) as file, pa.ipc.open_file(file) as reader:
        for batch in range(reader.num_record_batches) if only is None else [only]:
            yield reader.get_batch(batch)


def _draft_path(folder: str, name: str, number: int) -> str:
    return storage.join(folder, f"{name}-{number:05d}.arrow")


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows in groups of about _ROWS_PER_GROUP."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(each.num_rows for each in group) >= _ROWS_PER_GROUP:
            yield pa.Table.from_batches(group).combine_chunks()
            group = []
    if group:
        yield pa.Table.from_batches(group).combine_chunks()
