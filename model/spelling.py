"""How a word is written, in a few views: what a tagger has of a word that its training never saw.

Each view of a word is hashed into rows of its own in one table (Weinberger et al., ICML 2009), so there is no list of
endings to keep. Unlike a vocabulary id, a view may see the case of the letters.
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


def views_of(word: str) -> tuple[str, ...]:
    """First letter, first three, last three, shape: `Federer's` gives `f`, `fed`, `r's`, `Xxxxx'x`."""
    lower = word.lower()
    return lower[:1], lower[:3], lower[-3:], _shape(word)


def _shape(word: str) -> str:
    kinds = ("X" if sign.isupper() else "x" if sign.isalpha() else "0" if sign.isdigit() else sign for sign in word)
    return "".join(kind for _, run in groupby(kinds) for kind in islice(run, _REPEATED))[:_LONGEST_SHAPE]


VIEWS = len(views_of(""))
ROWS = 1 + VIEWS * _ROWS  # of the whole table; row 0 is the padding's


class Speller:
    """Gives words their rows in the table of views, and remembers them."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._rows: list[list[int]] = []

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
        return np.array(self._rows, np.uint16).reshape(-1, VIEWS)[numbers]

    def _number_of(self, word: str) -> int:
        number = self._number.get(word)
        if number is None:
            number = self._number[word] = len(self._rows)
            hashes = (zlib.crc32(view.encode("utf-8", "replace"), i) % _ROWS for i, view in enumerate(views_of(word)))
            self._rows.append([1 + i * _ROWS + row for i, row in enumerate(hashes)])
        return number


_REMEMBERED = 500_000  # words
