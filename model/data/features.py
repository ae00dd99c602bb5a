"""How a word is written and where it stands, in a few views: what a tagger has of a word that its training never saw.

Each view of a word is hashed into rows of its own in one table (Weinberger et al., ICML 2009), so there is no list of
endings to keep. Unlike a vocabulary id, a view may see the case of the letters. How often a word stands in
its text, and how far from the beginning, tells a keyphrase of a longer text.
"""

import zlib
from collections.abc import Iterable
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

_ROWS = 4096  # of each view: two of a thousand endings meet in one row now and then
_LONGEST_SHAPE = 16
_REPEATED = 4  # letters in a row that a shape tells; more look the same

Views = npt.NDArray[np.uint16]


def word_features(word: str) -> tuple[str, ...]:
    """First letter, first three, last three, shape: `Federer's` gives `f`, `fed`, `r's`, `Xxxxx'x`."""
    lower = word.lower()
    return lower[:1], lower[:3], lower[-3:], _shape(word)


def _shape(word: str) -> str:
    kinds = ("X" if sign.isupper() else "x" if sign.isalpha() else "0" if sign.isdigit() else sign for sign in word)
    return "".join(kind for _, run in groupby(kinds) for kind in islice(run, _REPEATED))[:_LONGEST_SHAPE]


_OF_WORD = len(word_features(""))
NUM_FEATURES = _OF_WORD + 2  # and how often the word stands in its text, and where it stands
ROWS = 1 + NUM_FEATURES * _ROWS  # of the whole table; row 0 is the padding's


class WordFeatures:
    """Gives words their rows in the table of views, and remembers them."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._rows: list[list[int]] = []
        self._alike: dict[str, int] = {}  # by word in lower case
        self._alikes: list[int] = []

    def __call__(
        self,
        texts: Iterable[str],
        starts: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int32],
        begins: npt.NDArray[np.int64],
    ) -> Views:
        """The rows (tokens, VIEWS) of all tokens of some texts.

        Args:
            texts: as they are written.
            starts, ends: (tokens,) where each token begins and ends in its text, characters, half-open.
            begins: (texts + 1,) where each text begins in them.
        """
        if len(self._number) > _REMEMBERED:
            self._forget()
        first, last, bounds = starts.tolist(), ends.tolist(), begins.tolist()
        numbers: list[int] = []
        for text, begin, end in zip(texts, bounds, bounds[1:], strict=False):
            words = (text[a:b] for a, b in zip(first[begin:end], last[begin:end], strict=True))
            numbers += [self._number_of(word) for word in words]
        of_text, within = _places(begins)
        alike = np.array([self._alikes[number] for number in numbers], np.int64)
        _, same, times = np.unique(of_text * len(self._rows) + alike, return_inverse=True, return_counts=True)
        distinct, place = np.unique(np.array(numbers, np.int64), return_inverse=True)  # of a long memory few are needed
        of_word = np.array([self._rows[number] for number in distinct], np.uint16).reshape(-1, _OF_WORD)[place]
        return np.column_stack([of_word, _rows(4, times[same].clip(max=_MOST)), _rows(5, _steps(within))])

    def _number_of(self, word: str) -> int:
        number = self._number.get(word)
        if number is None:
            number = self._number[word] = len(self._rows)
            hashes = (
                zlib.crc32(view.encode("utf-8", "replace"), i) % _ROWS for i, view in enumerate(word_features(word))
            )
            self._rows.append([1 + i * _ROWS + row for i, row in enumerate(hashes)])
            self._alikes.append(self._alike.setdefault(word.lower(), len(self._alike)))
        return number


def _places(begins: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each token the number of its text, and how many stand before it there."""
    lengths = np.diff(begins)
    text = np.repeat(np.arange(len(lengths)), lengths)
    return text, np.arange(len(text)) - begins[text]


def _steps(within: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places in a text in steps that grow: 0, 1, 2, ... 7, then four to a doubling: 8 to 9, ... 14 to 15, 16 to 19, ..."""
    return np.where(within < 8, within, (4 * np.log2(within.clip(min=1)) - 4).astype(np.int64).clip(8, 40))


def _rows(view: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    return (1 + view * _ROWS + values).astype(np.uint16)


_MOST = 8  # times that a word is counted in a text
_REMEMBERED = 500_000  # words
