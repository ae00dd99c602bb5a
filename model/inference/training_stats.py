"""How often words and phrases occur in the split that a tagger was trained on, and how often as keyphrases."""

from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.data.dataset import Dataset, Split
from model.data.labels import B, O, S
from model.data.tokenizer import UNKNOWN
from model.errors import UserError
from model.inference.bundle import Bundle

Phrase = tuple[int, ...]  # vocabulary ids


class Rate(NamedTuple):
    """How often a word is inside a keyphrase, or a phrase is one, out of its occurrences."""

    marked: int
    all: int


class TrainingStats:
    """Counts of words and of given phrases in a training split."""

    def __init__(self, train: Split, phrases: set[Phrase]) -> None:
        """Count all words, and those phrases whose words are all in the vocabulary."""
        self._all = np.bincount(train.ids)
        self._inside = np.bincount(train.ids[train.tags != O], minlength=len(self._all))
        self._phrases: dict[Phrase, Rate] = {}
        ends = _ends(train)
        touched = np.concatenate([[0], np.cumsum(train.tags != O)])  # keyphrase tokens before each token
        known = sorted((phrase for phrase in phrases if UNKNOWN not in phrase), key=len)
        for size, some in groupby(known, key=len):
            if size <= len(train.ids):
                self._count(train, list(some), size, ends, touched)

    def word(self, word: int) -> Rate:
        """Return how often a word is inside a keyphrase and how often it occurs. `<unk>` counts as never seen."""
        if word == UNKNOWN or word >= len(self._all):
            return Rate(0, 0)
        return Rate(int(self._inside[word]), int(self._all[word]))

    def phrase(self, phrase: Phrase) -> Rate:
        """Return how often a phrase is a keyphrase and how often it occurs.

        An occurrence that overlaps another keyphrase is not counted.
        """
        return self._phrases.get(phrase, Rate(0, 0))

    def _count(
        self,
        train: Split,
        phrases: list[Phrase],
        size: int,
        ends: npt.NDArray[np.int64],
        touched: npt.NDArray[np.int64],
    ) -> None:
        """Count phrases of one size."""
        places = len(train.ids) - size + 1
        first = np.repeat(train.begins[:-1], train.lengths)
        within = first[:places] == first[size - 1 :]  # no phrase reaches into the next text
        marked = ends[:places] == np.arange(places) + size
        outside = touched[size:] == touched[:places]
        for position, words in enumerate(zip(*phrases, strict=True)):
            within &= np.isin(train.ids[position : position + places], words)
        at = np.flatnonzero(within & (marked | outside))
        rows = np.lib.stride_tricks.sliding_window_view(train.ids, size)[at].tolist()
        wanted = set(phrases)
        for row, is_marked in zip(map(tuple, rows), marked[at].tolist(), strict=True):
            if row in wanted:
                before = self.phrase(row)
                self._phrases[row] = Rate(before.marked + is_marked, before.all + 1)


def _ends(train: Split) -> npt.NDArray[np.int64]:
    """Return the end of the keyphrase that begins at each token, (N,); 0 where none begins."""
    starts = np.flatnonzero((train.tags == B) | (train.tags == S))
    outside = np.flatnonzero((train.tags == O) | (train.tags == B) | (train.tags == S))
    after = np.append(outside, len(train.tags))[np.searchsorted(outside, starts, side="right")]
    ends = np.zeros(len(train.tags), np.int64)
    ends[starts] = after
    return ends


def training_split(bundle: Bundle, *locations: str) -> Split:
    """Load the training split of the dataset that a bundle was trained on, from the first location that has it.

    Raises:
        UserError: none of them is a dataset with the bundle's vocabulary.
    """
    vocabulary, missing = bundle.tokenizer.to_str(), []
    for location in dict.fromkeys(locations):
        try:
            dataset = Dataset(location)
            if dataset.tokenizer().to_str() == vocabulary:
                return dataset.load("train")
            missing.append(f"{location} has another vocabulary")
        except (UserError, OSError) as error:  # OSError: it may not be read, or its storage is unreachable
            missing.append(str(error))
    raise UserError(
        f"mistakes are classified by the tagger's training data, and it cannot be read: {'; '.join(missing)}; restore the "
        f"dataset, or give it as --data"
    )
