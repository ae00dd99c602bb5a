"""Sweeps on Ray: trials that stop early, break down, go on, and leave nothing behind."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import leaks
import psutil
import pytest
import ray
from helpers import ROOT, SHARED, SMALL, f1_curve
from ray.tune.experiment import Trial as RayTrial

from distributed.cluster.resources import ClusterResources
from distributed.sweep.journal import Journal
from distributed.sweep.metric import Metric
from distributed.sweep.plan import make_plan, new_sweep, validate_plan
from distributed.sweep.state import SweepState, read_sweep, resumed_sweep
from distributed.train.events import Note
from distributed.tune import placement_groups, trainable, tuner
from distributed.tune.driver import tune
from distributed.tune.events import SweepEvent
from distributed.tune.placement_groups import PlacementGroupCleaner
from distributed.tune.recorder import SweepRecorder
from distributed.tune.schedulers import ResumableASHA
from distributed.tune.trial_run import TrialSettings
from model.inference.bundle import load_bundle

pytestmark = pytest.mark.filterwarnings("ignore")

Events = list[SweepEvent]


def plan_of(data: str, where: Path, name: str, training: dict | None = None, run: dict | None = None, **asked: Any):
    config = {
        "data": data,
        "tagger": SMALL,
        "training": {"patience": 0} | (training or {}),
        "run": {"name": name, "storage": str(where), "device": "cpu"} | (run or {}),
    }
    space = asked.pop("space", ["training.lr=log:1e-3:3e-2"])
    return new_sweep(make_plan({"config": config, "space": space, **asked}))


def carry_out(plan: Any, events: Events | None = None) -> dict[str, Any]:
    return tune(plan, lambda event: events.append(event) if events is not None else None).as_dict()


def processes(kind: str) -> list[psutil.Process]:
    """The running processes of Ray actors of a kind that this process began."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if f"ray::{kind}" in leaks.title_of(each)]


def curves(folder: Path) -> dict[str, tuple[dict[str, Any], list[float], str]]:
    """Values, F1 of each epoch and state of each trial."""
    return {
        trial.name: (trial.values, [metrics["valid/keyphrase_f1"] for metrics in trial.metrics], trial.state)
        for trial in read_sweep(str(folder)).all
    }


def undisturbed(folder: Path) -> dict[str, tuple[dict[str, Any], list[float], str]]:
    """The same of a sweep of proposals, in their order, that were trained to the end without Ray."""
    sweep = read_sweep(str(folder))
    plan, space, _ = validate_plan(sweep.plan, ClusterResources(4, 0, 1))
    proposals = [plan.strategy.propose(plan, space, number).values for number in range(plan.trials)]
    return {
        trial.name: (values, f1_curve(sweep.config_of(trial)), "finished")
        for trial, values in zip(sweep.all, proposals, strict=True)
    }


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B as it is without a key."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.ray
def test_a_sweep_stops_the_worse_and_keeps_the_best(cluster, wandb_offline, small_dataset: str, tmp_path: Path):
    events: Events = []
    result = carry_out(plan_of(small_dataset, tmp_path, "s", trials=9, max_epochs=9, max_concurrent=2), events)
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
def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_same_figures(cluster, small_dataset: str, tmp_path: Path):
    settings: dict[str, Any] = {"trials": 3, "max_epochs": 12, "stopping": False, "max_concurrent": 2}
    events: Events = []
    killed: list[int] = []

    def kill_once(event: SweepEvent) -> None:
        events.append(event)
        known = event.all if isinstance(event, SweepState) else []
        if not killed and any(len(trial.metrics) >= 3 for trial in known):
            victim = processes(leaks.TRIAL)[0]
            killed.append(victim.pid)
            victim.kill()

    result = tune(plan_of(small_dataset, tmp_path, "killed", **settings), kill_once).as_dict()
    assert killed and result["failed"] == 0
    assert curves(tmp_path / "killed") == undisturbed(tmp_path / "killed")
    assert sum(trial.retries for trial in read_sweep(str(tmp_path / "killed")).all) == 1
    assert any("restarting from its last checkpoint" in event.text for event in events if isinstance(event, Note))


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
def test_a_trial_that_is_killed_again_and_again_is_reported_as_failed(cluster, small_dataset: str, tmp_path: Path):
    def kill_the_first(event: SweepEvent) -> None:
        trials = event.all if isinstance(event, SweepState) else []
        running = [trial.name for trial in trials if trial.state == "running"]
        if running[:1] == ["t001"]:
            for process in processes(leaks.TRIAL):
                process.kill()

    once: dict[str, Any] = {"run": {"retries": 1}, "max_concurrent": 1}
    plan = plan_of(small_dataset, tmp_path, "again", trials=2, max_epochs=30, stopping=False, **once)
    result = tune(plan, kill_the_first).as_dict()
    trials = read_sweep(str(tmp_path / "again")).trials
    assert result["failed"] == 1 and result["best"]["trial"] == "t002"
    assert trials["t001"].state == "failed" and trials["t001"].retries == 1 and trials["t001"].error
    assert trials["t002"].state == "finished"


@pytest.mark.ray
def test_the_time_budget_ends_a_sweep_which_can_go_on(
    cluster, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    late = 0.0
    monkeypatch.setattr(tuner, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))

    def let_an_hour_pass(event: SweepEvent) -> None:
        nonlocal late
        known = event.all if isinstance(event, SweepState) else []
        if any(len(trial.metrics) >= 2 for trial in known):
            late = 3600.0

    hour: dict[str, Any] = {"time_budget": 3600, "max_concurrent": 2}
    plan = plan_of(small_dataset, tmp_path, "t", trials=2, max_epochs=20, stopping=False, **hour)
    result = tune(plan, let_an_hour_pass).as_dict()
    assert (
        result["unfinished"] > 0 and result["epochs_spent"] < result["epochs_full"] and Path(result["bundle"]).exists()
    )
    spent = curves(tmp_path / "t")
    assert spent["t001"][1]
    again = carry_out(resumed_sweep("t", str(tmp_path), {"time_budget": None, "max_concurrent": 1}))
    assert again["unfinished"] == 0 and again["epochs_spent"] == again["epochs_full"] == 40
    for name, (_, f1, _) in curves(tmp_path / "t").items():
        assert f1[: len(spent[name][1])] == spent[name][1]


@pytest.mark.ray
def test_a_full_disk_ends_a_sweep_with_its_name(cluster, small_dataset: str, tmp_path: Path, monkeypatch):
    write, written = Journal.write, []

    def write_four(journal: Journal, event: dict[str, Any]) -> None:
        written.append(event)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(journal, event)

    monkeypatch.setattr(Journal, "write", write_four)
    with pytest.raises(OSError, match="No space left"):
        carry_out(plan_of(small_dataset, tmp_path, "full", trials=2, max_epochs=9, max_concurrent=1))
    monkeypatch.undo()
    assert carry_out(resumed_sweep("full", str(tmp_path), {}))["trials"] == 2


@pytest.mark.ray
def test_optuna_proposes_the_same_for_the_same_seed_and_learns(cluster, small_dataset: str, tmp_path: Path):
    proposed = []
    for name in ("one", "two"):
        carry_out(plan_of(small_dataset, tmp_path, name, sampler="tpe", trials=13, max_epochs=1, max_concurrent=1))
        proposed.append([values for values, _, _ in curves(tmp_path / name).values()])
    assert proposed[0] == proposed[1] and len(proposed[0]) == 13
    assert all(1e-3 <= values["training.lr"] <= 3e-2 for values in proposed[0])


def test_ray_never_restarts_a_trials_worker_group_itself(small_dataset: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever ends a group, preemption too, Tune restarts the trial; the old group has taken the request."""
    built: dict[str, Any] = {}

    def make_trainer(*arguments: Any, **settings: Any) -> Any:
        trainer = trainer_of_train(*arguments, **settings)
        built["run_config"] = trainer.run_config
        trainer.fit = lambda: None
        return trainer

    trainer_of_train = trainable.make_trainer
    monkeypatch.setattr(trainable, "make_trainer", make_trainer)
    monkeypatch.setattr(trainable, "driver_queue", lambda: None)
    monkeypatch.setattr(trainable, "EventSender", lambda events: None)
    settings = TrialSettings(None, None, workers=2, cpus=1, gpus=0.0, metric=Metric("keyphrase", "f1"))
    trainable.WorkerGroupRunner(settings).thread.join()
    failures = built["run_config"].failure_config
    assert (failures.max_failures, failures.max_preemption_failures) == (0, 0)


@pytest.mark.ray
def test_two_worker_trials_share_a_group_and_survive_its_loss(cluster, small_dataset: str, tmp_path: Path):
    groups: set[int] = set()
    killed: list[str] = []

    def kill_twice(event: SweepEvent) -> None:
        """A worker of the first trial, and the process that sends the requests in the second."""
        workers = processes("RayTrainWorker")
        groups.update(process.pid for process in workers)
        for trial, victims in (("t001", workers), ("t002", processes(leaks.TRIAL))):
            known = event.trials if isinstance(event, SweepState) else {}
            running = trial in known and len(known[trial].metrics) >= 3
            # A process whose title Ray is changing has none for a moment; the next event finds it.
            if running and trial not in killed and victims:
                killed.append(trial)
                victims[0].kill()

    same = ["training.lr=0.01", "training.alpha=0.5"]
    plan = plan_of(
        small_dataset, tmp_path, "two", space=same, trials=3, max_epochs=8, stopping=False,
        workers_per_trial=2, max_concurrent=1,
    )  # fmt: skip
    result = tune(plan, kill_twice).as_dict()
    assert killed == ["t001", "t002"] and result["failed"] == 0 and result["epochs_spent"] == 24
    assert len(groups) == 6  # groups of two: the one that lost a worker, the one whose requests ended, and the last
    one, two, undisturbed = curves(tmp_path / "two").values()
    assert one == two == undisturbed
    assert not any(leaks.wait_until_nothing_is_left()[0].values())


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
    recorder.budget_spent = True
    assert after.on_trial_result(None, again, {"epoch": 2, "score": 0.9}) == "STOP"


@pytest.mark.ray
def test_a_worker_group_that_nobody_uses_is_removed(cluster, monkeypatch: pytest.MonkeyPatch):
    bundles = ({"CPU": 1}, {"CPU": 1}, {"node:__internal_head__": 0.001})
    silent, beating, of_tune = groups = [ray.util.placement_group([bundle]) for bundle in bundles]
    ray.get([group.ready() for group in groups])
    watch = PlacementGroupCleaner()
    watch.heartbeats = {group.id.hex(): time.monotonic() for group in (silent, beating)}
    assert watch.clean() == []
    monkeypatch.setattr(placement_groups, "_SECONDS_TO_LIVE", 1.0)
    monkeypatch.setattr(placement_groups, "HEARTBEAT_SECONDS", 0.0)
    time.sleep(1.5)
    watch.heartbeats[beating.id.hex()] = time.monotonic()
    [line] = watch.clean()
    assert "silent" in line and "freed" in line

    def states() -> list[str]:
        table = ray.util.placement_group_table()
        return [table[group.id.hex()]["state"] for group in groups]

    assert states() == ["REMOVED", "CREATED", "CREATED"]
    watch.remove_all()
    assert states() == ["REMOVED", "REMOVED", "CREATED"]
    ray.util.remove_placement_group(of_tune)


@pytest.mark.ray
def test_sweeps_leave_nothing_behind(cluster, small_dataset: str, tmp_path: Path):
    """The short form of tests/campaigns/leaks.py, in the setting that is hardest."""
    with leaks.second_ray():
        rows = [
            leaks.sweep(small_dataset, str(tmp_path), workers, trials, max_concurrent=2)
            for workers, trials in ((1, 8), (2, 4))
        ]
    for row in rows:
        assert row["failed"] == 0 and row["stopped"] > 0 and row["longest_silence_s"] < 60
        assert not any(row["left"].values()), row


def start(small_dataset: str, where: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m jobs tune` as a process of its own."""
    sizes = [f"--set=tagger.{name}={size}" for name, size in SMALL.items()]
    command = [sys.executable, "-m", "jobs", "tune", *arguments, "--storage", str(where)]
    if "--resume" not in arguments:
        command += ["--data", small_dataset, "--trials", "5", "--max-epochs", "12", "--no-stopping", *sizes]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"WANDB_MODE": "offline"}, **pipes)


def wait_for_epochs(folder: Path, number: int) -> None:
    """Until the journal holds some epochs."""
    deadline = time.monotonic() + 120
    journal = folder / "journal.jsonl"
    while not journal.exists() or journal.read_text().count('"event": "epoch"') < number:
        assert time.monotonic() < deadline, "the sweep does not get on"
        time.sleep(0.05)


@pytest.mark.ray
def test_a_sweep_whose_driver_is_killed_again_and_again_ends_the_same(cluster, small_dataset: str, tmp_path: Path):
    draw = random.Random(0)
    kills = int(os.environ.get("TANDEM_KILLS", "2"))
    for number in range(kills):
        name = ["--resume", "k"] if number else ["--name", "k"]
        driver = start(small_dataset, tmp_path, *name)
        known = sum(len(f1) for _, f1, _ in curves(tmp_path / "k").values()) if number else 0
        wait_for_epochs(tmp_path / "k", known + draw.randint(1, 50 // kills))
        time.sleep(draw.random())
        driver.kill()
        driver.communicate()
    assert carry_out(resumed_sweep("k", str(tmp_path), {}))["epochs_spent"] == 60
    assert curves(tmp_path / "k") == undisturbed(tmp_path / "k")
    proposals = [
        line for line in (tmp_path / "k" / "journal.jsonl").read_text().splitlines() if '"event": "trial"' in line
    ]
    assert len(proposals) == 5


@pytest.mark.ray
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_leaves_a_bundle_and_the_way_to_go_on(
    small_dataset: str, tmp_path: Path, stop: signal.Signals, code: int
):
    driver = start(small_dataset, tmp_path, "--name", "c", "--max-concurrent", "1")
    wait_for_epochs(tmp_path / "c", 4)
    driver.send_signal(stop)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == code and "Traceback" not in errors, errors
    assert "tune --resume c" in errors and load_bundle(str(tmp_path / "c" / "bundle")).metrics["split"] == "valid"


@pytest.mark.ray
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
