"""Keyphrases in what the heads say: their spans, and how sure the tagger is of each."""

from typing import NamedTuple

import torch

from model.chain import likely_spans, no_chain, span_probabilities
from model.tagger import Logits
from model.tags import decode, spans_of_tags


class Found(NamedTuple):
    """Keyphrases of a batch, in order of row and start.

    Attributes:
        spans: (keyphrases, 3) row, start and end, tokens, half-open.
        scores: (keyphrases,) in 0 to 1: the probability of the span; where the likeliest sequence is read, the geometric
            mean of the probabilities of its tags.
    """

    spans: torch.Tensor
    scores: torch.Tensor


def likely_by_end(logits: Logits, lengths: torch.Tensor) -> torch.Tensor:
    """`span_probabilities` of what the heads say."""
    return span_probabilities(logits.keyphrase, logits.chain or no_chain(lengths.device), lengths)


@torch.no_grad()
def find(logits: Logits, lengths: torch.Tensor) -> Found:
    """The keyphrases of texts that have `lengths` (B,) tokens."""
    if logits.threshold is not None:
        likely = likely_by_end(logits, lengths)
        spans = spans_of_tags(likely_spans(likely, logits.threshold))
        row, start, end = spans.T
        return Found(spans, likely[row, end - 1, end - start - 1])
    tags = decode(logits.keyphrase, lengths, logits.chain)
    spans = spans_of_tags(tags)
    chosen = torch.log_softmax(logits.keyphrase, -1).gather(-1, tags[..., None])[..., 0]
    sums = torch.nn.functional.pad(chosen.cumsum(1), (1, 0))
    row, start, end = spans.T
    return Found(spans, ((sums[row, end] - sums[row, start]) / (end - start)).exp())
