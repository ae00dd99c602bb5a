"""Ray Train's trainer as this project starts it."""

import os
import socket
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.torch import TorchConfig

from distributed.cluster.ray_internals import disable_group_cleaner
from distributed.cluster.resources import WorkerRequest
from distributed.train.events import event_sender
from model.config import Config
from model.errors import RunFailedError, UserError

_SECONDS_OF_SILENCE = 600  # a collective that waits so long for another worker ends in an error
_SECONDS_BETWEEN_RESIZES = 30.0  # of an elastic group that could grow; each costs the work since the last checkpoint
_FAILED_STARTS = 30  # of a worker group; an elastic one has one for each node that is lost


class JobScopedTrainer(ray.train.torch.TorchTrainer):
    """Ray Train without its own cleaner of placement groups."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        disable_group_cleaner(self)


class WorkerLossCallback(ray.train.UserCallback):
    """Tells the driver of workers that were lost. Runs in Ray's controller."""

    def __init__(self, run: str, events: Any) -> None:
        self.run, self.speak = run, event_sender(events)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray before it begins the workers again."""
        self.speak(("lost", (reasons(worker_exceptions), failure(self.run, worker_exceptions))))


def reasons(lost: dict[int, Exception]) -> str:
    """What made workers (rank: error) fail, in a line."""
    return "; ".join(f"worker {rank}: {str(error).strip().splitlines()[0]}" for rank, error in lost.items())


def failure(run: str, lost: dict[int, Exception]) -> UserError | RunFailedError:
    """The end of a training whose workers fail: a UserError where trying again would not help."""
    for rank, error in lost.items():
        if isinstance(error, UserError):
            return error
        if isinstance(error, OSError) and error.errno is not None:
            return UserError(f"{run}: worker {rank} could not read or write: {error}; make room, then use --resume")
    return RunFailedError(f"{run}: the training failed: {reasons(lost)}; go on from its last checkpoint with --resume")


def make_trainer(
    config: Config, share: WorkerRequest, folder: str, data: Any, queues: tuple[Any, Any], scratch: str
) -> Any:
    """Ray's trainer. What Ray keeps of it goes to a scratch folder: checkpoints are kept by the workers themselves."""
    import ray.train

    from distributed.train.worker import train_loop_per_worker

    if (
        not config.run.min_workers
    ):  # how long a group of a fixed size is waited for is decided in distributed.cluster.wait
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(60 * config.run.wait_minutes + 60)
    settings = {"config": config.model_dump(), "run": folder, "threads": share.cpus}
    settings |= {"data": data, "events": queues[0], "orders": queues[1]}
    return JobScopedTrainer(
        train_loop_per_worker,
        train_loop_config=settings,
        torch_config=ClusterTorchConfig(backend="nccl" if share.gpu else "gloo", timeout_s=_SECONDS_OF_SILENCE),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(config.run.min_workers, share.workers) if config.run.min_workers else share.workers,
            use_gpu=share.gpu,
            resources_per_worker={"CPU": share.cpus, "GPU": int(share.gpu)},
            elastic_resize_monitor_interval_s=_SECONDS_BETWEEN_RESIZES,
        ),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(
                max_failures=-1 if config.run.retries else 0,  # _Patience knows better
                controller_failure_limit=_FAILED_STARTS,
            ),
            callbacks=[WorkerLossCallback(folder, queues[0])],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def to_user_error(error: Exception, folder: str) -> Exception:
    """A failed fit as an error that says what to do."""

    failures = getattr(error, "worker_failures", None)
    if failures:
        return failure(folder, failures)
    cause = getattr(error, "controller_failure", error)  # Ray's own line says no more than that there is one
    cause = getattr(cause, "cause", None) or cause
    reason = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
    return RunFailedError(f"{folder}: the training failed: {reason}; go on from its last checkpoint with --resume")


class ClusterTorchConfig(TorchConfig):
    """Ray Train's process group of torch, over the network that the nodes of the cluster know each other by."""

    @property
    def backend_cls(self) -> "type[_ClusterTorchBackend]":
        """The backend that Ray Train starts a worker group with."""
        return _ClusterTorchBackend


class _ClusterTorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Runs in Ray's controller, before the process group is made."""
        worker_group.execute(set_gloo_interface)
        super().on_start(worker_group, backend_config)


def set_gloo_interface() -> None:
    """Has gloo use the interface that has this node's address in the cluster. Runs on each worker.

    By itself gloo takes the address that the host's own name resolves to. On many machines that is a loopback address, at
    which the other nodes find nobody: the group fails, or each waits for the others.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """The name of the interface with an address; None where none has it, as behind a translation of addresses."""
    import psutil  # Ray brings it along

    for name, found in psutil.net_if_addrs().items():
        for each in found:
            same = each.address.partition("%")[0] == address
            if each.family in (socket.AF_INET, socket.AF_INET6) and same:
                return name
    return None
