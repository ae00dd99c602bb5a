"""Communication between the processes that train one tagger together."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from model.config import TrainingConfig


class GradientSync(Protocol):
    """The summation of one module's gradients over the processes.

    Attributes:
        module: what a forward pass calls: the module, or a wrapper of it with the same parameters.
    """

    module: nn.Module

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate the gradients of backward passes in this context without communication."""
        ...

    def all_reduce(self, rows: list[torch.Tensor]) -> None:
        """Sum the gradients over the processes, in place. Called after the last backward pass of a step.

        Args:
            rows: tensors beside the module's parameters, of the same shapes on each process.
        """
        ...


class Communicator(Protocol):
    """A group of processes, each of which runs the same training loop on its share of every batch.

    Attributes:
        rank: number of this process; 0 reports and writes for all.
        size: processes of the group.
    """

    rank: int
    size: int

    def sync_gradients(self, module: nn.Module, config: TrainingConfig) -> GradientSync:
        """Return what sums the gradients of a module's trainable parameters, as the configuration asks."""
        ...

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes, on each of them."""
        ...


class NoSync:
    """The gradients of a training in one process: there is nothing to sum."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def no_sync(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def all_reduce(self, rows: list[torch.Tensor]) -> None:
        """Do nothing."""


class SingleProcess:
    """The communicator of a training in one process."""

    rank = 0
    size = 1

    def sync_gradients(self, module: nn.Module, config: TrainingConfig) -> NoSync:
        """Return a sum over one process."""
        return NoSync(module)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return tensor
