"""What goes into a tagger beside ids, and what its heads give.

Shapes: B texts, T tokens, U rows of a table, D embedding.
"""

from typing import NamedTuple

import torch

from model.network.forward_backward import CrfScores


class SpanDecoding(NamedTuple):
    """How marginal probabilities of spans become keyphrases.

    Attributes:
        threshold: scalar; keyphrases are spans with a higher marginal.
        agreement: scalar; 1 where equal spans of a text share the highest of their marginals, else 0.
        word_ids: (B, T) int64, equal for equal words.
        max_tokens: longer spans are never predicted.
    """

    threshold: torch.Tensor
    agreement: torch.Tensor
    word_ids: torch.Tensor
    max_tokens: int


class EmbeddingRows(NamedTuple):
    """Rows of an embedding table, and which of them a batch looks up.

    Attributes:
        vectors: (U, D) the whole table, or those of its rows that a step uses; row 0 is that of PAD.
        indices: (B, T), or (B, T, NUM_FEATURES) row of each token.
    """

    vectors: torch.Tensor
    indices: torch.Tensor


class Logits(NamedTuple):
    """What the heads give for each token, and how keyphrases are decoded from it.

    Attributes:
        keyword: (B, T, 2).
        keyphrase: (B, T, 5), by BIOES tag.
        crf: learned transition scores; None where each tag is predicted by itself.
        decoding: of span marginals; None for Viterbi decoding.
    """

    keyword: torch.Tensor
    keyphrase: torch.Tensor
    crf: CrfScores | None = None
    decoding: SpanDecoding | None = None
