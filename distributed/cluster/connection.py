"""The cluster: joining or starting it, what it has and can become, and whether a request can ever be granted."""

import os
import signal
import sys
import threading
from typing import Any

from distributed.cluster.autoscaler import autoscaler_limits
from distributed.cluster.ray_internals import JOB_CONFIG, set_train_defaults
from distributed.cluster.resources import ClusterResources, resources_of, with_autoscaler


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names (a submitted job finds it set); None for one of our own on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def this_machine() -> ClusterResources:
    """What a cluster of our own would have."""
    import torch

    return ClusterResources(len(os.sched_getaffinity(0)), torch.cuda.device_count(), 1)


def inspect_cluster() -> ClusterResources:
    """What the cluster has, without starting one."""
    ray = sys.modules.get("ray")
    joined = ray is not None and ray.is_initialized()
    return connect() if cluster_address() or joined else this_machine()


def force_local_cluster() -> None:
    """Has `connect` start a Ray of its own, even in a job of a cluster, whose files another Ray could not find."""
    for name in ("RAY_ADDRESS", JOB_CONFIG):
        os.environ.pop(name, None)


def connect(cpus: int | None = None) -> ClusterResources:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine, of so many CPUs, that ends with this process."""
    set_train_defaults()
    import ray

    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray puts a handler of its own in its place
        address = cluster_address()
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            here = this_machine()
            ray.init(
                address="local",
                num_cpus=cpus or here.cpus,
                num_gpus=here.gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return current_resources()


def current_resources() -> ClusterResources:
    """The cluster that this process has joined."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes)
    growth = autoscaler_limits() if cluster_address() else None
    cluster = resources_of(each, len(each), len(each))
    return with_autoscaler(cluster, growth) if growth else cluster


def driver_queue() -> Any:
    """A queue to Ray's workers that lives on this process's node: no other node's loss takes it away."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
