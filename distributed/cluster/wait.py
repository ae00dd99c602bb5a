"""Waiting for the cluster to grant the requested resources: reported to the user, and with a time limit."""

import time
from collections.abc import Callable

import ray

from distributed.cluster.connection import current_resources
from distributed.cluster.ray_internals import autoscaler_activity, placement_groups_of_this_job
from model.errors import NotGrantedError

_SECONDS_BETWEEN_CHECKS = 2.0
_SECONDS_BEFORE_NOTE = 20.0  # a group takes up to half of that to start where nothing is missing
_SECONDS_BETWEEN_NOTES = 60.0


class ResourceWait:
    """Checks whether this job's workers have been granted their resources, at the start and after nodes are lost.

    New nodes of a cloud take 5 to 10 minutes to start. Ray Train gives up earlier or never, and reports nothing meanwhile.
    """

    def __init__(self, request: str, minutes: float, on_note: Callable[[str], None]) -> None:
        """Start to wait.

        Args:
            request: the requested resources, in words.
            minutes: after which `poll` raises an error.
            on_note: called now and then with a line about the wait.
        """
        self.request, self.minutes, self.on_note = request, minutes, on_note
        self.last_check = self.waiting_since = time.monotonic()
        self.last_note: float | None = None

    def poll(self) -> None:
        """Check every few seconds; return at once in between.

        Raises:
            NotGrantedError: the wait was too long.
        """
        time_now = time.monotonic()
        if time_now - self.last_check < _SECONDS_BETWEEN_CHECKS:
            return
        self.last_check = time_now
        waited = time_now - self.waiting_since
        if _granted():
            if self.last_note is not None:
                self.on_note(f"the cluster has granted {self.request} after {waited:.0f} s")
            self.waiting_since, self.last_note = time_now, None
            return
        if waited > 60 * self.minutes:
            raise NotGrantedError(
                f"{self.request} not granted after {self.minutes:g} minutes: {_describe_cluster()}; request less, or wait "
                f"longer, with --set run.wait_minutes={2 * self.minutes:g}"
            )
        if waited > _SECONDS_BEFORE_NOTE and (
            self.last_note is None or time_now - self.last_note > _SECONDS_BETWEEN_NOTES
        ):
            self.last_note = time_now
            self.on_note(f"waiting for {self.request}: {_describe_cluster()}")


def _granted() -> bool:
    """Return whether any worker has its resources, or Ray does not show it: a training that may be running is not ended."""
    groups = placement_groups_of_this_job()
    return groups is None or "CREATED" in groups.values()


def _describe_cluster() -> str:
    cluster, free = current_resources(), ray.available_resources()
    text = f"the cluster has {cluster}, of which {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free; "
    if cluster.autoscaled is None:
        return f"{text}there is no known autoscaler that could add nodes"
    activity = autoscaler_activity(ray.get_runtime_context().gcs_address)
    return f"{text}the autoscaler may add nodes up to {cluster.autoscaled}" + (f" ({activity})" if activity else "")
