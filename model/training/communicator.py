"""Communication between the processes that train one tagger together."""

from typing import Protocol

import torch
from torch import nn


class Communicator(Protocol):
    """A group of processes, each of which runs the same training loop on its share of every batch.

    Attributes:
        rank: number of this process; 0 reports and writes for all.
        size: processes of the group.
    """

    rank: int
    size: int

    def all_reduce_gradients(self, module: nn.Module, tokens: int, dtype: torch.dtype = torch.float32) -> None:
        """Sum the gradients of a module over the processes, in place; sparse gradients are coalesced afterwards.

        Args:
            module: whose gradients.
            tokens: of the global batch.
            dtype: in which gradients are sent; they are float32 before and after.
        """
        ...

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, on each of them."""
        ...


class SingleProcess:
    """The communicator of a training in one process."""

    rank = 0
    size = 1

    def all_reduce_gradients(self, module: nn.Module, tokens: int, dtype: torch.dtype = torch.float32) -> None:
        """Coalesce sparse gradients."""
        for parameter in module.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return tensor
