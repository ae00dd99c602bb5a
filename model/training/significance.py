"""Bootstrap intervals and paired tests over texts and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.training.metrics import HEADS, RESAMPLES, Column, Counts, score_columns

SIGNIFICANCE_LEVEL = 0.05  # differences with a smaller p are reported as significant


@dataclass(frozen=True)
class Difference:
    """The difference of two means over seeds, by a paired bootstrap over texts and seeds.

    Attributes:
        difference: first mean minus second.
        low, high: its 95 % interval.
        p: two-sided p-value: twice the fraction of resamples in which the difference has the other sign.
    """

    difference: float
    low: float
    high: float
    p: float


class SeedGroups:
    """Groups of trainings that differ by their seed, compared by a paired bootstrap over texts and seeds.

    Attributes:
        means: the measured mean of each group, by name.
    """

    def __init__(self, groups: Mapping[str, Sequence[Counts]], head: str = "keyphrase", metric: str = "f1") -> None:
        """Draw the bootstrap.

        Args:
            groups: the counts (texts, 8) of each seed, by name, all in the same order of texts.
            head, metric: as of `bootstrap_means`.
        """
        self.means = {
            name: float(np.mean([_score(counts[:, HEADS[head]].sum(0), len(counts), metric) for counts in seeds]))
            for name, seeds in groups.items()
        }
        columns = bootstrap_means(list(groups.values()), head, metric).T if groups else ()
        self._draws = dict(zip(groups, columns, strict=True))

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % interval of a group's mean."""
        low, high = np.percentile(self._draws[name], [2.5, 97.5])
        return float(low), float(high)

    def difference(self, first: str, second: str) -> Difference:
        """Return the first mean minus the second, with its test."""
        measured = self.means[first] - self.means[second]
        return paired_bootstrap_test(self._draws[first], self._draws[second], measured)


def bootstrap_means(
    runs: Sequence[Sequence[Counts]], head: str, metric: str = "f1", seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return bootstrap resamples of a metric's mean over seeds, for several taggers measured on the same texts.

    Each resample draws the texts once for all taggers, so that differences are paired, and for each tagger its seeds, so
    that the variance between seeds counts too.

    Args:
        runs: for each tagger the counts (texts, 8) of each of its seeds, all in the same order of texts.
        head: `keyphrase` or `keyword`.
        metric: `f1`, `precision`, `recall` or `exact_match`.
        seed: of the bootstrap.

    Returns:
        (RESAMPLES, taggers) means.
    """
    stacked = np.concatenate([counts[:, HEADS[head]] for seeds in runs for counts in seeds], axis=1)
    draw, texts = np.random.default_rng(seed), len(stacked)
    means = np.empty((RESAMPLES, len(runs)))
    for row in range(RESAMPLES):
        weights = np.bincount(draw.integers(texts, size=texts), minlength=texts)
        sums = (weights @ stacked).reshape(-1, len(Column)).T
        values = _score(sums, texts, metric)
        begin = 0
        for column, seeds in enumerate(runs):
            means[row, column] = values[begin + draw.integers(len(seeds), size=len(seeds))].mean()
            begin += len(seeds)
    return means


def _score(sums: npt.NDArray[np.int64], texts: int, metric: str) -> npt.NDArray[np.float64]:
    """Return a metric of sums (4, ...) of one head's counts over so many texts."""
    return sums[Column.EXACT] / texts if metric == "exact_match" else getattr(score_columns(sums), metric)


def describe_test(seeds: int) -> str:
    """Return in words what `paired_bootstrap_test` accounts for, for means over this number of seeds."""
    if seeds > 1:
        return "by a paired bootstrap over texts and seeds"
    return "by a paired bootstrap over texts; there is one seed, so the variance between seeds is not included"


def paired_bootstrap_test(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], difference: float
) -> Difference:
    """Test whether two means differ.

    Args:
        first, second: (RESAMPLES,) columns of `bootstrap_means`, of the same resamples.
        difference: that was measured.
    """
    differences = first - second
    low, high = np.percentile(differences, [2.5, 97.5])
    beyond = min((differences <= 0).mean(), (differences >= 0).mean())
    return Difference(difference, float(low), float(high), float(min(1.0, 2 * max(beyond, 1 / len(differences)))))
