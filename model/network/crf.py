"""A linear-chain CRF over legal BIOES sequences: its loss, and the marginal probabilities of keyphrases.

The emission scores of the keyphrase head and learned transition scores give each legal tag sequence y of a text x the
score s(x, y) = start[y_1] + sum_t emission[t, y_t] + sum_t transition[y_t, y_t+1] + end[y_T], and so the probability
p(y | x) = exp(s(x, y)) / Z(x) (Lafferty et al., ICML 2001). Illegal sequences have probability 0.

Shapes: B texts, T tokens, K tokens of the longest span that has a marginal, 5 tags.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.data.labels import B, E, I, O, S
from model.network.forward_backward import CrfScores, forward_backward, legality

_LEAST = 1e-12  # a potential instead of 0, so that every text has a sequence


class CrfTransitions(nn.Module):
    """Learned CRF scores, 0 at first: all legal sequences are then equal."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(5))
        self.transition = nn.Parameter(torch.zeros(5, 5))
        self.end = nn.Parameter(torch.zeros(5))

    def forward(self) -> CrfScores:
        """Return the scores."""
        return CrfScores(self.start, self.transition, self.end)


def legality_only(device: torch.device) -> CrfScores:
    """Return scores of 0: a CRF that excludes illegal sequences and prefers none of the legal ones."""
    zeros = torch.zeros(5, 5, device=device)
    return CrfScores(zeros[0], zeros, zeros[0])


def crf_nll(logits: torch.Tensor, crf: CrfScores, tags: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood log Z(x) - s(x, y) of the gold sequences, summed over the texts.

    Args:
        logits: (B, T, 5) emission scores of the keyphrase head.
        crf: learned scores.
        tags: (B, T) gold tags, each row a legal sequence; the padding is ignored.
        lengths: (B,) tokens of each text, at least 1.

    Returns:
        A scalar, natural logarithm.
    """
    real = _real(logits, lengths)
    counts = torch.nn.functional.one_hot(tags.clamp(min=O), 5) * real[..., None].double()  # (B, T, 5)
    transitions = torch.einsum("bti,btj->ij", counts[:, :-1], counts[:, 1:])
    return _CrfCrossEntropy.apply(logits, *crf, counts, transitions, lengths)


def crf_cross_entropy(
    logits: torch.Tensor, crf: CrfScores, probabilities: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Return the expected negative log-likelihood of tag sequences that a teacher draws, summed over the texts.

    That is log Z(x) - E[s(x, y)], the cross-entropy of the two distributions over sequences (Wang et al., ACL 2020,
    "Structure-level knowledge distillation for multilingual sequence labeling"). It needs the teacher's marginals of tags, and
    of pairs of neighboring tags. The latter are taken from the former: two neighbors are independent, given whether a
    keyphrase goes on from one to the other, which decides what pairs are legal. For probabilities of 0 and 1 it is `crf_nll`.

    Args:
        logits: (B, T, 5) emission scores of the keyphrase head.
        crf: learned scores.
        probabilities: (B, T, 5) the teacher's marginals of the tags, over legal sequences; the padding is ignored. For others
            the loss has no lower bound.
        lengths: (B,) tokens of each text, at least 1.
    """
    counts = probabilities.double() * _real(logits, lengths)[..., None]
    return _CrfCrossEntropy.apply(logits, *crf, counts, _expected_transitions(counts), lengths)


@torch.no_grad()
def temper_marginals(probabilities: torch.Tensor, lengths: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the marginals of tags when each sequence y has a probability proportional to p(y)^(1 / temperature).

    Args:
        probabilities: (B, T, 5) marginals of tags in a distribution p whose neighboring tags are independent as in
            `crf_cross_entropy`. So p is a CRF without transition scores: the potential of a tag is its probability, given
            whether a keyphrase goes on after it.
        lengths: (B,) tokens of each text, at least 1.
        temperature: above 0; 1 only repairs what rounding has done to the marginals.
    """
    may_end = legality(lengths.device).end
    given = probabilities.double()
    ends, goes_on = ((given * mask).sum(-1, keepdim=True) for mask in (may_end, ~may_end))
    last = torch.arange(given.shape[1], device=lengths.device) == lengths[:, None] - 1
    mass = torch.where(last[..., None], 1.0, torch.where(may_end, ends, goes_on))
    potentials = torch.where(mass > 0, given / mass.clamp(min=_LEAST), 0.0).clamp(min=_LEAST)
    variables = forward_backward(potentials.log() / temperature, legality_only(lengths.device), lengths)
    return (variables.alpha * variables.beta).transpose(0, 1).to(probabilities.dtype)


def _expected_transitions(counts: torch.Tensor) -> torch.Tensor:
    """Return how often each tag (row) is followed by each other (column), (5, 5), given the marginals (B, T, 5)."""
    may_start, _, may_end = legality(counts.device)
    before, after = counts[:, :-1], counts[:, 1:]
    real = after.sum(-1)  # 0 in the padding
    found = counts.new_zeros(5, 5)
    for left, right in ((may_end, may_start), (~may_end, ~may_start)):  # no keyphrase goes on; one does
        first, second = before * left, after * right
        sums = first.sum(-1), second.sum(-1)
        mass = real * (sums[0] + sums[1]) / 2  # equal for marginals of legal sequences, up to rounding
        scale = mass / (sums[0] * sums[1]).clamp(min=1e-12)
        found = found + torch.einsum("bt,bti,btj->ij", scale, first, second)
    return found


def _real(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]


class _CrfCrossEntropy(Function):
    """The loss. Its gradient is expected counts minus target counts, known as soon as forward-backward has run.

    `counts` (B, T, 5) has the target counts of tags, 0 in the padding, and `transitions` (5, 5) those of pairs, both float64.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        start: torch.Tensor,
        transition: torch.Tensor,
        end: torch.Tensor,
        counts: torch.Tensor,
        transitions: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        crf = CrfScores(start, transition, end)
        variables = forward_backward(logits, crf, lengths)
        rows = torch.arange(len(counts), device=logits.device)
        first, last = counts[:, 0].sum(0), counts[rows, lengths - 1].sum(0)
        score = (logits * counts.to(logits.dtype)).sum(dtype=torch.float64)
        score = score + sum((each * count).sum() for each, count in zip(crf, (first, transitions, last), strict=True))
        marginals = variables.alpha * variables.beta  # (T, B, 5)
        emission_beta = variables.emission * variables.beta
        expected_transitions = (
            torch.einsum("tbi,tbj->ij", variables.alpha[:-1], emission_beta[1:]) * variables.potentials.transition
        )
        gradients = (
            marginals.transpose(0, 1) - counts,
            marginals[0].sum(0) - first,
            expected_transitions - transitions,
            marginals[lengths - 1, rows].sum(0) - last,
        )
        ctx.save_for_backward(*(gradient.to(logits.dtype) for gradient in gradients))
        return (variables.log_partition.sum() - score).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*(grad_loss * gradient for gradient in ctx.saved_tensors), None, None, None)


@torch.no_grad()
def span_marginals(logits: torch.Tensor, crf: CrfScores, lengths: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """Return the marginal probability that a span is a keyphrase, for all spans of 1 to K tokens.

    That is the probability of all sequences which tag the span S, or B, then I, then E.

    Args:
        logits: (B, T, 5) emission scores of the keyphrase head.
        crf: scores.
        lengths: (B,) tokens of each text, at least 1.
        max_tokens: K at most: longer spans have no marginal.

    Returns:
        (B, T, K), by last token and size - 1; 0 for spans that begin before the text or reach into the padding.
    """
    potentials, _, alpha, emission, beta = forward_backward(logits, crf, lengths)
    emission_beta = emission * beta
    steps = len(emission)
    marginals = emission.new_zeros(*emission.shape[:2], min(max_tokens, steps))
    marginals[..., 0] = alpha[..., S] * beta[..., S]
    open_alpha, tag = (
        alpha[..., B],
        B,
    )  # forward variable of a keyphrase that has not ended, by its last token, tagged so
    for size in range(2, marginals.shape[2] + 1):
        closing = open_alpha[:-1] * potentials.transition[tag, E]
        marginals[size - 1 :, :, size - 1] = closing * emission_beta[size - 1 :, :, E]
        open_alpha = open_alpha[:-1] * potentials.transition[tag, I] * emission[size - 1 :, :, I]
        tag = I
    return marginals.transpose(0, 1).float()
