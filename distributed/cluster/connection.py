"""The connection to a cluster: joining or starting one, and its resources."""

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from distributed.cluster.autoscaler import autoscaler_limits
from distributed.cluster.ray_internals import JOB_CONFIG, set_train_defaults
from distributed.cluster.resources import ClusterResources, sum_resources, with_autoscaler

if TYPE_CHECKING:
    from ray.util.queue import Queue


def cluster_address() -> str | None:
    """Return the address in RAY_ADDRESS, which Ray sets for a submitted job; None for a cluster on this machine alone."""
    return os.environ.get("RAY_ADDRESS") or None


def this_machine() -> ClusterResources:
    """Return the resources that a cluster on this machine alone would have."""
    import torch

    return ClusterResources(len(os.sched_getaffinity(0)), torch.cuda.device_count(), 1)


def inspect_cluster() -> ClusterResources:
    """Return the resources of the cluster, without starting one where there is none."""
    ray = sys.modules.get("ray")
    joined = ray is not None and ray.is_initialized()
    return connect() if cluster_address() or joined else this_machine()


def force_local_cluster() -> None:
    """Make `connect` start a Ray of its own, even in a job of a cluster, without the job's files, which it could not find."""
    for name in ("RAY_ADDRESS", JOB_CONFIG):
        os.environ.pop(name, None)


def connect(cpus: int | None = None) -> ClusterResources:
    """Join the cluster of RAY_ADDRESS, or start one on this machine that ends with this process.

    Args:
        cpus: of a cluster on this machine; all that this process may use by default.

    Returns:
        The resources of the cluster.
    """
    set_train_defaults()
    import ray

    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces the handler
        address = cluster_address()
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            local = this_machine()
            ray.init(
                address="local",
                num_cpus=cpus or local.cpus,
                num_gpus=local.gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return current_resources()


def current_resources() -> ClusterResources:
    """Return the resources of the cluster that this process has joined."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
    cluster = sum_resources(nodes, len(nodes), len(nodes))
    limits = autoscaler_limits() if cluster_address() else None
    return with_autoscaler(cluster, limits) if limits else cluster


def driver_queue() -> "Queue":
    """Return a queue between this process and Ray's workers."""
    from distributed.cluster.driver_queue import DriverQueue

    return DriverQueue()
