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
from model.prepare.vocabulary import bucket_of

_ROWS_PER_GROUP = 10_000
_WORDS_PER_BATCH = 50_000
_VOCABULARY = "vocabulary"
_WORDS = pa.schema([("word", pa.string()), ("count", pa.int64()), ("bucket", pa.int8())])


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


def write_words(folder: str, origin: str, number: int, words: Iterable[str], counts: npt.NDArray[np.int64]) -> None:
    """Write the words of a shard in the order of their ids, with their counts in training texts."""
    table = pa.table([pa.array(words, pa.string()), counts, [bucket_of(word) for word in words]], schema=_WORDS)
    with (
        storage.open_atomic(_draft_path(folder, f"{origin}-words", number)) as file,
        pa.ipc.new_file(file, _WORDS) as writer,
    ):
        writer.write_table(table, max_chunksize=_WORDS_PER_BATCH)


def read_words(folder: str, origin: str, number: int) -> pa.Table:
    """Return what `write_words` has written: columns `word`, `count` and `bucket`."""
    return pa.Table.from_batches(list(_read_batches(_draft_path(folder, f"{origin}-words", number))), _WORDS)


def write_vocabulary(folder: str, words: pa.ChunkedArray) -> None:
    """Write the words of the vocabulary in the order of their ids, without the special ones."""
    schema = pa.schema([_WORDS.field("word")])
    with storage.open_atomic(_draft_path(folder, _VOCABULARY, 0)) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.table([words], schema=schema), max_chunksize=_WORDS_PER_BATCH)


def vocabulary_ids(folder: str, origin: str, number: int) -> npt.NDArray[np.int32]:
    """Return (words,) the vocabulary id of each word of a shard."""
    words = read_words(folder, origin, number)["word"]
    ids, first_id = np.full(len(words), UNKNOWN, np.int32), len(SPECIAL)
    for batch in _read_batches(_draft_path(folder, _VOCABULARY, 0)):  # one index of all words would be large
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
        for table in _row_groups(_read_batches(_draft_path(draft_folder, split, number))):
            column = table["ids"].combine_chunks()
            encoded = pa.ListArray.from_arrays(column.offsets, pa.array(ids[np.asarray(column.values)]))
            writer.write_table(table.set_column(1, SCHEMA.field("ids"), encoded))


def _draft_path(folder: str, name: str, number: int) -> str:
    return storage.join(folder, f"{name}-{number:05d}.arrow")


def _read_batches(location: str) -> Iterator[pa.RecordBatch]:
    filesystem, path = storage.resolve(location)
    with filesystem.open_input_file(path) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


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
