"""What the training loop asks of the other workers; and the answer where there are none."""

from typing import Protocol

import torch
from torch import nn


class Workers(Protocol):
    """The processes that train one tagger together. Rank 0 speaks for all."""

    rank: int
    size: int

    def wrap(self, tagger: nn.Module) -> nn.Module:
        """The tagger as a module whose backward pass averages the gradients over the workers (the embedding's apart)."""
        ...

    def average_rows(self, weight: torch.Tensor) -> None:
        """Averages the sparse gradient of a table over the workers and leaves it coalesced."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the workers, on each of them."""
        ...


class Alone:
    """One worker."""

    rank = 0
    size = 1

    def wrap(self, tagger: nn.Module) -> nn.Module:
        """The tagger itself."""
        return tagger

    def average_rows(self, weight: torch.Tensor) -> None:
        """Coalesces the gradient."""
        assert weight.grad is not None
        weight.grad = weight.grad.coalesce()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor
