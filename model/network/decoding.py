"""Keyphrases in what the heads say: their spans, and how sure the tagger is of each."""

from typing import NamedTuple

import torch

from model.data.labels import decode, score_spans, spans_of_tags
from model.network.crf import highest_of_alike, likely_spans, no_chain, span_probabilities
from model.network.tagger import Logits, Reading


class Found(NamedTuple):
    """Keyphrases of a batch, in order of row and start.

    Attributes:
        spans: (keyphrases, 3) row, start and end, tokens, half-open.
        scores: (keyphrases,) in 0 to 1: the probability of the span; where the likeliest sequence is read, the geometric
            mean of the probabilities of its tags.
    """

    spans: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def find(logits: Logits, lengths: torch.Tensor) -> Found:
    """The keyphrases of texts that have `lengths` (B,) tokens."""
    if logits.reading is None:
        return Found(*score_spans(logits.keyphrase, decode(logits.keyphrase, lengths, logits.chain)))
    likely = _as_read(logits, logits.reading, lengths)
    spans = spans_of_tags(likely_spans(likely, logits.reading.threshold))
    return Found(spans, _probabilities(likely, spans))


@torch.no_grad()
def scored(logits: Logits, lengths: torch.Tensor, tags: torch.Tensor) -> Found:
    """The keyphrases of given tags (B, T), O in the padding, with the scores that the tagger gives them."""
    if logits.reading is None:
        return Found(*score_spans(logits.keyphrase, tags))
    spans = spans_of_tags(tags)
    return Found(spans, _probabilities(_as_read(logits, logits.reading, lengths), spans))


def likely_by_end(logits: Logits, lengths: torch.Tensor) -> torch.Tensor:
    """`span_probabilities` of what the heads say."""
    return span_probabilities(logits.keyphrase, logits.chain or no_chain(lengths.device), lengths)


def _as_read(logits: Logits, reading: Reading, lengths: torch.Tensor) -> torch.Tensor:
    likely = likely_by_end(logits, lengths)
    return highest_of_alike(likely, reading.words) if reading.agreement else likely


def _probabilities(likely: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Those of some spans; 0 for spans that are longer than any that is looked for."""
    row, start, end = spans.T
    size = end - start
    found = likely[row, end - 1, (size - 1).clamp(max=likely.shape[2] - 1)]
    return torch.where(size <= likely.shape[2], found, 0)
