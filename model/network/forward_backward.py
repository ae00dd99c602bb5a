"""The forward-backward algorithm of a linear-chain CRF over BIOES tags, by a loop over the tokens or by a parallel scan.

Both compute in float64. The loop (Rabiner 1989, section V.A) takes a few small calls a token, which is fast on a CPU; on a
GPU the launches of thousands of kernels would take longer than all that they compute. The scan takes about ten calls for
each doubling of the length, and more arithmetic.

Shapes: B texts, T tokens, 5 tags.
"""

from functools import cache
from typing import NamedTuple

import torch

from model.data.labels import LEGAL, MAY_END, MAY_START


class CrfScores(NamedTuple):
    """Scores of a linear-chain CRF beside the emissions.

    Attributes:
        start: (5,) of a text's first tag.
        transition: (5, 5) of a tag (row) followed by another (column).
        end: (5,) of a text's last tag.
    """

    start: torch.Tensor
    transition: torch.Tensor
    end: torch.Tensor


class ForwardBackward(NamedTuple):
    """The variables of the forward-backward algorithm, scaled at each step; emission and beta are 0 in the padding.

    Attributes:
        potentials: exp(score) of the CRF, 0 where illegal.
        log_partition: (B,) log Z(x).
        alpha: (T, B, 5) forward variable of a tag at a step, scaled to sum to 1 over the tags.
        emission: (T, B, 5) potential of the emission, divided by that scale.
        beta: (T, B, 5) backward variable: `alpha * beta` is the marginal probability of a tag at a step.
    """

    potentials: CrfScores
    log_partition: torch.Tensor
    alpha: torch.Tensor
    emission: torch.Tensor
    beta: torch.Tensor


@cache
def legality(device: torch.device) -> "CrfScores":
    """Return which tags may start a text, follow each other and end a text, on a device; copied there once."""
    return CrfScores(*(legal.to(device) for legal in (MAY_START, LEGAL, MAY_END)))


def forward_backward(logits: torch.Tensor, crf: CrfScores, lengths: torch.Tensor) -> ForwardBackward:
    """Run the forward-backward algorithm, without gradients, in the way that suits the device.

    Args:
        logits: (B, T, 5) emission scores.
        crf: transition scores.
        lengths: (B,) tokens of each text, at least 1.
    """
    algorithm = by_scan if logits.device.type == "cuda" else by_loop
    log_potentials = CrfScores(
        *(
            score.detach().double().masked_fill(~legal, float("-inf"))
            for score, legal in zip(crf, legality(logits.device), strict=True)
        )
    )
    scores = logits.detach().double().transpose(0, 1)
    return algorithm(scores, log_potentials, lengths)


def by_loop(scores: torch.Tensor, crf: CrfScores, lengths: torch.Tensor) -> ForwardBackward:
    """Run it token by token (Rabiner 1989, equations 19 to 25, scaled as in 91 to 96).

    Args:
        scores: (T, B, 5) emissions.
        crf: -inf where illegal.
        lengths: (B,).
    """
    potentials = CrfScores(*(score.exp() for score in crf))
    steps = len(scores)
    real = (torch.arange(steps, device=scores.device)[:, None] < lengths)[..., None]  # (T, B, 1)
    max_score = scores.amax(2, keepdim=True)
    emission = (scores - max_score).exp()
    alpha, scale = torch.empty_like(emission), torch.ones_like(max_score)
    unscaled = potentials.start * emission[0]
    for t in range(steps):
        if t:
            unscaled = (alpha[t - 1] @ potentials.transition) * emission[t]
        scale[t] = unscaled.sum(1, keepdim=True)
        alpha[t] = torch.where(real[t], unscaled / scale[t], alpha[t - 1] if t else 0)
    end_scale = alpha[-1] @ potentials.end  # (B,)
    log_partition = ((scale.log() + max_score) * real).sum((0, 2)) + end_scale.log()
    emission = torch.where(real, emission / scale, 0)
    beta = torch.zeros_like(alpha)
    last = lengths - 1
    last_beta = potentials.end / end_scale[:, None]
    for t in range(steps - 1, -1, -1):
        inner_beta = (emission[t + 1] * beta[t + 1]) @ potentials.transition.t() if t + 1 < steps else last_beta
        beta[t] = torch.where((last == t)[:, None], last_beta, inner_beta) * real[t]
    return ForwardBackward(potentials, log_partition, alpha, emission, beta)


def by_scan(scores: torch.Tensor, crf: CrfScores, lengths: torch.Tensor) -> ForwardBackward:
    """Run it in about log2 T steps, each over all tokens, on logarithms; see `by_loop` for the arguments.

    Both variables are products of transition matrices with a vector, and matrix products are associative: a parallel
    prefix scan gives all of them (Hillis and Steele 1986; for hidden Markov models Hassan et al., IEEE TSP 2021).
    """
    steps = len(scores)
    real = (torch.arange(steps, device=scores.device)[:, None] < lengths)[..., None]  # (T, B, 1)
    identity = torch.eye(5, dtype=torch.float64, device=scores.device).log()
    matrices = torch.where(real[1:, ..., None], crf.transition + scores[1:, :, None], identity)  # (T - 1, B, 5, 5)
    # The backward variable reads the chain from its end: the transposed matrices in reverse.
    both = _prefix_products(torch.cat([matrices, matrices.flip(0).transpose(2, 3)], dim=1))
    forward, backward = both.chunk(2, dim=1)
    first, end = (crf.start + scores[0])[None], crf.end.expand_as(scores[:1])
    log_alpha = torch.cat([first, _apply(first, forward)])
    log_beta = torch.cat([_apply(end, backward).flip(0), end])
    log_partition = (log_alpha[-1] + crf.end).logsumexp(1)
    total = log_alpha.logsumexp(2, keepdim=True)  # (T, B, 1)
    scale = torch.cat([total[:1], total.diff(dim=0)])
    return ForwardBackward(
        CrfScores(*(score.exp() for score in crf)),
        log_partition,
        (log_alpha - total).exp(),
        torch.where(real, (scores - scale).exp(), 0),
        torch.where(real, (log_beta + total - log_partition[:, None]).exp(), 0),
    )


def _prefix_products(matrices: torch.Tensor) -> torch.Tensor:
    """Return the products of the first 1, 2, ... of some matrices (N, B, 5, 5), given and returned as logarithms."""
    reach = 1
    while reach < len(matrices):
        products = (matrices[:-reach, ..., None] + matrices[reach:, :, None]).logsumexp(3)
        matrices = torch.cat([matrices[:reach], products])
        reach *= 2
    return matrices


def _apply(vector: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Return a row vector (1, B, 5) times each of some matrices (N, B, 5, 5), all as logarithms."""
    return (vector[..., None] + matrices).logsumexp(2)
