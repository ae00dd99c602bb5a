"""Keyphrases of texts, with their characters and scores; streaming.

extractor = Extractor.load("runs/mine/bundle")
extractor("what a match by Roger Federer tonight")
for keyphrases in extractor.pipe(texts):
    print(keyphrases)
"""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from model.data.batching import length_sorted_batches, padded
from model.data.examples import MAX_TOKENS
from model.data.features import WordFeatures
from model.data.subword_batches import SubwordBatch, subword_batch
from model.data.subwords import SubwordTokenizer, ranges
from model.data.tokenizer import PAD, UNKNOWN, CachedTokenizer, TokenizedTexts
from model.inference.bundle import load_bundle
from model.inference.keyphrase import Keyphrase
from model.network.decoding import predict_spans, tag_marginals
from model.network.device import resolve_device, tune_malloc
from model.network.logits import Logits
from model.network.tagger import Tagger

PIPE_BATCH_SIZE = 2048  # texts that `pipe` processes at a time
_NETWORK_BATCH_SIZE = 256
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of a surrogate pair, which JSON may contain, but UTF-8 cannot


class TagProbabilities(NamedTuple):
    """What both heads say of the words of some texts.

    Attributes:
        begins: (texts + 1,) index of the first word of each text; the last entry is the number of words.
        keyword: (words,) float32 probability that a word is inside a keyphrase.
        keyphrase: (words, 5) float32 probability of each BIOES tag, see `model.network.decoding.tag_marginals`.
    """

    begins: npt.NDArray[np.int64]
    keyword: npt.NDArray[np.float32]
    keyphrase: npt.NDArray[np.float32]


class _Chunks(NamedTuple):
    """Chunks of texts: the number of the text, the first token and the number of tokens of each."""

    text_of: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


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
        self._word_features, self._subwords, self._tokenizer = WordFeatures(), subwords, tokenizer
        self._tokenize = CachedTokenizer(lambda word: vocabulary.get(word, UNKNOWN), tokenizer)

    @classmethod
    def load(cls, bundle: str | os.PathLike[str], device: str = "cpu") -> "Extractor":
        """Load an extractor from a bundle.

        Args:
            bundle: path or URI of the folder that training wrote.
            device: `cpu`, `cuda` or `cuda:N`.

        Raises:
            UserError: the bundle is missing, incomplete, damaged or of a newer format, or there is no such device.
        """
        loaded = load_bundle(os.fspath(bundle))
        return cls(loaded.tagger, loaded.tokenizer, device, loaded.subwords)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a copy in another process is made from, such as a pool's; caches stay here."""
        return type(self), (self.tagger, self._tokenizer, str(self.device), self._subwords)

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

        Raises:
            ValueError: the batch size is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: must be at least 1")
        texts = iter(texts)
        while batch := list(islice(texts, batch_size)):
            yield from self._extract(batch)

    @torch.no_grad()
    def probabilities(self, texts: list[str]) -> TagProbabilities:
        """Return what both heads say of each word of some texts.

        Args:
            texts: at least one; memory grows with their number.
        """
        texts = _whole_characters(texts)
        tokens = self._tokenize(texts)
        keyword = np.zeros(len(tokens.ids), np.float32)
        keyphrase = np.zeros((len(tokens.ids), 5), np.float32)
        for chunks, lengths, logits in self._read(texts, tokens):
            words = ranges(chunks.begins, chunks.lengths)
            real = torch.arange(logits.keyword.shape[1], device=self.device) < lengths[:, None]
            keyword[words] = torch.softmax(logits.keyword.float(), -1)[real][:, 1].cpu().numpy()
            keyphrase[words] = tag_marginals(logits, lengths)[real].cpu().numpy()
        return TagProbabilities(tokens.begins, keyword, keyphrase)

    @torch.no_grad()
    def _extract(self, texts: list[str]) -> list[list[Keyphrase]]:
        found: list[list[Keyphrase]] = [[] for _ in texts]
        readable = _whole_characters(texts)
        tokens = self._tokenize(readable)
        for chunks, lengths, logits in self._read(readable, tokens):
            predicted = predict_spans(logits, lengths)
            row, start, end = predicted.spans.cpu().numpy().T
            firsts = tokens.starts[chunks.begins[row] + start].tolist()
            lasts = tokens.ends[chunks.begins[row] + end - 1].tolist()
            places = zip(chunks.text_of[row].tolist(), firsts, lasts, predicted.scores.tolist(), strict=True)
            for number, first, last, score in places:
                found[number].append(Keyphrase(texts[number][first:last], first, last, score))
        return [sorted(keyphrases, key=lambda each: each.start) for keyphrases in found]

    @torch.no_grad()
    def _read(self, texts: list[str], tokens: TokenizedTexts) -> Iterator[tuple[_Chunks, torch.Tensor, Logits]]:
        """Yield some chunks of texts at a time, with their lengths and logits on the device."""
        features = None
        if self.tagger.config.uses_word_features:
            features = self._word_features(texts, tokens.starts, tokens.ends, tokens.begins)
        chunks = _chunks(tokens)
        subwords = None
        if self._subwords and len(chunks.begins):
            found = self._subwords(texts, tokens.starts, tokens.ends, tokens.begins)
            subwords = found.divide(np.append(chunks.begins, len(tokens.ids)))
        for rows in length_sorted_batches(subwords.lengths if subwords else chunks.lengths, _NETWORK_BATCH_SIZE):
            own = _Chunks(*(each[rows] for each in chunks))
            batch = [padded(tokens.ids, own.begins, own.lengths, PAD)]
            if features is not None:
                batch.append(padded(features, own.begins, own.lengths, PAD))
            inputs = None
            if subwords is not None:
                inputs = subword_batch(subwords.of_rows(rows, own.begins, own.lengths), batch[0], own.lengths)
                inputs = SubwordBatch(*(each.to(self.device) for each in inputs))
            ids, *rest = (each.to(self.device) for each in batch)
            lengths = torch.from_numpy(own.lengths).to(self.device)
            yield own, lengths, self.tagger(ids, lengths, *rest, encoder_inputs=inputs)


def _whole_characters(texts: list[str]) -> list[str]:
    """Return texts of the same lengths in which half a character is an unknown one. Raises TypeError where one is no text."""
    if others := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"a text is {others[0]!r}, not a string; leave it out, or write '' in its place")
    return [text if text.isascii() else _HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text) for text in texts]


def _chunks(tokens: TokenizedTexts) -> _Chunks:
    """Return the chunks of texts, of at most MAX_TOKENS, whose borders no keyphrase crosses; a text without a token has none."""
    lengths = np.diff(tokens.begins)
    count = -(-lengths // MAX_TOKENS)
    text_of = np.repeat(np.arange(len(lengths)), count)
    within = MAX_TOKENS * (np.arange(len(text_of)) - np.repeat(np.cumsum(count) - count, count))
    return _Chunks(text_of, tokens.begins[text_of] + within, np.minimum(lengths[text_of] - within, MAX_TOKENS))
