"""The placement groups of nested worker groups."""

import time

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from distributed.cluster.ray_internals import placement_groups_of_this_job
from distributed.tune.trainable import SECONDS_BETWEEN_BEATS

_SECONDS_TO_START = 150.0  # a worker group that shows no sign of life for so long never will
_SECONDS_TO_LIVE = 4 * SECONDS_BETWEEN_BEATS


class PlacementGroupCleaner:
    """The placement groups of nested worker groups: removes those that nobody uses any more.

    Ray keeps the group of a trainer that was killed until the whole job ends, and its resources with it. A group in use
    shows a beat (`distributed.tune.trial_run`); one that is silent is removed. Only groups of this job are looked at, which their
    ids tell, and of those not Tune's own, which ask for the head's resource.

    Attributes:
        beats: when each group, by id, last showed that it is in use.
    """

    def __init__(self) -> None:
        self.beats: dict[str, float] = {}
        self.seen: dict[str, float] = {}
        self.looked = 0.0

    def clean(self) -> list[str]:
        """Removes what is silent; looks every few seconds. Returns a line for each."""
        if time.monotonic() - self.looked < SECONDS_BETWEEN_BEATS:
            return []
        self.looked = time.monotonic()
        lines = []
        for name, state in self._alive().items():
            first = self.seen.setdefault(name, self.looked)
            silent = self.looked - self.beats.get(name, first)
            if silent > (_SECONDS_TO_LIVE if name in self.beats else _SECONDS_TO_START):
                _remove_group(name)
                lines.append(f"a worker group ({state.lower()}) was silent for {silent:.0f} s; its resources are freed")
        return lines

    def remove_all(self) -> None:
        """Removes what is left at the end of a stage."""
        for name in self._alive():
            _remove_group(name)

    def _alive(self) -> dict[str, str]:
        groups = placement_groups_of_this_job() or {}
        return {name: state for name, state in groups.items() if state != "REMOVED"}


def _remove_group(name: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
