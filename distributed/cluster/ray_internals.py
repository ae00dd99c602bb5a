"""Everything that Tandem uses of Ray beyond its public interface, each behind one function.

Nothing private is imported before it is needed. Where a name no longer exists, the user gets a warning or a less precise
message, and the command still runs. `tests/test_ray_internals.py` fails when the pinned Ray lacks one of them.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from ray.train import PreemptionInfo
    from ray.train.torch import TorchTrainer

ANSWER_S = 10.0  # the most that a head node takes to answer
HEAD_NODE_RESOURCE = "node:__internal_head__"  # a resource that the head node of every Ray has; it costs no CPU

# Environment variables that Ray reads in the process that starts a trainer, and passes to its controller and workers.
HEALTH_CHECK_INTERVAL = (
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"  # a worker's report waits for this poll; Ray's default is 2 s
)
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # of a placement group, after which Ray Train requests another
PRINT_PATCH = "RAY_TRAIN_ENABLE_PRINT_PATCH"  # prints of workers would appear twice
TRAIN_ENVIRONMENT = {
    HEALTH_CHECK_INTERVAL: "0.2",
    START_TIMEOUT: "30",  # an elastic group then requests as many workers as fit
    PRINT_PATCH: "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Environment variables that Ray Tune reads.
MAX_PENDING_TRIALS = "TUNE_MAX_PENDING_TRIALS_PG"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints failed trials to stdout, which is for results
}
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # identifies the submitted job that a driver belongs to

_CREATE_CALLBACKS = "_create_default_callbacks"
# The callbacks of Ray Train's trainer that are left out, and what happens where they stay.
_UNUSED_CALLBACKS = {
    "PlacementGroupCleanerCallback": "Ray Train starts a placement group cleaner, which may keep running after a kill",
    "DatasetsCallback": "each start of workers takes longer, since Ray Train starts a process for Ray datasets too",
}


class NodeTypeConfig(TypedDict, total=False):
    """A node type in an autoscaler's configuration."""

    resources: dict[str, float]
    max_workers: int


class AutoscalerConfig(TypedDict, total=False):
    """An autoscaler's configuration, as far as it is read here."""

    max_workers: int
    head_node_type: str
    available_node_types: dict[str, NodeTypeConfig]


@cache
def _warn(consequence: str) -> None:
    """Warn once that this Ray lacks something."""
    logging.getLogger(__name__).warning(
        "this version of Ray is not the one that Tandem was tested with: %s", consequence
    )


def set_train_defaults() -> None:
    """Set the environment variables that Ray Train reads, except those that the user has set."""
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class HeadReply(Enum):
    """What the head node of a cluster answers."""

    ALIVE = "alive"
    UNAUTHENTICATED = "unauthenticated"
    SILENT = "silent"


def find_head(address: str) -> str:
    """Return the HOST:PORT of a cluster's head node. For `auto`, use the user's token if there is one, as `ray.init` does.

    Args:
        address: HOST:PORT, or `auto` for the cluster that runs on this machine.

    Raises:
        ConnectionError: no cluster runs on this machine.
        ValueError: the address is neither.
    """
    try:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:
        _warn("a wrong RAY_ADDRESS is reported late")
        return address
    if address == "auto":
        logging.getLogger("ray").setLevel(logging.ERROR)  # no advice about tokens
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    head: str = canonicalize_bootstrap_address(address)
    return head


def ask_head(head: str) -> HeadReply:
    """Return what the head node at HOST:PORT answers, with the token of this process where it has one."""
    try:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
        from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    except ImportError:
        _warn("a wrong RAY_ADDRESS is reported late")
        return HeadReply.ALIVE
    from ray.exceptions import AuthenticationError

    try:
        channel = init_grpc_channel(head)
    except AuthenticationError:  # RAY_AUTH_MODE is token, and there is none
        return HeadReply.UNAUTHENTICATED
    try:
        NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_S)
    except AuthenticationError:
        return HeadReply.UNAUTHENTICATED
    except grpc.RpcError as error:
        refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
        return HeadReply.UNAUTHENTICATED if refused else HeadReply.SILENT
    finally:
        channel.close()
    return HeadReply.ALIVE


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


def drop_unused_callbacks(trainer: "TorchTrainer") -> None:
    """Make a trainer start without two of Ray Train's own callbacks.

    The cleaner of placement groups is a detached actor that asks the dashboard whether the trainer is alive; after a kill it
    may never end. The groups of a training are removed with its job, those of a sweep's trials by the sweep. The callback for
    Ray datasets starts an actor before the workers of each group may train, and again after each loss of a worker, even where
    the trainer has no dataset.
    """
    create: Callable[[], list[object]] | None = getattr(trainer, _CREATE_CALLBACKS, None)
    if create is None:
        for consequence in _UNUSED_CALLBACKS.values():
            _warn(consequence)
        return

    def used_callbacks() -> list[object]:
        callbacks = create()
        names = {type(callback).__name__ for callback in callbacks}
        for name in _UNUSED_CALLBACKS.keys() - names:
            _warn(_UNUSED_CALLBACKS[name])
        return [callback for callback in callbacks if type(callback).__name__ not in _UNUSED_CALLBACKS]

    setattr(trainer, _CREATE_CALLBACKS, used_callbacks)


def keep_credentials_out_of_trials() -> None:
    """Make Ray Tune start trials without the driver's AWS credentials.

    It passes them in the runtime environment of each trial, which Ray writes into a log on every node. Nodes have credentials
    of their own, as in a training without Tune.
    """
    try:
        from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

        credentials = {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
        ENV_VARS_TO_PROPAGATE.difference_update(credentials)
    except (ImportError, AttributeError):
        _warn("AWS credentials in the environment of this process may be written into Ray's logs on all nodes")


@contextmanager
def restarts_after_low_memory() -> Iterator[None]:
    """Let Ray Tune restart a trial whose process Ray ended because its node ran low on memory, as after any other death.

    Ray then raises an OutOfMemoryError, which Tune does not expect: it would end with all trials.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError

    try:
        from ray.air.execution._internal import RayActorManager

        handlers = {name: getattr(RayActorManager, name) for name in ("_actor_start_failed", "_actor_task_failed")}
    except (ImportError, AttributeError):
        _warn("a sweep ends where a node runs low on memory, and has to be resumed")
        yield
        return

    def as_death(handle: Callable[..., None]) -> Callable[..., None]:
        def handle_as_death(manager: object, *, exception: Exception, **failed: object) -> None:
            if isinstance(exception, OutOfMemoryError):
                exception = RayActorError(error_msg=str(exception))
            handle(manager, exception=exception, **failed)

        return handle_as_death

    for name, handle in handlers.items():
        setattr(RayActorManager, name, as_death(handle))
    try:
        yield
    finally:
        for name, handle in handlers.items():
            setattr(RayActorManager, name, handle)


def preemption_notice() -> "PreemptionInfo | None":
    """Return the notice that nodes of this Ray Train worker's group are about to be preempted; None where there is none.

    The public `ray.train.get_preemption_info` is a barrier over all workers; this reads what it would return.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info
    except (ImportError, AttributeError):
        _warn("no checkpoint is saved before a node is preempted")
        return None


def placement_groups_of_this_job() -> dict[str, str] | None:
    """Return the placement groups of this job's workers, as state by hexadecimal id; None where Ray does not show them.

    A group's id ends with the id of its job. Tune's own groups, which reserve the head node, are left out.
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
        _warn("placement groups cannot be listed; unused ones are kept until the job ends")
        return None


def autoscaler_activity(gcs_address: str) -> str:
    """Describe what the autoscaler is doing, as in `2 gpu_worker starting`; empty where that is unknown."""
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
    except Exception:  # the older autoscaler reports nothing here, and a status line is not worth an error
        return ""
    return ", ".join(parts)


def autoscaler_config_file(gcs_address: str) -> Path | None:
    """Return the configuration file of the autoscaler of the Ray cluster at an address. Runs on a Linux head node.

    The autoscaler's process names both on its command line. None where there is no such process.
    """
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended
            continue
        if f"--gcs-address={gcs_address}" in arguments:
            for argument in arguments:
                if argument.startswith("--autoscaling-config="):
                    return Path(argument.partition("=")[2]).expanduser()
    return None


def kuberay_autoscaler_config(name: str, namespace: str) -> AutoscalerConfig | None:
    """Return the autoscaler's configuration that KubeRay derives from a RayCluster of Kubernetes.

    Runs on the head node, which has the right to read its RayCluster only where it has an autoscaler. Return None elsewhere.
    """
    try:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
        from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
    except ImportError:
        _warn("the nodes that KubeRay's autoscaler may add are unknown")
        return None
    try:
        cluster = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    except OSError:  # no autoscaler, so no right to read; the exceptions of requests are OSErrors
        return None
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    config: AutoscalerConfig = _derive_autoscaling_config_from_ray_cr(cluster)
    return config
