"""The cluster: joining or starting it, what it has, and whether a request can ever be granted."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import storage
from model.batch import smallest_batch
from model.config import Config, RunConfig
from model.dataset import Dataset
from model.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all, the number of its nodes, and the CPUs and GPUs of each where they are known."""

    cpus: int
    gpus: int
    nodes: int
    each: tuple[tuple[float, float], ...] = ()

    def places(self, cpus: int, gpus: float) -> int:
        """How many workers fit that ask for so much each; one does not reach across nodes."""
        nodes = self.each or ((self.cpus, self.gpus),)
        return sum(min(int(c / cpus), int(g / gpus + 1e-9) if gpus else int(c / cpus)) for c, g in nodes)


@dataclass(frozen=True)
class Share:
    """What each of `workers` workers asks for."""

    workers: int
    cpus: int
    gpu: bool

    def __str__(self) -> str:
        return f"{self.workers} x ({self.cpus} CPU{', 1 GPU' if self.gpu else ''})"


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names (a submitted job finds it set); None for one of our own on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def this_machine() -> Resources:
    """What a cluster of our own would have."""
    import torch

    return Resources(len(os.sched_getaffinity(0)), torch.cuda.device_count(), 1)


def look() -> Resources:
    """What the cluster has, without starting one."""
    ray = sys.modules.get("ray")
    joined = ray is not None and ray.is_initialized()
    return connect() if cluster_address() or joined else this_machine()


def set_defaults_of_ray() -> None:
    """Settings of Ray that are read from the environment of the process that starts a trainer."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for this poll: 2 s by default
    # How long to wait for a placement group before asking again: an elastic one then asks for as many as there are.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def connect(cpus: int | None = None) -> Resources:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine, of so many CPUs, that ends with this process."""
    set_defaults_of_ray()
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
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = tuple((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
    return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), len(nodes), each)


def new_queue() -> Any:
    """A queue to Ray's workers that lives on this process's node: no other node's loss takes it away."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def share_out(run: RunConfig, cluster: Resources) -> Share:
    """What each worker gets.

    Raises:
        UserError: the cluster does not have it, not even for `min_workers`; the arithmetic is shown.
    """
    needed = run.min_workers or run.workers
    gpu = run.device == "cuda" or (run.device == "auto" and cluster.gpus >= needed)
    cpus = run.cpus_per_worker or (max(1, cluster.cpus // run.workers) if cluster.nodes == 1 else 1)
    share = Share(run.workers, cpus, gpu)
    if needed * cpus > cluster.cpus:
        raise UserError(
            f"{needed} x ({cpus} CPU) asks for {needed * cpus} CPUs, and the cluster has {cluster.cpus}; "
            f"lower --workers or run.cpus_per_worker, or join a larger cluster with RAY_ADDRESS"
        )
    if gpu and needed > cluster.gpus:
        raise UserError(
            f"{needed} x ({cpus} CPU, 1 GPU) asks for {needed} GPUs, and the cluster has {cluster.gpus}; lower --workers or "
            f"use --device cpu"
        )
    return share


def check_data(config: Config, dataset: Dataset) -> None:
    """Raises UserError where the dataset lacks a split, or does not go with the configuration."""
    dataset.require("train")
    dataset.require("valid")
    smallest = smallest_batch(dataset.rows("train"), config.training.batch)
    if config.run.workers > smallest:
        raise UserError(
            f"{config.run.workers} workers, but the smallest batch has {smallest} texts ({dataset.rows('train')} texts in "
            f"batches of {config.training.batch}); lower --workers or raise --batch"
        )
    size = (dataset.info.get("vectors") or {}).get("size", config.tagger.embedding)
    if config.tagger.vectors and size != config.tagger.embedding:
        raise UserError(
            f"{config.data}: its word vectors have {size} values, and tagger.embedding is {config.tagger.embedding}; "
            f"use --set tagger.embedding={size}, or --set tagger.vectors=false to do without them"
        )


def check_storage(location: str, cluster: Resources, option: str = "--storage") -> None:
    """Raises UserError where files cannot be written, or where the other nodes would not see them."""
    if cluster.nodes > 1 and not storage.is_remote(location) and not _is_mounted(Path(storage.absolute(location))):
        raise UserError(
            f"storage {location}: is a local path, and the cluster has {cluster.nodes} nodes; give {option} a path on a "
            f"file system that every node mounts, or a URI such as s3://bucket/runs"
        )
    probe = storage.join(location, ".writable")
    try:
        storage.write(probe, b"probe")
        storage.remove(probe)
    except OSError as error:
        raise UserError(f"storage {location}: cannot be written: {error}; choose another with {option}") from None


def _is_mounted(path: Path) -> bool:
    """Whether a path lies on a file system of its own, as network file systems do."""
    return any(parent != Path("/") and parent.is_mount() for parent in (path, *path.parents))


def describe(share: Share, cluster: Resources) -> dict[str, Any]:
    """The request and the cluster, for `--dry-run`."""
    return {
        "asks": {"workers": share.workers, "cpus_per_worker": share.cpus, "gpus_per_worker": int(share.gpu)},
        "cluster": {"cpus": cluster.cpus, "gpus": cluster.gpus, "nodes": cluster.nodes},
    }
