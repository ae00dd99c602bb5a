"""What a sweep shows: its finalists compared, and the owner's record beside what repeats it."""

from dataclasses import asdict, dataclass

import numpy as np

from distributed.sweep.record_runs import RUNS, SERIES, binomial_noise
from distributed.sweep.results import DifferenceTo, Finalist, RecordRow
from distributed.sweep.state import SweepState, Trial
from distributed.train.checkpoint import load_best
from model.training.significance import SIGNIFICANCE_LEVEL, SeedGroups, describe_test


@dataclass(frozen=True)
class FinalistComparison:
    """What the finalists show.

    Attributes:
        finalists: best first.
        verdict: one sentence.
        bundle_of: the training whose weights are taken: the winner's best seed.
    """

    finalists: list[Finalist]
    verdict: str
    bundle_of: str


def compare_finalists(sweep: SweepState) -> FinalistComparison:
    """Compare the finalists by a paired bootstrap over validation texts and seeds."""
    metric = sweep.plan.metric
    trainings = _finished_finalists(sweep)
    if not trainings:
        best = sweep.best
        assert best is not None
        return FinalistComparison([], "no finalist was trained in full; the best trial is taken", best.name)
    ranking = sweep.plan.ranking
    groups = SeedGroups(
        {name: [load_best(sweep.folder_of(trial))[1] for trial in seeds] for name, seeds in trainings.items()},
        ranking.head,
        ranking.score,
    )
    winner, *others = trainings
    finalists = [
        Finalist(
            name,
            sweep.trials[name].values,
            [trial.values["training.seed"] for trial in seeds],
            [trial.best_score(metric) for trial in seeds],
            groups.means[name],
            *groups.interval(name),
            DifferenceTo(**asdict(groups.difference(winner, others[0])), trial=others[0])
            if name == winner and others
            else None,
        )
        for name, seeds in trainings.items()
    ]
    best_seed = max(trainings[winner], key=lambda trial: trial.best_score(metric))
    return FinalistComparison(finalists, _verdict(finalists, metric), best_seed.name)


def _finished_finalists(sweep: SweepState) -> dict[str, list[Trial]]:
    """Return the finished trainings of each finalist, the highest mean first."""
    metric = sweep.plan.metric
    groups: dict[str, list[Trial]] = {}
    for trial in sweep.finalists:
        if trial.finalist_of is not None and trial.state == "finished" and trial.best_score(metric) >= 0:
            groups.setdefault(trial.finalist_of, []).append(trial)

    def mean(name: str) -> float:
        return float(np.mean([trial.best_score(metric) for trial in groups[name]]))

    return {name: groups[name] for name in sorted(groups, key=mean, reverse=True)}


def _verdict(finalists: list[Finalist], metric: str) -> str:
    first, test = finalists[0], finalists[0].against
    mean = f"mean {metric} {first.mean:.4f} ({first.low:.4f} to {first.high:.4f})"
    if test is None:
        return f"{first.trial} is the only finalist: {mean}; nothing to compare it with"
    seeds = min(len(each.seeds) for each in finalists[:2])  # those that were trained in full
    evidence = (
        f"{mean} against {finalists[1].mean:.4f}, difference {test.difference:.4f} "
        f"({test.low:+.4f} to {test.high:+.4f}), p = {test.p:.3f} {describe_test(seeds)}"
    )
    if test.p < SIGNIFICANCE_LEVEL:
        return f"{first.trial} wins over {test.trial}: {evidence}"
    return f"no difference is shown between {first.trial} and {test.trial}: {evidence}; {first.trial} is taken for its mean"


def without_finalists(sweep: SweepState) -> str:
    """Return what one training of each configuration allows one to conclude, in a sentence."""
    best = sweep.best
    assert best is not None
    if sweep.plan.strategy.repeats_record:
        return (
            "the record's settings are repeated; their budgets differ, so they are compared with the record, not ranked"
        )
    metric = sweep.plan.ranking
    if metric.score != "f1":
        return f"{best.name} is the best of one training each; --finalists 2 tests whether that is more than noise"
    metrics = best.best(metric.key)
    assert metrics is not None
    near = [trial for trial in sweep.ranked[1:] if trial.best_score(metric.key) >= metrics[metric.low]]
    if not near:
        return f"{best.name} is the best of one training each, and no other trial is within its interval"
    return (
        f"{best.name} is the best of one training each, and {len(near)} other trial(s) are within its interval: no "
        f"difference is shown; --finalists 2 compares the best with fresh seeds"
    )


def record_rows(sweep: SweepState) -> list[RecordRow]:
    """Return a row for each run and series of the record, with our metrics by the record's definitions and by ours."""
    repeats = {
        (trial.series, trial.values["training.lr"], trial.values["training.alpha"]): trial for trial in sweep.searched
    }
    rows = []
    for run in RUNS:
        trial = repeats.get((run.series, run.lr, run.alpha))
        metrics = trial.metrics[run.epochs - 1] if trial and len(trial.metrics) >= run.epochs else {}
        rows.append(
            RecordRow(
                run.series,
                run.lr,
                run.alpha,
                run.epochs,
                record=run.metrics(),
                repeated={name: value for name, value in metrics.items() if name in run.metrics()},
                keyphrase_f1=metrics.get("valid/keyphrase_f1"),
                low=metrics.get("valid/keyphrase_f1_low"),
                high=metrics.get("valid/keyphrase_f1_high"),
            )
        )
    return rows


def record_conclusions() -> list[str]:
    """Return a sentence for each series of the record: what its noise allows one to conclude."""
    sentences = []
    for series in SERIES:
        noise = binomial_noise([run for run in RUNS if run.series == series])
        if noise.differ <= noise.expected:
            conclusion = "no more than chance gives: the series shows no difference"
        elif noise.differ < 3 * noise.expected:
            conclusion = "about what chance gives: the series shows no difference that can be relied on"
        else:
            conclusion = "more than chance gives: the extremes differ, neighboring settings cannot be told apart"
        sentences.append(
            f"{series}: the record's metric ranges from {noise.low:.3f} to {noise.high:.3f} with a standard error of "
            f"{noise.error:.3f} (64 texts); {noise.differ} of {noise.pairs} pairs of settings differ by more than 1.96 "
            f"standard errors and {noise.expected:.1f} would by chance, {conclusion}"
        )
    return sentences
