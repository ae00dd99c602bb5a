"""The construction of Ray Train's trainer, with the network interface and the callbacks that Tandem needs."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from distributed.cluster.ray_internals import drop_unused_callbacks
from model.network.device import with_index

_SECONDS_BETWEEN_RESIZES = 30.0  # of an elastic group that could grow; each costs the work since the last checkpoint
COLLECTIVE_TIMEOUT_S = 600
GPU_BACKEND = "cpu:gloo,cuda:nccl"  # tensors on the CPU, and objects, do not pass through the GPU
Setting = TypeVar("Setting")


def make_trainer(
    train_loop: Callable[[dict[str, Setting]], object],
    settings: Mapping[str, Setting],
    *,
    name: str,
    scratch: str,
    workers: int | tuple[int, int],
    cpus: int,
    gpu: bool,
    failure_config: ray.train.FailureConfig | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    collective_timeout_s: int = COLLECTIVE_TIMEOUT_S,
) -> TorchTrainer:
    """Build a trainer that runs a function on a group of workers.

    Args:
        train_loop: the function that each worker runs, defined in an importable module.
        settings: the argument of the function.
        name: of the run.
        scratch: local folder for Ray's own files; the workers write checkpoints themselves, elsewhere.
        workers: number of workers; of an elastic group the minimum and the maximum.
        cpus: number of CPUs of each worker.
        gpu: whether each worker has a GPU.
        failure_config: how often Ray restarts the group; by default never.
        callbacks: called in Ray's controller.
        collective_timeout_s: seconds after which a collective that waits for another worker fails.
    """
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=dict(settings),
        torch_config=ClusterTorchConfig(backend=GPU_BACKEND if gpu else "gloo", timeout_s=collective_timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, "GPU": int(gpu)},
            elastic_resize_monitor_interval_s=_SECONDS_BETWEEN_RESIZES,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=failure_config or ray.train.FailureConfig(max_failures=0, max_preemption_failures=0),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    drop_unused_callbacks(trainer)
    return trainer


class ClusterTorchConfig(TorchConfig):
    """Ray Train's torch process group, over the network interface that connects the nodes of the cluster."""

    @property
    def backend_cls(self) -> "type[_ClusterTorchBackend]":
        """Return the backend that Ray Train starts a worker group with."""
        return _ClusterTorchBackend


class _WorkerGroup(Protocol):
    """Ray's worker group, as far as it is used here."""

    def execute(self, function: Callable[[], None]) -> object: ...


class _ClusterTorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: _WorkerGroup, backend_config: TorchConfig) -> None:
        """Set the interface on each worker, then create the process group. Runs in Ray's controller."""
        worker_group.execute(set_network_interface)
        super().on_start(worker_group, backend_config)


def set_network_interface() -> None:
    """Make gloo and NCCL use the interface that has this node's address in the cluster. Runs on each worker.

    By default gloo uses the address that the host name resolves to. On many machines that is a loopback address, which
    other nodes cannot reach: creating the group fails, or each worker waits for the others. NCCL takes the first interface
    that looks suitable, which may be one of a container bridge.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # without the sign: any name that begins so


def worker_device(gpu: bool) -> torch.device:
    """Return the device of this worker. Called in the thread that trains, of which Ray Train sets the current device.

    Args:
        gpu: whether the worker has a GPU; Ray shows the process of a one-worker trial no other.
    """
    return with_index(torch.device("cuda" if gpu else "cpu"))


def interface_of(address: str) -> str | None:
    """Return the name of the interface with an address; None where none has it, as behind address translation."""
    import psutil  # a dependency of Ray

    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            same = entry.address.partition("%")[0] == address
            if entry.family in (socket.AF_INET, socket.AF_INET6) and same:
                return name
    return None
