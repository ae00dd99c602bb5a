"""Pretrained word vectors: word2vec, GloVe and fastText files, text or binary, read through gensim."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model import storage
from model.errors import UserError
from model.tokenizer import SPECIAL

_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")


class Vectors(NamedTuple):
    """A table (words, size) for the words of a vocabulary, and how many of them the file knew."""

    table: npt.NDArray[np.float32]
    covered: int


def read_vectors(path: str, words: list[str], seed: int = 0) -> Vectors:
    """The vectors of a vocabulary's words, from a local file.

    A word is looked for as it is, then with a capital, then in capitals. Words that the file does not know are drawn
    at random around 0 with the file's own spread, so that they differ from one another.

    Args:
        path: word2vec (text or binary), GloVe (text) or fastText (`.vec` or `.bin`), told apart by content; `.gz` too.
        words: the vocabulary.
        seed: of the random vectors.

    Raises:
        UserError: the file is missing, damaged, or its lines differ in length.
    """
    if not storage.exists(path):
        raise UserError(f"{path}: no such file of word vectors")
    known = _load(path)
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


def _load(path: str):  # type: ignore[no-untyped-def]  # gensim's KeyedVectors
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
