"""What finalists and the record allow one to say."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import counts_of
from sweeps import plan_of

from distributed.sweep.comparison import compare_finalists, record_conclusions
from distributed.sweep.record_runs import RUNS, SERIES, binomial_noise, record_size
from distributed.sweep.state import SweepState
from distributed.train.checkpoint import save_best
from model.training.metrics import summarize
from model.training.significance import bootstrap_means, paired_bootstrap_test

tagger = partial(counts_of, texts=600)


def test_the_mean_over_seeds_has_the_interval_of_one_tagger_where_seeds_agree():
    counts = tagger(0.5, 0)
    draws = bootstrap_means([[counts, counts, counts]], "keyphrase")[:, 0]
    metrics = summarize(counts)
    assert draws.mean() == pytest.approx(metrics["keyphrase_f1"], abs=0.005)
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx(
        [metrics["keyphrase_f1_low"], metrics["keyphrase_f1_high"]], abs=0.01
    )


def test_seeds_that_differ_widen_the_interval():
    agree = bootstrap_means([[tagger(0.5, 0)] * 3], "keyphrase")[:, 0]
    differ = bootstrap_means([[tagger(0.4, 0), tagger(0.5, 1), tagger(0.6, 2)]], "keyphrase")[:, 0]
    assert differ.std() > 1.5 * agree.std()


@pytest.mark.parametrize("metric", ["f1", "precision", "recall", "exact_match"])
def test_a_large_difference_is_shown_and_none_is_not(metric: str):
    def p(first: float, second: float) -> float:
        runs = [[tagger(rate, seed) for seed in seeds] for rate, seeds in ((first, (0, 1, 2)), (second, (3, 4, 5)))]
        draws = bootstrap_means(runs, "keyphrase", metric)
        return paired_bootstrap_test(draws[:, 0], draws[:, 1], 0.0).p

    assert p(0.6, 0.4) < 0.01
    assert p(0.5, 0.5) > 0.05


def test_pairing_finds_what_intervals_alone_would_not():
    worse = tagger(0.5, 0)
    better = worse.copy()
    missed = np.flatnonzero(worse[:, 0] == 0)[:18]  # 3 points of 600 texts, the rest alike
    better[missed, 0] = 1
    draws = bootstrap_means([[better], [worse]], "keyphrase")
    assert np.percentile(draws[:, 0], 2.5) < np.percentile(draws[:, 1], 97.5)
    assert paired_bootstrap_test(draws[:, 0], draws[:, 1], 0.03).p < 0.01


def test_a_test_that_holds_its_level():
    """Of equal taggers, few are told apart at the 5 % level."""
    texts = 200
    found = 0
    for trial in range(40):
        draws = bootstrap_means(
            [[tagger(0.5, 2 * trial, texts=texts)], [tagger(0.5, 2 * trial + 1, texts=texts)]], "keyphrase"
        )
        found += paired_bootstrap_test(draws[:, 0], draws[:, 1], 0.0).p < 0.05
    assert found <= 7  # a binomial of 40 at 0.05 exceeds 7 once in 2,000


@pytest.mark.parametrize(("seeds", "shown"), [(3, "over texts and seeds"), (1, "there is one seed")])
def test_the_test_of_finalists_names_what_their_finished_trainings_allow(seeds: int, shown: str, tmp_path: Path):
    """A budget or failures may leave a finalist with fewer seeds than were asked for."""
    sweep = SweepState(plan_of("d", tmp_path, "s", finalists=2, seeds=3, max_epochs=1))
    for finalist, count, rate in (("t001", 3, 0.6), ("t002", seeds, 0.4)):
        sweep.apply({"event": "trial", "time": 0.0, **_trial(finalist, None)})
        for seed in range(count):
            name, counts = f"{finalist}-seed{seed}", tagger(rate, seed)
            metrics = {"epoch": 1, "valid/keyphrase_f1": counts[:, 0].mean()}
            sweep.apply({"event": "trial", "time": 0.0, **_trial(name, finalist, seed)})
            sweep.apply({"event": "epoch", "time": 0.0, "trial": name, "metrics": metrics, "state": "finished"})
            save_best(sweep.folder_of(sweep.trials[name]), 1, {}, counts)
    assert (
        compare_finalists(sweep).verdict.startswith("t001 wins over t002") and shown in compare_finalists(sweep).verdict
    )


def _trial(name: str, finalist_of: str | None, seed: int = 0) -> dict[str, Any]:
    return {"name": name, "values": {"training.seed": seed}, "epochs": 1, "series": None, "finalist_of": finalist_of}


def test_the_records_epochs_are_within_its_noise_and_its_smallest_lr_is_not():
    assert {run.series for run in RUNS} == set(SERIES) and len(RUNS) == 25
    assert record_size() == (24, 110)  # the run of one epoch is in the lr and the epochs series
    epochs = binomial_noise([run for run in RUNS if run.series == "epochs"])
    assert epochs.differ <= epochs.expected and 0.05 < epochs.error < 0.07
    lr = binomial_noise([run for run in RUNS if run.series == "lr"])
    assert lr.low == 0.125 and lr.differ > lr.expected
    for series, sentence in zip(SERIES, record_conclusions(), strict=True):
        assert sentence.startswith(f"{series}: ") and "64 texts" in sentence
        assert ("extremes differ" in sentence) == (series == "lr")
