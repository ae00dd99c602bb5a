"""BIOES tags: the labels of the keyphrase head, their legal sequences, and conversion from spans.

A span is (start, end), token indices, half-open, 0-based. A token inside a span is a keyword.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

O, B, I, E, S = range(5)  # noqa: E741 - the names of the tags

# LEGAL[i, j]: tag j may follow tag i. A sequence may start with O, B or S and must end with O, E or S.
LEGAL = np.zeros((5, 5), np.bool_)
for _previous in (O, E, S):
    LEGAL[_previous, [O, B, S]] = True
for _previous in (B, I):
    LEGAL[_previous, [I, E]] = True
MAY_START = LEGAL[O]
MAY_END = LEGAL[:, O]


class TeacherTargets(NamedTuple):
    """What a teacher says of the words of some texts; those that people labeled have gold tags instead.

    Attributes:
        keyword: (tokens,) probability that a token is inside a keyphrase; 0 in gold texts.
        keyphrase: (tokens, 5) probability of each tag; 0 in gold texts.
        labeled: (rows,) whether a text was labeled by the teacher.
        confidence: (rows,) the lowest probability, over a text's tokens, of the tag that the teacher gives it; 1 in gold texts.
    """

    keyword: npt.NDArray[np.float16]
    keyphrase: npt.NDArray[np.float16]
    labeled: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float32]

    def take(self, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> "TeacherTargets":
        """Return those of some texts, given the numbers of their tokens, concatenated."""
        return TeacherTargets(self.keyword[tokens], self.keyphrase[tokens], self.labeled[rows], self.confidence[rows])


IGNORED = -100  # the label of padding, excluded from every loss and count


def spans_to_tags(spans: npt.NDArray[np.int64], tokens: int) -> npt.NDArray[np.int8]:
    """Return BIOES tags for spans.

    Args:
        spans: (spans, 2) starts and ends, disjoint and not empty.
        tokens: the number of tokens.

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
