"""The bytes that collectives send, counted where they are called.

The network interface does not show them on GPUs: NCCL uses NVLink, PCIe or shared memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


class SentBytes:
    """The bytes that this process has sent."""

    total = 0.0

    def add_all_reduce(self, tensor: torch.Tensor) -> None:
        """Count an all-reduce, of which a ring algorithm sends 2 (N - 1) / N times the tensor."""
        size = dist.get_world_size()
        self.total += 2 * (size - 1) / size * tensor.nbytes

    def add_all_gather(self, tensor: torch.Tensor) -> None:
        """Count an all-gather, in which this process's tensor goes to N - 1 others."""
        self.total += (dist.get_world_size() - 1) * tensor.nbytes


@contextmanager
def count_sent_bytes() -> Iterator[SentBytes]:
    """Count what `torch.distributed.all_reduce` and `all_gather` send in this context."""
    sent, all_reduce, all_gather = SentBytes(), dist.all_reduce, dist.all_gather

    def counted_all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> object:
        sent.add_all_reduce(tensor)
        return all_reduce(tensor, *args, **kwargs)

    def counted_all_gather(received: list[torch.Tensor], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> object:
        sent.add_all_gather(tensor)
        return all_gather(received, tensor, *args, **kwargs)

    for name, counted in (("all_reduce", counted_all_reduce), ("all_gather", counted_all_gather)):
        setattr(dist, name, counted)
    try:
        yield sent
    finally:
        dist.all_reduce, dist.all_gather = all_reduce, all_gather
