"""What a sweep shows: the judgement of its finalists, and the record beside what repeats it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed.sweep.record_runs import RUNS, SERIES, binomial_noise
from distributed.sweep.state import SweepState, Trial
from distributed.train.checkpoint import load_best
from model.training.significance import SIGNIFICANCE_LEVEL, bootstrap_means, describe_test, paired_bootstrap_test


@dataclass(frozen=True)
class FinalistComparison:
    """What the finalists show.

    Attributes:
        finalists: each with its trial, seeds, their figures, the mean and its 95 % interval; best first.
        verdict: one sentence.
        bundle_of: the training whose weights are taken: the winner's best seed.
    """

    finalists: list[dict[str, Any]]
    verdict: str
    bundle_of: str


def compare_finalists(sweep: SweepState) -> FinalistComparison:
    """Compares the finalists by a paired bootstrap over validation texts and seeds."""
    metric = sweep.plan.metric
    trained = [trial for trial in sweep.finalists if trial.best_score(metric) >= 0 and trial.state == "finished"]
    groups: dict[str, list[Trial]] = {}
    for trial in trained:
        assert trial.finalist_of is not None
        groups.setdefault(trial.finalist_of, []).append(trial)
    if not groups:
        best = sweep.best
        assert best is not None
        return FinalistComparison([], "no finalist could be trained again; the best trial is taken", best.name)
    means = {name: float(np.mean([trial.best_score(metric) for trial in seeds])) for name, seeds in groups.items()}
    order = sorted(groups, key=lambda name: -means[name])
    head, figure = metric.removeprefix("valid/").split("_", 1)
    counts = [[load_best(sweep.folder_of(trial))[1] for trial in groups[name]] for name in order]
    draws = bootstrap_means(counts, head, figure)
    finalists = []
    for column, name in enumerate(order):
        low, high = np.percentile(draws[:, column], [2.5, 97.5])
        finalists.append(
            {
                "trial": name,
                "config": sweep.trials[name].values,
                "seeds": [trial.values["training.seed"] for trial in groups[name]],
                "scores": [trial.best_score(metric) for trial in groups[name]],
                "mean": means[name],
                "low": float(low),
                "high": float(high),
            }
        )
    winner = max(groups[order[0]], key=lambda trial: trial.best_score(metric))
    if len(order) == 1:
        sentence = f"{order[0]} is the only finalist: {_mean(finalists[0], metric)}; nothing to compare it with"
        return FinalistComparison(finalists, sentence, winner.name)
    test = paired_bootstrap_test(draws[:, 0], draws[:, 1], means[order[0]] - means[order[1]])
    finalists[0]["against"] = {"trial": order[1], **test._asdict()}
    evidence = (
        f"{_mean(finalists[0], metric)} against {finalists[1]['mean']:.4f}, difference {test.difference:.4f} "
        f"({test.low:+.4f} to {test.high:+.4f}), p = {test.p:.3f} {describe_test(sweep.plan.seeds)}"
    )
    if test.p < SIGNIFICANCE_LEVEL:
        return FinalistComparison(finalists, f"{order[0]} wins over {order[1]}: {evidence}", winner.name)
    sentence = f"no difference is shown between {order[0]} and {order[1]}: {evidence}; {order[0]} is taken for its mean"
    return FinalistComparison(finalists, sentence, winner.name)


def _mean(finalist: dict[str, Any], metric: str) -> str:
    return f"mean {metric} {finalist['mean']:.4f} ({finalist['low']:.4f} to {finalist['high']:.4f})"


def without_finalists(sweep: SweepState) -> str:
    """What one training of each configuration allows one to say."""
    best = sweep.best
    assert best is not None
    if sweep.plan.strategy.repeats_record:
        return (
            "the record's settings are repeated; their budgets differ, so they are compared with the record, not ranked"
        )
    metrics = best.best(sweep.plan.metric)
    assert metrics is not None
    head = sweep.plan.metric.removesuffix(sweep.plan.metric.split("_", 1)[1])
    low = metrics[f"{head}f1_low"]
    near = [trial.name for trial in sweep.ranked[1:] if trial.best_score(sweep.plan.metric) >= low]
    if not sweep.plan.metric.endswith("_f1"):
        return f"{best.name} is the best of one training each; --finalists 2 would tell whether that is more than noise"
    if not near:
        return f"{best.name} is the best of one training each, and no other trial lies within its interval"
    return (
        f"{best.name} is the best of one training each, and {len(near)} other trial(s) lie within its interval: no "
        f"difference is shown; --finalists 2 compares the best with fresh seeds"
    )


def record_rows(sweep: SweepState) -> list[dict[str, Any]]:
    """A row for each run of the record, with the figures of what repeats it by the record's definitions and by ours."""
    repeats = {
        (trial.series, trial.values["training.lr"], trial.values["training.alpha"]): trial for trial in sweep.searched
    }
    rows = []
    for run in RUNS:
        trial = repeats.get((run.series, run.lr, run.alpha))
        metrics = trial.metrics[run.epochs - 1] if trial and len(trial.metrics) >= run.epochs else {}
        rows.append(
            {
                **{name: getattr(run, name) for name in ("series", "lr", "alpha", "epochs")},
                "record": {
                    name: value for name, value in run._asdict().items() if name.startswith(("eval_", "train_"))
                },
                "repeated": {name: value for name, value in metrics.items() if name in run._fields and name != "lr"},
                "keyphrase_f1": metrics.get("valid/keyphrase_f1"),
                "low": metrics.get("valid/keyphrase_f1_low"),
                "high": metrics.get("valid/keyphrase_f1_high"),
            }
        )
    return rows


def record_conclusions() -> list[str]:
    """A plain sentence for each series of the record: what its noise allows one to conclude."""
    sentences = []
    for series in SERIES:
        found = binomial_noise([run for run in RUNS if run.series == series])
        if found["differ"] <= found["expected"]:
            conclusion = "no more than chance gives: the series shows no difference"
        elif found["differ"] < 3 * found["expected"]:
            conclusion = "about what chance gives: the series shows no difference that can be relied on"
        else:
            conclusion = "more than chance gives: the extremes differ, their neighbours are not told apart"
        sentences.append(
            f"{series}: the record's figure runs from {found['low']:.3f} to {found['high']:.3f} with a standard error of "
            f"{found['error']:.3f} (64 texts); {found['differ']:.0f} of {found['pairs']:.0f} pairs of settings differ by "
            f"more than 1.96 standard errors and {found['expected']:.1f} would by chance, {conclusion}"
        )
    return sentences
