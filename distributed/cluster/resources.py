"""What a cluster has and may become, and how workers are placed on it: arithmetic alone."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from distributed.cluster.autoscaler import AutoscalerLimits
from model.config import RunConfig
from model.errors import UserError


@dataclass(frozen=True)
class ClusterResources:
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
    most: "ClusterResources | None" = None

    def __str__(self) -> str:
        return f"{self.cpus} CPUs, {self.gpus} GPUs on {self.nodes} node(s)"

    @property
    def at_most(self) -> "ClusterResources":
        """What a request is judged by: a node that does not run yet counts as well."""
        return self.most or self

    def worker_slots(self, cpus: int, gpus: float) -> int:
        """How many workers fit that ask for so much each; one does not reach across nodes."""
        nodes = self.each or ((self.cpus, self.gpus),)
        fit = [min(int(c / cpus), int(g / gpus + 1e-9) if gpus else int(c / cpus)) for c, g in nodes]
        return sum(_best(fit, self.staying, self.nodes))

    def describe_count(self, kind: Literal["CPU", "GPU", "node"]) -> str:
        """`3 CPUs`, or `3 CPUs, at most 16`."""
        number, most = ({"CPU": each.cpus, "GPU": each.gpus, "node": each.nodes}[kind] for each in (self, self.at_most))
        return f"{number} {kind}{'' if number == 1 else 's'}" + (f", at most {most}" if self.most else "")

    def as_dict(self) -> dict[str, Any]:
        """For `--dry-run`: what is there, and what can come."""
        return {
            name: {"cpus": found.cpus, "gpus": found.gpus, "nodes": found.nodes} if found else None
            for name, found in (("cluster", self), ("can_become", self.most))
        }


@dataclass(frozen=True)
class WorkerRequest:
    """What each of `workers` workers asks for."""

    workers: int
    cpus: int
    gpu: bool

    def __str__(self) -> str:
        return f"{self.workers} x ({self.cpus} CPU{', 1 GPU' if self.gpu else ''})"


def with_autoscaler(cluster: ClusterResources, growth: AutoscalerLimits) -> ClusterResources:
    """A cluster with what its autoscaler can make of it. Of each type, what runs already counts as come."""
    coming = [(cpus, gpus) for cpus, gpus, count in growth.types for _ in range(count)]
    staying, left = [], list(coming)
    for node in cluster.each:
        if node in left:
            left.remove(node)
        else:
            staying.append(node)
    nodes = len(staying) + growth.nodes
    most = resources_of((*staying, *coming), len(staying), nodes)
    return replace(cluster, most=most) if nodes > cluster.nodes else cluster


def resources_of(each: tuple[tuple[float, float], ...], staying: int, nodes: int) -> ClusterResources:
    cpus, gpus = (sum(_best([node[kind] for node in each], staying, nodes)) for kind in (0, 1))
    return ClusterResources(int(cpus), int(gpus), nodes, each, staying)


def _best(values: list[Any], staying: int, count: int) -> list[Any]:
    """The first `staying` of some values, and the highest of the others, `count` in all."""
    return values[:staying] + sorted(values[staying:], reverse=True)[: max(0, count - staying)]


def plan_workers(run: RunConfig, cluster: ClusterResources) -> WorkerRequest:
    """What each worker gets, by what the cluster can become.

    Raises:
        UserError: the cluster will never have it, not even for `min_workers`; the arithmetic is shown.
    """
    needed, most = run.min_workers or run.workers, cluster.at_most
    gpu = run.device == "cuda" or (run.device == "auto" and most.gpus >= needed)
    cpus = run.cpus_per_worker or (max(1, most.cpus // run.workers) if most.nodes == 1 else 1)
    share = WorkerRequest(run.workers, cpus, gpu)
    if needed * cpus > most.cpus:
        raise UserError(
            f"{needed} x ({cpus} CPU) asks for {needed * cpus} CPUs, and the cluster has {cluster.describe_count('CPU')}; "
            f"lower --workers or run.cpus_per_worker, or join a larger cluster with RAY_ADDRESS"
        )
    if gpu and needed > most.gpus:
        raise UserError(
            f"{needed} x ({cpus} CPU, 1 GPU) asks for {needed} GPUs, and the cluster has {cluster.describe_count('GPU')}; lower "
            f"--workers or use --device cpu"
        )
    places = most.worker_slots(cpus, int(gpu))
    if places < needed:
        raise UserError(
            f"{replace(share, workers=needed)} does not fit: one worker does not reach across nodes, and those of the "
            f"cluster have room for {places}; lower --workers or run.cpus_per_worker"
        )
    return share


def describe_request(share: WorkerRequest, cluster: ClusterResources) -> dict[str, Any]:
    """The request and the cluster, for `--dry-run`."""
    return {
        "asks": {"workers": share.workers, "cpus_per_worker": share.cpus, "gpus_per_worker": int(share.gpu)},
        **cluster.as_dict(),
    }
