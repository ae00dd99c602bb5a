"""What a cluster has and can grow to, and how workers are placed on it: arithmetic alone."""

from dataclasses import dataclass, replace
from typing import Literal

from distributed.cluster.autoscaler import AutoscalerLimits
from model.config import RunConfig
from model.errors import UserError

Node = tuple[float, float]  # its CPUs and GPUs


@dataclass(frozen=True)
class ClusterResources:
    """The resources of a cluster.

    Attributes:
        cpus: of all nodes together.
        gpus: of all nodes together.
        nodes: number of nodes.
        node_resources: of each node, where they are known. Of an autoscaled cluster they may list more nodes than there can
            be at once.
        fixed_nodes: how many of `node_resources`, from the first, are always there; of the others the largest are counted.
        autoscaled: what the autoscaler can make of this cluster; None where there is none.
    """

    cpus: int
    gpus: int
    nodes: int
    node_resources: tuple[Node, ...] = ()
    fixed_nodes: int = 0
    autoscaled: "ClusterResources | None" = None

    def __str__(self) -> str:
        return f"{self.cpus} CPUs, {self.gpus} GPUs on {self.nodes} node(s)"

    @property
    def maximum(self) -> "ClusterResources":
        """The most that this cluster can have, nodes that the autoscaler has yet to start included."""
        return self.autoscaled or self

    def worker_slots(self, cpus: int, gpus: float) -> int:
        """Return how many workers of the given CPUs and GPUs fit; a worker does not span nodes."""
        nodes = self.node_resources or ((self.cpus, self.gpus),)
        slots = [min(int(c / cpus), _gpu_slots(g, gpus) if gpus else int(c / cpus)) for c, g in nodes]
        return int(_sum_largest(slots, self.fixed_nodes, self.nodes))

    def describe_count(self, kind: Literal["CPU", "GPU", "node"]) -> str:
        """Return `3 CPUs`, or `3 CPUs, at most 16` where there is an autoscaler."""
        number, maximum = (
            {"CPU": resources.cpus, "GPU": resources.gpus, "node": resources.nodes}[kind]
            for resources in (self, self.maximum)
        )
        return f"{number} {kind}{'' if number == 1 else 's'}" + (f", at most {maximum}" if self.autoscaled else "")

    def as_dict(self) -> dict[str, dict[str, int] | None]:
        """Return what the cluster has and what it can become, for `--dry-run`."""
        return {
            name: {"cpus": resources.cpus, "gpus": resources.gpus, "nodes": resources.nodes} if resources else None
            for name, resources in (("cluster", self), ("can_become", self.autoscaled))
        }


@dataclass(frozen=True)
class WorkerRequest:
    """The resources that a training requests.

    Attributes:
        workers: number of workers.
        cpus: CPUs of each worker.
        gpu: whether each worker has a GPU.
        note: a line for the user where GPUs are left unused; None otherwise.
    """

    workers: int
    cpus: int
    gpu: bool
    note: str | None = None

    def __str__(self) -> str:
        return f"{self.workers} x ({self.cpus} CPU{', 1 GPU' if self.gpu else ''})"


def with_autoscaler(cluster: ClusterResources, limits: AutoscalerLimits) -> ClusterResources:
    """Return a cluster together with what its autoscaler can make of it.

    A running node of one of the autoscaler's types counts against the limit of that type; any other node is fixed.
    """
    scalable = [(cpus, gpus) for cpus, gpus, count in limits.node_types for _ in range(count)]
    fixed, not_running = [], list(scalable)
    for node in cluster.node_resources:
        if node in not_running:
            not_running.remove(node)
        else:
            fixed.append(node)
    nodes = len(fixed) + limits.max_nodes
    autoscaled = sum_resources((*fixed, *scalable), len(fixed), nodes)
    return replace(cluster, autoscaled=autoscaled) if nodes > cluster.nodes else cluster


def sum_resources(nodes: tuple[Node, ...], fixed: int, count: int) -> ClusterResources:
    """Return the resources of a cluster of `count` nodes: the first `fixed` of `nodes`, and the largest of the others."""
    cpus, gpus = (int(_sum_largest([node[kind] for node in nodes], fixed, count)) for kind in (0, 1))
    return ClusterResources(cpus, gpus, count, nodes, fixed)


def _gpu_slots(gpus: float, share: float) -> int:
    """Return how many workers with a share of a GPU, or a whole number of GPUs, fit on a node; no share spans two GPUs."""
    per_gpu = int(1 / share + 1e-9)
    return int(gpus) * per_gpu if per_gpu else int(gpus / share + 1e-9)


def _sum_largest(values: list[float] | list[int], fixed: int, count: int) -> float:
    """Return the sum of the first `fixed` values and the largest of the others, `count` in all."""
    return sum(values[:fixed]) + sum(sorted(values[fixed:], reverse=True)[: max(0, count - fixed)])


def plan_workers(run: RunConfig, cluster: ClusterResources) -> WorkerRequest:
    """Return what each worker of a run requests, given what the cluster can grow to.

    Raises:
        UserError: the cluster can never grant it, not even for `min_workers`; the message shows the arithmetic.
    """
    needed, maximum = run.min_workers or run.workers, cluster.maximum
    gpu = run.device == "cuda" or (run.device == "auto" and maximum.gpus >= needed)
    cpus = run.cpus_per_worker or (max(1, maximum.cpus // run.workers) if maximum.nodes == 1 else 1)
    request = WorkerRequest(run.workers, cpus, gpu, _unused_gpus(run, needed, gpu, cluster))
    if needed * cpus > maximum.cpus:
        raise UserError(
            f"{needed} x ({cpus} CPU) needs {needed * cpus} CPUs, and the cluster has {cluster.describe_count('CPU')}; "
            f"lower --workers or run.cpus_per_worker, or join a larger cluster with RAY_ADDRESS"
        )
    if gpu and needed > maximum.gpus:
        raise UserError(
            f"{needed} x ({cpus} CPU, 1 GPU) needs {needed} GPUs, and the cluster has {cluster.describe_count('GPU')}; lower "
            f"--workers or use --device cpu"
        )
    slots = maximum.worker_slots(cpus, int(gpu))
    if slots < needed:
        raise UserError(
            f"{replace(request, workers=needed)} does not fit: a worker cannot span nodes, and the nodes of the cluster have "
            f"room for {slots}; lower --workers or run.cpus_per_worker"
        )
    return request


def _unused_gpus(run: RunConfig, needed: int, gpu: bool, cluster: ClusterResources) -> str | None:
    if run.device != "auto" or gpu or not cluster.maximum.gpus:
        return None
    return (
        f"training on the CPU: {needed} workers would need a GPU each, and the cluster has "
        f"{cluster.describe_count('GPU')}; use --workers {cluster.maximum.gpus} to train on GPUs, or --device cpu"
    )


def describe_request(request: WorkerRequest, cluster: ClusterResources) -> dict[str, dict[str, int] | str | None]:
    """Return the request and the cluster, for `--dry-run`."""
    return {
        "asks": {"workers": request.workers, "cpus_per_worker": request.cpus, "gpus_per_worker": int(request.gpu)},
        **cluster.as_dict(),
        "note": request.note,
    }
