"""Pretrained word vectors: word2vec, GloVe and fastText files, text or binary, read with gensim."""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from model import storage
from model.data.tokenizer import SPECIAL, CachedTokenizer
from model.errors import UserError

_CHUNK_NAMES = 10_000
_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")
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


def initial_embedding(vectors: KeyedVectors, words: list[str], seed: int = 0) -> InitialEmbedding:
    """Return the vectors of a vocabulary's words.

    A word is looked up as it is, then capitalized, then in upper case. Words without a vector get a normal random one
    with the standard deviation of the pretrained vectors, so that they differ from one another.

    Args:
        vectors: pretrained vectors.
        words: the vocabulary, including the special words.
        seed: of the random vectors.
    """
    table = np.random.default_rng(seed).standard_normal((len(words), vectors.vector_size), dtype=np.float32)
    table *= float(np.std(vectors.vectors[:_SPREAD_SAMPLE]))
    covered = 0
    for i, word in enumerate(words):
        name = next((form for form in (word, word.capitalize(), word.upper()) if form in vectors.key_to_index), None)
        if name is not None and i >= len(SPECIAL):
            table[i] = vectors[name]
            covered += 1
    table[0] = 0.0  # padding
    return InitialEmbedding(table, covered)


def extra_words(vectors: KeyedVectors, vocabulary: Iterable[str], limit: int) -> list[str]:
    """Return the first words that have a vector and are not in a vocabulary.

    The words are returned as the tokenizer writes them; names that it would split are skipped.

    Args:
        vectors: pretrained vectors.
        vocabulary: words that are known already.
        limit: the most words to return.
    """
    known, extra = set(vocabulary), dict[str, None]()
    word_ids: dict[str, int] = {}
    tokenize = CachedTokenizer(lambda word: word_ids.setdefault(word, len(word_ids)))
    names = iter(vectors.index_to_key)
    while len(extra) < limit and (chunk := list(islice(names, _CHUNK_NAMES))):
        tokens, words = tokenize(chunk), list(word_ids)
        for name, first, count in zip(chunk, tokens.begins.tolist(), np.diff(tokens.begins).tolist(), strict=False):
            whole = count == 1 and tokens.ends[first] - tokens.starts[first] == len(name)
            if whole and (word := words[tokens.ids[first]]) not in known:
                extra[word] = None
    return list(extra)[:limit]


def read_vectors(path: str) -> KeyedVectors:
    """Read a file of word vectors.

    Args:
        path: a local file: word2vec (text or binary), GloVe (text) or fastText (`.vec` or `.bin`), detected from the
            content; `.gz` is decompressed.

    Raises:
        UserError: the file is empty or damaged, or its lines differ in length.
    """
    from gensim.models import KeyedVectors as GensimVectors
    from gensim.models.fasttext import load_facebook_vectors

    head = _head(path)
    if not head.strip():
        raise UserError(f"{path}: is empty; give a file of word vectors")
    try:
        if head.startswith(_FASTTEXT_MAGIC):
            return load_facebook_vectors(path)
        first = head.split(b"\n", 1)[0].split()
        has_header = len(first) == 2 and all(number.isdigit() for number in first)
        binary = has_header and not _is_text(head.split(b"\n", 1)[1])
        return GensimVectors.load_word2vec_format(
            path, binary=binary, no_header=not has_header, unicode_errors="replace"
        )
    except (ValueError, EOFError, OSError, NotImplementedError, IndexError) as error:
        raise UserError(
            f"{path}: cannot be read as word2vec, GloVe or fastText vectors: {error}; every line must have the same "
            f"number of values"
        ) from error


def _head(path: str) -> bytes:
    filesystem, inside = storage.resolve(path)
    with filesystem.open_input_stream(inside) as stream:
        return stream.read(4096)


def _is_text(sample: bytes) -> bool:
    """Return whether the bytes after the header are a word and numbers in UTF-8."""
    values = sample.split(b"\n", 1)[0].split(b" ")[1:]
    try:
        [float(value) for value in values[: max(len(values) - 1, 1)] if value]
    except ValueError:
        return False
    return bool(values)
