"""The nodes that a cluster's autoscaler may add, from its configuration: a file, or KubeRay's RayCluster."""

import os
from typing import NamedTuple

from distributed.cluster.ray_internals import (
    HEAD_NODE_RESOURCE,
    AutoscalerConfig,
    autoscaler_config_file,
    kuberay_autoscaler_config,
)

_SECONDS_TO_ANSWER = 60.0


class AutoscalerLimits(NamedTuple):
    """What an autoscaler may add.

    Attributes:
        node_types: CPUs, GPUs and the largest number of nodes of each type.
        max_nodes: the largest number of nodes of all types together, not counting the head.
    """

    node_types: tuple[tuple[float, float, int], ...]
    max_nodes: int


def autoscaler_limits() -> AutoscalerLimits | None:
    """Return the limits of the autoscaler of the cluster that this process has joined; None where none is found."""
    import ray

    context = ray.get_runtime_context()
    address, this_node = context.gcs_address, context.get_node_id()
    if any(node["NodeID"] == this_node and HEAD_NODE_RESOURCE in node["Resources"] for node in ray.nodes()):
        config = read_on_head(address)
    else:
        on_head = ray.remote(num_cpus=0, resources={HEAD_NODE_RESOURCE: 0.001}, max_retries=0)(read_on_head)
        try:
            config = ray.get(on_head.remote(address), timeout=_SECONDS_TO_ANSWER)
        except ray.exceptions.RayError:  # the head takes no tasks: only the running nodes are known
            return None
    return parse_autoscaler_config(config) if config else None


def read_on_head(address: str) -> AutoscalerConfig | None:
    """Read the configuration of the autoscaler of the Ray cluster at `address`; return None where there is none.

    Runs on the head node.
    """
    if "RAY_CLUSTER_NAME" in os.environ and "RAY_CLUSTER_NAMESPACE" in os.environ:  # as KubeRay sets them
        return kuberay_autoscaler_config(os.environ["RAY_CLUSTER_NAME"], os.environ["RAY_CLUSTER_NAMESPACE"])
    path = autoscaler_config_file(address)
    if path is None:
        return None
    import yaml

    try:
        config: AutoscalerConfig | None = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError):  # another user's file, or one that is being written
        return None
    return config if isinstance(config, dict) else None


def parse_autoscaler_config(config: AutoscalerConfig) -> AutoscalerLimits:
    """Return the limits that a configuration sets: `cluster.yaml` as `ray up` completes it, or KubeRay's."""
    limit = config.get("max_workers", 0)
    types = []
    for name, node_type in config.get("available_node_types", {}).items():
        count = 0 if name == config.get("head_node_type") else node_type.get("max_workers", limit)
        cpus, gpus = (float(node_type.get("resources", {}).get(resource, 0)) for resource in ("CPU", "GPU"))
        if count and (cpus or gpus):  # a fixed set of machines states no resources, and is not scaled
            types.append((cpus, gpus, int(count)))
    return AutoscalerLimits(tuple(types), min(limit, sum(count for _, _, count in types)))
