"""From labeled files to a dataset directory, in bounded memory: two passes over the shards of the input.

The first pass reads a shard and writes drafts of its rows, with word ids of its own. Words are counted over all shards,
bucket by bucket, and make the vocabulary. The second pass writes the rows with vocabulary ids. Shards and buckets are
processed independently, so the result is the same on any number of processes.
"""

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import pyarrow as pa

from model import staging, storage
from model.data.dataset import DATASET_FORMAT, NAMES
from model.data.dataset_info import DatasetInfo
from model.data.examples import MAX_TOKENS
from model.data.tokenizer import SPECIAL
from model.prepare.advice import pins
from model.prepare.buckets import Duplicates, add_duplicates, count_buckets, distinct_texts, read_counted
from model.prepare.initial_vectors import InitialVectors, Progress, WordEncoder
from model.prepare.passes import InputShard, ShardOptions, encode_shard, tokenize_shard
from model.prepare.totals import Totals
from model.prepare.vocabulary import BUCKETS, save_tokenizer, vocabulary
from model.prepare.writers import write_vocabulary
from model.readers.options import AUTO, ReadOptions
from model.readers.readers import left_out, resolve_inputs
from model.shards import ParallelMap, make_shards, serial_map


@dataclass(frozen=True)
class PrepareConfig:
    """What to make a dataset from.

    Attributes:
        train, valid, test: paths, URIs or globs of each split. Without valid, a tenth of the training texts becomes
            valid; without both, another tenth becomes test. A hash of the text decides, so equal texts stay together
            and a repeated run gives equal splits.
        out: the dataset directory, a path or URI.
        reading: what the content of the files does not tell.
        min_frequency: words less frequent in training become `<unk>`.
        max_words: the largest size of the vocabulary.
        max_tokens: longer texts are skipped.
        vectors: a file of pretrained word vectors, see model/prepare/vectors.py.
        vectors_from: a pretrained encoder, or a bundle with one, to make word vectors with.
        pretrain: paths, URIs or globs of unlabeled texts to train word vectors on, see model/prepare/word2vec.py; with
            `vectors_from`, texts whose frequent words get a vector too.
        vector_size: dimensions of the vectors of `pretrain` or `vectors_from`, by default `tagger.embedding_dim`.
        pretrain_frequency: words less frequent in the texts of `pretrain` get no vector.
        join: the most words that only the vectors have and that are added to the vocabulary, in the order of the
            vectors. By default none of `vectors`, and all of `pretrain`.
        strict: whether to refuse the input if anything would be skipped.
        skip_bad_lines: whether to skip lines that cannot be used instead of refusing the input.
        overwrite: whether to replace an existing dataset at `out`.
    """

    train: list[str]
    out: str
    valid: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    reading: ReadOptions = AUTO
    min_frequency: int = 1
    max_words: int = 1_000_000
    max_tokens: int = MAX_TOKENS
    vectors: str | None = None
    vectors_from: str | None = None
    pretrain: list[str] = field(default_factory=list)
    vector_size: int | None = None
    pretrain_frequency: int | None = None
    join: int | None = None
    strict: bool = False
    skip_bad_lines: bool = False
    overwrite: bool = False


def prepare(
    config: PrepareConfig,
    parallel_map: ParallelMap = serial_map,
    progress: Progress = lambda texts: None,
    pretrain_progress: Progress = lambda texts: None,
    encode_words: WordEncoder | None = None,
) -> DatasetInfo:
    """Make a dataset directory and return the content of its dataset.json.

    Args:
        config: what to make it from.
        parallel_map: runs the passes over the shards.
        progress: called with the number of texts read.
        pretrain_progress: called with the number of texts read for word vectors, see `word2vec.PASSES`.
        encode_words: makes vectors of words with the encoder of `vectors_from`, given the size of a vector.

    Raises:
        UserError: the input or the output cannot be used; nothing remains at `out`.
        OSError: the storage is full or cannot be written; nothing remains at `out`.
    """
    staging.require_absent(config.out, "dataset.json", "dataset", config.overwrite, NAMES)
    inputs = {"train": config.train, "valid": config.valid, "test": config.test}
    files = {split: resolve_inputs(patterns, config.reading) for split, patterns in inputs.items() if patterns}
    unread = left_out(list(chain(*inputs.values())))
    vectors = InitialVectors(config, encode_words)
    shards = [InputShard(origin, i, part) for origin, own in files.items() for i, part in enumerate(make_shards(own))]
    with staging.scratch_directory(config.out) as drafts:
        options = ShardOptions(_split_tenths(inputs), config.max_tokens, config.skip_bad_lines, drafts, pinned={})
        totals = _tokenize(options, shards, parallel_map, progress)
        splits = totals.splits(config.strict)
        duplicates = _count(drafts, shards, parallel_map)
        words = vocabulary(read_counted(drafts), config.min_frequency, config.max_words)
        words = vectors.extend(words, pretrain_progress)
        write_vocabulary(drafts, words)
        with staging.staged_shared_directory(config.out, "dataset.json", config.overwrite) as folder:
            tokenizer = storage.join(folder, "tokenizer.json")
            save_tokenizer(words, tokenizer)
            info: DatasetInfo = {
                "format_version": DATASET_FORMAT,
                "words": len(SPECIAL) + len(words),
                "splits": splits,
                "vectors": vectors.write(folder, words),
                "sources": totals.sources,
                "recipe": {
                    "min_frequency": config.min_frequency,
                    "max_words": config.max_words,
                    "max_tokens": config.max_tokens,
                },
                "tokenizer_sha256": hashlib.sha256(storage.read(tokenizer)).hexdigest(),
            }
            if warnings := totals.advice(duplicates) + unread:
                info["warnings"] = warnings
            del words  # the second pass reads it from the drafts
            pa.default_memory_pool().release_unused()
            _write_parts(options, shards, folder, list(splits), parallel_map)
            content = json.dumps(info, indent=2, ensure_ascii=False)
            storage.write(storage.join(folder, "dataset.json"), content.encode())
    return info


def _tokenize(options: ShardOptions, shards: list[InputShard], parallel_map: ParallelMap, progress: Progress) -> Totals:
    """Write the drafts, and again with texts pinned where chance has left a split empty."""
    totals = _add_up(options, shards, parallel_map, progress)
    if totals.lacks_split():
        texts = distinct_texts(options.drafts, [shard.key for shard in shards])
        if pinned := pins(texts, options.splits("train")):
            totals = _add_up(options._replace(pinned=pinned), shards, parallel_map, progress)
    return totals


def _add_up(options: ShardOptions, shards: list[InputShard], parallel_map: ParallelMap, progress: Progress) -> Totals:
    totals = Totals(options)
    with closing(parallel_map(partial(tokenize_shard, options), shards)) as results:
        for shard, stats in zip(shards, results, strict=True):
            totals.add(shard, stats)
            progress(totals.texts)
    return totals


def _count(drafts: str, shards: list[InputShard], parallel_map: ParallelMap) -> Duplicates:
    """Count words and equal texts: each task counts some buckets over all shards."""
    tasks = min(BUCKETS, len(shards))
    buckets = [range(first, BUCKETS, tasks) for first in range(tasks)]
    function = partial(count_buckets, drafts, [shard.key for shard in shards])
    with closing(parallel_map(function, buckets)) as results:
        found = []
        for result in results:
            if isinstance(result, OSError):
                raise result
            found.append(result)
    return add_duplicates(found)


def _write_parts(
    options: ShardOptions, shards: list[InputShard], folder: str, splits: list[str], parallel_map: ParallelMap
) -> None:
    for split in splits:
        storage.make_directory(storage.join(folder, split))
    with closing(parallel_map(partial(encode_shard, options, folder), shards)) as results:
        for error in results:
            if error is not None:
                raise error


def _split_tenths(inputs: dict[str, list[str]]) -> dict[int, str]:
    """Return the split of each tenth of the training files: a split without files of its own gets one."""
    tenths = dict.fromkeys(range(10), "train")
    if not inputs["valid"]:
        tenths[9] = "valid"
        if not inputs["test"]:
            tenths[8] = "test"
    return tenths
