"""A sweep carried out on Ray Tune with ASHA over epochs, from a plan to a winner and its bundle."""

import json
import statistics

import ray

from distributed.cluster.connection import connect, driver_queue, inspect_cluster
from distributed.cluster.preflight import check_storage, data_warnings
from distributed.report import ablation_table
from distributed.report.page import write_report
from distributed.sweep import ablation, comparison
from distributed.sweep.journal import Journal, timestamp
from distributed.sweep.plan import SweepConfig, TrialResources, validate_plan
from distributed.sweep.results import BestTrial, TuneResult, read_result
from distributed.sweep.space import Space
from distributed.sweep.state import SweepState, Trial, read_sweep, require_same_sweep
from distributed.train.checkpoint import load_best
from distributed.train.events import Note
from distributed.train.shared_data import SharedData
from distributed.train.tracking import wandb_settings
from distributed.tune.events import SweepEventHandler
from distributed.tune.recorder import SweepRecorder
from distributed.tune.schedulers import FullBudgetScheduler, ResumableASHA
from distributed.tune.searcher import JournalSearcher
from distributed.tune.tracking import WandbGroup
from distributed.tune.trial_run import TrialSettings
from distributed.tune.tuner import TunerRun
from model import storage
from model.config import SEEDS
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.inference.bundle import load_bundle, save_bundle
from model.network.device import resolve_device
from model.network.encoder_files import encoder_of
from model.training.device_usage import usage_of
from model.training.evaluation import evaluate
from model.training.metrics import summarize


def tune(plan: SweepConfig, on_event: SweepEventHandler) -> TuneResult:
    """Carry a sweep out, or resume one that was cut off.

    Args:
        plan: from `new_sweep` or `resumed_sweep`.
        on_event: called in this thread with what happens.

    Raises:
        UserError: it could not be carried out.
        RunFailedError: no trial finished an epoch.
    """
    validate_plan(plan, inspect_cluster())  # a mistake is reported at once, not after Ray's start
    wandb_settings(plan.config)
    cluster = connect()
    plan, space, resources = validate_plan(plan, cluster)
    check_storage(plan.config.run.storage, cluster)
    dataset = Dataset(plan.config.data)
    plan = plan.model_copy(update={"config": plan.config.model_copy(update={"data_digest": dataset.digest})})
    journal = Journal(plan.folder)
    try:
        require_same_sweep(plan)
        storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json(indent=2).encode())
        with WandbGroup(plan) as tracker:
            recorder = SweepRecorder(read_sweep(plan.folder), journal, tracker)
            finished = _finished_result(recorder, space)
            if finished is not None:
                on_event(Note(f"{plan.folder} is finished already; nothing to do"))
                return finished
            rate = resources.rate(plan.workers_per_trial)
            recorder.record({"event": "session", "time": timestamp(), "cpus": rate.cpus, "gpus": rate.gpus})
            for line in (*data_warnings(plan.config, dataset), *plan.left_out):
                on_event(Note(line))
            on_event(Note(f"sweep {plan.config.run.name}: {_describe(plan, resources)}, {tracker.where}"))
            try:
                _search(plan, space, resources, recorder, on_event)
                return _finish(recorder, on_event)
            finally:
                recorder.stopped = True
    finally:
        journal.close()


def _finished_result(recorder: SweepRecorder, space: Space) -> TuneResult | None:
    """Return the result of a sweep that has nothing left to train; remove one that is out of date."""
    location = storage.join(recorder.sweep.plan.folder, "result.json")
    if not storage.exists(location):
        return None
    remaining = [JournalSearcher(recorder, each).remaining for each in (space, None)]
    if not any(remaining) and not _new_finalists(recorder.sweep):
        return read_result(recorder.sweep.plan.folder)
    storage.remove(location)
    return None


def _describe(plan: SweepConfig, resources: TrialResources) -> str:
    stopping = f"ASHA at {plan.rungs} of {plan.max_epochs} epochs, eta {plan.eta:g}" if plan.stops else "no stopping"
    return (
        f"{plan.trials} trials ({plan.sampler}), {resources.concurrent} at a time of "
        f"{resources.describe(plan.workers_per_trial)}, {stopping}"
    )


def _search(
    plan: SweepConfig, space: Space, resources: TrialResources, recorder: SweepRecorder, on_event: SweepEventHandler
) -> None:
    """Train the trials, then the finalists."""
    word_features = "tagger.word_feature_dim" in space
    config = plan.config
    data = ray.put(SharedData.load(config.data, config.tagger, config.training, word_features))
    events = driver_queue(may_lose_items=True)
    settings = TrialSettings(data, events, plan.workers_per_trial, resources.cpus, resources.gpus, plan.ranking)
    tuner = TunerRun(plan, settings, resources, recorder, on_event)
    try:
        scheduler = ResumableASHA(recorder) if plan.stops else FullBudgetScheduler(recorder)
        tuner.run(JournalSearcher(recorder, space), scheduler)
        recorder.searching = False
        if plan.finalists and not recorder.must_stop():
            for trial in _new_finalists(recorder.sweep):
                recorder.propose(trial)
            tuner.run(JournalSearcher(recorder, None), FullBudgetScheduler(recorder))
    finally:
        events.shutdown(force=True)


def _new_finalists(sweep: SweepState) -> list[Trial]:
    """Return the trainings of the best configurations that are still to be proposed.

    They have fresh seeds: the score of the one that a configuration was chosen by is biased upwards. A configuration that
    several trials have, as of a space of few choices, is one finalist.
    """
    found: list[Trial] = []
    chosen: list[Trial] = []
    for trial in [each for each in sweep.ranked if each.best_score(sweep.plan.metric) >= 0]:
        if len(chosen) == sweep.plan.finalists:
            break  # comparing thousands of trials with one another would take seconds
        if all((trial.values, trial.epochs) != (other.values, other.epochs) for other in chosen):
            chosen.append(trial)
    for trial in chosen:
        first = trial.values.get("training.seed", sweep.plan.config.training.seed)
        for number in range(1, 1 + sweep.plan.seeds):
            seed = (first + number) % SEEDS
            name = f"{trial.name}-seed{seed}"
            if name not in sweep.trials:
                values = trial.values | {"training.seed": seed}
                found.append(Trial(name, values, trial.epochs, finalist_of=trial.name))
    return found


def write_bundle(sweep: SweepState, trial: Trial) -> str:
    """Write the bundle of a trial's best epoch. Raises FileNotFoundError where its weights are not kept."""
    weights, counts = load_best(sweep.folder_of(trial))
    location, config = storage.join(sweep.plan.folder, "bundle"), sweep.config_of(trial)
    metrics = {"split": "valid", **summarize(counts)}
    save_bundle(location, config, Dataset(config.data).tokenizer_bytes(), weights, metrics, encoder_of(config.tagger))
    return location


def write_best_bundle(folder: str) -> str | None:
    """Write the bundle of the leading trial of a sweep that was stopped; return None where there is none yet.

    Raises:
        UserError: there is no such sweep, or it is damaged.
    """
    sweep = read_sweep(folder)
    for trial in sweep.ranked:
        try:
            return write_bundle(sweep, trial)
        except FileNotFoundError:
            continue
    return None


def _finish(recorder: SweepRecorder, on_event: SweepEventHandler) -> TuneResult:
    """Compare the trials, and write the bundle, the result and the report."""
    sweep, folder = recorder.sweep, recorder.sweep.plan.folder
    best = sweep.best
    if best is None:
        errors = [f"{trial.name}: {trial.error}" for trial in sweep.searched if trial.error]
        reason = errors[0] if errors else "the time or the budget is spent"
        raise RunFailedError(f"{folder}: no trial produced a metric; {reason}")
    finalists = comparison.compare_finalists(sweep) if sweep.finalists else None
    rows, verdict = ablation.compare_rows(sweep) if sweep.plan.rows else (None, comparison.without_finalists(sweep))
    repeats_record = sweep.plan.strategy.repeats_record
    bundle = write_bundle(sweep, sweep.trials[finalists.bundle_of] if finalists else best)
    starts = [trial.started - trial.proposed for trial in sweep.searched if trial.started]
    result = TuneResult(
        name=sweep.plan.config.run.name,
        trials=len(sweep.searched),
        stopped=sweep.count("stopped"),
        failed=sweep.count("failed") + sweep.count("diverged"),
        unfinished=sweep.count("unfinished") + sweep.count("running"),  # a killed driver left these as running
        epochs_spent=sweep.epochs_spent,
        epochs_full=sweep.epochs_full,
        seconds=round(sweep.seconds, 3),
        best=_best_trial(sweep, best),
        finalists=finalists.finalists if finalists else [],
        verdict=finalists.verdict if finalists else verdict,
        bundle=bundle,
        report=storage.join(folder, "report.html"),
        trial_start_s=round(statistics.median(starts), 3) if starts else None,
        record=comparison.record_rows(sweep) if repeats_record else None,
        conclusions=comparison.record_conclusions() if repeats_record else None,
        ablation=rows,
        test=_test_metrics(bundle, sweep.plan.config.data, on_event) if finalists and finalists.finalists else None,
        spent=sweep.spent.as_result(sweep.plan.price),
        stopped_by=recorder.stopped_by,
        usage={trial.name: usage for trial in sweep.all if (usage := usage_of(trial.metrics))} or None,
    )
    if rows is not None:
        page = ablation_table.as_markdown(rows, verdict, sweep.plan)
        storage.write(storage.join(folder, "ablation.md"), page.encode())
    storage.write(storage.join(folder, "result.json"), json.dumps(result.as_dict(), indent=2).encode())
    recorder.tracker.finish(result, write_report(folder))
    return result


def _best_trial(sweep: SweepState, best: Trial) -> BestTrial:
    metrics = best.best(sweep.plan.metric)
    assert metrics is not None
    interval = (metrics[f"valid/keyphrase_f1{end}"] for end in ("", "_low", "_high"))
    return BestTrial(best.name, best.values, metrics["epoch"], *interval)


def _test_metrics(bundle: str, data: str, on_event: SweepEventHandler) -> dict[str, int | float] | None:
    """Return the metrics of the winner of the finalists on the test split; None where there is none."""
    dataset = Dataset(data)
    if not dataset.rows("test"):
        return None
    on_event(Note("the choice is made; reading the test split once"))
    loaded = load_bundle(bundle)
    test = dataset.load("test", loaded.config.tagger.uses_word_features, loaded.subwords)
    return {**summarize(evaluate(loaded.tagger, test, resolve_device("cpu")).counts)}
