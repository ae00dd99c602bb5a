"""Events from the workers of a training to its driver, through a queue on the driver's node."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from model.errors import RunFailedError, UserError
from model.training.loop import Metrics
from model.training.progress import Progress

if TYPE_CHECKING:
    from ray.util.queue import Queue

_MAX_UNSENT = 1000
_SECONDS_TO_FLUSH = 10.0


@dataclass(frozen=True)
class TrainingStarted:
    """The workers have started, or restarted, from the given step of the epoch after `epoch`."""

    epoch: int
    step: int


@dataclass(frozen=True)
class EpochEnd:
    """An epoch has been trained, evaluated and saved."""

    metrics: Metrics


@dataclass(frozen=True)
class WorkersLost:
    """Workers have failed, and Ray is about to restart the group.

    Attributes:
        reason: one line for the user.
        error: that ends the training where it is not restarted.
    """

    reason: str
    error: UserError | RunFailedError


@dataclass(frozen=True)
class Note:
    """A line for the user."""

    text: str


Event = Progress | TrainingStarted | EpochEnd | WorkersLost | Note
EventHandler = Callable[[Event], None]


def send(events: "Queue", event: object) -> None:
    """Send an event, and wait until it is in the queue; do nothing after the driver has ended."""
    with suppress(RayError):
        events.put_nowait(event)


class EventSender:
    """Sends events from a background thread, so that a training neither waits for its driver nor fails with it.

    Events are dropped after the driver has ended, and while 1000 are unsent.
    """

    def __init__(self, events: "Queue") -> None:
        self._events = events
        self._unsent: queue.Queue[object] = queue.Queue(_MAX_UNSENT)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def send(self, event: object) -> None:
        """Send an event, in the order of the calls; return at once."""
        with suppress(queue.Full):
            self._unsent.put_nowait(event)

    def close(self) -> None:
        """Wait, for at most 10 s, until all sent events are in the queue."""
        self.send(None)
        self._thread.join(_SECONDS_TO_FLUSH)

    def _run(self) -> None:
        while (event := self._unsent.get()) is not None:
            send(self._events, event)


def drain(events: "Queue", handle: Callable[[Any], None]) -> None:
    """Handle all events that have arrived."""
    waiting = events.qsize()
    for event in events.get_nowait_batch(waiting) if waiting else []:
        handle(event)


def close_queues(*queues: "Queue") -> None:
    """Shut queues down."""
    for each in queues:
        each.shutdown(force=True)  # a process that ends by itself would be started again
