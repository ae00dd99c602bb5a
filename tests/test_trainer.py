"""Ray's trainer as this project builds it, and the network that its workers use."""

import socket

import psutil
import pytest
from ray.train.torch import TorchConfig

from distributed.train import trainer
from distributed.train.trainer import ClusterTorchConfig, interface_of, make_trainer, set_gloo_interface


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
    assert steps == ["set_gloo_interface", "made"]


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    set_gloo_interface()
    assert interface_of("127.0.0.1") == trainer.os.environ["GLOO_SOCKET_IFNAME"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    set_gloo_interface()
    assert trainer.os.environ["GLOO_SOCKET_IFNAME"] == "mine"


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_asks_for_what_it_is_given():
    trainer = make_trainer(
        print, {"a": 1}, name="run", scratch="/tmp/x", workers=(2, 4), cpus=3, gpu=True, collective_timeout_s=60
    )
    scaling, run = trainer.scaling_config, trainer.run_config
    assert scaling.num_workers == (2, 4) and scaling.use_gpu and scaling.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert (run.name, run.storage_path) == ("run", "/tmp/x")
    assert (trainer.backend_config.backend, trainer.backend_config.timeout_s) == ("nccl", 60)
    assert trainer.train_loop_config == {"a": 1}
    # Ray restarts nothing unless it is told to: not after a failure, and not after a preemption, which it counts apart.
    assert (run.failure_config.max_failures, run.failure_config.max_preemption_failures) == (0, 0)
    cpu = make_trainer(print, {}, name="run", scratch="/tmp/x", workers=2, cpus=1, gpu=False)
    assert cpu.backend_config.backend == "gloo" and cpu.scaling_config.num_workers == 2
    names = [type(callback).__name__ for callback in cpu._create_default_callbacks()]
    assert "BackendSetupCallback" in names and "PlacementGroupCleanerCallback" not in names
