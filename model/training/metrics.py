"""How good the tags are: counts per text, and the figures that follow from them.

Keyphrase figures are micro-averaged over exact spans of the whole split, keyword figures over tokens. Exact match is the
share of texts on which a head is wholly right. Intervals are 95 % bootstrap intervals over texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.data.batching import Batch
from model.data.examples import Span
from model.data.labels import IGNORED, O, tags_to_spans
from model.network.decoding import max_over_repeats, predict_spans, select_spans, span_marginals_of
from model.network.tagger import Logits

RESAMPLES = 1000


# Columns of the counts, for each head: rightly predicted, predicted, gold, wholly right (0 or 1).
HEADS = ("keyphrase", "keyword")
Counts = npt.NDArray[np.int64]


def count(logits: Logits, batch: Batch) -> torch.Tensor:
    """(B, 8) counts of each text: four columns of the keyphrase head, then four of the keyword head."""
    found = predict_spans(logits, batch.lengths).spans
    return torch.cat([_count_spans(found, batch.keyphrase), count_keywords(logits, batch)], dim=1)


def count_at_thresholds(logits: Logits, batch: Batch, thresholds: torch.Tensor) -> torch.Tensor:
    """(B, 2 C, 4) counts of the keyphrase head alone, at each of C thresholds without agreement, then with it."""
    assert logits.reading is not None
    many, rows = 2 * len(thresholds), len(batch.ids)
    likely = span_marginals_of(logits, batch.lengths)
    both = [each.repeat(many // 2, 1, 1) for each in (likely, max_over_repeats(likely, logits.reading.words))]
    tags = select_spans(torch.cat(both), thresholds.repeat_interleave(rows).repeat(2))
    counts = _count_spans(tags_to_spans(tags), batch.keyphrase.repeat(many, 1))
    return counts.unflatten(0, (many, rows)).transpose(0, 1)


def _count_spans(found: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    rows, time = gold.shape
    wanted = tags_to_spans(gold.clamp(min=O))
    key = torch.tensor([(time + 1) ** 2, time + 1, 1], device=gold.device)
    right = found[torch.isin((found * key).sum(1), (wanted * key).sum(1))]
    columns = [torch.bincount(spans[:, 0], minlength=rows) for spans in (right, found, wanted)]
    exact = (columns[0] == columns[1]) & (columns[0] == columns[2])
    return torch.stack([*columns, exact.long()], dim=1)


def count_keywords(logits: Logits, batch: Batch) -> torch.Tensor:
    """(B, 4) counts of the keyword head alone."""
    gold = batch.keyword
    real, predicted = gold != IGNORED, logits.keyword.argmax(-1) == 1
    columns = [(mask & real).sum(1) for mask in (predicted & (gold == 1), predicted, gold == 1)]
    exact = ((predicted == (gold == 1)) | ~real).all(1)
    return torch.stack([*columns, exact.long()], dim=1)


def counts_of_spans(found: Sequence[Sequence[Span]], gold: Sequence[Sequence[Span]]) -> Counts:
    """(texts, 8) counts of the keyphrases that were found in each text and those that are there; of keywords none.

    Args:
        found, gold: for each text its spans, of tokens or of characters, the same in both.
    """
    counts = np.zeros((len(gold), 8), np.int64)
    for row, (one, other) in enumerate(zip(map(set, found), map(set, gold), strict=True)):
        counts[row, :4] = len(one & other), len(one), len(other), one == other
    return counts


class Score(NamedTuple):
    """Precision, recall and their harmonic mean. A figure with nothing to count is 0, never NaN."""

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]


def precision_recall_f1(right: npt.ArrayLike, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Score:
    """The score that sums of counts give; elementwise on arrays."""
    right, predicted, gold = (np.asarray(each, np.float64) for each in (right, predicted, gold))
    return Score(
        right / np.maximum(predicted, 1), right / np.maximum(gold, 1), 2 * right / np.maximum(predicted + gold, 1)
    )


def summarize(counts: Counts, seed: int = 0) -> dict[str, float]:
    """The figures of a split.

    Args:
        counts: (texts, 8) as `count` gives them, in any order.
        seed: of the bootstrap.

    Returns:
        For each head `<head>_f1`, `_precision`, `_recall`, `_f1_low`, `_f1_high` and `_exact_match`, all in 0 to 1.
    """
    return summarize_seeds([counts], seed)


def summarize_seeds(runs: Sequence[Counts], seed: int = 0) -> dict[str, float]:
    """The figures of a split as means over several trainings, with intervals over its texts alone.

    Each resample draws the texts once for all trainings, and gives the mean of their figures on these texts.

    Args:
        runs: for each training its counts (texts, 8), all in the same order of texts.
        seed: of the bootstrap.

    Returns:
        What `summarise` gives.
    """
    # Texts with equal counts are alike to the bootstrap: drawing how often each kind of text comes is the same as
    # drawing the texts, and costs no more for a million of them.
    counts = np.concatenate(runs, axis=1)
    kinds, occurrences = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), occurrences / len(counts), size=RESAMPLES) @ kinds
    sums, draws = counts.sum(0).reshape(len(runs), 8).T, draws.reshape(RESAMPLES, len(runs), 8).T
    metrics: dict[str, float] = {}
    for head, first in zip(HEADS, (0, 4), strict=True):
        whole = precision_recall_f1(*sums[first : first + 3])
        low, high = np.percentile(precision_recall_f1(*draws[first : first + 3]).f1.mean(0), [2.5, 97.5])
        metrics |= {
            f"{head}_f1": float(whole.f1.mean()),
            f"{head}_precision": float(whole.precision.mean()),
            f"{head}_recall": float(whole.recall.mean()),
            f"{head}_f1_low": float(low),
            f"{head}_f1_high": float(high),
            f"{head}_exact_match": float(sums[first + 3].mean() / len(counts)),
        }
    return metrics
