"""Sweeps that lose a worker, a trial, their driver or the disk, go on, and leave nothing behind."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import leaks
import psutil
import pytest
import ray
from helpers import ROOT, SMALL
from sweeps import Events, carry_out, curves, plan_of, undisturbed

from distributed.sweep.journal import Journal
from distributed.sweep.metric import Metric
from distributed.sweep.state import SweepState, read_sweep, resumed_sweep
from distributed.train.events import Note
from distributed.tune import placement_groups, trainable
from distributed.tune.driver import tune
from distributed.tune.events import SweepEvent
from distributed.tune.placement_groups import PlacementGroupCleaner
from distributed.tune.trial_run import TrialSettings
from model.inference.bundle import load_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


def processes(kind: str) -> list[psutil.Process]:
    """The running processes of Ray actors of a kind that this process began."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if f"ray::{kind}" in leaks.title_of(each)]


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
