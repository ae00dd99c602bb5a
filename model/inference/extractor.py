"""Keyphrases of texts, with their characters and scores; streaming.

extractor = Extractor.load("runs/mine/bundle")
extractor("what a match by Roger Federer tonight")
for keyphrases in extractor.pipe(texts):
    print(keyphrases)
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from model.data.batching import length_sorted_batches, padded
from model.data.features import WordFeatures
from model.data.subword_batches import SubwordBatch, subword_batch
from model.data.subwords import Subwords, SubwordTokenizer
from model.data.tokenizer import PAD, UNKNOWN, CachedTokenizer, TokenizedTexts
from model.inference.bundle import load_bundle
from model.network.decoding import predict_spans
from model.network.device import resolve_device, tune_malloc
from model.network.tagger import Tagger

PIPE_BATCH_SIZE = 2048  # texts that `pipe` processes at a time
_NETWORK_BATCH_SIZE = 256
MAX_CHUNK_TOKENS = 512  # a longer text is divided into chunks of this size, and no keyphrase crosses their borders


class KeyphraseRecord(TypedDict):
    """A keyphrase as JSON output has it."""

    text: str
    start: int
    end: int
    score: float


class Keyphrase(NamedTuple):
    """A keyphrase of a text: `text[start:end]`.

    Attributes:
        text: the keyphrase as the text has it.
        start, end: its characters, half-open.
        score: confidence in 0 to 1; see `model.network.decoding.SpanPredictions`.
    """

    text: str
    start: int
    end: int
    score: float

    def as_record(self) -> KeyphraseRecord:
        """Return the keyphrase as plain values."""
        return {"text": self.text, "start": self.start, "end": self.end, "score": self.score}


class Extractor:
    """A keyphrase extractor: a tagger with its tokenizer.

    Load one from a bundle with `Extractor.load`, call it with a text, or stream many texts through `pipe`. The result for
    a text does not depend on the texts beside it. An extractor is not safe to share between threads.
    """

    def __init__(
        self, tagger: Tagger, tokenizer: Tokenizer, device: str = "cpu", subwords: SubwordTokenizer | None = None
    ) -> None:
        """
        Args:
            tagger: moved to the device and set to evaluation mode.
            tokenizer: of the dataset that the tagger was trained on.
            device: `cpu`, `cuda` or `cuda:N`.
            subwords: what finds the sub-words of words, for a tagger with an encoder.

        Raises:
            UserError: there is no such device.
        """
        tune_malloc()
        self.device = resolve_device(device)
        self.tagger = tagger.to(self.device).eval()
        vocabulary = tokenizer.get_vocab()
        self._word_features, self._subwords = WordFeatures(), subwords
        self._tokenize = CachedTokenizer(lambda word: vocabulary.get(word, UNKNOWN), tokenizer)

    @classmethod
    def load(cls, bundle: str, device: str = "cpu") -> "Extractor":
        """Load an extractor from a bundle.

        Args:
            bundle: path or URI of the folder that training wrote.
            device: `cpu`, `cuda` or `cuda:N`.

        Raises:
            UserError: the bundle is missing, incomplete, damaged or of a newer format, or there is no such device.
        """
        loaded = load_bundle(bundle)
        return cls(loaded.tagger, loaded.tokenizer, device, loaded.subwords)

    def __call__(self, text: str) -> list[Keyphrase]:
        """Return the keyphrases of a text, in the order of their first characters; they do not overlap.

        A text of any length and content is allowed; an empty one has no keyphrases. For many texts, `pipe` is faster.
        """
        return next(self.pipe([text]))

    def pipe(self, texts: Iterable[str], batch_size: int = PIPE_BATCH_SIZE) -> Iterator[list[Keyphrase]]:
        """Yield the keyphrases of each text, in the order of the texts.

        Args:
            texts: any iterable, also an endless one: it is read as results are consumed.
            batch_size: texts that are read and processed at a time; memory grows with it, not with the number of texts.

        Yields:
            For each text what calling the extractor with it returns.
        """
        texts = iter(texts)
        while batch := list(islice(texts, batch_size)):
            yield from self._extract(batch)

    @torch.no_grad()
    def _extract(self, texts: list[str]) -> list[list[Keyphrase]]:
        found: list[list[Keyphrase]] = [[] for _ in texts]
        tokens = self._tokenize(texts)
        features = None
        if self.tagger.config.uses_word_features:
            features = self._word_features(texts, tokens.starts, tokens.ends, tokens.begins)
        text_of, begins, lengths = _chunks(tokens)
        subwords = self._subwords_of_chunks(texts, tokens, begins) if self._subwords and len(begins) else None
        for rows in length_sorted_batches(lengths, _NETWORK_BATCH_SIZE):
            batch = [padded(tokens.ids, begins[rows], lengths[rows], PAD)]
            if features is not None:
                batch.append(padded(features, begins[rows], lengths[rows], PAD))
            inputs = None
            if subwords is not None:
                of_rows = subwords.of_rows(rows, begins[rows], lengths[rows])
                inputs = subword_batch(of_rows, batch[0], lengths[rows])
            spans, scores = self._predict(lengths[rows], batch, inputs)
            row, start, end = spans.T
            chunk = rows[row]
            firsts = tokens.starts[begins[chunk] + start].tolist()
            lasts = tokens.ends[begins[chunk] + end - 1].tolist()
            for number, first, last, score in zip(text_of[chunk].tolist(), firsts, lasts, scores, strict=True):
                found[number].append(Keyphrase(texts[number][first:last], first, last, score))
        return [sorted(keyphrases, key=lambda each: each.start) for keyphrases in found]

    def _subwords_of_chunks(self, texts: list[str], tokens: TokenizedTexts, begins: npt.NDArray[np.int64]) -> Subwords:
        assert self._subwords is not None
        found = self._subwords(texts, tokens.starts, tokens.ends, tokens.begins)
        return found.divide(np.append(begins, len(tokens.ids)))

    def _predict(
        self, lengths: npt.NDArray[np.int64], batch: list[torch.Tensor], inputs: SubwordBatch | None
    ) -> tuple[npt.NDArray[np.int64], list[float]]:
        """Return the spans (spans, 3) of a batch and their scores (spans,), given ids and perhaps word features."""
        on_device = torch.from_numpy(lengths).to(self.device)
        ids, *features = (each.to(self.device) for each in batch)
        if inputs is not None:
            inputs = SubwordBatch(*(each.to(self.device) for each in inputs))
        spans, scores = predict_spans(self.tagger(ids, on_device, *features, encoder_inputs=inputs), on_device)
        return spans.cpu().numpy(), scores.tolist()


def _chunks(tokens: TokenizedTexts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the text, the first token and the length of each chunk; a text without a token has no chunk."""
    lengths = np.diff(tokens.begins)
    count = -(-lengths // MAX_CHUNK_TOKENS)
    text_of = np.repeat(np.arange(len(lengths)), count)
    within = MAX_CHUNK_TOKENS * (np.arange(len(text_of)) - np.repeat(np.cumsum(count) - count, count))
    return text_of, tokens.begins[text_of] + within, np.minimum(lengths[text_of] - within, MAX_CHUNK_TOKENS)
