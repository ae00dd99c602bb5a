"""Waiting for the cluster to grant what was asked: told to the user, and with an end."""

import time
from collections.abc import Callable

import ray

from distributed.cluster.connection import current_resources
from distributed.cluster.ray_internals import autoscaler_activity, placement_groups_of_this_job
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
        """Whether any worker has its place, or Ray does not show it: a training that may run is not ended."""
        groups = placement_groups_of_this_job()
        return groups is None or "CREATED" in groups.values()


def _what_there_is() -> str:
    cluster, free = current_resources(), ray.available_resources()
    text = f"the cluster has {cluster}, of which {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free; "
    if cluster.most is None:
        return f"{text}no autoscaler is known that may add nodes"
    activity = autoscaler_activity(ray.get_runtime_context().gcs_address)
    return f"{text}the autoscaler may add nodes up to {cluster.most}" + (f" ({activity})" if activity else "")
