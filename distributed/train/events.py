"""Events from the workers of a training to its driver."""

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from model.training.loop import Progress

EventHandler = Callable[[str, Any], None]


# ("progress", Progress), ("epoch", figures), ("note", text), ("begun", (epoch, step)), ("lost", (reasons, error))
Event = tuple[str, Any]


def event_sender(events: Any) -> Callable[[Event], None]:
    """Sends events to the driver; silent once the driver is gone, for the training does not depend on being watched."""

    def speak(event: Event) -> None:
        kind, value = event
        try:
            events.put_nowait((kind, value._asdict() if isinstance(value, Progress) else value))
        except RayError:
            return

    return speak


def send_event(events: Any, kind: str, value: Any) -> None:
    """Sends an event to the driver without waiting for it; a trial does not depend on being watched."""
    events.actor.put_nowait.remote((kind, value))


def close_queues(*queues: Any) -> None:
    for queue in queues:
        queue.shutdown()


def drain(events: Any, on_event: EventHandler) -> None:
    waiting = events.qsize()
    for kind, value in events.get_nowait_batch(waiting) if waiting else []:
        on_event(kind, value)
