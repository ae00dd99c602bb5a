"""Sweeps on Ray: proposals, early stopping, finalists, the time budget, the record."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import leaks
import pytest
from helpers import SHARED, alone, has_weights
from ray.tune.experiment import Trial as RayTrial
from sweeps import Events, carry_out, curves, plan_of

from distributed.sweep.journal import Journal
from distributed.sweep.state import SweepState, Trial, read_sweep, resumed_sweep
from distributed.train.checkpoint import load_best, save_best
from distributed.train.events import Note
from distributed.tune.driver import _finish, _new_finalists
from distributed.tune.recorder import SweepRecorder
from distributed.tune.schedulers import ResumableASHA
from distributed.tune.trial_run import EpochResult
from jobs.tune import run
from model import storage
from model.config import SEEDS
from model.inference.bundle import load_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B as it is without a key."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.ray
def test_a_sweep_stops_the_worse_keeps_the_best_and_leaves_nothing_in_ray(
    cluster, wandb_offline, small_dataset: str, tmp_path: Path
):
    """The short form of tests/campaigns/leaks.py."""
    events: Events = []
    plan = plan_of(small_dataset, tmp_path, "s", trials=9, max_epochs=9, max_concurrent=2)
    result, seen = leaks.watch(plan, events.append)
    assert seen["longest_silence_s"] < 60 and not any(seen["left"].values())
    trials = curves(tmp_path / "s")
    assert list(trials) == [f"t{number:03d}" for number in range(1, 10)]
    assert result["trials"] == 9 and result["failed"] == 0 and 0 < result["stopped"] < 9
    assert result["stopped"] == sum(state == "stopped" for _, _, state in trials.values())
    assert result["epochs_spent"] == sum(len(f1) for _, f1, _ in trials.values()) < result["epochs_full"] == 81
    assert all(len(f1) in (1, 3) for _, f1, state in trials.values() if state == "stopped")
    assert all(len(f1) == 9 for _, f1, state in trials.values() if state == "finished")
    best = trials[result["best"]["trial"]]
    assert result["best"]["keyphrase_f1"] == max(max(f1) for _, f1, _ in trials.values()) == max(best[1])
    bundle = load_bundle(result["bundle"])
    assert bundle.config.training.lr == result["best"]["config"]["training.lr"]
    assert bundle.metrics["keyphrase_f1"] == pytest.approx(result["best"]["keyphrase_f1"])
    assert json.loads((tmp_path / "s" / "result.json").read_text()) == result
    # Of the trials' files only the best one's weights are kept.
    assert [path.name for path in (tmp_path / "s" / "trials").iterdir()] == [result["best"]["trial"]]
    assert not list((tmp_path / "s" / "trials").glob("*/checkpoint*"))
    assert {Note, SweepState} <= {type(event) for event in events}
    group = list((tmp_path / "s" / "wandb").glob("offline-run-*"))
    assert len(group) == 10  # one for each trial, one for the sweep with its report


@pytest.mark.ray
@pytest.mark.long
def test_two_worker_trials_leave_nothing_beside_a_second_ray(cluster, small_dataset: str, tmp_path: Path):
    with leaks.second_ray():
        seen = leaks.sweep(small_dataset, str(tmp_path), workers=2, trials=4, max_concurrent=2)
    assert seen["failed"] == 0 and seen["stopped"] > 0 and seen["longest_silence_s"] < 60
    assert not any(seen["left"].values()), seen


@pytest.mark.ray
@pytest.mark.long
def test_finalists_are_judged_and_the_test_split_is_read_for_the_winner(
    cluster, wandb_offline, small_dataset: str, tmp_path: Path
):
    first = carry_out(plan_of(small_dataset, tmp_path, "f", trials=4, max_epochs=4, eta=2, max_concurrent=1))
    assert first["finalists"] == [] and "test" not in first and "one training each" in first["verdict"]
    result = carry_out(resumed_sweep("f", str(tmp_path), {"finalists": 2, "seeds": 2}))
    assert {name: result[name] for name in ("trials", "epochs_spent", "best")} == {
        name: first[name] for name in ("trials", "epochs_spent", "best")
    }
    winner, other = result["finalists"]
    assert winner["seeds"] == [1, 2] and winner["mean"] >= other["mean"]
    assert winner["mean"] == pytest.approx(sum(winner["scores"]) / 2)
    assert winner["low"] < winner["mean"] < winner["high"] and winner["against"]["trial"] == other["trial"]
    assert ("wins over" in result["verdict"]) == (winner["against"]["p"] < 0.05)
    assert 0 <= result["test"]["keyphrase_f1"] <= 1
    config = load_bundle(result["bundle"]).config
    assert config.training.lr == winner["config"]["training.lr"] and config.training.seed in (1, 2)
    [log] = (tmp_path / "f" / "wandb").glob(f"offline-run-*-{winner['trial']}-seed1-*/*.wandb")
    assert b"finalist" in log.read_bytes() and b"valid/keyphrase_f1" in log.read_bytes()
    [log] = list((tmp_path / "f" / "wandb").glob("offline-run-*-result-*/*.wandb"))[-1:]
    assert b"f-report" in log.read_bytes() and b"f-bundle" in log.read_bytes()
    events: Events = []
    assert carry_out(resumed_sweep("f", str(tmp_path), {}), events) == result  # the test split is not read again
    assert isinstance(events[0], Note) and "finished already" in events[0].text


@pytest.mark.ray
def test_a_trial_that_cannot_be_trained_is_ranked_last_and_takes_nothing_down(
    cluster, small_dataset: str, tmp_path: Path
):
    training = {"optimizer": "sgd", "max_grad_norm": 0.0}
    space = ["training.lr=1e38,0.1", "training.alpha=0.3"]
    result = carry_out(
        plan_of(small_dataset, tmp_path, "nan", training, sampler="grid", space=space, max_epochs=2, max_concurrent=1)
    )
    assert result["failed"] == 1 and result["best"]["trial"] == "t002" and result["trials"] == 2
    broken = read_sweep(str(tmp_path / "nan")).ranked[-1]
    assert (broken.name, broken.state) == ("t001", "diverged") and "no longer a number" in str(broken.error)


@pytest.mark.ray
@pytest.mark.long
def test_optuna_proposes_the_same_for_the_same_seed_and_learns(cluster, small_dataset: str, tmp_path: Path):
    proposed = []
    for name in ("one", "two"):
        carry_out(plan_of(small_dataset, tmp_path, name, sampler="tpe", trials=13, max_epochs=1, max_concurrent=1))
        proposed.append([values for values, _, _ in curves(tmp_path / name).values()])
    assert proposed[0] == proposed[1] and len(proposed[0]) == 13
    assert all(1e-3 <= values["training.lr"] <= 3e-2 for values in proposed[0])


def test_a_sweep_that_ends_before_any_finalist_does_not_read_the_test_split(small_dataset: str, tmp_path: Path):
    plan = plan_of(small_dataset, tmp_path, "s", trials=2, max_epochs=1, finalists=1, seeds=1)
    storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json().encode())
    journal, tracker = Journal(plan.folder), SimpleNamespace(on_event=lambda *_: None, finish=lambda *_: None)
    recorder = SweepRecorder(SweepState(plan), journal, tracker)  # type: ignore[arg-type]
    best, left = (Trial(name, {"training.lr": 0.01}, 1) for name in ("t001", "t002"))
    for trial in (best, left, Trial("t001-seed1", {"training.seed": 1}, 1, finalist_of="t001")):
        recorder.propose(trial)
    training = alone(recorder.sweep.config_of(best))
    save_best(recorder.sweep.folder_of(best), 1, training.tagger.state_dict(), training.counts)
    recorder.epoch("t001", training.history[0], "finished")
    events: Events = []
    result = _finish(recorder, events.append).as_dict()
    journal.close()
    assert (result["trials"], result["unfinished"]) == (2, 1)  # t002 is as a killed driver leaves a trial
    assert "test" not in result and not events and result["verdict"].startswith("no finalist was trained in full")


def test_ctrl_c_after_the_result_leaves_the_winners_bundle(
    small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plan = plan_of(small_dataset, tmp_path, "s", trials=1, max_epochs=1, finalists=1, seeds=1)
    storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json().encode())

    def stop_in_the_end(*_: Any) -> None:
        raise KeyboardInterrupt

    journal, tracker = Journal(plan.folder), SimpleNamespace(on_event=lambda *_: None, finish=stop_in_the_end)
    recorder = SweepRecorder(SweepState(plan), journal, tracker)  # type: ignore[arg-type]
    for trial in (Trial("t001", {"training.lr": 0.01}, 1), Trial("t001-seed1", {"training.seed": 1}, 1, None, "t001")):
        recorder.propose(trial)
        training = alone(recorder.sweep.config_of(trial))
        save_best(recorder.sweep.folder_of(trial), 1, training.tagger.state_dict(), training.counts)
        recorder.epoch(trial.name, training.history[0], "finished")
    monkeypatch.setattr("distributed.tune.driver.tune", lambda plan, on_event: _finish(recorder, on_event))
    monkeypatch.setattr("os._exit", sys.exit)  # the test goes on
    with pytest.raises(SystemExit):
        run(plan)
    journal.close()
    winner, _ = load_best(recorder.sweep.folder_of(recorder.sweep.trials["t001-seed1"]))
    assert has_weights(storage.join(plan.folder, "bundle"), winner)
    assert "keeps the bundle of its result" in capsys.readouterr().err


def test_finalists_have_fresh_seeds_even_after_the_last_one(tmp_path: Path):
    sweep = SweepState(plan_of("d", tmp_path, "s", finalists=1, seeds=2, max_epochs=1))
    values = {"training.lr": 0.01, "training.seed": SEEDS - 2}
    begun = {"name": "t001", "values": values, "epochs": 1, "series": None, "finalist_of": None}
    sweep.apply({"event": "trial", "time": 0.0, **begun})
    sweep.apply({"event": "epoch", "time": 1.0, "trial": "t001", "metrics": {"epoch": 1, "valid/keyphrase_f1": 0.5}})
    assert [trial.values["training.seed"] for trial in _new_finalists(sweep)] == [SEEDS - 1, 0]


def test_a_configuration_that_several_trials_have_is_one_finalist(tmp_path: Path):
    sweep = SweepState(plan_of("d", tmp_path, "s", trials=3, finalists=2, seeds=1, max_epochs=1))
    for number, (cell, f1) in enumerate([("gru", 0.5), ("gru", 0.5), ("rnn", 0.4)], 1):
        begun = {"name": f"t00{number}", "values": {"tagger.cell": cell}, "epochs": 1, "series": None}
        sweep.apply({"event": "trial", "time": 0.0, "finalist_of": None, **begun})
        metrics = {"epoch": 1, "valid/keyphrase_f1": f1}
        sweep.apply({"event": "epoch", "time": 1.0, "trial": f"t00{number}", "metrics": metrics})
    assert [trial.name for trial in _new_finalists(sweep)] == ["t001-seed1", "t003-seed1"]


def test_asha_takes_a_trial_of_ray_and_knows_it_after_a_restart(tmp_path: Path):
    plan = plan_of("d", tmp_path, "asha", trials=4, max_epochs=9, eta=3)
    sweep = SweepState(plan)
    recorder = SweepRecorder(sweep, None, None)  # type: ignore[arg-type]
    before = ResumableASHA(recorder)
    decisions = {}
    for number, f1 in enumerate((0.5, 0.4, 0.1)):
        name = f"t{number + 1:03d}"
        trial = RayTrial("any", stub=True, config={"trial": name})
        metrics = {"epoch": 1, "valid/keyphrase_f1": f1, "valid/keyphrase_loss": 1.0}
        before.on_trial_add(None, trial)
        decisions[name] = before.on_trial_result(None, trial, {"epoch": 1, "score": f1})
        about = {"values": {}, "epochs": 9, "series": None, "finalist_of": None}
        sweep.apply({"event": "trial", "time": 0.0, "name": name, **about})
        sweep.apply({"event": "epoch", "time": 0.0, "trial": name, "metrics": metrics})
    assert decisions == {"t001": "CONTINUE", "t002": "STOP", "t003": "STOP"}
    after = ResumableASHA(recorder)
    again, new = (RayTrial("any", stub=True, config={"trial": name}) for name in ("t001", "t004"))
    for trial in (again, new):
        after.on_trial_add(None, trial)
    assert (
        after.on_trial_result(None, new, {"epoch": 1, "score": 0.42}) == "STOP"
    )  # alone at the rung it would continue
    assert after.on_trial_result(None, again, {"epoch": 2, "score": 0.5}) == "CONTINUE"
    after.on_trial_remove(None, new)
    recorder.time_is_up = True
    assert after.on_trial_result(None, again, {"epoch": 2, "score": 0.9}) == "STOP"


def test_a_trial_that_ends_by_itself_at_a_rung_counts_there_also_before_a_restart(tmp_path: Path):
    """As with training.patience; the journal has its last epoch, from which a resumed sweep knows it."""
    sweep = SweepState(plan_of("d", tmp_path, "asha", trials=2, max_epochs=9, eta=3))
    recorder = SweepRecorder(sweep, None, None)  # type: ignore[arg-type]
    asha = ResumableASHA(recorder)
    good, worse, diverged = (RayTrial("any", stub=True, config={"trial": name}) for name in ("t001", "t002", "t003"))
    about = {"values": {}, "epochs": 9, "series": None, "finalist_of": None}
    sweep.apply({"event": "trial", "time": 0.0, "name": "t001", **about})
    for number in (1, 2, 3):
        metrics = {"epoch": number, "valid/keyphrase_f1": 0.5, "valid/keyphrase_loss": 1.0}
        state = {"state": "finished"} if number == 3 else {}
        sweep.apply({"event": "epoch", "time": 0.0, "trial": "t001", "metrics": metrics, **state})
    told = {"epoch": 3, "score": 0.5, "result": EpochResult("t001", 3, metrics, True)}
    for trial in (good, worse, diverged):
        asha.on_trial_add(None, trial)
    asha.on_trial_complete(None, good, told)
    asha.on_trial_complete(None, diverged, {"epoch": 3, "score": -1.0, "result": EpochResult("t003", 3, None, True)})
    again = ResumableASHA(recorder)
    again.on_trial_add(None, worse)
    decisions = [each.on_trial_result(None, worse, {"epoch": 3, "score": 0.4}) for each in (asha, again)]
    assert decisions == ["STOP", "STOP"]


def test_a_sweep_resumed_after_any_event_decides_as_one_that_was_not(tmp_path: Path):
    """All epochs of twelve trials arrive in a random order; decisions are compared after each prefix of the journal."""
    plan = plan_of("d", tmp_path, "asha", trials=12, max_epochs=9, eta=2)
    draw = random.Random(0)
    waiting = [f"t{number:03d}" for number in range(1, 13)]
    trials = {name: RayTrial("any", stub=True, config={"trial": name}) for name in waiting}
    quality = {name: draw.random() for name in waiting}

    def result(name: str, number: int) -> dict[str, float]:
        """An epoch; some are worse than the one before."""
        return {"epoch": number, "score": quality[name] + 0.1 * random.Random(f"{name} {number}").random()}

    def start() -> tuple[SweepState, ResumableASHA]:
        sweep = SweepState(plan)
        return sweep, ResumableASHA(SweepRecorder(sweep, None, None))  # type: ignore[arg-type]

    sweep, asha = start()
    journal: list[dict[str, Any]] = []
    about = {"values": {}, "epochs": 9, "series": None, "finalist_of": None}
    running: list[str] = []
    while waiting or running:
        if waiting and (len(running) < 4 or draw.random() < 0.1):
            name = waiting.pop(0)
            running.append(name)
            journal.append({"event": "trial", "time": 0.0, "name": name, **about})
            asha.on_trial_add(None, trials[name])
        else:
            name = draw.choice(running)
            number = len(sweep.trials[name].metrics) + 1
            told = result(name, number)
            decision = asha.on_trial_result(None, trials[name], told) if number < 9 else "STOP"
            metrics = {"epoch": number, "valid/keyphrase_f1": told["score"], "valid/keyphrase_loss": 0.0}
            state = {"state": "finished" if number == 9 else "stopped"} if decision == "STOP" else {}
            journal.append({"event": "epoch", "time": 0.0, "trial": name, "metrics": metrics, **state})
            if state:
                running.remove(name)
        sweep.apply(journal[-1])
    stopped = [event for event in journal if event.get("state") == "stopped"]
    assert 4 < len(stopped) < 12
    for cut in range(len(journal)):
        known, rest = journal[:cut], journal[cut:]
        resumed, _ = start()
        for event in known:
            resumed.apply(event)
        again = ResumableASHA(SweepRecorder(resumed, None, None))  # type: ignore[arg-type]
        for trial in resumed.all:
            if trial.state == "running":
                again.on_trial_add(None, trials[trial.name])
        for event in rest:
            if event["event"] == "trial":
                again.on_trial_add(None, trials[event["name"]])
            elif (number := event["metrics"]["epoch"]) < 9:
                decision = again.on_trial_result(None, trials[event["trial"]], result(event["trial"], number))
                assert decision == ("STOP" if event.get("state") else "CONTINUE"), (cut, event)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.skipif(not SHARED.exists(), reason="the labeled tweets are not on this machine")
def test_the_record_is_repeated_on_500_tweets(command, tmp_path: Path):
    lines = (SHARED / "tweets" / "train.tsv").read_text("utf-8").splitlines(keepends=True)[:500]
    (tmp_path / "tweets.tsv").write_text("".join(lines), "utf-8")
    assert command("prepare", str(tmp_path / "tweets.tsv"), "--out", str(tmp_path / "data")).returncode == 0
    done = command(
        "tune",
        "--data",
        str(tmp_path / "data"),
        "--space",
        "record",
        "--storage",
        str(tmp_path),
        "--name",
        "r",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["trials"] == 11 and result["epochs_spent"] == 28 and result["failed"] == 0
    rows = result["record"]
    assert len(rows) == 25 and all(row["keyphrase_f1"] is not None for row in rows)
    curve = {row["epochs"]: row["keyphrase_f1"] for row in rows if row["series"] == "epochs"}
    assert list(curve) == list(range(1, 14))
    by_lr = {row["lr"]: row for row in rows if row["series"] == "lr"}
    assert by_lr[1e-3]["keyphrase_f1"] == curve[1]  # the same settings, trained apart
    assert by_lr[1e-3]["record"]["eval_sequence_precision"] == 0.64062
    assert 0 <= by_lr[1e-3]["repeated"]["eval_sequence_precision"] <= 1
    assert "standard error" in done.stderr and "lr 1e-05" in done.stderr
