"""The nodes that a cluster's autoscaler may add, from what the autoscaler reads: a file, or KubeRay's RayCluster."""

import os
from typing import Any, NamedTuple

from distributed.cluster.ray_internals import (
    HEAD_NODE_RESOURCE,
    autoscaler_config_file,
    kuberay_autoscaler_config,
)

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
    """Return what the autoscaler of the cluster that this process has joined may add; None where none is found."""
    import ray

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
    """Return the configuration of the autoscaler that serves the Ray at `address`; None where there is none.

    Runs on the head node.
    """
    if "RAY_CLUSTER_NAME" in os.environ and "RAY_CLUSTER_NAMESPACE" in os.environ:  # as KubeRay sets them
        return kuberay_autoscaler_config(os.environ["RAY_CLUSTER_NAME"], os.environ["RAY_CLUSTER_NAMESPACE"])
    path = autoscaler_config_file(address)
    if path is None:
        return None
    import yaml

    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError):  # another user's, or being written at this moment
        return None
    return config if isinstance(config, dict) else None


def growth_of(config: dict[str, Any]) -> AutoscalerLimits:
    """Return what an autoscaler's configuration allows: `cluster.yaml` as `ray up` completes it, or KubeRay's."""
    limit = config.get("max_workers", 0)
    types = []
    for name, kind in config.get("available_node_types", {}).items():
        count = 0 if name == config.get("head_node_type") else kind.get("max_workers", limit)
        cpus, gpus = (float(kind.get("resources", {}).get(what, 0)) for what in ("CPU", "GPU"))
        if count and (cpus or gpus):  # a fixed set of machines tells no resources: they come without being asked for
            types.append((cpus, gpus, int(count)))
    return AutoscalerLimits(tuple(types), min(limit, sum(count for _, _, count in types)))
