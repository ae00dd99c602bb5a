"""Ray's trainer as this project builds it, and the network that its workers use."""

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train.torch import TorchConfig

from distributed.cluster.resources import ClusterResources
from distributed.sweep.metric import Metric
from distributed.train import driver, failures, trainer
from distributed.train.trainer import (
    ClusterTorchConfig,
    interface_of,
    make_trainer,
    set_network_interface,
    worker_device,
)
from distributed.tune import trainable, trial_run
from distributed.tune.trial_run import EpochResult, TrialRun, TrialSettings, TrialSpec
from model.config import make_config
from model.errors import UserError
from model.network.device import seed_dropout
from model.training.communicator import SingleProcess


def test_the_interface_with_an_address_is_found():
    loopback = interface_of("127.0.0.1")
    assert loopback is not None and loopback in psutil.net_if_stats()
    for name, found in psutil.net_if_addrs().items():
        for each in found:
            if each.family == socket.AF_INET:
                assert interface_of(each.address) == name
    assert interface_of("192.0.2.1") is None  # an address for documentation, which no machine has


def test_gloo_is_told_before_its_group_is_made(monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []

    class Workers:
        def execute(self, step, *_: object) -> None:
            steps.append(step.__name__)

    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", lambda *_: steps.append("made"))
    config = ClusterTorchConfig(backend="gloo")
    config.backend_cls().on_start(Workers(), config)
    assert steps == ["set_network_interface", "made"]


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    set_network_interface()
    assert trainer.os.environ["GLOO_SOCKET_IFNAME"] == interface_of("127.0.0.1")
    assert trainer.os.environ["NCCL_SOCKET_IFNAME"] == f"={interface_of('127.0.0.1')}"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "mine")
    set_network_interface()
    assert trainer.os.environ["GLOO_SOCKET_IFNAME"] == trainer.os.environ["NCCL_SOCKET_IFNAME"] == "mine"


def test_a_workers_device_has_the_index_of_the_thread_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert worker_device(gpu=True) == torch.device("cuda:1") and worker_device(gpu=False) == torch.device("cpu")
    made: list[torch.device] = []
    monkeypatch.setattr(trial_run, "resume_training", lambda *arguments: made.append(arguments[3]))
    (tmp_path / "sweep.json").touch()
    for gpus in (1.0, 0.2, 0.0):
        settings = TrialSettings(None, None, 2, 1, gpus, Metric.parse("valid/keyphrase_f1"))
        spec = TrialSpec("t", {"data": "d"}, str(tmp_path / "trials" / "t"))
        TrialRun(spec, None, settings, SingleProcess(), None)
    assert made == [torch.device("cuda:1"), torch.device("cuda:1"), torch.device("cpu")]


def test_a_trial_whose_node_does_not_see_the_sweep_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial_run, "resume_training", lambda *_: None)
    runner = object.__new__(trainable.InProcessRunner)
    runner.run, runner.data, runner.events = None, None, None
    runner.settings = TrialSettings(None, None, 1, 1, 0.0, Metric.parse("valid/keyphrase_f1"))
    found = runner.epoch(TrialSpec("t001", {"data": "d"}, str(tmp_path / "s" / "trials" / "t001")), 1)
    assert found.finished and str(found.error).startswith(f"{tmp_path}/s: cannot be seen by a worker on another node")


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_asks_for_what_it_is_given():
    trainer = make_trainer(
        print, {"a": 1}, name="run", scratch="/tmp/x", workers=(2, 4), cpus=3, gpu=True, collective_timeout_s=60
    )
    scaling, run = trainer.scaling_config, trainer.run_config
    assert scaling.num_workers == (2, 4) and scaling.use_gpu and scaling.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert (run.name, run.storage_path) == ("run", "/tmp/x")
    assert (trainer.backend_config.backend, trainer.backend_config.timeout_s) == ("cpu:gloo,cuda:nccl", 60)
    assert trainer.train_loop_config == {"a": 1}
    # Ray restarts nothing unless it is told to: not after a failure, and not after a preemption, which it counts apart.
    assert (run.failure_config.max_failures, run.failure_config.max_preemption_failures) == (0, 0)
    cpu = make_trainer(print, {}, name="run", scratch="/tmp/x", workers=2, cpus=1, gpu=False)
    assert cpu.backend_config.timeout_s == 600  # of trials and benchmarks as of trainings
    assert cpu.backend_config.backend == "gloo" and cpu.scaling_config.num_workers == 2
    names = [type(callback).__name__ for callback in cpu._create_default_callbacks()]
    assert "BackendSetupCallback" in names and "PlacementGroupCleanerCallback" not in names


@pytest.mark.parametrize(("gpus", "freed"), [(0.2, 2), (1.0, 0), (0.0, 0)])
def test_trials_that_share_a_gpu_give_memory_back_between_them(
    monkeypatch: pytest.MonkeyPatch, gpus: float, freed: int
):
    calls: list[None] = []

    class Run:
        def __init__(self, spec: TrialSpec, *_: object) -> None:
            self.spec = spec

        def epoch(self, number: int) -> None: ...

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    monkeypatch.setattr(trainable, "TrialRun", Run)
    runner = object.__new__(trainable.InProcessRunner)
    runner.run, runner.data, runner.events = None, None, None
    runner.settings = TrialSettings(None, None, 1, 1, gpus, Metric.parse("valid/keyphrase_f1"))
    for name in ("a", "a", "b"):
        runner.epoch(TrialSpec(name, {}, ""), 1)
    assert len(calls) == freed


def test_a_mistake_at_the_start_of_a_trial_ends_it_without_another_attempt(monkeypatch: pytest.MonkeyPatch):
    def mistaken(*_: object) -> None:
        raise UserError("d/train: is damaged")

    monkeypatch.setattr(trainable, "TrialRun", mistaken)
    runner = object.__new__(trainable.InProcessRunner)
    runner.run, runner.data, runner.events = None, None, None
    runner.settings = TrialSettings(None, None, 1, 1, 0.0, Metric.parse("valid/keyphrase_f1"))
    found = runner.epoch(TrialSpec("t001", {}, ""), 1)
    assert found == EpochResult("t001", 1, None, finished=True, error="d/train: is damaged")


def test_a_training_that_leaves_gpus_unused_says_so(
    small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[object] = []
    for name in ("inspect_cluster", "connect"):
        monkeypatch.setattr(driver, name, lambda: ClusterResources(cpus=8, gpus=2, nodes=1))
    monkeypatch.setattr(driver, "_fit", lambda *_: None)
    monkeypatch.setattr(driver, "write_result", lambda *_: SimpleNamespace(as_json=dict))
    for workers, notes in ((2, 0), (4, 1)):
        told.clear()
        run = {"workers": workers, "name": f"of-{workers}", "storage": str(tmp_path)}
        driver.train(make_config({"data": small_dataset, "run": run}), told.append)
        assert sum("use --workers 2 to train on GPUs" in str(each) for each in told) == notes


def test_requests_to_a_worker_group_do_not_pass_through_the_gpu(monkeypatch: pytest.MonkeyPatch):
    devices: list[object] = []

    def broadcast(taken: list[object], **options: object) -> None:
        devices.append(options.get("device"))
        taken[0] = trainable.EpochRequest(None, 0)

    monkeypatch.setattr(trainable.dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(trainable, "TorchCommunicator", lambda: SimpleNamespace(rank=1, size=2))
    monkeypatch.setattr(trainable.ray, "get", lambda _: None)
    settings = TrialSettings(None, None, 2, 1, 1.0, Metric.parse("valid/keyphrase_f1"))
    trainable.worker_group_loop({"settings": settings, "requests": None, "results": None})
    assert devices == [torch.device("cpu")]


def test_dropout_is_seeded_on_the_device_that_trains(monkeypatch: pytest.MonkeyPatch):
    current, seeded = [0], []

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append(current[-1]))
    seed_dropout(0, 0, 0, 0, torch.device("cuda:1"))
    seed_dropout(0, 0, 0, 0, torch.device("cpu"))
    assert seeded == [1]


def test_a_worker_that_nccl_may_have_ended_is_explained():
    died = RuntimeError("A worker health check failed.")
    died.health_check_failure = ActorDiedError()
    assert "600 s" in failures.describe({1: died}, gpu=True) and "Watchdog" in failures.describe({1: died}, gpu=True)
    assert failures.describe({1: died}, gpu=False) == "worker 1: A worker health check failed."
    assert failures.describe({1: ValueError("no")}, gpu=True) == "worker 1: no"
