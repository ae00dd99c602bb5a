"""The dual loss of the joint-layer RNN: `total = alpha * keyword + (1 - alpha) * keyphrase` (Zhang et al., EMNLP 2016).

Losses are sums over tokens, never means, so that batches and workers of different size add up correctly.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.data.batching import Batch
from model.data.labels import IGNORED
from model.network.crf import crf_nll
from model.network.logits import Logits


class LossSums(NamedTuple):
    """The loss of each head, a scalar tensor: summed over the real tokens of a batch, natural logarithm."""

    keyword: torch.Tensor
    keyphrase: torch.Tensor

    def total(self, alpha: float) -> torch.Tensor:
        """Return the objective, summed over tokens; `alpha` is the weight of the keyword head."""
        return alpha * self.keyword + (1 - alpha) * self.keyphrase


def dual_loss(logits: Logits, batch: Batch) -> LossSums:
    """Return the loss sums of both heads: cross-entropy, and for the keyphrase head of a CRF its negative log-likelihood.

    Args:
        logits: of the batch.
        batch: B texts; the padding is ignored.
    """
    keyword = _sum(logits.keyword, batch.keyword)
    if logits.crf is None:
        return LossSums(keyword, _sum(logits.keyphrase, batch.keyphrase))
    return LossSums(keyword, crf_nll(logits.keyphrase.float(), logits.crf, batch.keyphrase, batch.lengths))


def _sum(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tags.flatten(), ignore_index=IGNORED, reduction="sum")
