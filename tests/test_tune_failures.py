"""Sweeps that lose a worker, a trial, their driver or the disk, go on, and leave nothing behind."""

import errno
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import leaks
import psutil
import pytest
import ray
from sweeps import Events, begin_sweep, carry_out, curves, plan_of, start_sweep, undisturbed, wait_for_epochs

from distributed.sweep.journal import Journal
from distributed.sweep.metric import Metric
from distributed.sweep.state import SweepState, read_sweep, resumed_sweep
from distributed.train.events import Note
from distributed.tune import placement_groups, recorder, trainable, tuner
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


def test_the_reason_is_told_why_a_trial_could_not_be_started(tmp_path: Path):
    missing = ModuleNotFoundError("No module named 'distributed'")
    cause = ray.exceptions.RayTaskError(
        "Trial.__init__", f"traceback of the worker\nModuleNotFoundError: {missing}", missing
    )
    file = tmp_path / "error.pkl"
    file.write_bytes(ray.cloudpickle.dumps(ray.exceptions.ActorDiedError(cause)))
    reason = recorder._reason(SimpleNamespace(pickled_error_file=str(file)))
    assert reason == f"ModuleNotFoundError: {missing}"


@pytest.mark.ray
@pytest.mark.long
def test_a_killed_trial_goes_on_from_its_checkpoint_and_fails_when_killed_again(
    cluster, small_dataset: str, tmp_path: Path
):
    events: Events = []
    killed: list[str] = []

    def kill(event: SweepEvent) -> None:
        """The process of the first trial whenever it runs, that of the second once."""
        events.append(event)
        running = [trial for trial in event.all if trial.state == "running"] if isinstance(event, SweepState) else []
        for trial in running[:1]:
            if trial.name == "t001" or (trial.name == "t002" not in killed and len(trial.metrics) >= 3):
                for process in processes(leaks.TRIAL):
                    killed.append(trial.name)
                    process.kill()

    once: dict[str, Any] = {"run": {"retries": 1}, "max_concurrent": 1}
    plan = plan_of(small_dataset, tmp_path, "killed", trials=3, max_epochs=12, stopping=False, **once)
    result = tune(plan, kill).as_dict()
    first, second, third = read_sweep(str(tmp_path / "killed")).all
    assert result["failed"] == 1 and result["best"]["trial"] != "t001"
    assert first.state == "failed" and first.retries == 1 and first.error
    assert "t002" in killed and (second.retries, third.retries) == (1, 0)
    went_on, whole = curves(tmp_path / "killed"), undisturbed(tmp_path / "killed")
    assert all(went_on[name] == whole[name] for name in ("t002", "t003"))
    assert any("restarting from its last checkpoint" in event.text for event in events if isinstance(event, Note))


@pytest.mark.ray
@pytest.mark.long
def test_a_full_disk_and_spent_budgets_end_a_sweep_which_can_go_on(
    cluster, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, written, late = Journal.write, [], 0.0

    def write_four(journal: Journal, event: dict[str, Any]) -> None:
        written.append(event)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(journal, event)

    def let_an_hour_pass(event: SweepEvent) -> None:
        nonlocal late
        known = event.all if isinstance(event, SweepState) else []
        if any(len(trial.metrics) >= 2 for trial in known):
            late = 3600.0

    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(Journal, "write", write_four)
        carry_out(plan_of(small_dataset, tmp_path, "t", trials=2, max_epochs=20, stopping=False, max_concurrent=1))
    monkeypatch.setattr(tuner, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late))
    hour = resumed_sweep("t", str(tmp_path), {"time_budget": 3600, "max_concurrent": 2})
    result = tune(hour, let_an_hour_pass).as_dict()
    assert result["trials"] == 2 and result["unfinished"] > 0 and Path(result["bundle"]).exists()
    assert result["epochs_spent"] < result["epochs_full"]
    spent = curves(tmp_path / "t")
    assert spent["t001"][1]
    assert result["stopped_by"] == "time_budget"
    poor = carry_out(resumed_sweep("t", str(tmp_path), {"time_budget": None, "budget": "0.00001cpuh"}))
    assert poor["stopped_by"] == "budget" and curves(tmp_path / "t") == spent  # no epoch more
    again = carry_out(resumed_sweep("t", str(tmp_path), {"budget": None, "max_concurrent": 1}))
    assert "stopped_by" not in again and again["spent"]["cpu_hours"] > poor["spent"]["cpu_hours"] > 0
    assert again["unfinished"] == 0 and again["epochs_spent"] == again["epochs_full"] == 40
    for name, (_, f1, _) in curves(tmp_path / "t").items():
        assert f1[: len(spent[name][1])] == spent[name][1]


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
@pytest.mark.long
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
@pytest.mark.long
def test_a_sweep_whose_driver_is_killed_and_stopped_again_and_again_ends_the_same(
    cluster, small_dataset: str, tmp_path: Path
):
    """Some drivers have a Ray of their own, which ends with them, the others join a cluster, which does not."""
    draw, folder = random.Random(0), tmp_path / "k"
    here = ray.get_runtime_context().gcs_address
    begin = [
        *begin_sweep(small_dataset, "k"),
        "--trials",
        "5",
        "--max-epochs",
        "15",
        "--no-stopping",
        "--max-concurrent",
        "2",
    ]
    for number in range(2):
        driver = start_sweep(tmp_path, *begin, address=here if number else "")
        wait_for_epochs(folder, draw.randint(1, 10))
        time.sleep(draw.random() / 4)
        driver.kill()
        driver.communicate()
        begin = ["--resume", "k", "--max-concurrent", "1"]
    for stop, code, address in ((signal.SIGINT, 130, ""), (signal.SIGTERM, 143, here)):
        driver = start_sweep(tmp_path, *begin, address=address)
        wait_for_epochs(folder, 4)
        driver.send_signal(stop)
        _, errors = driver.communicate(timeout=60)
        assert driver.returncode == code and "Traceback" not in errors, errors
        assert "tune --resume k" in errors and load_bundle(str(folder / "bundle")).metrics["split"] == "valid"
        (folder / "bundle").rename(tmp_path / f"bundle{code}")
    assert carry_out(resumed_sweep("k", str(tmp_path), {"max_concurrent": 1}))["epochs_spent"] == 75
    assert curves(folder) == undisturbed(folder)
    proposals = [line for line in (folder / "journal.jsonl").read_text().splitlines() if '"event": "trial"' in line]
    assert len(proposals) == 5
