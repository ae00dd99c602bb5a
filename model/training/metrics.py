"""How good predictions are: counts for each text, and the metrics that follow from them.

Keyphrase metrics are micro-averages over exact spans of the whole split, keyword metrics over tokens. Exact match is the
fraction of texts on which a head is right throughout. Intervals are 95 % bootstrap intervals over texts.

Shapes: B texts of a batch, T tokens.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.data.batching import Batch
from model.data.characters import Span
from model.data.labels import IGNORED, O
from model.network.decoding import max_over_repeats, predict_marginals, predict_spans, select_spans, tags_to_spans
from model.network.logits import Logits

RESAMPLES = 1000

Counts = npt.NDArray[np.int64]  # (texts, 8): the columns of the keyphrase head, then those of the keyword head


class Column(IntEnum):
    """The counts of a text for one head: of spans (keyphrase) or of tokens (keyword)."""

    CORRECT = 0  # predicted and gold
    PREDICTED = 1
    GOLD = 2
    EXACT = 3  # 1 where all of the text is right, else 0


KEYPHRASE, KEYWORD = slice(0, 4), slice(4, 8)  # the columns of each head
COLUMNS = KEYWORD.stop
HEADS = {"keyphrase": KEYPHRASE, "keyword": KEYWORD}


def count(logits: Logits, batch: Batch) -> torch.Tensor:
    """Return the counts (B, 8) of both heads."""
    predicted = predict_spans(logits, batch.lengths).spans
    return torch.cat([_count_spans(predicted, batch.keyphrase), count_keywords(logits, batch)], dim=1)


def count_at_thresholds(logits: Logits, batch: Batch, thresholds: torch.Tensor) -> torch.Tensor:
    """Return the counts of the keyphrase head at each of some thresholds of span decoding.

    Args:
        logits: of a tagger that decodes spans.
        batch: B texts.
        thresholds: (C,).

    Returns:
        (B, 2 C, 4): at each threshold without agreement of equal spans, then at each with it.
    """
    assert logits.decoding is not None
    settings, rows = 2 * len(thresholds), len(batch.ids)
    marginals = predict_marginals(logits, logits.decoding, batch.lengths)
    agreeing = max_over_repeats(marginals, logits.decoding.word_ids)
    repeated = torch.cat([each.repeat(len(thresholds), 1, 1) for each in (marginals, agreeing)])
    spans = select_spans(repeated, thresholds.repeat_interleave(rows).repeat(2))
    counts = _count_spans(spans, batch.keyphrase.repeat(settings, 1))
    return counts.unflatten(0, (settings, rows)).transpose(0, 1)


def _count_spans(predicted: torch.Tensor, gold_tags: torch.Tensor) -> torch.Tensor:
    """Return the counts (B, 4) of spans (spans, 3) against gold tags (B, T)."""
    rows, steps = gold_tags.shape
    gold = tags_to_spans(gold_tags.clamp(min=O))
    # No boolean index and no bincount, and no search for duplicates: on a GPU they wait for the numbers that they count.
    found, wanted = (
        (spans[:, 0] * (steps + 1) + spans[:, 1]) * (steps + 1) + spans[:, 2] for spans in (predicted, gold)
    )
    correct = torch.isin(found, wanted, assume_unique=True).long()
    counted = ((predicted, correct), (predicted, torch.ones_like(found)), (gold, torch.ones_like(wanted)))
    columns = [gold.new_zeros(rows).index_add_(0, spans[:, 0], values) for spans, values in counted]
    exact = (columns[Column.CORRECT] == columns[Column.PREDICTED]) & (columns[Column.CORRECT] == columns[Column.GOLD])
    return torch.stack([*columns, exact.long()], dim=1)


def count_keywords(logits: Logits, batch: Batch) -> torch.Tensor:
    """Return the counts (B, 4) of the keyword head."""
    gold = batch.keyword
    real, predicted = gold != IGNORED, logits.keyword.argmax(-1) == 1
    columns = [(mask & real).sum(1) for mask in (predicted & (gold == 1), predicted, gold == 1)]
    exact = ((predicted == (gold == 1)) | ~real).all(1)
    return torch.stack([*columns, exact.long()], dim=1)


def counts_of_spans(predicted: Sequence[Sequence[Span]], gold: Sequence[Sequence[Span]]) -> Counts:
    """Return the counts (texts, 8) of predicted spans; those of the keyword head are 0.

    Args:
        predicted, gold: the spans of each text, of tokens or of characters, in both the same.
    """
    counts = np.zeros((len(gold), COLUMNS), np.int64)
    for row, (found, wanted) in enumerate(zip(map(set, predicted), map(set, gold), strict=True)):
        counts[row, KEYPHRASE] = len(found & wanted), len(found), len(wanted), found == wanted
    return counts


class Score(NamedTuple):
    """Precision, recall and their harmonic mean F1; 0, never NaN, where there is nothing to count."""

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]


def precision_recall_f1(correct: npt.ArrayLike, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Score:
    """Return the score of sums of counts, elementwise."""
    correct, predicted, gold = (np.asarray(each, np.float64) for each in (correct, predicted, gold))
    return Score(
        correct / np.maximum(predicted, 1),
        correct / np.maximum(gold, 1),
        2 * correct / np.maximum(predicted + gold, 1),
    )


def score_columns(columns: npt.NDArray[np.int64]) -> Score:
    """Return the score of one head's sums of counts (4, ...), indexed by `Column`."""
    return precision_recall_f1(columns[Column.CORRECT], columns[Column.PREDICTED], columns[Column.GOLD])


def summarize(counts: Counts, seed: int = 0) -> dict[str, float]:
    """Return the metrics of a split.

    Args:
        counts: (texts, 8), in any order.
        seed: of the bootstrap.

    Returns:
        For each head `<head>_f1`, `_precision`, `_recall`, `_f1_low`, `_f1_high` and `_exact_match`, all in 0 to 1.
    """
    return summarize_seeds([counts], seed)


def summarize_seeds(runs: Sequence[Counts], seed: int = 0) -> dict[str, float]:
    """Return the metrics of a split as means over several trainings, with intervals over its texts alone.

    Each resample draws the texts once for all trainings, and gives the mean of their F1 on these texts.

    Args:
        runs: the counts (texts, 8) of each training, all in the same order of texts.
        seed: of the bootstrap.

    Returns:
        The keys of `summarize`.
    """
    # To the bootstrap, texts with equal counts are the same: it draws how often each distinct row occurs, which gives the
    # same distribution as drawing texts, and costs no more for a million of them.
    counts = np.concatenate(runs, axis=1)
    distinct, occurrences = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), occurrences / len(counts), size=RESAMPLES) @ distinct
    sums, draws = counts.sum(0).reshape(len(runs), COLUMNS).T, draws.reshape(RESAMPLES, len(runs), COLUMNS).T
    metrics: dict[str, float] = {}
    for head, columns in HEADS.items():
        whole = score_columns(sums[columns])
        low, high = np.percentile(score_columns(draws[columns]).f1.mean(0), [2.5, 97.5])
        metrics |= {
            f"{head}_f1": float(whole.f1.mean()),
            f"{head}_precision": float(whole.precision.mean()),
            f"{head}_recall": float(whole.recall.mean()),
            f"{head}_f1_low": float(low),
            f"{head}_f1_high": float(high),
            f"{head}_exact_match": float(sums[columns][Column.EXACT].mean() / len(counts)),
        }
    return metrics
