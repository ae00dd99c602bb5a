"""Waiting for the cluster to grant what was asked: told to the user, and with an end."""

import time
from collections.abc import Callable

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from distributed.cluster.autoscaler import HEAD_NODE_RESOURCE
from distributed.cluster.connection import current_resources
from model.errors import NotGrantedError

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BEFORE_NOTE = 20.0  # a group takes up to half of that to start where nothing is missing
_SECONDS_BETWEEN_NOTES = 60.0


class ResourceWait:
    """Watches whether this job's workers have been granted their place, at the start and after nodes are lost.

    New nodes of a cloud take 5 to 10 minutes. Ray Train gives up earlier, or never, and says nothing meanwhile.
    """

    def __init__(self, asks: str, minutes: float, note: Callable[[str], None]) -> None:
        """Begins to wait.

        Args:
            asks: what is waited for.
            minutes: after which it ends in an error.
            note: told of what is waited for, now and then.
        """
        self.asks, self.minutes, self.note = asks, minutes, note
        self.job = ray.get_runtime_context().get_job_id()
        self.looked = self.since = time.monotonic()
        self.as_dict: float | None = None

    def poll(self) -> None:
        """Looks every few seconds.

        Raises:
            NotGrantedError: the wait was too long.
        """
        time_now = time.monotonic()
        if time_now - self.looked < _SECONDS_BETWEEN_LOOKS:
            return
        self.looked = time_now
        if self._granted():
            if self.as_dict is not None:
                self.note(f"the cluster has granted {self.asks} after {time_now - self.since:.0f} s")
            self.since, self.as_dict = time_now, None
            return
        waited = time_now - self.since
        if waited > 60 * self.minutes:
            raise NotGrantedError(
                f"{self.asks} not granted after {self.minutes:g} minutes: {_what_there_is()}; ask for less, or wait longer "
                f"with --set run.wait_minutes={2 * self.minutes:g}"
            )
        if waited > _SECONDS_BEFORE_NOTE and (self.as_dict is None or time_now - self.as_dict > _SECONDS_BETWEEN_NOTES):
            self.as_dict = time_now
            self.note(f"waiting for {self.asks}: {_what_there_is()}")

    def _granted(self) -> bool:
        """Whether any worker has its place. Ray's ids of placement groups end with that of the job."""
        return any(
            group["state"] == "CREATED"
            and name.endswith(self.job)
            and not any(HEAD_NODE_RESOURCE in b for b in group["bundles"].values())
            for name, group in ray.util.placement_group_table().items()
        )


def _what_there_is() -> str:
    cluster, free = current_resources(), ray.available_resources()
    text = f"the cluster has {cluster}, of which {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free; "
    if cluster.most is None:
        return f"{text}no autoscaler is known that may add nodes"
    return f"{text}the autoscaler may add nodes up to {cluster.most}{_under_way()}"


def _under_way() -> str:
    """What the autoscaler says that it is doing about it; empty where it does not say."""
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # the older autoscaler tells nothing there, and a line for the user is not worth an error
        return ""
    starting: dict[str, int] = {}
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] = starting.get(launch.ray_node_type_name, 0) + launch.count
    for node in status.pending_nodes:
        starting[node.ray_node_type_name] = starting.get(node.ray_node_type_name, 0) + 1
    parts = [f"{count} {name} starting" for name, count in starting.items()]
    parts += [
        f"{launch.ray_node_type_name} failed to start: {launch.details}" for launch in status.failed_launches[-1:]
    ]
    return f" ({', '.join(parts)})" if parts else ""
