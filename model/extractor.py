"""Keyphrases of texts, with their characters and a score; streaming."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from model.batch import ordered_batches
from model.bundle import load_bundle
from model.tagger import Tagger, device_of
from model.tags import decode, spans_of_tags
from model.tokenizer import PAD, Tokens, encode

TEXTS_HELD = 2048
BATCH = 64
LONGEST = 512  # tokens; a longer text is read in pieces of this size, and no keyphrase crosses their borders


class Keyphrase(NamedTuple):
    """A keyphrase of a text: `text[start:end]`.

    Attributes:
        text: the keyphrase as it stands there.
        start, end: its characters, half-open.
        score: geometric mean of the probabilities of its tags, in 0 to 1.
    """

    text: str
    start: int
    end: int
    score: float


class _Piece(NamedTuple):
    text: int
    ids: list[int]
    offsets: list[tuple[int, int]]


class Extractor:
    """A tagger with its tokenizer, in use."""

    def __init__(self, tagger: Tagger, tokenizer: Tokenizer, device: str = "cpu") -> None:
        self.device = device_of(device)
        self.tagger = tagger.to(self.device).eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, bundle: str, device: str = "cpu") -> "Extractor":
        """From a bundle, by path or URI. Raises UserError where it is not whole, or where there is no such device."""
        loaded = load_bundle(bundle)
        return cls(loaded.tagger, loaded.tokenizer, device)

    def one(self, text: str) -> list[Keyphrase]:
        """The keyphrases of one text, in order."""
        return next(self.many([text]))

    def many(self, texts: Iterable[str], held: int = TEXTS_HELD) -> Iterator[list[Keyphrase]]:
        """The keyphrases of each text, in order of the texts; `held` texts are read and answered at a time."""
        texts = iter(texts)
        while chunk := list(islice(texts, held)):
            yield from self._extract(chunk)

    @torch.no_grad()
    def _extract(self, texts: list[str]) -> list[list[Keyphrase]]:
        found: list[list[Keyphrase]] = [[] for _ in texts]
        pieces = [piece for i, tokens in enumerate(encode(self.tokenizer, texts)) for piece in _pieces(i, tokens)]
        lengths = np.array([len(piece.ids) for piece in pieces], np.int64)
        for rows in ordered_batches(lengths, BATCH):
            chosen = [pieces[row] for row in rows]
            for row, start, end, score in self._spans(chosen):
                piece = chosen[row]
                first, last = piece.offsets[start][0], piece.offsets[end - 1][1]
                found[piece.text].append(Keyphrase(texts[piece.text][first:last], first, last, score))
        return [sorted(keyphrases, key=lambda each: each.start) for keyphrases in found]

    def _spans(self, pieces: list[_Piece]) -> Iterator[tuple[int, int, int, float]]:
        """Row, first token, end token and score of each keyphrase."""
        lengths = torch.tensor([len(piece.ids) for piece in pieces])
        ids = torch.full((len(pieces), int(lengths.max())), PAD)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.ids)] = torch.tensor(piece.ids)
        ids, lengths = ids.to(self.device), lengths.to(self.device)
        logits = self.tagger(ids, lengths).keyphrase
        tags = decode(logits, lengths)
        chosen = torch.log_softmax(logits, -1).gather(-1, tags[..., None])[..., 0]
        sums = torch.nn.functional.pad(chosen.cumsum(1), (1, 0))
        spans = spans_of_tags(tags)
        row, start, end = spans.T
        scores = ((sums[row, end] - sums[row, start]) / (end - start)).exp()
        for span, score in zip(spans.tolist(), scores.tolist(), strict=True):
            yield span[0], span[1], span[2], score


def _pieces(text: int, tokens: Tokens) -> list[_Piece]:
    starts = range(0, len(tokens.ids), LONGEST)
    return [_Piece(text, tokens.ids[i : i + LONGEST], tokens.offsets[i : i + LONGEST]) for i in starts]
