"""Everything of Ray that its public interface does not promise, each behind one function.

Nothing private is imported before it is needed, and a name that has vanished costs a warning or a vaguer message, not the
command. `tests/test_ray_internals.py` fails when the pinned Ray lacks one of them.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train import PreemptionInfo
    from ray.train.torch import TorchTrainer

HEAD_NODE_RESOURCE = "node:__internal_head__"  # a resource that the head node of every Ray has; it costs no CPU

# Environment variables that Ray reads in the process that starts a trainer, and hands on to its controller and workers.
HEALTH_CHECK_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"  # a report waits for this poll: 2 s by default
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # of a placement group, after which Ray Train asks again
PRINT_PATCH = "RAY_TRAIN_ENABLE_PRINT_PATCH"  # prints of workers would appear twice
TRAIN_ENVIRONMENT = {
    HEALTH_CHECK_INTERVAL: "0.2",
    START_TIMEOUT: "30",  # an elastic group then asks for as many workers as fit
    PRINT_PATCH: "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# And those that Ray Tune reads.
MAX_PENDING_TRIALS = "TUNE_MAX_PENDING_TRIALS_PG"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints failed trials to stdout, which is for results
}
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # by which a driver knows the submitted job that it belongs to

_GROUP_CLEANER = "PlacementGroupCleanerCallback"
_CREATE_CALLBACKS = "_create_default_callbacks"


@cache
def _warn(lost: str) -> None:
    """Warn once that this Ray lacks something."""
    logging.getLogger(__name__).warning("this version of Ray is not the one that Tandem was tested with: %s", lost)


def set_train_defaults() -> None:
    """Set what Ray Train reads from the environment of this process, where the user has not."""
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def disable_group_cleaner(trainer: "TorchTrainer") -> None:
    """Make a trainer start without Ray's own cleaner of placement groups.

    The cleaner is a detached actor that asks the dashboard whether the trainer is alive; after a kill it may never end. The
    groups of a training end with its job, those of a sweep's trials are removed by the sweep.
    """
    create: Callable[[], list[object]] | None = getattr(trainer, _CREATE_CALLBACKS, None)
    if create is None:
        _warn("Ray Train starts a cleaner of placement groups, which may stay after a kill")
        return

    def without_cleaner() -> list[object]:
        callbacks = create()
        kept = [callback for callback in callbacks if type(callback).__name__ != _GROUP_CLEANER]
        if len(kept) == len(callbacks):
            _warn("the cleaner of placement groups that Ray Train starts is not found, and may stay after a kill")
        return kept

    setattr(trainer, _CREATE_CALLBACKS, without_cleaner)


def preemption_notice() -> "PreemptionInfo | None":
    """Return what this worker of Ray Train knows of nodes about to be taken away; None where there is no notice.

    The public `ray.train.get_preemption_info` is a barrier over all workers; this reads what it would return.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info
    except (ImportError, AttributeError):
        _warn("no checkpoint is saved when a node is about to be taken away")
        return None


def placement_groups_of_this_job() -> dict[str, str] | None:
    """Return the placement groups of this job's workers, as state by hexadecimal id; None where Ray does not show them.

    A group belongs to the job whose id its own id ends with. Tune's own groups ask for the head node and are left out.
    """
    import ray

    try:
        job = ray.get_runtime_context().get_job_id()
        return {
            name: group["state"]
            for name, group in ray.util.placement_group_table().items()
            if name.endswith(job) and not any(HEAD_NODE_RESOURCE in bundle for bundle in group["bundles"].values())
        }
    except (AttributeError, KeyError):
        _warn("placement groups cannot be listed; those that nobody uses stay until the job ends")
        return None


def autoscaler_activity(gcs_address: str) -> str:
    """Describe what the autoscaler is doing, as in `2 gpu_worker starting`; empty where it does not say."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(gcs_address)
        starting: dict[str, int] = {}
        for launch in status.pending_launches:
            starting[launch.ray_node_type_name] = starting.get(launch.ray_node_type_name, 0) + launch.count
        for node in status.pending_nodes:
            starting[node.ray_node_type_name] = starting.get(node.ray_node_type_name, 0) + 1
        parts = [f"{count} {name} starting" for name, count in starting.items()]
        failed = status.failed_launches[-1:]
        parts += [f"{launch.ray_node_type_name} failed to start: {launch.details}" for launch in failed]
    except Exception:  # the older autoscaler reports nothing there, and a line for the user is not worth an error
        return ""
    return ", ".join(parts)


def autoscaler_config_file(gcs_address: str) -> Path | None:
    """Return the configuration file of the autoscaler that serves the Ray at an address. Runs on a Linux head node.

    The autoscaler's process names both on its command line. None where there is no such process.
    """
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if f"--gcs-address={gcs_address}" in arguments:
            for argument in arguments:
                if argument.startswith("--autoscaling-config="):
                    return Path(argument.partition("=")[2]).expanduser()
    return None


def kuberay_autoscaler_config(name: str, namespace: str) -> dict[str, Any] | None:
    """Return the autoscaler's configuration that follows from a RayCluster of Kubernetes.

    Runs on the head, which may read its RayCluster where it has an autoscaler beside it; None elsewhere.
    """
    try:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
        from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
    except ImportError:
        _warn("it is not known which nodes the autoscaler of KubeRay may add")
        return None
    try:
        cluster = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    except OSError:  # no autoscaler, so no right to read; what requests raises is an OSError too
        return None
    return _derive_autoscaling_config_from_ray_cr(cluster) if cluster["spec"].get("enableInTreeAutoscaling") else None
