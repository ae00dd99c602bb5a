"""The dual loss of the joint-layer RNN: `total = alpha * keyword + (1 - alpha) * keyphrase` (Zhang et al., EMNLP 2016).

Texts that a teacher labeled have its probabilities as targets (Hinton et al. 2015, "Distilling the knowledge in a neural
network"). Losses are sums over tokens, never means, so that batches and workers of different size add up correctly.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.config import TrainingConfig
from model.data.batching import Batch, SoftTargets
from model.data.labels import IGNORED
from model.network.crf import crf_cross_entropy, crf_nll, temper_marginals
from model.network.forward_backward import CrfScores
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


def training_loss(logits: Logits, batch: Batch, config: TrainingConfig) -> LossSums:
    """Return the loss sums of a training step: of gold texts the dual loss, of labeled texts that of the teacher's targets.

    Args:
        logits: of the batch.
        batch: B texts.
        config: with the weight, the kind and the temperature of the teacher's targets.
    """
    teacher = batch.teacher
    if teacher is None or not len(teacher.labeled):
        return dual_loss(logits, batch)
    own, lengths = _rows_of(logits, teacher.labeled), batch.lengths.index_select(0, teacher.labeled)
    if config.teacher_targets == "soft":
        labeled = soft_dual_loss(own, lengths, teacher, config.teacher_temperature)
    else:
        labeled = dual_loss(own, _with_rows(batch, teacher.labeled))
    sums = LossSums(*(config.teacher_weight * each for each in labeled))
    if not len(teacher.gold):
        return sums
    gold = dual_loss(_rows_of(logits, teacher.gold), _with_rows(batch, teacher.gold))
    return LossSums(gold.keyword + sums.keyword, gold.keyphrase + sums.keyphrase)


def soft_dual_loss(logits: Logits, lengths: torch.Tensor, targets: SoftTargets, temperature: float) -> LossSums:
    """Return the cross-entropy of both heads against a teacher's probabilities, times the square of the temperature.

    The teacher's probabilities p become p^(1 / temperature), normalized; the student's scores are divided by the temperature.
    The keyphrase head of a CRF has the expected negative log-likelihood of a tag sequence that the teacher draws, see
    `crf_cross_entropy`, and p is that of a sequence; without a CRF, the heads are alike: a sum over tokens.

    Args:
        logits: of L texts.
        lengths: (L,) tokens of each text.
        targets: of these texts.
        temperature: above 0.
    """
    real = torch.arange(logits.keyword.shape[1], device=lengths.device) < lengths[:, None]
    keyword_targets = _soften(torch.stack([1 - targets.keyword, targets.keyword], dim=-1), temperature)
    keyword, keyphrase = logits.keyword.float() / temperature, logits.keyphrase.float() / temperature
    if logits.crf is None:
        loss = _soft_sum(keyphrase, _soften(targets.keyphrase, temperature), real)
    else:
        crf = CrfScores(*(scores / temperature for scores in logits.crf))
        tag_targets = temper_marginals(targets.keyphrase, lengths, temperature)
        loss = crf_cross_entropy(keyphrase, crf, tag_targets, lengths)
    scale = temperature**2
    return LossSums(scale * _soft_sum(keyword, keyword_targets, real), scale * loss)


def _soften(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return distributions (..., K) at a temperature; what float16 has rounded sums to 1 again. The padding stays 0."""
    powers = probabilities if temperature == 1 else probabilities ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True).clamp(min=1e-6)


def _soft_sum(logits: torch.Tensor, targets: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return -(targets * torch.log_softmax(logits, -1) * real[..., None]).sum()


def _rows_of(logits: Logits, rows: torch.Tensor) -> Logits:
    return Logits(logits.keyword.index_select(0, rows), logits.keyphrase.index_select(0, rows), logits.crf)


def _with_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """Return what the dual loss reads of some rows of a batch."""
    ids, lengths, keyword, keyphrase = (each.index_select(0, rows) for each in batch[:4])
    return Batch(ids, lengths, keyword, keyphrase)


def _sum(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), tags.flatten(), ignore_index=IGNORED, reduction="sum")
