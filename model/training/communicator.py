"""What the training loop asks of the other workers; and the answer where there are none."""

from typing import Protocol

import torch
from torch import nn


class Communicator(Protocol):
    """The processes that train one tagger together. Rank 0 speaks for all."""

    rank: int
    size: int

    def all_reduce_gradients(self, module: nn.Module, tokens: int, kind: torch.dtype = torch.float32) -> None:
        """Sums the gradients of a module over the workers, on each of them, and leaves sparse ones coalesced.

        Args:
            module: whose gradients.
            tokens: of the global batch.
            kind: of the numbers that are sent; gradients are float32 on both sides.
        """
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the workers, on each of them."""
        ...


class SingleProcess:
    """One worker."""

    rank = 0
    size = 1

    def all_reduce_gradients(self, module: nn.Module, tokens: int, kind: torch.dtype = torch.float32) -> None:
        """Coalesces sparse gradients."""
        for parameter in module.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor
