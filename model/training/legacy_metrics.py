"""The twelve figures of the hand-made record that this project started from, by the record's own definitions.

They let old and new runs stand side by side, and are worse than ours in known ways: they look at one batch (the last of
the epoch; the last 64 texts of the evaluation), call the share of texts wholly right "precision", give the keyword
head's recall as the recall of both heads, and average losses over the padding as well. "Sentence" is the keyword head,
"sequence" the keyphrase head.
"""

import torch

from model.data.batching import Batch
from model.network.tagger import Logits
from model.training.metrics import Counts, count

BATCH = 64  # texts of the record's evaluation batch
PADDED_TO = 128  # tokens to which the record padded every text; a padded token counts with loss 0
EPSILON = 1e-3  # in the record's F1 = 2PR / (P + R + epsilon)


def sums(logits: Logits, batch: Batch, losses: torch.Tensor) -> torch.Tensor:
    """(5,) of a training batch: keyphrase and keyword texts wholly right, keyword tokens found, gold ones; two losses."""
    detached = logits._replace(keyword=logits.keyword.detach(), keyphrase=logits.keyphrase.detach())
    counts = count(detached, batch).sum(0).double()
    return torch.cat([counts[[3, 7, 4, 6]], losses])


def training_keys(sums: torch.Tensor, texts: int, alpha: float, lr: float) -> dict[str, float]:
    """The record's ten training figures from the sums of a batch of `texts` texts."""
    keyphrase_exact, keyword_exact, found, gold, keyword_loss, keyphrase_loss = sums.tolist()
    recall = found / gold if gold else 0.0
    loss1, loss2 = keyword_loss / (texts * PADDED_TO), keyphrase_loss / (texts * PADDED_TO)
    metrics: dict[str, float] = {}
    for name, exact in (("sentence", keyword_exact), ("sequence", keyphrase_exact)):
        precision = exact / texts
        metrics |= {
            f"train_{name}_f1": 2 * precision * recall / (precision + recall + EPSILON),
            f"train_{name}_precision": precision,
            f"train_{name}_recall": recall,
        }
    total = alpha * loss1 + (1 - alpha) * loss2
    return metrics | {"lr": lr, "train_total_loss": total, "train_loss1": loss1, "train_loss2": loss2}


def evaluation_keys(counts: Counts) -> dict[str, float]:
    """The record's two evaluation figures from the counts of a split."""
    last = counts[-BATCH:]
    return {
        "eval_sentence_precision": float(last[:, 7].mean()),
        "eval_sequence_precision": float(last[:, 3].mean()),
    }


# fmt: on
