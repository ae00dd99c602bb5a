"""From labelled files to a dataset directory, in bounded memory: piece by piece, in two passes.

The first pass reads a piece of the input once and writes a draft of its rows, in which words have numbers of their own.
The counts of all pieces together make the vocabulary. The second pass writes the rows with the ids of the vocabulary. A
piece is worked on alone, here or elsewhere, so the result is the same whoever does it.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from safetensors.numpy import save

from model import staging, storage
from model.config import TaggerConfig
from model.data.dataset import DATASET_FORMAT, SPLITS
from model.data.labelled_text import SkipCounts, format_skips, shift_line
from model.data.tokenizer import SPECIAL
from model.errors import LineError, UserError
from model.prepare.passes import InputShard, ShardOptions, ShardStats, encode_shard, tokenize_shard
from model.prepare.readers import resolve_inputs
from model.prepare.vectors import extra_words, initial_embedding, read_vectors
from model.prepare.vocabulary import WordCounts, save_tokenizer
from model.prepare.word2vec import FREQUENCY, train_word2vec, unlabelled_files
from model.prepare.writers import read_words, write_vocabulary
from model.shards import ParallelMap, make_shards, serial_map


@dataclass(frozen=True)
class PrepareConfig:
    """What to make a dataset from.

    Attributes:
        train, valid, test: paths, URIs or globs of each split. Where valid is not given, a tenth of the training texts
            becomes valid; where neither is given, another tenth becomes test. A hash of the text decides, so that
            equal texts stay together and a repeated run gives the same splits.
        out: the dataset directory, a path or URI.
        format: one of corpus.FORMATS, or `auto`.
        min_frequency: words seen less often in training become `<unk>`.
        max_words: size of the vocabulary at most.
        max_tokens: longer texts are left out.
        vectors: a file of pretrained word vectors, see model/prepare/vectors.py.
        pretrain: unlabelled texts to train word vectors on instead, see model/prepare/word2vec.py: paths, URIs or globs.
        vector_size: values of a vector of `pretrain`, by default those of `tagger.embedding_dim`.
        pretrain_frequency: words seen less often in the texts of `pretrain` get no vector.
        join: words that only the vectors have, and that join the vocabulary, at most, the most frequent first. By default
            none of a file's, and all of `pretrain`.
        strict: refuse the input instead of leaving anything out.
        skip_bad_lines: leave out lines that cannot be used instead of refusing the input.
        overwrite: replace a dataset that stands at `out`.
    """

    train: list[str]
    out: str
    valid: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    format: str = "auto"
    min_frequency: int = 1
    max_words: int = 1_000_000
    max_tokens: int = 1_000
    vectors: str | None = None
    pretrain: list[str] = field(default_factory=list)
    vector_size: int | None = None
    pretrain_frequency: int | None = None
    join: int | None = None
    strict: bool = False
    skip_bad_lines: bool = False
    overwrite: bool = False


def prepare(
    recipe: PrepareConfig,
    over: ParallelMap = serial_map,
    tell: Callable[[int], None] = lambda texts: None,
    tell_pretraining: Callable[[int], None] = lambda texts: None,
) -> dict[str, Any]:
    """Makes the dataset directory and gives the content of its dataset.json.

    Args:
        recipe: what to make it from.
        over: where the pieces of the input are worked on.
        tell: is told how many texts are read.
        tell_pretraining: is told how many texts are read for word vectors, see pretraining.PASSES.

    Raises:
        UserError: the input or the output cannot be used; nothing is left at `out`.
        OSError: the storage is full or cannot be written; likewise.
    """
    staging.require_absent(recipe.out, "dataset.json", "dataset", recipe.overwrite)
    given = {"train": recipe.train, "valid": recipe.valid, "test": recipe.test}
    files = {split: resolve_inputs(patterns, recipe.format) for split, patterns in given.items() if patterns}
    start = _PretrainedVectors(recipe)
    pieces = [
        InputShard(origin, i, ranges) for origin, each in files.items() for i, ranges in enumerate(make_shards(each))
    ]
    with staging.scratch_directory(recipe.out) as drafts:
        rules = ShardOptions(_split_by_hash(given), recipe.max_tokens, recipe.skip_bad_lines, drafts)
        found = _Totals(rules)
        with closing(over(partial(tokenize_shard, rules), pieces)) as passes:
            for piece, facts in zip(pieces, passes, strict=True):
                found.add(piece, facts)
                tell(found.texts)
        splits = found.splits(pieces, recipe.strict)
        vocabulary = found.words.vocabulary(recipe.min_frequency, recipe.max_words)["word"]
        vocabulary = start.joined(vocabulary, tell_pretraining)
        write_vocabulary(drafts, vocabulary)
        with staging.staged_shared_directory(recipe.out, marker="dataset.json") as folder:
            save_tokenizer(vocabulary, storage.join(folder, "tokenizer.json"))
            vectors = start.write(folder, vocabulary)
            words = len(SPECIAL) + len(vocabulary)
            del vocabulary  # the second pass finds it where the drafts are
            pa.default_memory_pool().release_unused()
            _write_parts(rules, pieces, folder, list(splits), over)
            info = {
                "format_version": DATASET_FORMAT,
                "words": words,
                "splits": splits,
                "vectors": vectors,
                "sources": found.sources,
                "recipe": {
                    "min_frequency": recipe.min_frequency,
                    "max_words": recipe.max_words,
                    "max_tokens": recipe.max_tokens,
                },
            }
            content = json.dumps(info, indent=2, ensure_ascii=False)
            storage.write(storage.join(folder, "dataset.json"), content.encode())
    return info


class _Totals:
    """What the first passes found, added up in the order of the pieces.

    Attributes:
        words: of the training texts, counted.
        texts: rows of all splits.
        sources: what dataset.json says of the files of each split.
    """

    def __init__(self, rules: ShardOptions) -> None:
        self.words = WordCounts()
        self.texts = 0
        self.sources: dict[str, list[dict[str, Any]]] = {}
        self._rules = rules
        self._counts: dict[str, Counter[str]] = {}
        self._tallies: dict[str, SkipCounts] = {}

    def add(self, piece: InputShard, facts: ShardStats) -> None:
        """Raises what stopped the pass, with the line counted from the beginning of its file."""
        files = self.sources.setdefault(piece.origin, [])
        for i, part in enumerate(piece.ranges):
            before = files[-1]["lines"] if part.start else 0
            if i == len(facts.lines) and isinstance(facts.error, LineError):
                raise LineError(shift_line(facts.error.place, before), facts.error.problem)
            if i == len(facts.lines):
                break
            if first := facts.checksums[i]:
                size, digest = first
                files.append({"path": part.path, "format": part.format, "lines": 0, "bytes": size, "sha256": digest})
            files[-1]["lines"] += facts.lines[i]
            for split, tally in facts.tallies[i].items():
                self._tallies.setdefault(split, SkipCounts()).merge(tally, before)
        if facts.error is not None:
            raise facts.error
        for split, counts in facts.counts.items():
            self._counts.setdefault(split, Counter()).update(counts)
            self.texts += counts["rows"]
        if piece.origin == "train":
            self.words.add(read_words(self._rules.drafts, piece.origin, piece.number))

    def splits(self, pieces: list[InputShard], strict: bool) -> dict[str, dict[str, Any]]:
        """What dataset.json says of each split. Raises UserError where one has no text, or had to leave some out."""
        splits = {}
        for split in SPLITS:
            if split not in self._counts:
                continue
            tally, counts = self._tallies[split], self._counts[split]
            if tally.counts and strict:
                left_out = "; ".join(format_skips(tally.counts, tally.places))
                raise UserError(f"{split}: --strict, and this would be left out: {left_out}")
            if not counts["rows"]:
                why = (
                    "; ".join(format_skips(tally.counts, tally.places)) or "there were too few texts to set some aside"
                )
                raise UserError(f"{split}: no text is left: {why}; mend the files, or give more texts")
            splits[split] = {
                **{name: counts[name] for name in ("rows", "tokens", "keyphrases")},
                "parts": sum(split in self._rules.splits(piece.origin) for piece in pieces),
                "skipped": tally.counts,
                "skipped_places": tally.places,
            }
        return splits


def _write_parts(
    rules: ShardOptions, pieces: list[InputShard], folder: str, splits: list[str], over: ParallelMap
) -> None:
    for split in splits:
        storage.make_directory(storage.join(folder, split))
    with closing(over(partial(encode_shard, rules, folder), pieces)) as passes:
        for error in passes:
            if error is not None:
                raise error


def _split_by_hash(given: dict[str, list[str]]) -> dict[int, str]:
    """Which tenths (by hash) of the training files go to a split that has no files of its own."""
    shares = dict.fromkeys(range(10), "train")
    if not given["valid"]:
        shares[9] = "valid"
        if not given["test"]:
            shares[8] = "test"
    return shares


class _PretrainedVectors:
    """The word vectors to begin from, where there are any."""

    def __init__(self, recipe: PrepareConfig) -> None:
        """Raises UserError where the recipe contradicts itself, or a file is missing or empty."""
        self._recipe = recipe
        if recipe.pretrain and recipe.vectors is not None:
            raise UserError("--pretrain and --vectors: both give the words their vectors; leave one of the two out")
        of_texts = {"--vector-size": recipe.vector_size, "--pretrain-frequency": recipe.pretrain_frequency}
        for option, value in of_texts.items():
            if value is not None and not recipe.pretrain:
                raise UserError(
                    f"{option} {value}: is about the vectors of --pretrain; give its texts, or leave it out"
                )
        if recipe.join is not None and not recipe.pretrain and recipe.vectors is None:
            raise UserError(f"--join {recipe.join}: is about words with vectors; give --pretrain or --vectors, too")
        if recipe.vectors is not None and not storage.exists(recipe.vectors):
            raise UserError(f"{recipe.vectors}: no such file of word vectors")
        self._texts = unlabelled_files(recipe.pretrain)
        self._known: Any = None
        self._about: dict[str, Any] = {}

    def joined(self, words: pa.ChunkedArray, tell: Callable[[int], None]) -> pa.ChunkedArray:
        """Reads or trains the vectors. Gives the vocabulary with the words that join it at its end."""
        recipe = self._recipe
        if self._texts:
            size, frequency = recipe.vector_size or TaggerConfig().embedding_dim, recipe.pretrain_frequency or FREQUENCY
            self._known, self._about["pretrained"] = train_word2vec(
                self._texts, size, frequency, recipe.skip_bad_lines, tell=tell
            )
            most = len(self._known) if recipe.join is None else recipe.join
        elif recipe.vectors is not None:
            self._known, self._about["path"] = read_vectors(recipe.vectors), recipe.vectors
            most = recipe.join or 0
        else:
            return words
        room = max(recipe.max_words - len(SPECIAL) - len(words), 0)
        more = extra_words(self._known, words.to_pylist(), min(most, room))
        self._about["words_joined"] = len(more)
        return pa.chunked_array([*words.chunks, pa.array(more, pa.string())])

    def write(self, folder: str, words: pa.ChunkedArray) -> dict[str, Any] | None:
        """Writes the vectors of the vocabulary; gives what dataset.json says of them."""
        if self._known is None:
            return None
        found = initial_embedding(self._known, [*SPECIAL, *words.to_pylist()])
        self._known = None  # it may be large
        storage.write(storage.join(folder, "vectors.safetensors"), save({"vectors": found.table}))
        rows, size = found.table.shape
        return self._about | {"size": size, "words_covered": found.covered, "words": rows}
