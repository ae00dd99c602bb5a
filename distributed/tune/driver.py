"""The sweep: Ray Tune with ASHA over epochs, from a plan to a winner and its bundle."""

import json
import statistics
from typing import Any

import ray

from distributed.cluster.connection import connect, driver_queue, inspect_cluster
from distributed.cluster.preflight import check_storage
from distributed.report.page import write_report
from distributed.sweep import ablation, comparison
from distributed.sweep.journal import Journal
from distributed.sweep.plan import SweepConfig, TrialResources, validate_plan
from distributed.sweep.space import Space
from distributed.sweep.state import SweepState, Trial, read_sweep
from distributed.train.checkpoint import load_best
from distributed.train.events import SweepEventHandler
from distributed.train.shared_data import SharedData
from distributed.tune.recorder import SweepRecorder
from distributed.tune.schedulers import FullBudgetScheduler, ResumableASHA
from distributed.tune.searcher import JournalSearcher
from distributed.tune.tracking import WandbGroup
from distributed.tune.trial_run import TrialSettings
from distributed.tune.tuner import TunerRun
from model import storage
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.inference.bundle import load_bundle, save_bundle
from model.network.device import resolve_device
from model.training.evaluation import evaluate
from model.training.metrics import summarize


def tune(plan: SweepConfig, on_event: SweepEventHandler) -> dict[str, Any]:
    """Carries a sweep out, or goes on with one that was cut off.

    Args:
        plan: from `new_sweep` or `resumed_sweep`.
        on_event: told of what happens: `sweep` (the Sweep, after each change), `progress` (dict) and `note` (str);
            called in this thread.

    Returns:
        What `tune --json` prints.

    Raises:
        UserError: it could not be carried out.
        RunFailedError: no trial came to an end.
    """
    validate_plan(plan, inspect_cluster())  # a mistake is answered at once, not after Ray's start
    cluster = connect()
    plan, space, seats = validate_plan(plan, cluster)
    check_storage(plan.config.run.storage, cluster)
    place = storage.join(plan.folder, "sweep.json")
    journal = Journal(plan.folder)
    try:
        storage.write(place, plan.model_dump_json(indent=2).encode())
        with WandbGroup(plan) as tracker:
            recorder = SweepRecorder(read_sweep(plan.folder), journal, tracker)
            done = storage.join(plan.folder, "result.json")
            if storage.exists(done):
                if not JournalSearcher(recorder, space).left and not _new_finalists(recorder.sweep):
                    on_event("note", f"{plan.folder} is finished already; nothing to do")
                    return json.loads(storage.read(done))
                storage.remove(done)
            recorder.record("session")
            for line in plan.left_out:
                on_event("note", line)
            on_event("note", f"sweep {plan.config.run.name}: {_describe(plan, seats)}, {tracker.where}")
            try:
                return _carry_out(plan, space, seats, recorder, on_event)
            finally:
                recorder.stopped = True
    finally:
        journal.close()


def _describe(plan: SweepConfig, seats: TrialResources) -> str:
    stopping = f"ASHA at {plan.rungs} of {plan.max_epochs} epochs, eta {plan.eta:g}" if plan.stops else "no stopping"
    return (
        f"{plan.trials} trials ({plan.sampler}), {seats.at_once} at once of {plan.workers_per_trial} x ({seats.cpus} CPU, "
        f"{seats.gpus:g} GPU), {stopping}"
    )


def _carry_out(
    plan: SweepConfig, space: Space, seats: TrialResources, recorder: SweepRecorder, on_event: SweepEventHandler
) -> dict[str, Any]:
    sweep = recorder.sweep
    word_features = plan.config.tagger.uses_word_features or "tagger.word_feature_dim" in space
    data = ray.put(SharedData.load(plan.config.data, word_features))
    events = driver_queue()
    settings = TrialSettings(data, events, plan.workers_per_trial, seats.cpus, seats.gpus, plan.metric)
    stage = TunerRun(plan, settings, seats, recorder, on_event)
    try:
        stage.run(
            JournalSearcher(recorder, space), ResumableASHA(recorder) if plan.stops else FullBudgetScheduler(recorder)
        )
        if plan.finalists and not recorder.over:
            for trial in _new_finalists(sweep):
                recorder.propose(trial)
            stage.run(JournalSearcher(recorder, None), FullBudgetScheduler(recorder))
    finally:
        events.shutdown(force=True)
    return _finish(recorder, on_event)


def _new_finalists(sweep: SweepState) -> list[Trial]:
    """The trainings of the best configurations with fresh seeds: the one that a trial was chosen with flatters it."""
    found = []
    for trial in [each for each in sweep.ranked if each.best_score(sweep.plan.metric) >= 0][: sweep.plan.finalists]:
        first = trial.values.get("training.seed", sweep.plan.config.training.seed)
        for seed in range(first + 1, first + 1 + sweep.plan.seeds):
            name = f"{trial.name}-seed{seed}"
            if name not in sweep.trials:
                values = trial.values | {"training.seed": seed}
                found.append(Trial(name, values, trial.epochs, finalist_of=trial.name))
    return found


def write_bundle(sweep: SweepState, trial: Trial) -> str:
    """Writes the bundle of a trial's best epoch. Raises FileNotFoundError where its weights are not kept."""
    weights, counts = load_best(sweep.folder_of(trial))
    location, config = storage.join(sweep.plan.folder, "bundle"), sweep.config_of(trial)
    metrics = {"split": "valid", **summarize(counts)}
    save_bundle(location, config, Dataset(config.data).tokenizer_bytes(), weights, metrics)
    return location


def write_best_bundle(folder: str) -> str | None:
    """Writes the bundle of the trial that leads in a sweep that was stopped; None where there is none yet.

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


def _finish(recorder: SweepRecorder, on_event: SweepEventHandler) -> dict[str, Any]:
    """Judges, writes the bundle and the result."""
    sweep = recorder.sweep
    best = sweep.best
    if best is None:
        errors = [f"{trial.name}: {trial.error}" for trial in sweep.searched if trial.error]
        raise RunFailedError(
            f"{sweep.plan.folder}: no trial has a figure to show; {errors[0] if errors else 'time is over'}"
        )
    judged = comparison.compare_finalists(sweep) if sweep.finalists else None
    bundle = write_bundle(sweep, sweep.trials[judged.bundle_of] if judged else best)
    metrics = best.best(sweep.plan.metric)
    assert metrics is not None
    result: dict[str, Any] = {
        "name": sweep.plan.config.run.name,
        "trials": len(sweep.searched),
        "stopped": sweep.count("stopped"),
        "failed": sweep.count("failed") + sweep.count("diverged"),
        "unfinished": sweep.count("unfinished"),
        "epochs_spent": sweep.epochs_spent,
        "epochs_full": sweep.epochs_full,
        "seconds": round(sweep.seconds, 3),
        "best": {
            "trial": best.name,
            "config": best.values,
            "epoch": metrics["epoch"],
            "keyphrase_f1": metrics["valid/keyphrase_f1"],
            "low": metrics["valid/keyphrase_f1_low"],
            "high": metrics["valid/keyphrase_f1_high"],
        },
        "finalists": judged.finalists if judged else [],
        "verdict": judged.verdict if judged else comparison.without_finalists(sweep),
        "bundle": bundle,
        "report": storage.join(sweep.plan.folder, "report.html"),
    }
    starts = [trial.begun - trial.proposed for trial in sweep.searched if trial.begun]
    if starts:
        result["trial_start_s"] = round(statistics.median(starts), 3)
    if sweep.plan.strategy.repeats_record:
        result["record"], result["conclusions"] = comparison.record_rows(sweep), comparison.record_conclusions()
    if sweep.plan.rows:
        result["ablation"], result["verdict"] = ablation.compare_rows(sweep)
        page = ablation.as_markdown(result["ablation"], result["verdict"], sweep.plan)
        storage.write(storage.join(sweep.plan.folder, "ablation.md"), page.encode())
    if judged and Dataset(sweep.plan.config.data).rows("test"):
        on_event("note", "the choice is made; reading the test split once")
        tagger = load_bundle(bundle).tagger
        test = Dataset(sweep.plan.config.data).load("test", tagger.config.uses_word_features)
        result["test"] = summarize(evaluate(tagger, test, resolve_device("cpu")).counts)
    storage.write(storage.join(sweep.plan.folder, "result.json"), json.dumps(result, indent=2).encode())
    recorder.tracker.finish(result, write_report(sweep.plan.folder))
    return result
