"""Bootstrap intervals and paired tests over texts and seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.training.metrics import HEADS, RESAMPLES, Counts, precision_recall_f1

SIGNIFICANCE_LEVEL = 0.05  # a difference with a smaller p is taken for shown


class Comparison(NamedTuple):
    """The difference of two means over seeds, as a paired bootstrap over texts and seeds sees it.

    Attributes:
        difference: first mean minus second.
        low, high: its 95 % interval.
        p: two-sided; how often a difference of the other sign would be seen, doubled.
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap_means(
    runs: Sequence[Sequence[Counts]], head: str, figure: str = "f1", seed: int = 0
) -> npt.NDArray[np.float64]:
    """Bootstrap of the mean figure over seeds of several taggers measured on the same texts.

    Each resample draws the texts once for all taggers, so that differences are paired, and for each tagger its seeds, so
    that what a seed changes counts as noise too.

    Args:
        runs: for each tagger the counts (texts, 8) of each of its seeds, all in the same order of texts.
        head: `keyphrase` or `keyword`.
        figure: `f1`, `precision`, `recall` or `exact_match`.
        seed: of the bootstrap.

    Returns:
        (RESAMPLES, taggers) means.
    """
    first = 4 * HEADS.index(head)
    stacked = np.concatenate([counts[:, first : first + 4] for seeds in runs for counts in seeds], axis=1)
    draw, texts = np.random.default_rng(seed), len(stacked)
    means = np.empty((RESAMPLES, len(runs)))
    for row in range(RESAMPLES):
        weights = np.bincount(draw.integers(texts, size=texts), minlength=texts)
        right, predicted, gold, exact = (weights @ stacked).reshape(-1, 4).T
        values = (
            exact / texts if figure == "exact_match" else getattr(precision_recall_f1(right, predicted, gold), figure)
        )
        begin = 0
        for column, seeds in enumerate(runs):
            means[row, column] = values[begin + draw.integers(len(seeds), size=len(seeds))].mean()
            begin += len(seeds)
    return means


def describe_test(seeds: int) -> str:
    """What `compare` goes by, in words, where each mean is over so many seeds."""
    if seeds > 1:
        return "by a paired bootstrap over texts and seeds"
    return "by a paired bootstrap over texts; what a seed changes is not in it, for there is one"


def paired_bootstrap_test(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], difference: float
) -> Comparison:
    """The paired test of two columns of `resample_means`; `difference` is the one that was measured."""
    differences = first - second
    low, high = np.percentile(differences, [2.5, 97.5])
    beyond = min((differences <= 0).mean(), (differences >= 0).mean())
    return Comparison(difference, float(low), float(high), float(min(1.0, 2 * max(beyond, 1 / len(differences)))))
