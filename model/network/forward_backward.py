"""The forward-backward algorithm of a linear-chain CRF over BIOES tags, by a loop over the tokens or by a parallel scan.

Both compute in float64. The loop (Rabiner 1989, section V.A) takes a few small calls a token, which is fast on a CPU, and
by NumPy, whose small calls take a tenth of the time of torch's; on a GPU the launches of thousands of kernels would take
longer than all that they compute. The scan takes about ten calls for each doubling of the length, and more arithmetic.

Shapes: B texts, T tokens, 5 tags.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
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
    return CrfScores(*(torch.from_numpy(legal).to(device) for legal in (MAY_START, LEGAL, MAY_END)))


def forward_backward(logits: torch.Tensor, crf: CrfScores, lengths: torch.Tensor) -> ForwardBackward:
    """Run the forward-backward algorithm, without gradients, in the way that suits the device.

    Args:
        logits: (B, T, 5) emission scores.
        crf: transition scores.
        lengths: (B,) tokens of each text, at least 1.
    """
    algorithm = by_loop if logits.device.type == "cpu" else by_scan
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
    emission, sizes = scores.contiguous().numpy(), lengths.numpy()
    start, transition, end = (score.exp().numpy() for score in crf)
    real = (np.arange(len(emission))[:, None] < sizes)[..., None]  # (T, B, 1)
    max_score = emission.max(2, keepdims=True)
    emission = np.exp(emission - max_score)
    alpha, beta, scale = np.zeros_like(emission), np.zeros_like(emission), np.ones_like(max_score)
    with np.errstate(all="ignore"):  # NaN logits give NaN, as they do by torch
        unscaled = start * emission[0]
        for t in range(len(emission)):
            if t:
                unscaled = (alpha[t - 1] @ transition) * emission[t]
            scale[t] = unscaled.sum(1, keepdims=True)
            alpha[t] = np.where(real[t], unscaled / scale[t], alpha[t - 1])
        end_scale = alpha[-1] @ end  # (B,)
        log_partition = ((np.log(scale) + max_score) * real).sum((0, 2)) + np.log(end_scale)
        emission = np.where(real, emission / scale, 0)
        inner_beta = last_beta = end / end_scale[:, None]
        for t in range(len(emission) - 1, -1, -1):
            beta[t] = np.where((sizes - 1 == t)[:, None], last_beta, inner_beta) * real[t]
            inner_beta = (emission[t] * beta[t]) @ transition.T
    potentials = CrfScores(*map(torch.from_numpy, (start, transition, end)))
    return ForwardBackward(potentials, *map(torch.from_numpy, (log_partition, alpha, emission, beta)))


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
