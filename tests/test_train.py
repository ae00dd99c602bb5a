"""Ray Train and W&B: workers that agree, runs that go on, figures that are kept."""

import json
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from encoders import tiny_encoder
from helpers import SMALL, alone, best_weights_together, has_weights, refused, title_of
from safetensors.torch import load_file

from distributed.cluster.preflight import check_storage
from distributed.cluster.ray_internals import START_TIMEOUT
from distributed.cluster.resources import ClusterResources, WorkerRequest, describe_request, plan_workers
from distributed.train import driver, trainer
from distributed.train.driver import train
from distributed.train.events import EpochEnd, Event, Note, TrainingStarted, WorkersLost
from distributed.train.failures import NoProgressLimit, describe, to_user_error
from distributed.train.result import TrainResult, read_result
from distributed.train.runs import at_work, new_run, resumed_run, run_folder
from distributed.train.tracking import WandbRun
from model import storage
from model.config import Config, RunConfig, make_config
from model.data.dataset import Dataset
from model.errors import RunFailedError, UserError
from model.inference.bundle import load_bundle
from model.presets import preset_values
from model.training.evaluation import evaluate
from model.training.metrics import summarize

pytestmark = pytest.mark.filterwarnings("ignore")


def config_of(
    data: str, storage: Path, name: str, /, tagger: dict | None = None, run: dict | None = None, **training
) -> Config:
    tree = {
        "data": data,
        "tagger": SMALL | (tagger or {}),
        "training": {"epochs": 3, "lr": 0.01, "patience": 0} | training,
        "run": {"name": name, "storage": str(storage), "cpus_per_worker": 1} | (run or {}),
    }
    return new_run(make_config(tree))


# As the preset of this name, but for its sizes.
BEST = {**preset_values("best")["tagger"], **SMALL, "word_feature_dim": 4, "rare_word_dropout": 0.0}


def quiet(event: Event) -> None:
    """Takes events and shows nothing."""


def train_workers() -> list[psutil.Process]:
    """The processes of the training's workers."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "ray::RayTrainWorker" in title_of(process)]


ENCODER = {
    "cell": "none",
    "embedding_dim": 24,
    "word_feature_dim": 8,
    "crf": True,
    "decoding": "spans",
    "pooling": "mean",
}


@pytest.mark.parametrize(
    ("tagger", "sync"),
    [pytest.param({}, "auto", id="record", marks=pytest.mark.long), pytest.param(ENCODER, "ddp", id="encoder")],
)
def test_two_processes_end_with_the_weights_of_one(
    small_dataset: str, tmp_path: Path, tagger: dict[str, Any], sync: str
):
    """Without Ray, whose workers end with the bits of such processes, as the test of three of them shows."""
    fields = {"dropout": 0.0, **tagger}
    if tagger is ENCODER:
        fields["encoder"] = tiny_encoder(tmp_path / "bert", "bert", dropout=False)
    config = config_of(small_dataset, tmp_path, "two", fields, batch=33, gradient_sync=sync)
    weights, one = best_weights_together(config, 2, tmp_path / "two"), alone(config)
    best = one.history[one.best]
    assert best["epoch"] == 3  # the weights are those of the last epoch
    for name, weight in one.tagger.state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-5), name
    one.tagger.load_state_dict(weights)
    f1 = summarize(evaluate(one.tagger, one.valid, one.device).counts)["keyphrase_f1"]
    assert f1 == pytest.approx(best["valid/keyphrase_f1"], abs=0.02)


@pytest.mark.ray
@pytest.mark.long
def test_two_workers_end_with_the_weights_of_one(cluster, small_dataset: str, tmp_path: Path):
    events: list[Event] = []
    config = config_of(small_dataset, tmp_path, "two", BEST | {"dropout": 0.0}, {"workers": 2}, batch=33, data="stream")
    two, one = train(config, events.append), alone(config)
    weights = load_file(Path(two.bundle) / "weights.safetensors")
    best = one.history[one.best]
    assert two.best_epoch == best["epoch"] == 3  # the bundle's weights are those of the last epoch
    for name, weight in one.tagger.state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-5), name
    assert two.valid["keyphrase_f1"] == pytest.approx(best["valid/keyphrase_f1"], abs=0.02)
    _keeps_its_figures_best_epoch_and_configuration(config, two, events)


def _keeps_its_figures_best_epoch_and_configuration(config: Config, result: TrainResult, events: list[Event]) -> None:
    """What a finished run of three epochs and two workers leaves in its folder, and what may be changed of it."""
    storage, name, folder = config.run.storage, str(config.run.name), Path(run_folder(config))
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event.metrics for event in events if isinstance(event, EpochEnd)] == history and len(history) == 3
    best = max(history, key=lambda metrics: metrics["valid/keyphrase_f1"])
    assert result.best_epoch == best["epoch"] and result.valid["keyphrase_f1"] == best["valid/keyphrase_f1"]
    shown = result.as_json()
    assert result.valid["keyword_f1"] == shown["keyword_f1"] == shown["valid"]["keyword_f1"] and result.epochs == 3
    config = config.model_copy(update={"data_digest": Dataset(config.data).digest})  # set when a run starts
    assert load_bundle(result.bundle).config == config
    assert json.loads((folder / "config.json").read_text()) == config.model_dump()
    assert json.loads((folder / "result.json").read_text()) == shown and read_result(str(folder)) == result
    kept = {path.name for path in folder.glob("checkpoint_epoch_*")}
    assert kept == {"checkpoint_epoch_0002", "checkpoint_epoch_0003"}
    assert (folder / f"best_epoch_{result.best_epoch:04d}.safetensors").exists()
    refused(lambda: config_of(config.data, Path(storage), name), "exists", f"--resume {name}")
    refused(lambda: resumed_run(name, storage, {"training": {"lr": 0.5}}), "training.lr", "change the numbers")
    refused(lambda: resumed_run(name, storage, {"data": "other"}), config.data)
    refused(lambda: resumed_run(name, storage, {"trainig": {"lr": 0.5}}), "trainig is unknown")
    assert resumed_run(name, storage, {"run": {"workers": 1}}).run.workers == 1


@pytest.mark.ray
def test_three_workers_of_which_one_is_killed_end_with_the_bits_of_three_that_are_not(
    cluster, small_dataset: str, tmp_path: Path
):
    # Of two workers' gradients, the order in which they are added would not show.
    settings: dict[str, Any] = {"tagger": {"dropout": 0.1}, "run": {"workers": 3}, "epochs": 8}
    killed: list[int] = []
    notes: list[str] = []

    def kill_once(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        if isinstance(event, EpochEnd) and event.metrics["epoch"] == 3 and not killed:
            killed.append(train_workers()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    config = config_of(small_dataset, tmp_path, "disturbed", **settings)
    disturbed = train(config, kill_once)
    whole = best_weights_together(config, 3, tmp_path / "whole")
    assert killed and disturbed.epochs == 8
    assert notes[-2].startswith("lost worker ")
    assert re.match(r"resuming from checkpoint_epoch_0\d+ with 3 worker", notes[-1])
    assert has_weights(disturbed.bundle, whole)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "disturbed" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 9))
    one = summarize(alone(config).counts)  # each with its own dropout
    assert one["keyphrase_f1_low"] <= disturbed.valid["keyphrase_f1"] <= one["keyphrase_f1_high"]
    assert one["keyphrase_f1"] > 0.3


@pytest.mark.ray
@pytest.mark.long
def test_a_worker_that_hangs_is_given_up(cluster, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer, "make_trainer", partial(trainer.make_trainer, collective_timeout_s=20))
    hung: list[psutil.Process] = []
    notes: list[str] = []

    def stop_once(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        if isinstance(event, EpochEnd) and event.metrics["epoch"] == 2 and not hung:
            hung.append(train_workers()[-1])
            hung[0].suspend()

    config = config_of(small_dataset, tmp_path, "hung", {"dropout": 0.1}, {"workers": 2}, epochs=4)
    try:
        found = train(config, stop_once)
        assert not hung[0].is_running()
    finally:
        for process in hung:
            if process.is_running():
                process.kill()
    assert has_weights(found.bundle, best_weights_together(config, 2, tmp_path / "whole"))
    assert any(note.startswith("lost worker ") for note in notes) and notes[-1].startswith("resuming from checkpoint_")


def test_losses_are_borne_as_long_as_the_training_gets_further():
    shown: list[Event] = []
    limit = NoProgressLimit(2, shown.append)
    lost = WorkersLost("worker 1: gone", RunFailedError("the end"))
    for position in ((0, 0), (0, 20), (1, 0), (1, 0), (3, 0)):
        limit.handle(TrainingStarted(*position))
        limit.handle(lost)
    assert shown == [Note("lost worker 1: gone")] * 5
    early: list[Event] = []
    limit_of_new = NoProgressLimit(2, early.append)
    for event in (TrainingStarted(0, 0), lost, TrainingStarted(0, 0), lost, TrainingStarted(0, 5)):
        limit_of_new.handle(event)
    again = Note("starting again from the beginning: nothing was saved yet")
    assert early == [Note("lost worker 1: gone"), again, Note("lost worker 1: gone")]
    limit.handle(TrainingStarted(3, 0))
    limit.handle(lost)
    limit.handle(TrainingStarted(3, 0))
    with pytest.raises(RunFailedError, match="the end"):
        limit.handle(lost)
    with pytest.raises(UserError, match="full"):
        NoProgressLimit(2, quiet).handle(WorkersLost("worker 0: full", UserError("full")))


def asked_of_ray(monkeypatch: pytest.MonkeyPatch, **run: Any) -> dict[str, Any]:
    """What a run asks of Ray: how its trainer is built, and the start timeout while it runs; nothing is trained."""
    seen: dict[str, Any] = {}

    def fit() -> Any:
        seen["start_timeout"] = float(os.environ[START_TIMEOUT])
        return SimpleNamespace(return_value=None)

    def make_trainer(*_: Any, **settings: Any) -> Any:
        seen.update(settings)
        return SimpleNamespace(fit=fit)

    monkeypatch.setattr("distributed.train.trainer.make_trainer", make_trainer)
    monkeypatch.setattr("distributed.train.shared_data.SharedData.load", lambda *_, **__: None)
    monkeypatch.setattr("distributed.cluster.wait.ResourceWait", lambda *_: SimpleNamespace(poll=lambda: None))
    monkeypatch.setattr("ray.put", lambda _: None)
    queue = SimpleNamespace(qsize=lambda: 0, shutdown=lambda **_: None)
    monkeypatch.setattr(driver, "driver_queue", lambda **_: queue)
    config = make_config({"data": "d", "run": {"name": "r"} | run})
    driver._fit(config, WorkerRequest(config.run.workers, 1, False), "r", quiet)
    return seen


@pytest.mark.parametrize(("retries", "restarts"), [(0, 0), (3, -1)])
def test_without_retries_a_preemption_restarts_nothing_either(
    monkeypatch: pytest.MonkeyPatch, retries: int, restarts: int
):
    """Ray counts workers that a preemption takes away apart; with retries, NoProgressLimit decides."""
    failures = asked_of_ray(monkeypatch, retries=retries)["failure_config"]
    assert (failures.max_failures, failures.max_preemption_failures) == (restarts, restarts)


def test_the_start_timeout_of_a_run_ends_with_it(monkeypatch: pytest.MonkeyPatch):
    """An elastic run after one of fixed size, in the same process, does not wait for its full size as long as that."""
    monkeypatch.setenv(START_TIMEOUT, "17")
    fixed = asked_of_ray(monkeypatch, workers=2, wait_minutes=30)
    assert (fixed["workers"], fixed["start_timeout"]) == (2, 1860)  # ResourceWait gives up before
    assert os.environ[START_TIMEOUT] == "17"
    elastic = asked_of_ray(monkeypatch, workers=4, min_workers=2)
    assert (elastic["workers"], elastic["start_timeout"]) == ((2, 4), 30)
    assert os.environ[START_TIMEOUT] == "17"


@pytest.mark.ray
@pytest.mark.long
def test_a_run_that_may_not_be_retried_fails_with_the_way_to_go_on(cluster, small_dataset: str, tmp_path: Path):
    def kill(event: Event) -> None:
        for process in train_workers() if isinstance(event, EpochEnd) else []:
            process.kill()

    config = config_of(small_dataset, tmp_path, "lost", run={"retries": 0}, epochs=2000)
    with pytest.raises(RunFailedError, match=r"lost: the training failed.*--resume"):
        train(config, kill)
    assert not (tmp_path / "lost" / "bundle").exists() and not (tmp_path / "lost" / "result.json").exists()


def test_resources_are_shared_out_with_the_arithmetic_shown():
    here = ClusterResources(cpus=8, gpus=2, nodes=1)
    assert str(plan_workers(RunConfig(workers=2), here)) == "2 x (4 CPU, 1 GPU)"
    fallback = plan_workers(RunConfig(workers=4), here)
    assert str(fallback) == "4 x (2 CPU)"  # not every worker would have a GPU
    assert fallback.note and "4 workers" in fallback.note and "has 2 GPUs; use --workers 2" in fallback.note
    assert describe_request(fallback, here)["note"] == fallback.note
    for unsurprising in (RunConfig(workers=2), RunConfig(workers=4, device="cpu")):
        assert plan_workers(unsurprising, here).note is None
    assert plan_workers(RunConfig(workers=4), ClusterResources(8, 0, 1)).note is None
    assert str(plan_workers(RunConfig(workers=4, cpus_per_worker=1), here)) == "4 x (1 CPU)"
    refused(lambda: plan_workers(RunConfig(workers=9), here), "9 CPUs", "cluster has 8")
    refused(lambda: plan_workers(RunConfig(workers=4, cpus_per_worker=3), here), "12 CPUs", "cluster has 8")
    refused(lambda: plan_workers(RunConfig(workers=3, device="cuda"), here), "3 GPUs", "cluster has 2")


def test_storage_is_checked_before_anything_is_held(tmp_path: Path):
    check_storage(str(tmp_path / "runs"), ClusterResources(2, 0, 1))
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").write_text("x")
    refused(
        lambda: check_storage(str(tmp_path / "file" / "runs"), ClusterResources(2, 0, 1)),
        "cannot be written",
        "--storage",
    )
    refused(lambda: check_storage("/nowhere/runs", ClusterResources(2, 0, 3)), "local path", "3 nodes", "s3://")


def test_an_error_without_a_message_is_told_by_its_kind():
    assert describe({0: MemoryError()}, gpu=False) == "worker 0: MemoryError"
    assert "training failed: MemoryError;" in str(to_user_error(MemoryError(), "memory://r/t", gpu=False))


def test_two_trainings_never_share_a_folder(small_dataset: str, tmp_path: Path):
    def new(**fields: Any) -> Config:
        return new_run(make_config({"data": small_dataset, "run": {"storage": str(tmp_path), **fields}}))

    assert new().run.name != new().run.name
    config = new(name="r")
    other = config.model_copy(update={"training": config.training.model_copy(update={"lr": 0.5})})
    with at_work(config):
        refused(lambda: at_work(config).__enter__(), "another process is at work", "--name")
        storage.write(storage.join(run_folder(config), "config.json"), config.model_dump_json().encode())
    refused(lambda: at_work(other).__enter__(), "another run of this name", "--name")
    with at_work(resumed_run("r", str(tmp_path), {})):
        pass


def test_a_resumed_training_has_the_workers_that_are_asked_for(small_dataset: str, tmp_path: Path):
    config = make_config({"data": small_dataset, "run": {"workers": 8, "min_workers": 2}})
    storage.write(str(tmp_path / "r" / "config.json"), config.model_dump_json().encode())

    def resumed(**run: int) -> tuple[int | None, int]:
        found = resumed_run("r", str(tmp_path), {"run": run}).run
        return found.min_workers, found.workers

    assert resumed() == (2, 8) and resumed(workers=1) == (None, 1) and resumed(workers=4, min_workers=3) == (3, 4)
    assert resumed(min_workers=3) == (3, 8)
    refused(lambda: resumed(min_workers=9), "min_workers is 9, more than workers, which is 8")


RESULT = {"name": "t", "keyphrase_f1": 0.5}


def logged(folder: Path) -> str:
    """All that W&B wrote of the run, as text."""
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    return file.read_bytes().decode("latin-1")


def track(tmp_path: Path, bundle: str) -> WandbRun:
    import wandb

    wandb.teardown()  # it keeps the settings that it has read for an earlier test
    config = make_config({"data": "d", "run": {"name": "t", "storage": str(tmp_path), "wandb_project": "mine"}})
    with WandbRun(config, str(tmp_path / "t")) as tracker:
        tracker.epoch({"epoch": 1, "valid/keyphrase_f1": 0.25, "train_sentence_precision": 0.5})
        tracker.finish(RESULT | {"bundle": bundle})
    return tracker


def test_without_a_key_the_run_is_kept_offline(small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert track(tmp_path, small_bundle).mode == "offline"
    text = logged(tmp_path / "t")
    for part in ("mine", "valid/keyphrase_f1", "train_sentence_precision", "keyphrase_f1", "t-bundle", "training"):
        assert part in text


def test_a_training_goes_on_when_wandb_has_ended(
    small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    import wandb

    def log(*_: object, **__: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(wandb.Run, "log", log)
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(tmp_path, small_bundle)
    assert "W&B does not log any more (Connection lost)" in capfd.readouterr().err
    wandb.finish()


@pytest.mark.parametrize("call", ["summary", "finish"])
def test_a_run_is_finished_when_wandb_ends_after_the_last_epoch(
    call: str, small_bundle: str, capsys: pytest.CaptureFixture[str]
):
    def lost(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("Connection lost")

    summary = SimpleNamespace(update=lost if call == "summary" else lambda _: None)
    tracker = object.__new__(WandbRun)
    tracker.run = SimpleNamespace(summary=summary, log_artifact=lambda _: None, finish=lost)  # type: ignore[assignment]
    tracker.finish(RESULT | {"bundle": small_bundle})
    said = capsys.readouterr().err
    assert said == "warning: W&B does not log any more (Connection lost); the training goes on without it\n"


def test_wandb_mode_disabled_is_honoured(small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert track(tmp_path, small_bundle).mode == "disabled"
    assert not (tmp_path / "t" / "wandb").exists()


def test_an_unreachable_server_neither_blocks_nor_ends_a_run(
    small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WANDB_MODE", " ")  # as not set
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("distributed.train.tracking.CONNECT_TIMEOUT_S", 3)
    began = time.monotonic()
    assert track(tmp_path, small_bundle).mode == "offline"
    assert time.monotonic() - began < 60 and "cannot be reached" in capfd.readouterr().err
    assert "valid/keyphrase_f1" in logged(tmp_path / "t")


def test_a_server_that_goes_away_does_not_hold_the_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr("distributed.train.tracking.FINISH_TIMEOUT_S", 0.1)
    released = threading.Event()

    class Hanging:
        class settings:  # noqa: N801
            sync_dir = "wandb/run-x"

        def finish(self, **_: Any) -> None:
            released.wait(30)

    tracker = object.__new__(WandbRun)
    tracker.run = Hanging()
    tracker._end(exit_code=0)
    released.set()
    assert "wandb sync wandb/run-x" in capsys.readouterr().err
