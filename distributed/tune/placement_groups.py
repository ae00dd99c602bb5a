"""The placement groups of nested worker groups."""

import time

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from distributed.cluster.ray_internals import placement_groups_of_this_job
from distributed.tune.trainable import HEARTBEAT_SECONDS

_SECONDS_TO_START = 150.0  # a worker group without a heartbeat for so long never starts
_SECONDS_TO_LIVE = 4 * HEARTBEAT_SECONDS


class PlacementGroupCleaner:
    """Removes placement groups of nested worker groups that are no longer used.

    Ray keeps the group of a trainer that was killed until the whole job ends, and its resources with it. A group in use
    sends a heartbeat (`distributed.tune.trainable`); one that is silent is removed. Only groups of this job count, and of
    those not Tune's own.

    Attributes:
        heartbeats: when each group, by id, last sent one.
        first_seen: when each group was first listed.
    """

    def __init__(self) -> None:
        self.heartbeats: dict[str, float] = {}
        self.first_seen: dict[str, float] = {}
        self.last_check = 0.0

    def clean(self) -> list[str]:
        """Remove silent groups; check every few seconds. Return a line for each."""
        if time.monotonic() - self.last_check < HEARTBEAT_SECONDS:
            return []
        self.last_check = time.monotonic()
        lines = []
        for name, state in self._alive().items():
            first = self.first_seen.setdefault(name, self.last_check)
            silent = self.last_check - self.heartbeats.get(name, first)
            if silent > (_SECONDS_TO_LIVE if name in self.heartbeats else _SECONDS_TO_START):
                _remove_group(name)
                lines.append(f"a worker group ({state.lower()}) was silent for {silent:.0f} s; its resources are freed")
        return lines

    def remove_all(self) -> None:
        """Remove the groups that are left when Tune has ended."""
        for name in self._alive():
            _remove_group(name)

    def _alive(self) -> dict[str, str]:
        groups = placement_groups_of_this_job() or {}
        return {name: state for name, state in groups.items() if state != "REMOVED"}


def _remove_group(name: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
