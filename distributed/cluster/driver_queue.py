"""A queue between the driver and Ray's workers whose own process imports nothing of what it holds."""

import pickle
from typing import Generic, TypeVar

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Item = TypeVar("Item")


class DriverQueue(Queue, Generic[Item]):
    """A queue on the node of the process that creates it: it survives the loss of any other node.

    Items travel as bytes. The queue's process would otherwise import the modules of their classes, torch with them, before
    it could hold the first one.
    """

    def __init__(self, may_lose_items: bool = False) -> None:
        """
        Args:
            may_lose_items: start the queue's process again, with an empty queue, where Ray ends it because the node runs low
                on memory; otherwise all who use the queue get an error.
        """
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        restarts = -1 if may_lose_items else 0
        super().__init__(
            actor_options={
                "num_cpus": 0,
                "scheduling_strategy": this_node,
                "max_restarts": restarts,
                "max_task_retries": restarts,
            }
        )

    def put(self, item: Item, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; see Ray's `Queue.put`."""
        super().put(pickle.dumps(item), block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        """Remove the first item and return it; see Ray's `Queue.get`."""
        item: Item = pickle.loads(super().get(block, timeout))
        return item

    def get_nowait_batch(self, num_items: int) -> list[Item]:
        """Remove the first items and return them; see Ray's `Queue.get_nowait_batch`."""
        return [pickle.loads(item) for item in super().get_nowait_batch(num_items)]
