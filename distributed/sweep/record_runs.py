"""The owner's recorded runs, and how far chance alone moves their metrics."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from distributed.sweep.space import Values
from model.training.legacy_metrics import BATCH

SERIES = ("lr", "alpha", "epochs")


class RecordedRun(NamedTuple):
    """One run of the record: its settings, and five of its twelve metrics by the record's names."""

    series: str
    alpha: float
    epochs: int
    lr: float
    eval_sentence_precision: float | None
    eval_sequence_precision: float | None
    train_sequence_f1: float
    train_sequence_recall: float
    train_total_loss: float

    def metrics(self) -> dict[str, float | None]:
        """Return its metrics by the record's names."""
        return {name: value for name, value in self._asdict().items() if name.startswith(("eval_", "train_"))}


# fmt: off
RUNS = (
    RecordedRun("lr", 0.3, 1, 0.001, 0.60938, 0.64062, 0.58016, 0.69231, 0.10662),
    RecordedRun("lr", 0.3, 1, 0.002, 0.65625, 0.64062, 0.73179, 0.85455, 0.08008),
    RecordedRun("lr", 0.3, 1, 0.0001, 0.5625, 0.53125, 0.52867, 0.66935, 0.10679),
    RecordedRun("lr", 0.3, 1, 0.0002, None, None, 0.50676, 0.60345, 0.12239),
    RecordedRun("lr", 0.3, 1, 1e-05, 0.23438, 0.125, 0.16399, 0.33058, 0.25475),
    RecordedRun("alpha", 0.3, 2, 0.001, 0.71875, 0.6875, 0.87771, 0.94488, 0.02351),
    RecordedRun("alpha", 0.4, 2, 0.001, 0.71875, 0.76562, 0.898, 0.93277, 0.02648),
    RecordedRun("alpha", 0.5, 2, 0.001, 0.67188, 0.67188, 0.74683, 0.82927, 0.08106),
    RecordedRun("alpha", 0.6, 2, 0.001, 0.60938, 0.57812, 0.66973, 0.75556, 0.10129),
    RecordedRun("alpha", 0.7, 2, 0.001, 0.70312, 0.71875, 0.56713, 0.64228, 0.13506),
    RecordedRun("epochs", 0.3, 1, 0.001, 0.60938, 0.64062, 0.58016, 0.69231, 0.10662),
    RecordedRun("epochs", 0.3, 2, 0.001, 0.71875, 0.73438, 0.83215, 0.87069, 0.04113),
    RecordedRun("epochs", 0.3, 2, 0.001, 0.70312, 0.70312, 0.84434, 0.90909, 0.0312),
    RecordedRun("epochs", 0.3, 3, 0.001, 0.70312, 0.67188, 0.91271, 0.94643, 0.01576),
    RecordedRun("epochs", 0.3, 3, 0.001, 0.67188, 0.67188, 0.88801, 0.94828, 0.02452),
    RecordedRun("epochs", 0.3, 4, 0.001, 0.67188, 0.64062, 0.86885, 0.92481, 0.03759),
    RecordedRun("epochs", 0.3, 5, 0.001, 0.71875, 0.75, 0.91675, 0.92157, 0.01513),
    RecordedRun("epochs", 0.3, 6, 0.001, 0.70312, 0.6875, 0.8704, 0.94872, 0.0215),
    RecordedRun("epochs", 0.3, 7, 0.001, 0.70312, 0.70312, 0.79071, 0.89091, 0.04726),
    RecordedRun("epochs", 0.3, 8, 0.001, 0.76562, 0.75, 0.82464, 0.90517, 0.03547),
    RecordedRun("epochs", 0.3, 9, 0.001, 0.79688, 0.75, 0.84263, 0.90517, 0.04387),
    RecordedRun("epochs", 0.3, 10, 0.001, 0.76562, 0.70312, 0.89886, 0.91743, 0.02355),
    RecordedRun("epochs", 0.3, 11, 0.001, 0.76562, 0.76562, 0.92604, 0.97521, 0.02388),
    RecordedRun("epochs", 0.3, 12, 0.001, 0.5625, 0.59375, 0.86602, 0.98387, 0.02636),
    RecordedRun("epochs", 0.3, 13, 0.001, 0.65625, 0.67188, 0.85047, 0.88462, 0.04186),
)  # the run of one epoch with lr 0.001 and alpha 0.3 belongs to two series, lr and epochs
# fmt: on


def record_size() -> tuple[int, int]:
    """Return the number of runs of the record and the epochs that they trained in all; one of two series counts once."""
    runs = {run[1:]: run.epochs for run in RUNS}
    return len(runs), sum(runs.values())


class BinomialNoise(NamedTuple):
    """What the noise of a metric that is k of 64 texts lets one conclude from some runs.

    Attributes:
        low, high: the range of the metric.
        error: its binomial standard error at the middle of the range.
        pairs: of runs with different settings.
        differ: pairs that are more than 1.96 standard errors of a difference apart.
        expected: pairs that would be if nothing differed (1 in 20).
    """

    low: float
    high: float
    error: float
    pairs: int
    differ: int
    expected: float


def binomial_noise(runs: Sequence[RecordedRun]) -> BinomialNoise:
    """Return the noise of `eval_sequence_precision`, by which the record chose, over some runs."""
    known = [(run, run.eval_sequence_precision) for run in runs if run.eval_sequence_precision is not None]
    pairs = [(a, b) for (x, a), (y, b) in combinations(known, 2) if x[1:4] != y[1:4]]
    low, high = min(value for _, value in known), max(value for _, value in known)
    differ = sum(abs(a - b) > 1.96 * math.hypot(_standard_error(a), _standard_error(b)) for a, b in pairs)
    return BinomialNoise(low, high, _standard_error((low + high) / 2), len(pairs), differ, len(pairs) / 20)


def _standard_error(share: float) -> float:
    return math.sqrt(share * (1 - share) / BATCH)


def record_settings() -> list[tuple[str, Values, int]]:
    """Return series, values and epochs of each run that repeats the record; its epochs series is one curve.

    The longest come first, so that none trains alone at the end.
    """
    settings = []
    for series in SERIES:
        runs = [run for run in RUNS if run.series == series]
        if series == "epochs":
            runs = [max(runs, key=lambda run: run.epochs)]
        settings += [(series, {"training.lr": run.lr, "training.alpha": run.alpha}, run.epochs) for run in runs]
    return sorted(settings, key=lambda setting: -setting[2])
