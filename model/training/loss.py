"""The dual loss of the joint-layer RNN: `total = alpha * keyword + (1 - alpha) * keyphrase` (Zhang et al., EMNLP 2016).

Everything is a sum with its count, never a mean, so that batches and workers of different size add up rightly.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.data.batching import Batch
from model.data.labels import IGNORED
from model.network.crf import crf_nll
from model.network.tagger import Logits


class LossSums(NamedTuple):
    """Cross-entropy summed over the real tokens of a batch, natural logarithm, one scalar tensor per head."""

    keyword: torch.Tensor
    keyphrase: torch.Tensor

    def total(self, alpha: float) -> torch.Tensor:
        """The objective, summed over tokens; `alpha` is the weight of the keyword head."""
        return alpha * self.keyword + (1 - alpha) * self.keyphrase


def dual_loss(logits: Logits, batch: Batch) -> LossSums:
    """The two heads' loss sums; padding counts for nothing.

    With learned transitions the keyphrase loss is that of whole sequences of tags, not of each tag by itself.
    """
    keyword = _sum(logits.keyword, batch.keyword)
    if logits.chain is None:
        return LossSums(keyword, _sum(logits.keyphrase, batch.keyphrase))
    return LossSums(keyword, crf_nll(logits.keyphrase.float(), logits.chain, batch.keyphrase, batch.lengths))


def _sum(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tags.flatten(), ignore_index=IGNORED, reduction="sum")
