"""Pretrained word vectors: word2vec, GloVe and fastText files, text or binary."""

import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice, takewhile
from math import isfinite
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from model.data.labeled_text import SkipCounts
from model.data.tokenizer import SPECIAL, CachedTokenizer
from model.errors import LineError, UserError
from model.readers.head import read_head
from model.shards import FileRange

_CHUNK_NAMES = 10_000
_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")
_FASTTEXT_HEADER_BYTES, _FASTTEXT_WORDS_AT = 92, 64  # where the number of words stands in it
_FASTTEXT_COUNT_BYTES = 9  # after each word and a zero: how often it occurs, and its kind
_BOM = b"\xef\xbb\xbf"
_SAMPLE_LINES = 100
# What gensim raises of files that are damaged, or that promise more vectors than any machine can hold.
_UNREADABLE = (
    ValueError, EOFError, OSError, NotImplementedError, IndexError, MemoryError, OverflowError, AssertionError, struct.error,
)  # fmt: skip
_SPREAD_SAMPLE = 10_000  # vectors whose standard deviation the random ones get


class KeyedVectors(Protocol):
    """The part of gensim's KeyedVectors that is used here.

    Attributes:
        vector_size: dimensions of a vector.
        vectors: (names, vector_size).
        key_to_index, index_to_key: the names; most files have the most frequent words first.
    """

    vector_size: int
    vectors: npt.NDArray[np.float32]
    key_to_index: dict[str, int]
    index_to_key: list[str]

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]: ...

    def __len__(self) -> int: ...


class InitialEmbedding(NamedTuple):
    """A table (words, size) for the words of a vocabulary, and the number of words with a pretrained vector."""

    table: npt.NDArray[np.float32]
    covered: int


def initial_embedding(
    vectors: KeyedVectors, words: list[str], names: Mapping[str, str], seed: int = 0
) -> InitialEmbedding:
    """Return the vectors of a vocabulary's words.

    A word is looked up as it is, then capitalized, then in upper case, then by its name. Words without a vector get a
    normal random one with the standard deviation of the pretrained vectors, so that they differ from one another.

    Args:
        vectors: pretrained vectors.
        words: the vocabulary, including the special words.
        names: of words that `extra_words` has found.
        seed: of the random vectors.
    """
    table = np.random.default_rng(seed).standard_normal((len(words), vectors.vector_size), dtype=np.float32)
    table *= float(np.std(vectors.vectors[:_SPREAD_SAMPLE]))
    covered = 0
    for i, word in enumerate(words):
        forms = (word, word.capitalize(), word.upper())
        name = next((form for form in forms if form in vectors.key_to_index), names.get(word))
        if name is not None and i >= len(SPECIAL):
            table[i] = vectors[name]
            covered += 1
    table[0] = 0.0  # padding
    return InitialEmbedding(table, covered)


def extra_words(vectors: KeyedVectors, vocabulary: Iterable[str], limit: int) -> dict[str, str]:
    """Return the first words that have a vector and are not in a vocabulary, each with its name among the vectors.

    The words are as the tokenizer writes them, `iphone` for the name `iPhone`; names that it would split are skipped.

    Args:
        vectors: pretrained vectors.
        vocabulary: words that are known already.
        limit: the most words to return.
    """
    known, extra = set(vocabulary), dict[str, str]()
    word_ids: dict[str, int] = {}
    tokenize = CachedTokenizer(lambda word: word_ids.setdefault(word, len(word_ids)))
    names = iter(vectors.index_to_key)
    while len(extra) < limit and (chunk := list(islice(names, _CHUNK_NAMES))):
        tokens, words = tokenize(chunk), list(word_ids)
        for name, first, count in zip(chunk, tokens.begins.tolist(), np.diff(tokens.begins).tolist(), strict=False):
            whole = count == 1 and tokens.ends[first] - tokens.starts[first] == len(name)
            if whole and (word := words[tokens.ids[first]]) not in known:
                extra.setdefault(word, name)
    return dict(islice(extra.items(), limit))


def read_vectors(path: str, skips: SkipCounts | None = None) -> KeyedVectors:
    """Read a file of word vectors.

    Args:
        path: a path or URI: word2vec (text or binary), GloVe (text) or fastText (`.vec` or `.bin`), detected from the
            content; compressed text is decompressed. Binary files must be local.
        skips: counts the lines of a text file that cannot be read.

    Raises:
        LineError: a line cannot be read, and `skips` is not given.
        UserError: the file is empty, incomplete, damaged or an archive.
    """
    from gensim.models import KeyedVectors as GensimVectors
    from gensim.models.fasttext import load_facebook_vectors

    begin = read_head(path, may_be_empty=True)
    head, file = begin.content, FileRange(path, begin.layout, location=begin.location)
    if not head.strip():
        raise UserError(f"{path}: is empty; give a file of word vectors")
    try:
        if head.startswith(_FASTTEXT_MAGIC):
            _require_vocabulary(file)
            return _finite(load_facebook_vectors(path), path)
        if _header(head) and not _is_text(head.split(b"\n", 1)[-1]):
            return _finite(GensimVectors.load_word2vec_format(path, binary=True, unicode_errors="replace"), path)
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read as word2vec or fastText vectors: {error}") from error
    return _read_text(file, _header(head), skips)


def _finite(vectors: KeyedVectors, path: str) -> KeyedVectors:
    """Return vectors. Raises UserError where one is not finite: the random ones, which have their spread, would not be either."""
    bad = np.flatnonzero(~np.isfinite(vectors.vectors.sum(1, dtype=np.float64)))
    if len(bad):
        word = vectors.index_to_key[bad[0]]
        raise UserError(
            f"{path}: {len(bad):,} vectors are not finite numbers, the first that of {word!r}; repair the file"
        )
    return vectors


def _require_vocabulary(file: FileRange) -> None:
    """Check that a binary file of fastText holds its words; gensim looks for the end of a word beyond that of the file, for ever.

    Raises:
        EOFError, struct.error: the file ends before.
    """
    with file.open() as stream:
        [words] = struct.unpack_from("<i", stream.read(_FASTTEXT_HEADER_BYTES), _FASTTEXT_WORDS_AT)
        buffer, at = b"", 0
        for _ in range(words):
            while (end := buffer.find(b"\0", at)) < 0:
                chunk = stream.read(1 << 20)
                if not chunk:
                    raise EOFError("it ends within its words")
                buffer, at = buffer[at:] + chunk, max(at - len(buffer), 0)
            at = end + 1 + _FASTTEXT_COUNT_BYTES


def _read_text(file: FileRange, header: tuple[int, int] | None, skips: SkipCounts | None) -> KeyedVectors:
    """Read a text file: on each line a word, which may contain spaces, and its numbers."""
    from gensim.models import KeyedVectors as GensimVectors

    path, size = file.path, header[1] if header else _count_numbers(file)
    words: dict[str, int] = {}
    values = array("f")
    number, bad = 0, 0
    for number, line in enumerate(file.lines(), 1):
        if header and number == 1:
            continue
        word, *numbers = line.removeprefix(_BOM).rsplit(None, size) or [b""]
        vector = _parse(numbers)
        if not word or len(vector) != size:
            bad += 1
            _skip_line(f"{path}:{number}", f"is not a word and {size} finite numbers", skips)
            continue
        name = word.strip().decode("utf-8", "replace")
        if name not in words:  # of equal words the first is the most frequent
            words[name] = len(words)
            values.extend(vector)
    if header and number - 1 < header[0]:
        raise UserError(f"{path}: is incomplete: line 1 promises {header[0]:,} words, but {number - 1:,} lines follow")
    if bad >= len(words):
        raise UserError(
            f"{path}: {bad:,} of {number:,} lines are not a word and {size} finite numbers; repair the file"
        )
    vectors = GensimVectors(size)
    vectors.key_to_index, vectors.index_to_key = words, list(words)
    vectors.vectors = np.frombuffer(values, np.float32).reshape(-1, size)
    return vectors


def _parse(numbers: list[bytes]) -> "array[float]":
    """Return the values of numbers as 32 bits, or none where one of them is no finite number."""
    try:
        values = array("f", map(float, numbers))
    except ValueError:
        return array("f")
    return values if isfinite(sum(values)) else array("f")


def _skip_line(place: str, problem: str, skips: SkipCounts | None) -> None:
    if skips is None:
        raise LineError(place, problem)
    skips.add(f"bad line: {problem}", place)


def _count_numbers(file: FileRange) -> int:
    """Return how many numbers most of the first lines of a file end with; the first column is always a word.

    Raises:
        UserError: the lines end with no numbers.
    """
    counts: Counter[int] = Counter()
    for line in islice(file.lines(), _SAMPLE_LINES):
        columns = line.split()[1:]
        counts[sum(1 for _ in takewhile(_is_number, reversed(columns)))] += 1
    [(size, _)] = counts.most_common(1) or [(0, 0)]
    if not size:
        raise UserError(f"{file.path}: is no file of word vectors: its lines do not end with numbers")
    return size


def _is_number(column: bytes) -> bool:
    try:
        float(column)
    except ValueError:
        return False
    return True


def _header(head: bytes) -> tuple[int, int] | None:
    """Return the number of words and of dimensions that the first line of a file promises, or None."""
    columns = head.removeprefix(_BOM).split(b"\n", 1)[0].split()
    if len(columns) != 2 or not all(map(bytes.isdigit, columns)) or not int(columns[1]):
        return None
    return int(columns[0]), int(columns[1])


def _is_text(sample: bytes) -> bool:
    """Return whether the bytes after the header are a word and numbers in UTF-8."""
    values = sample.split(b"\n", 1)[0].split()[1:]
    return bool(values) and all(map(_is_number, values[: max(len(values) - 1, 1)]))
