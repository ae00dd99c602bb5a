"""Which network the workers of a group speak over."""

import os
import socket
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class Torch(TorchConfig):
    """Ray Train's process group of torch, over the network that the nodes of the cluster know each other by."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train starts a worker group with."""
        return _OverTheClustersNetwork


class _OverTheClustersNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Runs in Ray's controller, before the process group is made."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Has gloo use the interface that has this node's address in the cluster. Runs on each worker.

    By itself gloo takes the address that the host's own name resolves to. On many machines that is a loopback address, at
    which the other nodes find nobody: the group fails, or each waits for the others.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """The name of the interface with an address; None where none has it, as behind a translation of addresses."""
    import psutil  # Ray brings it along

    for name, found in psutil.net_if_addrs().items():
        for each in found:
            same = each.address.partition("%")[0] == address
            if each.family in (socket.AF_INET, socket.AF_INET6) and same:
                return name
    return None
