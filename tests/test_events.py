"""Events to the driver: in order, never waited for, and dropped once nobody takes them."""

import os
import signal
import threading
import time
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError

from distributed.cluster.connection import driver_queue
from distributed.train import events
from distributed.train.events import EventSender, Note, close_queues, drain, send


class Queue:
    """Ray's queue, as far as events use it."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.free = threading.Event()
        self.free.set()
        self.alive = True

    def put_nowait(self, item: Any) -> None:
        self.free.wait(30)
        if not self.alive:
            raise ActorDiedError
        self.items.append(item)

    def qsize(self) -> int:
        return len(self.items)

    def get_nowait_batch(self, count: int) -> list[Any]:
        taken, self.items = self.items[:count], self.items[count:]
        return taken

    def shutdown(self, force: bool = False) -> None:
        self.alive = False


def test_events_arrive_in_order_and_before_the_sender_is_closed():
    queue, handled = Queue(), []
    sender = EventSender(queue)  # type: ignore[arg-type]
    for number in range(100):
        sender.send(Note(str(number)))
    sender.close()
    drain(queue, handled.append)  # type: ignore[arg-type]
    assert handled == [Note(str(number)) for number in range(100)] and not queue.items
    drain(queue, handled.append)  # type: ignore[arg-type]
    assert len(handled) == 100


def test_a_slow_driver_is_not_waited_for_and_costs_no_memory():
    queue = Queue()
    queue.free.clear()
    sender = EventSender(queue)  # type: ignore[arg-type]
    began = time.monotonic()
    for number in range(3 * events._MAX_UNSENT):
        sender.send(number)
    assert time.monotonic() - began < 5
    queue.free.set()
    while len(queue.items) < events._MAX_UNSENT:
        time.sleep(0.01)
    sender.close()
    assert queue.items[: events._MAX_UNSENT] == list(range(events._MAX_UNSENT))
    assert queue.items == sorted(queue.items) and len(queue.items) <= events._MAX_UNSENT + 1


def test_a_training_does_not_end_with_its_driver():
    queue = Queue()
    close_queues(queue)  # type: ignore[arg-type]
    send(queue, Note("lost"))  # type: ignore[arg-type]
    sender = EventSender(queue)  # type: ignore[arg-type]
    sender.send(Note("lost"))
    sender.close()
    assert not queue.items and not sender._thread.is_alive()


@pytest.mark.ray
def test_a_queues_process_holds_bytes_and_need_not_import_what_they_are(cluster: Any):
    queue = driver_queue()
    send(queue, Note("one"))
    send(queue, Note("two"))
    queue.put(Note("three"))
    assert all(isinstance(item, bytes) for item in ray.get(queue.actor.get_nowait_batch.remote(2)))
    assert queue.get(timeout=10) == Note("three")
    sender, handled = EventSender(queue), []
    sender.send(Note("four"))
    sender.close()
    drain(ray.get(ray.put(queue)), handled.append)  # as a worker has it
    assert handled == [Note("four")]
    close_queues(queue)


@pytest.mark.ray
def test_a_queue_of_events_outlives_its_process(cluster: Any):
    queue = driver_queue(may_lose_items=True)
    send(queue, Note("lost"))
    os.kill(ray.get(queue.actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    send(queue, Note("one"))
    handled: list[Note] = []
    drain(queue, handled.append)
    assert handled == [Note("one")]
    close_queues(queue)
    strict = driver_queue()
    os.kill(ray.get(strict.actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    with pytest.raises(RayActorError):
        strict.put(Note("two"))
