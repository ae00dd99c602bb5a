"""The cluster: joining or starting it, what it has and can become, and whether a request can ever be granted."""

import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distributed.cluster.autoscaler import Growth, find_growth
from model import storage
from model.config import Config, RunConfig
from model.data.batching import smallest_batch
from model.data.dataset import Dataset
from model.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What a cluster has in all, the number of its nodes, and the CPUs and GPUs of each where they are known.

    Attributes:
        each: in what a cluster can become, of more nodes than there can be at once.
        staying: how many of these are there in any case, the first ones; of the others the best count.
        most: what an autoscaler can make of it; None where there is none.
    """

    cpus: int
    gpus: int
    nodes: int
    each: tuple[tuple[float, float], ...] = ()
    staying: int = 0
    most: "Resources | None" = None

    def __str__(self) -> str:
        return f"{self.cpus} CPUs, {self.gpus} GPUs on {self.nodes} node(s)"

    @property
    def at_most(self) -> "Resources":
        """What a request is judged by: a node that does not run yet counts as well."""
        return self.most or self

    def places(self, cpus: int, gpus: float) -> int:
        """How many workers fit that ask for so much each; one does not reach across nodes."""
        nodes = self.each or ((self.cpus, self.gpus),)
        fit = [min(int(c / cpus), int(g / gpus + 1e-9) if gpus else int(c / cpus)) for c, g in nodes]
        return sum(_best(fit, self.staying, self.nodes))

    def has(self, kind: Literal["CPU", "GPU", "node"]) -> str:
        """`3 CPUs`, or `3 CPUs, at most 16`."""
        number, most = ({"CPU": each.cpus, "GPU": each.gpus, "node": each.nodes}[kind] for each in (self, self.at_most))
        return f"{number} {kind}{'' if number == 1 else 's'}" + (f", at most {most}" if self.most else "")

    def told(self) -> dict[str, Any]:
        """For `--dry-run`: what is there, and what can come."""
        return {
            name: {"cpus": found.cpus, "gpus": found.gpus, "nodes": found.nodes} if found else None
            for name, found in (("cluster", self), ("can_become", self.most))
        }


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


def stay_on_this_machine() -> None:
    """Has `connect` start a Ray of its own, even in a job of a cluster, whose files another Ray could not find."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        os.environ.pop(name, None)


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
    return now()


def now() -> Resources:
    """The cluster that this process has joined."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes)
    growth = find_growth() if cluster_address() else None
    cluster = _of(each, len(each), len(each))
    return grown(cluster, growth) if growth else cluster


def grown(cluster: Resources, growth: Growth) -> Resources:
    """A cluster with what its autoscaler can make of it. Of each type, what runs already counts as come."""
    coming = [(cpus, gpus) for cpus, gpus, count in growth.types for _ in range(count)]
    staying, left = [], list(coming)
    for node in cluster.each:
        if node in left:
            left.remove(node)
        else:
            staying.append(node)
    nodes = len(staying) + growth.nodes
    most = _of((*staying, *coming), len(staying), nodes)
    return replace(cluster, most=most) if nodes > cluster.nodes else cluster


def _of(each: tuple[tuple[float, float], ...], staying: int, nodes: int) -> Resources:
    cpus, gpus = (sum(_best([node[kind] for node in each], staying, nodes)) for kind in (0, 1))
    return Resources(int(cpus), int(gpus), nodes, each, staying)


def _best(values: list[Any], staying: int, count: int) -> list[Any]:
    """The first `staying` of some values, and the highest of the others, `count` in all."""
    return values[:staying] + sorted(values[staying:], reverse=True)[: max(0, count - staying)]


def new_queue() -> Any:
    """A queue to Ray's workers that lives on this process's node: no other node's loss takes it away."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def share_out(run: RunConfig, cluster: Resources) -> Share:
    """What each worker gets, by what the cluster can become.

    Raises:
        UserError: the cluster will never have it, not even for `min_workers`; the arithmetic is shown.
    """
    needed, most = run.min_workers or run.workers, cluster.at_most
    gpu = run.device == "cuda" or (run.device == "auto" and most.gpus >= needed)
    cpus = run.cpus_per_worker or (max(1, most.cpus // run.workers) if most.nodes == 1 else 1)
    share = Share(run.workers, cpus, gpu)
    if needed * cpus > most.cpus:
        raise UserError(
            f"{needed} x ({cpus} CPU) asks for {needed * cpus} CPUs, and the cluster has {cluster.has('CPU')}; "
            f"lower --workers or run.cpus_per_worker, or join a larger cluster with RAY_ADDRESS"
        )
    if gpu and needed > most.gpus:
        raise UserError(
            f"{needed} x ({cpus} CPU, 1 GPU) asks for {needed} GPUs, and the cluster has {cluster.has('GPU')}; lower "
            f"--workers or use --device cpu"
        )
    places = most.places(cpus, int(gpu))
    if places < needed:
        raise UserError(
            f"{replace(share, workers=needed)} does not fit: one worker does not reach across nodes, and those of the "
            f"cluster have room for {places}; lower --workers or run.cpus_per_worker"
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
    several = cluster.at_most.nodes > 1
    if several and not storage.is_remote(location) and not _is_mounted(Path(storage.absolute(location))):
        raise UserError(
            f"storage {location}: is a local path, and the cluster has {cluster.has('node')}; give {option} a path on a "
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
        **cluster.told(),
    }
