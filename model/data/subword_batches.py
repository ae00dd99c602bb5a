"""The input of a pretrained encoder for a batch of texts.

A text that is longer than what the encoder can read is divided into overlapping windows, and each sub-word gets its state
from one in which it is at least half an overlap away from each border that has text behind it.
"""

from typing import NamedTuple

import numpy as np
import torch

from model.data.subwords import Ints, Subwords, ranges
from model.data.tokenizer import UNKNOWN


class SubwordBatch(NamedTuple):
    """The encoder's input for B texts of up to T words: R windows of S ids.

    Attributes:
        ids: (R, S) sub-words and special tokens, padded at the end.
        mask: (R, S) 1 for those, 0 in the padding.
        places: (P,) for each sub-word of each word where it is in the flattened `ids`.
        offsets: (B * T,) where the sub-words of each word begin in `places`; a word of the padding has none.
        word_keys: (B, T) equal for equal words.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor
    offsets: torch.Tensor
    word_keys: torch.Tensor


class WordStates(NamedTuple):
    """What a frozen encoder gives for B texts of up to T words, computed before.

    Attributes:
        states: (B, T, D) float32.
        word_keys: (B, T) equal for equal words.
    """

    states: torch.Tensor
    word_keys: torch.Tensor


EncoderInputs = SubwordBatch | WordStates


def subword_batch(subwords: Subwords, word_ids: torch.Tensor, lengths: Ints) -> SubwordBatch:
    """Return the encoder's input for texts.

    Args:
        subwords: of B texts.
        word_ids: (B, T) vocabulary ids, padded.
        lengths: (B,) words of each.
    """
    ids, mask, place_of = _windows(subwords)
    counts = subwords.lasts - subwords.firsts
    places = place_of[ranges(subwords.firsts, counts)]
    of_words = np.zeros(word_ids.shape, np.int64)
    of_words[np.arange(word_ids.shape[1]) < lengths[:, None]] = counts
    offsets = np.cumsum(of_words) - of_words.ravel()
    return SubwordBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(places),
        torch.from_numpy(offsets),
        word_keys(subwords, word_ids, lengths),
    )


def word_keys(subwords: Subwords, word_ids: torch.Tensor, lengths: Ints) -> torch.Tensor:
    """Return a number (B, T) for each word, equal for equal words: of those outside the vocabulary a hash of their sub-words.

    Args:
        subwords: of B texts.
        word_ids: (B, T) vocabulary ids, padded.
        lengths: (B,) words of each.
    """
    counts = subwords.lasts - subwords.firsts
    places = ranges(subwords.firsts, counts)
    within = places - np.repeat(subwords.firsts, counts)  # place of a sub-word in its word
    mixed = (subwords.ids[places].astype(np.uint64) << 16 | within.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> 32) * np.uint64(0xD6E8FEB86659FD93)  # else words of equal sums would have equal keys
    hashed = (np.add.reduceat(mixed, counts.cumsum() - counts) >> 2).astype(np.int64)
    keys = word_ids.numpy().copy()
    real = np.arange(keys.shape[1]) < lengths[:, None]
    keys[real] = np.where(keys[real] == UNKNOWN, hashed | (1 << 62), keys[real])
    return torch.from_numpy(keys)


def _windows(subwords: Subwords) -> tuple[Ints, Ints, Ints]:
    """Return ids (R, S) and mask (R, S) of the windows of texts, and where each of their sub-words is in them."""
    layout, sizes = subwords.layout, subwords.ends - subwords.begins
    step = layout.size - layout.overlap
    counts = 1 + np.maximum(-(-(sizes - layout.size) // step), 0)  # windows of each text
    of_text = np.repeat(np.arange(len(sizes)), counts)
    number = ranges(np.zeros_like(counts), counts)
    # The last window ends with the text, and so is as full as the others.
    first = np.minimum(number * step, np.maximum(sizes[of_text] - layout.size, 0))
    filled = np.minimum(sizes[of_text], layout.size)
    before, after = len(layout.prefix), len(layout.suffix)
    ids = np.full((len(of_text), before + int(filled.max(initial=0)) + after), layout.pad, np.int64)
    columns = np.arange(ids.shape[1])
    ids[:, :before] = layout.prefix
    inside = (columns >= before) & (columns < (before + filled)[:, None])
    ids[inside] = subwords.ids[ranges(subwords.begins[of_text] + first, filled)]
    for i, token in enumerate(layout.suffix):
        ids[np.arange(len(ids)), before + filled + i] = token
    mask = (columns < (before + filled + after)[:, None]).astype(np.int64)
    # Two windows meet in the middle of an overlap; the last one, which overlaps more, where it would if it did not.
    within = ranges(np.zeros_like(sizes), sizes)
    text = np.repeat(np.arange(len(sizes)), sizes)
    own = np.clip((within - layout.overlap // 2) // step, 0, counts[text] - 1)
    window = (np.cumsum(counts) - counts)[text] + own
    return ids, mask, window * ids.shape[1] + before + within - first[window]
