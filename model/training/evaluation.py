"""Evaluation: a tagger's predictions on a split, counted."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from model.data.batching import Batch, RowIds, collate, length_sorted_batches
from model.data.dataset import Split
from model.network.tagger import Logits, Tagger
from model.training.communicator import Communicator, SingleProcess
from model.training.loss import dual_loss
from model.training.metrics import Counts, count, count_at_thresholds, count_keywords, precision_recall_f1

EVALUATION_BATCH = 256
_THRESHOLDS = torch.arange(0.1, 0.61, 0.05)


class Evaluation(NamedTuple):
    """Counts (texts, 8) in the split's order, and each head's loss as a mean per token."""

    counts: Counts
    keyword_loss: float
    keyphrase_loss: float


@torch.no_grad()
def predict_batches(
    tagger: Tagger, split: Split, device: torch.device, share: slice = slice(None)
) -> Iterator[tuple[RowIds, Batch, Logits]]:
    """A tagger's answers to the texts of a split, or to a share of its batches: rows, batch and logits of each batch."""
    tagger.eval()
    for rows in length_sorted_batches(split.lengths, EVALUATION_BATCH)[share]:
        batch = collate(split, rows).to(device)
        yield rows, batch, tagger(batch.ids, batch.lengths, batch.word_features)


@torch.no_grad()
def evaluate(
    tagger: Tagger, split: Split, device: torch.device, workers: Communicator | None = None, settle: bool = False
) -> Evaluation:
    """Measures a tagger on a split; several workers share the texts and all get the whole result.

    With `settle`, a tagger that reads spans by their probability gets the threshold that is best on this split, and
    learns whether the same words in a text are to agree; the figures are those of this choice, and so a little better
    than on texts that had no say in it.
    """
    workers = workers or SingleProcess()
    counts = torch.zeros(len(split), 8, dtype=torch.long, device=device)
    thresholds = _THRESHOLDS.to(device) if settle and tagger.threshold is not None else None
    at = torch.zeros(0 if thresholds is None else len(split), 2 * len(_THRESHOLDS), 4, dtype=torch.long, device=device)
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    for rows, batch, logits in predict_batches(tagger, split, device, slice(workers.rank, None, workers.size)):
        place = torch.from_numpy(rows).to(device)
        if thresholds is None:
            counts[place] = count(logits, batch)
        else:
            counts[place, 4:], at[place] = count_keywords(logits, batch), count_at_thresholds(logits, batch, thresholds)
        losses += torch.stack(dual_loss(logits, batch)).double()
    keyword, keyphrase = (workers.sum(losses) / len(split.ids)).tolist()
    if thresholds is not None:
        assert tagger.threshold is not None and tagger.agreement is not None
        best = int(precision_recall_f1(*workers.sum(at.sum(0))[:, :3].T.cpu().numpy()).f1.argmax())
        tagger.threshold.copy_(thresholds[best % len(thresholds)])
        tagger.agreement.fill_(best // len(thresholds))
        counts[:, :4] = at[:, best]
    return Evaluation(workers.sum(counts).cpu().numpy(), keyword, keyphrase)
