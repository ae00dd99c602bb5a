"""The interface that workers speak over: the one with the node's address in the cluster, not the host name's."""

import socket

import psutil
import pytest
from ray.train.torch import TorchConfig

from distributed.train import trainer
from distributed.train.trainer import ClusterTorchConfig, interface_of, set_gloo_interface


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
