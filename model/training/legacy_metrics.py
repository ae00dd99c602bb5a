"""The twelve metrics of the hand-made record that this project started from, by the record's own definitions.

They make old and new runs comparable, and are worse than ours in known ways: they look at one batch (the last of the
epoch; the last 64 texts of the evaluation), call the fraction of texts that are wholly right "precision", report the
keyword head's recall as the recall of both heads, and average losses over the padding as well. "Sentence" is the keyword
head, "sequence" the keyphrase head.
"""

import torch

from model.data.batching import Batch
from model.network.logits import Logits
from model.training.metrics import KEYPHRASE, KEYWORD, Column, Counts, count

BATCH = 64  # texts of the record's evaluation batch
PADDED_TO = 128  # tokens to which the record padded every text; a padded token counts with loss 0
EPSILON = 1e-3  # in the record's F1 = 2PR / (P + R + epsilon)


def batch_sums(logits: Logits, batch: Batch) -> torch.Tensor:
    """Return the sums that the training metrics follow from; those of several workers can be added.

    Args:
        logits: of the last training step, as the loss saw them.
        batch: of that step.

    Returns:
        (4,) texts wholly right by the keyphrase head and by the keyword head, keywords right, gold keywords.
    """
    detached = logits._replace(keyword=logits.keyword.detach(), keyphrase=logits.keyphrase.detach())
    counts = count(detached, batch).sum(0).double()
    keyphrase, keyword = counts[KEYPHRASE], counts[KEYWORD]
    exact = torch.stack([keyphrase[Column.EXACT], keyword[Column.EXACT]])
    return torch.cat([exact, torch.stack([keyword[Column.CORRECT], keyword[Column.GOLD]])])


def training_metrics(sums: torch.Tensor, texts: int, alpha: float, lr: float) -> dict[str, float]:
    """Return the record's ten training metrics.

    Args:
        sums: (6,) of `batch_sums`, and the loss sums of both heads, added over all workers.
        texts: of the global batch.
        alpha: weight of the keyword loss.
        lr: learning rate of the step.
    """
    keyphrase_exact, keyword_exact, correct, gold, keyword_loss, keyphrase_loss = sums.tolist()
    recall = correct / gold if gold else 0.0
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


def evaluation_metrics(counts: Counts) -> dict[str, float]:
    """Return the record's two evaluation metrics from the counts (texts, 8) of a split."""
    last = counts[-BATCH:]
    return {
        "eval_sentence_precision": float(last[:, KEYWORD][:, Column.EXACT].mean()),
        "eval_sequence_precision": float(last[:, KEYPHRASE][:, Column.EXACT].mean()),
    }
