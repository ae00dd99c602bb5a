"""From logits to keyphrases: Viterbi decoding, or the selection of spans by their marginal probability.

Shapes: B texts, T tokens, K tokens of the longest span that has a marginal, 5 tags.
"""

from typing import NamedTuple

import numpy as np
import torch

from model.data.labels import B, E, O, S
from model.network.crf import legality_only, span_marginals
from model.network.forward_backward import CrfScores, forward_backward, legality
from model.network.logits import Logits, SpanDecoding

_MULTIPLIER = 6364136223846793005  # of a 64-bit generator: its multiples share no pattern with row and word numbers


class SpanPredictions(NamedTuple):
    """Keyphrases of a batch, in order of row and start.

    Attributes:
        spans: (spans, 3) row, first token and end token, half-open.
        scores: (spans,) in 0 to 1: the marginal probability of the span; with Viterbi decoding, the geometric mean of
            the probabilities of its tags.
    """

    spans: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def predict_spans(logits: Logits, lengths: torch.Tensor) -> SpanPredictions:
    """Return the keyphrases of texts, decoded as the logits ask for.

    Args:
        logits: of B texts.
        lengths: (B,) tokens of each text, at least 1.
    """
    if logits.decoding is None:
        return score_spans(logits.keyphrase, viterbi_decode(logits.keyphrase, lengths, logits.crf))
    marginals = _decoding_marginals(logits, logits.decoding, lengths)
    spans = select_spans(marginals, logits.decoding.threshold)
    return SpanPredictions(spans, _lookup(marginals, spans))


@torch.no_grad()
def score_tags(logits: Logits, lengths: torch.Tensor, tags: torch.Tensor) -> SpanPredictions:
    """Return the keyphrases of given tags, with the scores that the tagger gives them.

    Args:
        logits: of B texts.
        lengths: (B,) tokens of each text, at least 1.
        tags: (B, T), each row a legal sequence, O in the padding.
    """
    if logits.decoding is None:
        return score_spans(logits.keyphrase, tags)
    spans = tags_to_spans(tags)
    return SpanPredictions(spans, _lookup(_decoding_marginals(logits, logits.decoding, lengths), spans))


def predict_marginals(logits: Logits, decoding: SpanDecoding, lengths: torch.Tensor) -> torch.Tensor:
    """Return the marginals (B, T, K) of the spans of texts; see `span_marginals`."""
    crf = logits.crf or legality_only(lengths.device)
    return span_marginals(logits.keyphrase, crf, lengths, decoding.max_tokens)


@torch.no_grad()
def tag_marginals(logits: Logits, lengths: torch.Tensor) -> torch.Tensor:
    """Return the probability (B, T, 5) of each BIOES tag at each token: its marginal over all legal sequences.

    Args:
        logits: of B texts.
        lengths: (B,) tokens of each text, at least 1.
    """
    crf = logits.crf or legality_only(lengths.device)
    variables = forward_backward(logits.keyphrase, crf, lengths)
    return (variables.alpha * variables.beta).transpose(0, 1).float()


def _decoding_marginals(logits: Logits, decoding: SpanDecoding, lengths: torch.Tensor) -> torch.Tensor:
    marginals = predict_marginals(logits, decoding, lengths)
    return max_over_repeats(marginals, decoding.word_ids) if decoding.agreement else marginals


def _lookup(marginals: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Return the marginals (spans,) of some spans (spans, 3); 0 for spans of more than K tokens."""
    row, start, end = spans.T
    size = end - start
    found = marginals[row, end - 1, (size - 1).clamp(max=marginals.shape[2] - 1)]
    return torch.where(size <= marginals.shape[2], found, 0)


def score_spans(logits: torch.Tensor, tags: torch.Tensor) -> SpanPredictions:
    """Return the spans of tags, each with the geometric mean of its tags' probabilities.

    Args:
        logits: (B, T, 5) of the keyphrase head.
        tags: (B, T), each row a legal sequence, O in the padding.
    """
    spans = tags_to_spans(tags)
    row, start, end = spans.T
    log_probabilities = torch.log_softmax(logits, -1).gather(-1, tags[..., None])[..., 0]
    sums = torch.nn.functional.pad(log_probabilities.cumsum(1), (1, 0))
    return SpanPredictions(spans, ((sums[row, end] - sums[row, start]) / (end - start)).exp())


def viterbi_decode(logits: torch.Tensor, lengths: torch.Tensor, crf: CrfScores | None = None) -> torch.Tensor:
    """Return the legal BIOES sequence with the highest score, by the Viterbi algorithm (Rabiner 1989, section III.B).

    Args:
        logits: (B, T, 5) emission scores of the keyphrase head.
        lengths: (B,) tokens of each text, at least 1.
        crf: learned scores; without them legal sequences differ by their emissions alone.

    Returns:
        (B, T) tags, O in the padding.
    """
    emission = torch.log_softmax(logits.float(), dim=-1)
    rows, steps, _ = emission.shape
    device = emission.device
    padding = torch.arange(steps, device=device) >= lengths.to(device)[:, None]
    start, transition, end = (
        torch.where(legal, 0.0 if crf is None else crf[i], float("-inf")) for i, legal in enumerate(legality(device))
    )
    delta = emission[:, 0] + start  # score of the best sequence that ends in a tag
    backpointers = torch.arange(5, device=device).repeat(rows, steps, 1)  # in the padding a tag points to itself
    for t in range(1, steps):
        best, origin = (delta[:, :, None] + transition).max(dim=1)
        delta = torch.where(padding[:, t, None], delta, best + emission[:, t])
        backpointers[:, t] = torch.where(padding[:, t, None], backpointers[:, t], origin)
    tag = (delta + end).argmax(dim=1)

    tags = torch.zeros(rows, steps, dtype=torch.long, device=device)
    for t in range(steps - 1, -1, -1):
        tags[:, t] = tag
        tag = backpointers[:, t].gather(1, tag[:, None])[:, 0]
    return tags.masked_fill(padding, O)


def max_over_repeats(marginals: torch.Tensor, word_ids: torch.Tensor) -> torch.Tensor:
    """Return marginals in which equal spans of a text have the highest marginal among them.

    Args:
        marginals: (B, T, K) of `span_marginals`.
        word_ids: (B, T) int64, equal for equal words.
    """
    rows = torch.arange(len(word_ids), device=word_ids.device)[:, None]
    keys = torch.empty_like(marginals, dtype=torch.long)
    keys[..., 0] = key = word_ids * _MULTIPLIER + rows  # may overflow: keys only need to be equal for equal spans
    for size in range(1, marginals.shape[2]):
        key = key[:, :-1] * _MULTIPLIER + word_ids[:, size:]
        keys[:, size:, size] = key
    possible = marginals > 0
    _, group = keys[possible].unique(return_inverse=True)
    own = marginals[possible]
    highest = own.new_zeros(len(own)).scatter_reduce_(0, group, own, "amax")
    return marginals.masked_scatter(possible, highest[group])


def select_spans(marginals: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return the disjoint spans whose marginals exceed a threshold by the largest sum, by weighted interval selection.

    Predicting a span whose probability is above F / 2, where F is the F1 that is reached in the end, raises the expected
    F1, and no other span does (Lipton et al., ECML PKDD 2014); the sequence of highest score leaves such spans out.

    It is computed on the host: a few small calls a token, which take a tenth of the time of torch's by NumPy.

    Args:
        marginals: (B, T, K) of `span_marginals`; 0 for spans that reach into the padding.
        threshold: above 0; a scalar, or (B,) one a row.

    Returns:
        (spans, 3) row, start and end, ordered by row and start.
    """
    gains = (marginals - threshold.view(-1, 1, 1)).permute(1, 2, 0).contiguous().cpu().numpy()  # (T, K, B)
    steps, longest, rows = gains.shape
    best = np.zeros((steps + 1, rows), gains.dtype)  # highest sum over the first t tokens
    chosen = np.zeros((steps + 1, rows), np.int64)  # size of the span that ends there; 0 for none
    for t in range(1, steps + 1):
        sizes = min(longest, t)
        sums = gains[t - 1, :sizes] + best[t - sizes : t][::-1]
        gain = sums.max(0)
        chosen[t] = np.where(gain > best[t - 1], sums.argmax(0) + 1, 0)
        best[t] = np.maximum(gain, best[t - 1])
    selected = np.zeros((steps + 1, rows), bool)
    left = np.full(rows, steps)  # tokens to the left of all spans selected so far
    for t in range(steps, 0, -1):
        selected[t] = (left >= t) & (chosen[t] > 0)
        left = np.where(selected[t], t - chosen[t], left)
    row, end = np.nonzero(selected.T)
    spans = np.stack([row, end - chosen[end, row], end], axis=1)
    return torch.from_numpy(spans).to(marginals.device)


def tags_to_spans(tags: torch.Tensor) -> torch.Tensor:
    """Return the spans of legal tag sequences.

    Args:
        tags: (B, T) tags, O in the padding; every row a legal sequence.

    Returns:
        (spans, 3) row, start and end, ordered by row and start.
    """
    starts = torch.nonzero((tags == B) | (tags == S))
    ends = torch.nonzero((tags == E) | (tags == S))
    # In a legal row starts and ends alternate, so the k-th start belongs to the k-th end.
    return torch.cat([starts, ends[:, 1:] + 1], dim=1)
