"""Evaluation: a tagger's predictions on a split, counted."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from model.data.batching import Batch, RowIds, collate, length_sorted_batches
from model.data.dataset import Split
from model.network.logits import Logits
from model.network.tagger import Tagger
from model.training.communicator import Communicator, SingleProcess
from model.training.loss import dual_loss
from model.training.metrics import (
    COLUMNS,
    KEYPHRASE,
    KEYWORD,
    Column,
    Counts,
    count,
    count_at_thresholds,
    count_keywords,
    score_columns,
)

EVALUATION_BATCH = 256
_THRESHOLDS = torch.arange(0.1, 0.91, 0.05)


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        counts: (texts, 8) in the order of the split; see `model.training.metrics.Column`.
        keyword_loss, keyphrase_loss: mean per token, natural logarithm.
    """

    counts: Counts
    keyword_loss: float
    keyphrase_loss: float


@torch.no_grad()
def predict_batches(
    tagger: Tagger, split: Split, device: torch.device, share: slice = slice(None)
) -> Iterator[tuple[RowIds, Batch, Logits]]:
    """Yield rows, batch and logits of each batch of a split, in evaluation mode.

    Args:
        tagger: on the device.
        split: what to predict.
        device: where to compute.
        share: of the batches.
    """
    tagger.eval()
    for rows in length_sorted_batches(split.input_lengths, EVALUATION_BATCH)[share]:
        batch = collate(split, rows).to(device)
        yield rows, batch, tagger(batch.ids, batch.lengths, batch.word_features, encoder_inputs=batch.encoder_inputs)


@torch.no_grad()
def evaluate(
    tagger: Tagger,
    split: Split,
    device: torch.device,
    communicator: Communicator | None = None,
    tune_decoding: bool = False,
) -> Evaluation:
    """Evaluate a tagger on a split; several workers share the texts, and each returns the whole result.

    Args:
        tagger: on the device; left in evaluation mode.
        split: labeled texts.
        device: where to compute.
        communicator: of the workers; none for one process.
        tune_decoding: set threshold and agreement of a tagger that decodes spans to the values with the highest
            keyphrase F1 on this split. The result is that of these values, and so slightly optimistic.
    """
    communicator = communicator or SingleProcess()
    counts = torch.zeros(len(split), COLUMNS, dtype=torch.long, device=device)
    thresholds = _THRESHOLDS.to(device) if tune_decoding and tagger.threshold is not None else None
    settings = 0 if thresholds is None else 2 * len(thresholds)  # each threshold without agreement, then with it
    by_setting = torch.zeros(len(split), settings, len(Column), dtype=torch.long, device=device)
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    share = slice(communicator.rank, None, communicator.size)
    for rows, batch, logits in predict_batches(tagger, split, device, share):
        index = torch.from_numpy(rows).to(device)
        if thresholds is None:
            counts[index] = count(logits, batch)
        else:
            counts[index, KEYWORD] = count_keywords(logits, batch)
            by_setting[index] = count_at_thresholds(logits, batch, thresholds)
        losses += torch.stack(dual_loss(logits, batch)).double()
    keyword_loss, keyphrase_loss = (communicator.all_reduce(losses) / len(split.ids)).tolist()
    if thresholds is not None:
        assert tagger.threshold is not None and tagger.agreement is not None
        totals = communicator.all_reduce(by_setting.sum(0)).T.cpu().numpy()
        best = int(score_columns(totals).f1.argmax())
        tagger.threshold.copy_(thresholds[best % len(thresholds)])
        tagger.agreement.fill_(best // len(thresholds))
        counts[:, KEYPHRASE] = by_setting[:, best]
    return Evaluation(communicator.all_reduce(counts).cpu().numpy(), keyword_loss, keyphrase_loss)
