"""Keyphrases of texts, with their characters and a score; streaming."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from model.data.batching import length_sorted_batches, padded
from model.data.features import WordFeatures
from model.data.tokenizer import PAD, UNKNOWN, CachedTokenizer, TokenizedTexts
from model.inference.bundle import load_bundle
from model.network.decoding import predict_spans
from model.network.device import resolve_device, tune_malloc
from model.network.tagger import Tagger

TEXTS_HELD = 2048
BATCH = 256
MAX_CHUNK_TOKENS = 512  # tokens; a longer text is read in pieces of this size, and no keyphrase crosses their borders


class Keyphrase(NamedTuple):
    """A keyphrase of a text: `text[start:end]`.

    Attributes:
        text: the keyphrase as it stands there.
        start, end: its characters, half-open.
        score: how sure the tagger is, in 0 to 1; see `model.network.decoding.Found`.
    """

    text: str
    start: int
    end: int
    score: float


class Extractor:
    """A tagger with its tokenizer, in use."""

    def __init__(self, tagger: Tagger, tokenizer: Tokenizer, device: str = "cpu") -> None:
        tune_malloc()
        self.device = resolve_device(device)
        self.tagger = tagger.to(self.device).eval()
        vocabulary = tokenizer.get_vocab()
        self._spell = WordFeatures()
        self._cut = CachedTokenizer(lambda word: vocabulary.get(word, UNKNOWN), tokenizer)

    @classmethod
    def load(cls, bundle: str, device: str = "cpu") -> "Extractor":
        """From a bundle, by path or URI. Raises UserError where it is not whole, or where there is no such device."""
        loaded = load_bundle(bundle)
        return cls(loaded.tagger, loaded.tokenizer, device)

    def __call__(self, text: str) -> list[Keyphrase]:
        """The keyphrases of one text, in order."""
        return next(self.pipe([text]))

    def pipe(self, texts: Iterable[str], held: int = TEXTS_HELD) -> Iterator[list[Keyphrase]]:
        """The keyphrases of each text, in order of the texts; `held` texts are read and answered at a time."""
        texts = iter(texts)
        while chunk := list(islice(texts, held)):
            yield from self._extract(chunk)

    @torch.no_grad()
    def _extract(self, texts: list[str]) -> list[list[Keyphrase]]:
        found: list[list[Keyphrase]] = [[] for _ in texts]
        cut = self._cut(texts)
        views = self._spell(texts, cut.starts, cut.ends, cut.begins) if self.tagger.config.uses_word_features else None
        text, begins, lengths = _pieces(cut)
        for rows in length_sorted_batches(lengths, BATCH):
            batch = [padded(each, begins[rows], lengths[rows], PAD) for each in (cut.ids, views) if each is not None]
            row, start, end, score = self._spans(lengths[rows], *batch)
            piece = rows[row]
            firsts, lasts = cut.starts[begins[piece] + start].tolist(), cut.ends[begins[piece] + end - 1].tolist()
            for number, first, last, sure in zip(text[piece].tolist(), firsts, lasts, score, strict=True):
                found[number].append(Keyphrase(texts[number][first:last], first, last, sure))
        return [sorted(keyphrases, key=lambda each: each.start) for keyphrases in found]

    def _spans(self, lengths: npt.NDArray[np.int64], *padded: torch.Tensor) -> tuple[Any, Any, Any, list[float]]:
        """Row, first token, end token and score of each keyphrase."""
        ids, sizes, *views = (each.to(self.device) for each in (padded[0], torch.from_numpy(lengths), *padded[1:]))
        spans, scores = predict_spans(self.tagger(ids, sizes, *views), sizes)
        return (*spans.T.cpu().numpy(), scores.tolist())


def _pieces(cut: TokenizedTexts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each piece its text, its first token and how many it has; a text without a token has no piece."""
    lengths = np.diff(cut.begins)
    count = -(-lengths // MAX_CHUNK_TOKENS)
    text = np.repeat(np.arange(len(lengths)), count)
    within = MAX_CHUNK_TOKENS * (np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count))
    return text, cut.begins[text] + within, np.minimum(lengths[text] - within, MAX_CHUNK_TOKENS)
