"""Word vectors to begin from: word2vec, GloVe and fastText files, text or binary, read through gensim."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model import storage
from model.data.tokenizer import SPECIAL, CachedTokenizer
from model.errors import UserError

_NAMES_AT_ONCE = 10_000
_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")


class Vectors(NamedTuple):
    """A table (words, size) for the words of a vocabulary, and how many of them were known."""

    table: npt.NDArray[np.float32]
    covered: int


def initial_embedding(known: Any, words: list[str], seed: int = 0) -> Vectors:
    """The vectors of a vocabulary's words.

    A word is looked for as it is, then with a capital, then in capitals. Words that are not known are drawn at random
    around 0 with the spread of the known vectors, so that they differ from one another.

    Args:
        known: gensim's KeyedVectors.
        words: the vocabulary.
        seed: of the random vectors.
    """
    table = np.random.default_rng(seed).standard_normal((len(words), known.vector_size), dtype=np.float32)
    table *= float(np.std(known.vectors[:10_000]))
    covered = 0
    for i, word in enumerate(words):
        name = next((form for form in (word, word.capitalize(), word.upper()) if form in known.key_to_index), None)
        if name is not None and i >= len(SPECIAL):
            table[i] = known[name]
            covered += 1
    table[0] = 0.0  # padding
    return Vectors(table, covered)


def extra_words(known: Any, words: Iterable[str], most: int) -> list[str]:
    """At most so many words that have a vector and are not in a vocabulary, in the order of the vectors.

    They are in the form in which the tokenizer finds them; what it would cut into several words is left out.

    Args:
        known: gensim's KeyedVectors; files have the most frequent words first.
        words: the vocabulary.
        most: how many.
    """
    has, joined = set(words), dict[str, None]()
    forms: dict[str, int] = {}
    cut = CachedTokenizer(lambda word: forms.setdefault(word, len(forms)))
    names = iter(known.index_to_key)
    while len(joined) < most and (some := list(islice(names, _NAMES_AT_ONCE))):
        tokens, surface = cut(some), list(forms)
        for name, first, count in zip(some, tokens.begins.tolist(), np.diff(tokens.begins).tolist(), strict=False):
            whole = count == 1 and tokens.ends[first] - tokens.starts[first] == len(name)
            if whole and (form := surface[tokens.ids[first]]) not in has:
                joined[form] = None
    return list(joined)[:most]


def read_vectors(path: str) -> Any:
    """The vectors of a local file, as gensim's KeyedVectors.

    Args:
        path: word2vec (text or binary), GloVe (text) or fastText (`.vec` or `.bin`), told apart by content; `.gz` too.

    Raises:
        UserError: the file is damaged, or its lines differ in length.
    """
    from gensim.models import KeyedVectors
    from gensim.models.fasttext import load_facebook_vectors

    head = _head(path)
    if not head.strip():
        raise UserError(f"{path}: is empty; give a file of word vectors")
    try:
        if head.startswith(_FASTTEXT_MAGIC):
            return load_facebook_vectors(path)
        first = head.split(b"\n", 1)[0].split()
        counted = len(first) == 2 and all(part.isdigit() for part in first)
        binary = counted and not _is_text(head.split(b"\n", 1)[1])
        return KeyedVectors.load_word2vec_format(path, binary=binary, no_header=not counted, unicode_errors="replace")
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
    """Whether the bytes after the header are a word and numbers in UTF-8."""
    values = sample.split(b"\n", 1)[0].split(b" ")[1:]
    try:
        [float(value) for value in values[: max(len(values) - 1, 1)] if value]
    except ValueError:
        return False
    return bool(values)
