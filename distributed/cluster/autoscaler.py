"""What a cluster can become: the nodes that its autoscaler may add.

Ray 2.60 has a place where the autoscaler could tell this (`get_cluster_config`), but of its own autoscalers none writes to
it. So where it is empty, the head is asked for what its autoscaler reads: a file, or the RayCluster of Kubernetes.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

HEAD_NODE_RESOURCE = "node:__internal_head__"  # a resource that the head of every Ray has; it costs no CPU
_SECONDS_TO_ANSWER = 60.0


class AutoscalerLimits(NamedTuple):
    """What an autoscaler may add.

    Attributes:
        types: CPUs, GPUs and the highest number of the nodes of each type.
        nodes: how many there may be of all types together, beside the head.
    """

    types: tuple[tuple[float, float, int], ...]
    nodes: int


def autoscaler_limits() -> AutoscalerLimits | None:
    """What the autoscaler of the cluster that this process has joined may add; None where there is none to be found."""
    import ray

    told = ray._private.state.state.get_cluster_config()
    if told is not None and told.node_group_configs:
        return _of_groups(told.node_group_configs)
    here = ray.get_runtime_context()
    address, own = here.gcs_address, here.get_node_id()
    if any(node["NodeID"] == own and HEAD_NODE_RESOURCE in node["Resources"] for node in ray.nodes()):
        config = read_on_head(address)
    else:
        ask = ray.remote(num_cpus=0, resources={HEAD_NODE_RESOURCE: 0.001}, max_retries=0)(read_on_head)
        try:
            config = ray.get(ask.remote(address), timeout=_SECONDS_TO_ANSWER)
        except ray.exceptions.RayError:  # a head that takes no tasks: only what is there is known
            return None
    return growth_of(config) if config else None


def read_on_head(address: str) -> dict[str, Any] | None:
    """The configuration of the autoscaler that serves the Ray at `address`. Runs on the head; None where there is none."""
    if "RAY_CLUSTER_NAME" in os.environ and "RAY_CLUSTER_NAMESPACE" in os.environ:  # as KubeRay sets them
        return _of_kubernetes(os.environ["RAY_CLUSTER_NAME"], os.environ["RAY_CLUSTER_NAMESPACE"])
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if f"--gcs-address={address}" in arguments:
            for argument in arguments:
                if argument.startswith("--autoscaling-config="):
                    return _of_file(Path(argument.partition("=")[2]).expanduser())
    return None


def growth_of(config: dict[str, Any]) -> AutoscalerLimits:
    """What a configuration of the autoscaler allows: `cluster.yaml` as `ray up` completes it, or KubeRay's."""
    limit = config.get("max_workers", 0)
    types = []
    for name, kind in config.get("available_node_types", {}).items():
        count = 0 if name == config.get("head_node_type") else kind.get("max_workers", limit)
        cpus, gpus = (float(kind.get("resources", {}).get(what, 0)) for what in ("CPU", "GPU"))
        if count and (cpus or gpus):  # a fixed set of machines tells no resources: they come without being asked for
            types.append((cpus, gpus, int(count)))
    return AutoscalerLimits(tuple(types), min(limit, sum(count for _, _, count in types)))


def _of_groups(groups: Any) -> AutoscalerLimits:
    """From what a hosted Ray tells; a negative count is its sign for no limit."""
    counts = [1000 if group.max_count < 0 else group.max_count for group in groups]
    types = [
        (float(group.resources.get("CPU", 0)), float(group.resources.get("GPU", 0)), count)
        for group, count in zip(groups, counts, strict=True)
    ]
    return AutoscalerLimits(tuple(types), sum(counts))


def _of_file(path: Path) -> dict[str, Any] | None:
    import yaml

    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError):  # another user's, or written at this moment
        return None
    return config if isinstance(config, dict) else None


def _of_kubernetes(name: str, namespace: str) -> dict[str, Any] | None:
    """From the RayCluster itself, which the head may read where it has an autoscaler beside it."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        cluster = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    except OSError:  # no autoscaler, so no right to read; what requests raises is one too
        return None
    return _derive_autoscaling_config_from_ray_cr(cluster) if cluster["spec"].get("enableInTreeAutoscaling") else None
