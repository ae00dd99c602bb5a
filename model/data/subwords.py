"""Words as the sub-words of a pretrained encoder.

The encoder's own tokenizer reads the raw text. A word has the sub-words that share a character with it, at least one, so
that labels, spans and metrics stay those of words.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_CHUNK_TEXTS = 2048  # texts tokenized at a time
MAX_WINDOW = 512  # sub-words; attention takes time and memory with the square
Ints = npt.NDArray[np.int64]


class WindowLayout(NamedTuple):
    """What the encoder reads at a time: special tokens around sub-words of a text.

    Attributes:
        prefix, suffix: ids before and after the sub-words of a text.
        pad: id of the padding.
        size: the most sub-words of a text in a window.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int
    size: int

    @property
    def overlap(self) -> int:
        """Return the sub-words that a window shares with the next one."""
        return self.size // 4


class Subwords(NamedTuple):
    """The sub-words of many texts.

    Attributes:
        ids: (sub-words,) of all texts, concatenated, without special tokens.
        begins, ends: (texts,) index of the first sub-word of each text, and one after its last.
        firsts, lasts: (words,) index of the first sub-word of each word, and one after its last.
        layout: of the encoder's windows.
    """

    ids: npt.NDArray[np.int32]
    begins: Ints
    ends: Ints
    firsts: Ints
    lasts: Ints
    layout: WindowLayout

    @property
    def lengths(self) -> Ints:
        """(texts,) sub-words of each text."""
        return self.ends - self.begins

    def take(self, rows: Ints, words: Ints, lengths: Ints) -> "Subwords":
        """Return some texts, in their order.

        Args:
            rows: their numbers.
            words: the numbers of their words, concatenated.
            lengths: (rows,) words of each.
        """
        begins, sizes = self.begins[rows], self.lengths[rows]
        ends = sizes.cumsum()
        shifts = np.repeat(begins - ends + sizes, lengths)
        ids = self.ids[ranges(begins, sizes)]
        return Subwords(ids, ends - sizes, ends, self.firsts[words] - shifts, self.lasts[words] - shifts, self.layout)

    def of_rows(self, rows: Ints, begins: Ints, lengths: Ints) -> "Subwords":
        """Return some texts, given the first word of each and its number of words."""
        return self.take(rows, ranges(begins, lengths), lengths)

    def divide(self, begins: Ints) -> "Subwords":
        """Return the same words in texts that begin at other words; sub-words before the first and after the last are left out.

        Args:
            begins: (texts + 1,) index of the first word of each text.
        """
        firsts = np.append(self.firsts, len(self.ids))[begins[:-1]]
        lasts = np.append(self.lasts, 0)[begins[1:] - 1]
        return self._replace(begins=firsts, ends=np.maximum(firsts, lasts))  # a text without a word has no sub-word


class SubwordTokenizer:
    """Finds the sub-words of words."""

    def __init__(self, tokenizer: Tokenizer, max_positions: int, pad: int) -> None:
        """
        Args:
            tokenizer: of the encoder; its settings for truncation, padding and special tokens are changed.
            max_positions: the most ids that the encoder can read at a time, special tokens included.
            pad: id of the padding.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # a text that contains "[SEP]" means these five characters
        self._tokenizer = tokenizer
        self._placeholder = _placeholder(tokenizer, pad)
        bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        prefix, suffix = tuple(whole[:at]), tuple(whole[at + len(bare) :])
        size = min(max_positions, MAX_WINDOW) - len(prefix) - len(suffix)
        self.layout = WindowLayout(prefix, suffix, pad, size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy in another process that finds the same sub-words."""
        self.__dict__ |= state
        # A pickle of a Tokenizer is its tokenizer.json, which does not say so.
        self._tokenizer.encode_special_tokens = True

    def __call__(
        self, texts: Iterable[str], starts: npt.NDArray[np.int32], ends: npt.NDArray[np.int32], begins: Ints
    ) -> Subwords:
        """Return the sub-words of texts.

        Args:
            texts: in their own case.
            starts, ends: (words,) first character of each word in its text, and one after its last.
            begins: (texts + 1,) index of the first word of each text.
        """
        texts, parts, done = iter(texts), [], 0
        while chunk := list(islice(texts, _CHUNK_TEXTS)):
            bounds = begins[done : done + len(chunk) + 1]
            words = slice(bounds[0], bounds[-1])
            parts.append(self._subwords(chunk, starts[words], ends[words], np.diff(bounds)))
            done += len(chunk)
        # Without the sub-words that some tokenizers have of spaces around a text, it is read as a chunk of a longer one is.
        return concatenate_subwords(parts, self.layout).divide(begins)

    def _subwords(
        self, texts: list[str], starts: npt.NDArray[np.int32], ends: npt.NDArray[np.int32], lengths: Ints
    ) -> Subwords:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        sizes = np.array([len(each) for each in encodings], np.int64)
        ids = np.array([i for each in encodings for i in each.ids], np.int32)
        offsets = np.array([pair for each in encodings for pair in each.offsets], np.int64).reshape(-1, 2)
        # All texts on one line of characters, so that one search finds the sub-words of all words.
        bases = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])])[:-1]
        offsets += np.repeat(bases, sizes)[:, None]
        shifts = np.repeat(bases, lengths)
        firsts = np.searchsorted(np.maximum.accumulate(offsets[:, 1]), starts + shifts, "right")
        lasts = np.searchsorted(np.maximum.accumulate(offsets[:, 0]), ends + shifts, "left")
        text_ends = sizes.cumsum()
        found = Subwords(ids, text_ends - sizes, text_ends, firsts, lasts, self.layout)
        return self._with_placeholders(found, lengths) if (firsts >= lasts).any() else found

    def _with_placeholders(self, subwords: Subwords, lengths: Ints) -> Subwords:
        """Return sub-words with one more for each word that has none, because the tokenizer drops its characters."""
        missing = subwords.firsts >= subwords.lasts
        before: Ints = np.cumsum(missing) - missing  # placeholders before each word
        ids = np.insert(subwords.ids, subwords.firsts[missing], self._placeholder)
        firsts = subwords.firsts + before
        lasts = np.where(missing, firsts + 1, subwords.lasts + before)
        of_texts = np.concatenate([[0], np.cumsum(missing)])[np.concatenate([[0], lengths.cumsum()])]
        begins, ends = subwords.begins + of_texts[:-1], subwords.ends + of_texts[1:]
        return Subwords(ids, begins, ends, firsts, lasts, subwords.layout)


def ranges(begins: Ints, sizes: Ints) -> Ints:
    """Return begin, begin + 1, ... of each range, concatenated."""
    ends = sizes.cumsum()
    return np.repeat(begins - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def concatenate_subwords(parts: list[Subwords], layout: WindowLayout) -> Subwords:
    """Return the sub-words of the texts of all parts, in their order."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Subwords(np.zeros(0, np.int32), none, none, none, none, layout)
    shifts = np.cumsum([0, *(len(part.ids) for part in parts)])

    def joined(values: list[Ints]) -> Ints:
        return np.concatenate([each + shift for each, shift in zip(values, shifts, strict=False)])

    return Subwords(
        np.concatenate([part.ids for part in parts]),
        joined([part.begins for part in parts]),
        joined([part.ends for part in parts]),
        joined([part.firsts for part in parts]),
        joined([part.lasts for part in parts]),
        layout,
    )


def _placeholder(tokenizer: Tokenizer, pad: int) -> int:
    """Return the id that stands for a word whose characters the tokenizer drops."""
    for token in ("[UNK]", "<unk>", "[MASK]", "<mask>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return pad
