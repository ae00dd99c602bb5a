"""The connection to a cluster: joining or starting one, and its resources."""

import os
import signal
import sys
import threading
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from distributed.cluster.address import cluster_address, require_cluster
from distributed.cluster.autoscaler import autoscaler_limits
from distributed.cluster.ray_internals import JOB_CONFIG, environment, set_train_defaults
from distributed.cluster.resources import ClusterResources, sum_resources, with_autoscaler
from model.errors import RunFailedError, UserError

if TYPE_CHECKING:
    from ray.util.queue import Queue


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

    Raises:
        UserError: RAY_ADDRESS is wrong, or Ray may not write its files.
        RunFailedError: the cluster does not answer, or Ray does not start.
    """
    set_train_defaults()
    import ray

    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces the handler
        address = cluster_address()
        if address:
            require_cluster(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except RuntimeError as error:  # it has another version of Ray or Python
                raise UserError(
                    f"RAY_ADDRESS={address}: cannot be joined: {shorten(str(error), 300)}; use the cluster's versions here, or "
                    f"unset it to use this machine alone"
                ) from error
        else:
            _start_ray(this_machine(), cpus)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return current_resources()


def _start_ray(machine: ClusterResources, cpus: int | None) -> None:
    """Start a Ray on this machine. Its processes do not inherit PYTHONWARNINGS: with `error` they would end at once."""
    import ray

    try:
        with environment({"PYTHONWARNINGS": ""}):
            ray.init(
                address="local",
                num_cpus=cpus or machine.cpus,
                num_gpus=machine.gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except Exception as error:  # Ray has many kinds
        raise _to_start_error(error) from error


def _to_start_error(error: Exception) -> UserError | RunFailedError:
    """Return why Ray does not start on this machine as an error that says what to do."""
    reason = shorten(str(error), 300)
    if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
        return UserError(
            f"Ray cannot write its files: {reason}; set RAY_TMPDIR (now {os.environ.get('RAY_TMPDIR', '/tmp')}) or HOME (now "
            f"{Path.home()}) to a folder that you may write to, RAY_TMPDIR to one with a short path"
        )
    return RunFailedError(f"Ray does not start: {reason}; its log is in ray/session_latest/logs of RAY_TMPDIR")


def current_resources() -> ClusterResources:
    """Return the resources of the cluster that this process has joined."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
    cluster = sum_resources(nodes, len(nodes), len(nodes))
    limits = autoscaler_limits() if cluster_address() else None
    return with_autoscaler(cluster, limits) if limits else cluster


def driver_queue(may_lose_items: bool = False) -> "Queue":
    """Return a queue between this process and Ray's workers; see `DriverQueue`."""
    from distributed.cluster.driver_queue import DriverQueue

    return DriverQueue(may_lose_items)
