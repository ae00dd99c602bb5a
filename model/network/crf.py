"""Tags as a chain: a linear-chain CRF over legal BIOES sequences, and the keyphrases that it finds likely.

The scores of the keyphrase head and learned scores of one tag after another give each legal sequence a weight, and so a
probability (Lafferty et al., ICML 2001). Everything is computed forwards and backwards along the text with the weights
themselves, scaled at each step (Rabiner 1989, section V.A), in float64: a few small calls a token instead of the many of
a sum of logarithms that autograd follows.

Shapes: B texts, T tokens, K tokens of the longest keyphrase that is looked for.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.data.labels import LEGAL, MAY_END, MAY_START, B, E, I, O, S

MAX_SPAN_TOKENS = 12  # tokens of a keyphrase that spans are looked for with


class CrfScores(NamedTuple):
    """Scores beside those of the head: of a first tag (5,), of a tag after another (from, to) and of a last tag (5,)."""

    start: torch.Tensor
    transition: torch.Tensor
    end: torch.Tensor


class CrfTransitions(nn.Module):
    """The learned scores of a chain; at first all legal sequences are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(5))
        self.transition = nn.Parameter(torch.zeros(5, 5))
        self.end = nn.Parameter(torch.zeros(5))

    def forward(self) -> CrfScores:
        """The chain."""
        return CrfScores(self.start, self.transition, self.end)


def legality_only(device: torch.device) -> CrfScores:
    """The chain that knows what is legal and nothing else."""
    zeros = torch.zeros(5, 5, device=device)
    return CrfScores(zeros[0], zeros, zeros[0])


def crf_nll(logits: torch.Tensor, chain: CrfScores, tags: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Negative log-probability of the gold sequences, summed over the texts; a scalar.

    Args:
        logits: (B, T, 5) of the keyphrase head.
        chain: learned scores.
        tags: (B, T) legal gold sequences; what stands in the padding is not read.
        lengths: (B,) tokens of each text, at least 1.
    """
    return _CrfNll.apply(logits, *chain, tags, lengths)


class _ForwardBackward(NamedTuple):
    """The passes forwards and backwards, step by step (T, B, ...); in the padding `given` and `after` are 0.

    Attributes:
        weights: the chain's scores as weights, illegal ones 0.
        log_sums: (B,) logarithm of the sum of the weights of all legal sequences.
        before: (T, B, 5) weight of all beginnings that end in a tag at a step, scaled so that they sum to 1.
        given: (T, B, 5) weight of a tag at a step, divided by that scale.
        after: (T, B, 5) weight of all ends that follow it: `before * after` is the probability of a tag at a step.
    """

    weights: CrfScores
    log_sums: torch.Tensor
    alpha: torch.Tensor
    emission: torch.Tensor
    beta: torch.Tensor


def _forward_backward(logits: torch.Tensor, chain: CrfScores, lengths: torch.Tensor) -> _ForwardBackward:
    weights = CrfScores(
        *(
            score.detach().double().exp() * legal.to(score.device)
            for score, legal in zip(chain, (MAY_START, LEGAL, MAY_END), strict=True)
        )
    )
    scores = logits.detach().double().transpose(0, 1)
    steps = len(scores)
    real = (torch.arange(steps, device=logits.device)[:, None] < lengths)[..., None]  # (T, B, 1)
    highest = scores.amax(2, keepdim=True)
    given = (scores - highest).exp()
    before, sums = torch.empty_like(given), torch.ones_like(highest)
    state = weights.start * given[0]
    for t in range(steps):
        if t:
            state = (before[t - 1] @ weights.transition) * given[t]
        sums[t] = state.sum(1, keepdim=True)
        before[t] = torch.where(real[t], state / sums[t], before[t - 1] if t else 0)
    whole = before[-1] @ weights.end  # (B,)
    log_sums = ((sums.log() + highest) * real).sum((0, 2)) + whole.log()
    given = torch.where(real, given / sums, 0)
    after = torch.zeros_like(before)
    last = lengths - 1
    ending = weights.end / whole[:, None]
    for t in range(steps - 1, -1, -1):
        follows = (given[t + 1] * after[t + 1]) @ weights.transition.t() if t + 1 < steps else ending
        after[t] = torch.where((last == t)[:, None], ending, follows) * real[t]
    return _ForwardBackward(weights, log_sums, before, given, after)


class _CrfNll(Function):
    """Its gradient is expected counts minus those of the gold sequence, known as soon as the passes are made."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        start: torch.Tensor,
        step: torch.Tensor,
        end: torch.Tensor,
        tags: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        chain = CrfScores(start, step, end)
        passes = _forward_backward(logits, chain, lengths)
        real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
        gold = torch.nn.functional.one_hot(tags.clamp(min=O), 5) * real[..., None]  # (B, T, 5)
        counts = gold.double()
        rows = torch.arange(len(tags), device=logits.device)
        pairs = torch.einsum("bti,btj->ij", counts[:, :-1], counts[:, 1:])
        first, last = counts[:, 0].sum(0), counts[rows, lengths - 1].sum(0)
        score = (logits * gold).sum(dtype=torch.float64)
        score = score + sum((each * count).sum() for each, count in zip(chain, (first, pairs, last), strict=True))
        expected = passes.alpha * passes.beta  # (T, B, 5)
        arriving = passes.emission * passes.beta
        both = torch.einsum("tbi,tbj->ij", passes.alpha[:-1], arriving[1:]) * passes.weights.transition
        gradients = (
            expected.transpose(0, 1) - counts,
            expected[0].sum(0) - first,
            both - pairs,
            expected[lengths - 1, rows].sum(0) - last,
        )
        ctx.save_for_backward(*(gradient.to(logits.dtype) for gradient in gradients))
        return (passes.log_sums.sum() - score).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return (*(gradient * each for each in ctx.saved_tensors), None, None)


@torch.no_grad()
def span_marginals(logits: torch.Tensor, chain: CrfScores, lengths: torch.Tensor) -> torch.Tensor:
    """How likely each span is a keyphrase: (B, T, K), of the spans that end with a token and have 1 to K tokens."""
    weights, _, before, given, after = _forward_backward(logits, chain, lengths)
    arriving = given * after
    steps = len(given)
    likely = given.new_zeros(*given.shape[:2], min(MAX_SPAN_TOKENS, steps))
    likely[..., 0] = before[..., S] * after[..., S]
    begun, previous = before[..., B], B  # weight of a keyphrase that is not yet at its end, by its last token
    for size in range(2, likely.shape[2] + 1):
        likely[size - 1 :, :, size - 1] = begun[:-1] * weights.transition[previous, E] * arriving[size - 1 :, :, E]
        begun = begun[:-1] * weights.transition[previous, I] * given[size - 1 :, :, I]
        previous = I
    return likely.transpose(0, 1).float()
