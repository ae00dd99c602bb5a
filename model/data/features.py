"""Word features: the spelling and the position of each token, for words that the training data does not contain.

Each feature is hashed into its own rows of one embedding table (the hashing trick, Weinberger et al., ICML 2009), so no
list of prefixes and suffixes has to be stored. Unlike vocabulary ids, features keep the case of the letters. The number
of times that a word occurs in its text and its position there help to find the keyphrases of longer texts.

In scripts without spaces a word is one sign, whose spelling says nothing; the features are then those of the sign with
its neighbors. Tokenizers of earlier versions have no two such tokens side by side, so their features are as they were.
"""

import unicodedata
import zlib
from collections.abc import Iterable
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

from model.data.characters import is_sign, is_spaceless

_ROWS_PER_FEATURE = 4096  # of a thousand suffixes, about a fifth share a row with another
_MAX_SHAPE_LENGTH = 16
_MAX_RUN = 4  # equal characters in a row of a shape; longer runs look the same
_MAX_COUNT = 8  # occurrences in a text; more look the same
_CACHED_WORDS = 500_000

WordKey = str | tuple[str, str, str]  # a word, or a sign between those that touch it
FeatureIds = npt.NDArray[np.uint16]


def word_features(word: str) -> tuple[str, ...]:
    """Return the first letter, first three, last three and shape: `Federer's` gives `f`, `fed`, `r's`, `Xxxxx'x`."""
    lower = word.lower()
    return lower[:1], lower[:3], lower[-3:], _shape(word)


def sign_features(left: str, sign: str, right: str) -> tuple[str, ...]:
    """Return a sign of a script without spaces, it with each of the words that touch it, and the scripts of the three."""
    left, right = left[-3:].lower(), right[:3].lower()
    scripts = (unicodedata.name(char, "")[:3] if char else "" for char in (left[-1:], sign[0], right[:1]))
    return sign, left + sign, sign + right, " ".join(scripts)


def _shape(word: str) -> str:
    kinds = ("X" if char.isupper() else "x" if char.isalpha() else "0" if char.isdigit() else char for char in word)
    return "".join(kind for _, run in groupby(kinds) for kind in islice(run, _MAX_RUN))[:_MAX_SHAPE_LENGTH]


_NUM_SPELLING = len(word_features(""))
_COUNT, _POSITION = _NUM_SPELLING, _NUM_SPELLING + 1
NUM_FEATURES = _NUM_SPELLING + 2
ROWS = 1 + NUM_FEATURES * _ROWS_PER_FEATURE  # of the embedding table; row 0 is padding


class WordFeatures:
    """Maps tokens to rows of the feature table, with a cache of words."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._word_ids: dict[WordKey, int] = {}
        self._rows: list[list[int]] = []  # by word id
        self._lower_ids: dict[str, int] = {}
        self._lower_of: list[int] = []  # by word id: the id of the word in lower case

    def __call__(
        self,
        texts: Iterable[str],
        starts: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
        begins: npt.NDArray[np.int64],
    ) -> FeatureIds:
        """Return the table rows (tokens, NUM_FEATURES) of all tokens of some texts.

        Args:
            texts: the original texts.
            starts, ends: (tokens,) first character of each token in its text, and one after its last.
            begins: (texts + 1,) index of the first token of each text; the last entry is the number of tokens.
        """
        if len(self._word_ids) > _CACHED_WORDS:
            self._clear()
        first, last, bounds = starts.tolist(), ends.tolist(), begins.tolist()
        ids: list[int] = []
        for text, begin, end in zip(texts, bounds, bounds[1:], strict=False):
            words = [text[a:b] for a, b in zip(first[begin:end], last[begin:end], strict=True)]
            keys = _with_neighbors(words, first[begin:end], last[begin:end]) if is_spaceless(text) else words
            ids += [self._word_id(key) for key in keys]
        text_ids, positions = _text_ids_and_positions(begins)
        lower = np.array([self._lower_of[i] for i in ids], np.int64)
        _, groups, counts = np.unique(text_ids * len(self._rows) + lower, return_inverse=True, return_counts=True)
        unique, inverse = np.unique(np.array(ids, np.int64), return_inverse=True)  # few of the cached words
        spelling = np.array([self._rows[i] for i in unique], np.uint16).reshape(-1, _NUM_SPELLING)[inverse]
        count_rows = _rows(_COUNT, counts[groups].clip(max=_MAX_COUNT))
        return np.column_stack([spelling, count_rows, _rows(_POSITION, _position_bins(positions))])

    def _word_id(self, key: WordKey) -> int:
        word_id = self._word_ids.get(key)
        if word_id is None:
            word_id = self._word_ids[key] = len(self._rows)
            of_key = word_features(key) if isinstance(key, str) else sign_features(*key)
            features = [feature.encode("utf-8", "replace") for feature in of_key]
            self._rows.append(
                [
                    1 + i * _ROWS_PER_FEATURE + zlib.crc32(feature, i) % _ROWS_PER_FEATURE
                    for i, feature in enumerate(features)
                ]
            )
            word = key if isinstance(key, str) else key[1]
            self._lower_of.append(self._lower_ids.setdefault(word.lower(), len(self._lower_ids)))
        return word_id


def _with_neighbors(words: list[str], starts: list[int], ends: list[int]) -> list[WordKey]:
    """Return words as they are, but each sign beside another sign as (left, sign, right), with the words that touch it."""
    keys: list[WordKey] = list(words)
    for i, word in enumerate(words):
        left = words[i - 1] if i and ends[i - 1] == starts[i] else ""
        right = words[i + 1] if i + 1 < len(words) and ends[i] == starts[i + 1] else ""
        if is_sign(word) and (is_sign(left) or is_sign(right)):
            keys[i] = (left, word, right)
    return keys


def _text_ids_and_positions(begins: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each token the number of its text and its position there."""
    lengths = np.diff(begins)
    text_ids = np.repeat(np.arange(len(lengths)), lengths)
    return text_ids, np.arange(len(text_ids)) - begins[text_ids]


def _position_bins(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return bins that grow with the position: 0 to 7 alone, then four a doubling (8 to 9, ... 14 to 15, 16 to 19, ...)."""
    return np.where(positions < 8, positions, (4 * np.log2(positions.clip(min=1)) - 4).astype(np.int64).clip(8, 40))


def _rows(feature: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    return (1 + feature * _ROWS_PER_FEATURE + values).astype(np.uint16)
