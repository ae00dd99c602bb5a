"""The twelve figures of the hand-made record that this project started from, by the record's own definitions.

They let old and new runs stand side by side, and are worse than ours in known ways: they look at one batch (the last of
the epoch; the last 64 texts of the evaluation), call the share of texts wholly right "precision", give the keyword
head's recall as the recall of both heads, and average losses over the padding as well. "Sentence" is the keyword head,
"sequence" the keyphrase head.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

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
    figures: dict[str, float] = {}
    for name, exact in (("sentence", keyword_exact), ("sequence", keyphrase_exact)):
        precision = exact / texts
        figures |= {
            f"train_{name}_f1": 2 * precision * recall / (precision + recall + EPSILON),
            f"train_{name}_precision": precision,
            f"train_{name}_recall": recall,
        }
    total = alpha * loss1 + (1 - alpha) * loss2
    return figures | {"lr": lr, "train_total_loss": total, "train_loss1": loss1, "train_loss2": loss2}


def evaluation_keys(counts: Counts) -> dict[str, float]:
    """The record's two evaluation figures from the counts of a split."""
    last = counts[-BATCH:]
    return {
        "eval_sentence_precision": float(last[:, 7].mean()),
        "eval_sequence_precision": float(last[:, 3].mean()),
    }


class Run(NamedTuple):
    """One run of the record: its settings, and five of its twelve figures by the record's names."""

    series: str
    alpha: float
    epochs: int
    lr: float
    eval_sentence_precision: float | None
    eval_sequence_precision: float | None
    train_sequence_f1: float
    train_sequence_recall: float
    train_total_loss: float


SERIES = ("lr", "alpha", "epochs")
# fmt: off
RUNS = (
    Run("lr", 0.3, 1, 0.001, 0.60938, 0.64062, 0.58016, 0.69231, 0.10662),
    Run("lr", 0.3, 1, 0.002, 0.65625, 0.64062, 0.73179, 0.85455, 0.08008),
    Run("lr", 0.3, 1, 0.0001, 0.5625, 0.53125, 0.52867, 0.66935, 0.10679),
    Run("lr", 0.3, 1, 0.0002, None, None, 0.50676, 0.60345, 0.12239),
    Run("lr", 0.3, 1, 1e-05, 0.23438, 0.125, 0.16399, 0.33058, 0.25475),
    Run("alpha", 0.3, 2, 0.001, 0.71875, 0.6875, 0.87771, 0.94488, 0.02351),
    Run("alpha", 0.4, 2, 0.001, 0.71875, 0.76562, 0.898, 0.93277, 0.02648),
    Run("alpha", 0.5, 2, 0.001, 0.67188, 0.67188, 0.74683, 0.82927, 0.08106),
    Run("alpha", 0.6, 2, 0.001, 0.60938, 0.57812, 0.66973, 0.75556, 0.10129),
    Run("alpha", 0.7, 2, 0.001, 0.70312, 0.71875, 0.56713, 0.64228, 0.13506),
    Run("epochs", 0.3, 1, 0.001, 0.60938, 0.64062, 0.58016, 0.69231, 0.10662),
    Run("epochs", 0.3, 2, 0.001, 0.71875, 0.73438, 0.83215, 0.87069, 0.04113),
    Run("epochs", 0.3, 2, 0.001, 0.70312, 0.70312, 0.84434, 0.90909, 0.0312),
    Run("epochs", 0.3, 3, 0.001, 0.70312, 0.67188, 0.91271, 0.94643, 0.01576),
    Run("epochs", 0.3, 3, 0.001, 0.67188, 0.67188, 0.88801, 0.94828, 0.02452),
    Run("epochs", 0.3, 4, 0.001, 0.67188, 0.64062, 0.86885, 0.92481, 0.03759),
    Run("epochs", 0.3, 5, 0.001, 0.71875, 0.75, 0.91675, 0.92157, 0.01513),
    Run("epochs", 0.3, 6, 0.001, 0.70312, 0.6875, 0.8704, 0.94872, 0.0215),
    Run("epochs", 0.3, 7, 0.001, 0.70312, 0.70312, 0.79071, 0.89091, 0.04726),
    Run("epochs", 0.3, 8, 0.001, 0.76562, 0.75, 0.82464, 0.90517, 0.03547),
    Run("epochs", 0.3, 9, 0.001, 0.79688, 0.75, 0.84263, 0.90517, 0.04387),
    Run("epochs", 0.3, 10, 0.001, 0.76562, 0.70312, 0.89886, 0.91743, 0.02355),
    Run("epochs", 0.3, 11, 0.001, 0.76562, 0.76562, 0.92604, 0.97521, 0.02388),
    Run("epochs", 0.3, 12, 0.001, 0.5625, 0.59375, 0.86602, 0.98387, 0.02636),
    Run("epochs", 0.3, 13, 0.001, 0.65625, 0.67188, 0.85047, 0.88462, 0.04186),
)  # the run of one epoch stands in all three series, for its settings are those that the others vary
# fmt: on


def noise(runs: Sequence[Run]) -> dict[str, float]:
    """What the noise of a figure that is k of 64 texts lets one conclude from some runs.

    Takes `eval_sequence_precision`, the record's figure for choosing. Runs of equal settings do not make a pair.

    Returns:
        `low` and `high`, the range of the figure; `error`, its binomial standard error at the middle of the range;
        `pairs`, the number of pairs of settings; `differ`, how many of them are more than 1.96 standard errors of a
        difference apart; `expected`, how many would be if nothing differed (1 in 20).
    """
    known = [(run, run.eval_sequence_precision) for run in runs if run.eval_sequence_precision is not None]
    pairs = [(a, b) for (x, a), (y, b) in combinations(known, 2) if x[1:4] != y[1:4]]
    low, high = min(value for _, value in known), max(value for _, value in known)
    differ = sum(abs(a - b) > 1.96 * math.hypot(_standard_error(a), _standard_error(b)) for a, b in pairs)
    return {
        "low": low,
        "high": high,
        "error": _standard_error((low + high) / 2),
        "pairs": len(pairs),
        "differ": differ,
        "expected": len(pairs) / 20,
    }


def _standard_error(share: float) -> float:
    return math.sqrt(share * (1 - share) / BATCH)
