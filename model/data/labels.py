"""BIOES tags: the alphabet of the keyphrase head, its legal sequences, and the way to and from spans.

A span is (start, end), token indices, half-open, 0-based. A token inside a span is a keyword.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

TAGS = ("O", "B", "I", "E", "S")
O, B, I, E, S = range(5)  # noqa: E741 - the tags' own names

# LEGAL[i, j]: tag j may follow tag i. A sequence may start with O, B or S and must end with O, E or S.
LEGAL = torch.zeros(5, 5, dtype=torch.bool)
for _previous in (O, E, S):
    LEGAL[_previous, [O, B, S]] = True
for _previous in (B, I):
    LEGAL[_previous, [I, E]] = True
MAY_START = LEGAL[O]
MAY_END = LEGAL[:, O]


class Chain(NamedTuple):
    """Scores beside those of the head: of a first tag (5,), of a tag after another (from, to) and of a last tag (5,)."""

    start: torch.Tensor
    step: torch.Tensor
    end: torch.Tensor


IGNORED = -100  # the label of padding, left out of every loss and count


def tags_of_spans(spans: npt.NDArray[np.int64], tokens: int) -> npt.NDArray[np.int8]:
    """The BIOES tags of a run of tokens.

    Args:
        spans: (spans, 2) starts and ends, disjoint and not empty.
        tokens: how many tokens there are.

    Returns:
        (tokens,) tags.
    """
    tags = np.zeros(tokens, np.int8)
    starts, ends = spans[:, 0], spans[:, 1]
    lengths = ends - starts
    inside = np.repeat(starts, lengths) + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tags[inside] = I
    tags[starts] = B
    tags[ends - 1] = E
    tags[starts[lengths == 1]] = S
    return tags


def spans_of_tags(tags: torch.Tensor) -> torch.Tensor:
    """The spans of legal tag sequences.

    Args:
        tags: (batch, time) tags, O in the padding; every row a legal sequence.

    Returns:
        (spans, 3) of row, start, end, in order of row and start.
    """
    starts = torch.nonzero((tags == B) | (tags == S))
    ends = torch.nonzero((tags == E) | (tags == S))
    # In a legal row starts and ends alternate, so the k-th start belongs to the k-th end.
    return torch.cat([starts, ends[:, 1:] + 1], dim=1)


def score_spans(logits: torch.Tensor, tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The spans of legal tag sequences, and how sure of each the keyphrase head is.

    Args:
        logits: (batch, time, 5) of the keyphrase head.
        tags: (batch, time) tags, O in the padding; every row a legal sequence.

    Returns:
        (spans, 3) as `spans_of_tags` gives them, and (spans,) the geometric mean of the probabilities of their tags.
    """
    spans = spans_of_tags(tags)
    row, start, end = spans.T
    chosen = torch.log_softmax(logits, -1).gather(-1, tags[..., None])[..., 0]
    sums = torch.nn.functional.pad(chosen.cumsum(1), (1, 0))
    return spans, ((sums[row, end] - sums[row, start]) / (end - start)).exp()


def decode(logits: torch.Tensor, lengths: torch.Tensor, chain: Chain | None = None) -> torch.Tensor:
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
