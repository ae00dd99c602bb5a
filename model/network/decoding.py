"""Keyphrases in what the heads say: their spans, and how sure the tagger is of each."""

from typing import NamedTuple

import torch

from model.data.labels import LEGAL, MAY_END, MAY_START, B, E, I, O, S, tags_to_spans
from model.network.crf import CrfScores, legality_only, span_marginals
from model.network.tagger import Logits, SpanDecoding

_MIXER = 6364136223846793005  # of a 64-bit generator: its multiples share no pattern with row and word numbers


class SpanPredictions(NamedTuple):
    """Keyphrases of a batch, in order of row and start.

    Attributes:
        spans: (keyphrases, 3) row, start and end, tokens, half-open.
        scores: (keyphrases,) in 0 to 1: the probability of the span; where the likeliest sequence is read, the geometric
            mean of the probabilities of its tags.
    """

    spans: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def predict_spans(logits: Logits, lengths: torch.Tensor) -> SpanPredictions:
    """The keyphrases of texts that have `lengths` (B,) tokens."""
    if logits.reading is None:
        return SpanPredictions(*score_spans(logits.keyphrase, viterbi_decode(logits.keyphrase, lengths, logits.chain)))
    likely = _as_read(logits, logits.reading, lengths)
    spans = tags_to_spans(select_spans(likely, logits.reading.threshold))
    return SpanPredictions(spans, _probabilities(likely, spans))


@torch.no_grad()
def score_tags(logits: Logits, lengths: torch.Tensor, tags: torch.Tensor) -> SpanPredictions:
    """The keyphrases of given tags (B, T), O in the padding, with the scores that the tagger gives them."""
    if logits.reading is None:
        return SpanPredictions(*score_spans(logits.keyphrase, tags))
    spans = tags_to_spans(tags)
    return SpanPredictions(spans, _probabilities(_as_read(logits, logits.reading, lengths), spans))


def span_marginals_of(logits: Logits, lengths: torch.Tensor) -> torch.Tensor:
    """`span_probabilities` of what the heads say."""
    return span_marginals(logits.keyphrase, logits.chain or legality_only(lengths.device), lengths)


def _as_read(logits: Logits, reading: SpanDecoding, lengths: torch.Tensor) -> torch.Tensor:
    likely = span_marginals_of(logits, lengths)
    return max_over_repeats(likely, reading.words) if reading.agreement else likely


def _probabilities(likely: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Those of some spans; 0 for spans that are longer than any that is looked for."""
    row, start, end = spans.T
    size = end - start
    found = likely[row, end - 1, (size - 1).clamp(max=likely.shape[2] - 1)]
    return torch.where(size <= likely.shape[2], found, 0)


def score_spans(logits: torch.Tensor, tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The spans of legal tag sequences, and how sure of each the keyphrase head is.

    Args:
        logits: (batch, time, 5) of the keyphrase head.
        tags: (batch, time) tags, O in the padding; every row a legal sequence.

    Returns:
        (spans, 3) as `spans_of_tags` gives them, and (spans,) the geometric mean of the probabilities of their tags.
    """
    spans = tags_to_spans(tags)
    row, start, end = spans.T
    chosen = torch.log_softmax(logits, -1).gather(-1, tags[..., None])[..., 0]
    sums = torch.nn.functional.pad(chosen.cumsum(1), (1, 0))
    return spans, ((sums[row, end] - sums[row, start]) / (end - start)).exp()


def viterbi_decode(logits: torch.Tensor, lengths: torch.Tensor, chain: CrfScores | None = None) -> torch.Tensor:
    """The likeliest legal BIOES sequence of each row (Viterbi over log-probabilities, illegal steps shut).

    Args:
        logits: (batch, time, 5) of the keyphrase head.
        lengths: (batch,) tokens of each row, at least 1.
        chain: learned scores; without it all legal sequences differ by the head alone.

    Returns:
        (batch, time) tags, O in the padding.
    """
    scores = torch.log_softmax(logits.float(), dim=-1)
    batch, time, _ = scores.shape
    device = scores.device
    padding = torch.arange(time, device=device) >= lengths.to(device)[:, None]
    shut = torch.tensor(float("-inf"), device=device)
    start, steps, end = (
        torch.where(legal.to(device), 0.0 if chain is None else chain[i], shut)
        for i, legal in enumerate((MAY_START, LEGAL, MAY_END))
    )
    best = scores[:, 0] + start
    came_from = torch.arange(5, device=device).repeat(batch, time, 1)  # in the padding nothing changes any more
    for t in range(1, time):
        reached, origin = (best[:, :, None] + steps).max(dim=1)
        best = torch.where(padding[:, t, None], best, reached + scores[:, t])
        came_from[:, t] = torch.where(padding[:, t, None], came_from[:, t], origin)
    tag = (best + end).argmax(dim=1)

    tags = torch.zeros(batch, time, dtype=torch.long, device=device)
    for t in range(time - 1, -1, -1):
        tags[:, t] = tag
        tag = came_from[:, t].gather(1, tag[:, None])[:, 0]
    return tags.masked_fill(padding, O)


def max_over_repeats(likely: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Gives each span the probability of the likeliest span of its text that has the same words.

    Args:
        likely: (B, T, K) of `span_probabilities`.
        words: (B, T) equal numbers for equal words.
    """
    rows = torch.arange(len(words), device=words.device)[:, None]
    keys = torch.empty_like(likely, dtype=torch.long)
    keys[..., 0] = key = words * _MIXER + rows  # overflow does no harm: what counts is whether keys are equal
    for size in range(1, likely.shape[2]):
        key = key[:, :-1] * _MIXER + words[:, size:]
        keys[:, size:, size] = key
    possible = likely > 0
    _, alike = keys[possible].unique(return_inverse=True)
    own = likely[possible]
    highest = own.new_zeros(len(own)).scatter_reduce_(0, alike, own, "amax")
    return likely.masked_scatter(possible, highest[alike])


def select_spans(likely: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The tags (B, T) of the disjoint spans whose probabilities exceed a threshold by the most, in sum.

    Taking a span whose probability is above F / 2, where F is the F1 that is reached in the end, raises the expected F1,
    and no other does (Lipton et al., ECML 2014); a likeliest sequence leaves such spans out.

    Args:
        likely: of `span_probabilities`; 0 for spans that reach into the padding.
        threshold: above 0; a scalar, or (B,) for each row its own.
    """
    rows, steps, longest = likely.shape
    gains = likely - threshold.view(-1, 1, 1)
    best = gains.new_zeros(rows, steps + 1)  # by how many tokens are decided
    taken = torch.zeros(rows, steps + 1, dtype=torch.long, device=likely.device)
    for t in range(1, steps + 1):
        sizes = min(longest, t)
        gain, size = (gains[:, t - 1, :sizes] + best[:, t - sizes : t].flip(1)).max(1)
        taken[:, t] = torch.where(gain > best[:, t - 1], size + 1, 0)
        best[:, t] = torch.maximum(gain, best[:, t - 1])
    tags = torch.full((rows, steps), O, device=likely.device)
    left = torch.zeros(rows, dtype=torch.long, device=likely.device)  # tokens of a span that are still to be tagged
    for t in range(steps, 0, -1):
        ends = (left == 0) & (taken[:, t] > 0)
        inside = torch.where(left > 1, I, torch.where(left == 1, B, O))
        tags[:, t - 1] = torch.where(ends, torch.where(taken[:, t] > 1, E, S), inside)
        left = torch.where(ends, taken[:, t], left.clamp(min=1)) - 1
    return tags
