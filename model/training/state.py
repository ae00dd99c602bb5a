"""What a checkpoint of a training holds, and what saves it."""

from typing import TYPE_CHECKING, Protocol, TypedDict

import torch
from torch.optim.optimizer import StateDict

if TYPE_CHECKING:
    from model.training.loop import Training


class TrainingState(TypedDict):
    """All that a training needs to resume; `losses` and `seconds` are those of the epoch that `step` is in."""

    tagger: dict[str, torch.Tensor]
    optimizers: list[StateDict]
    epoch: int
    step: int
    losses: list[float]
    seconds: float
    history: list[dict[str, float]]


class Checkpointer(Protocol):
    """Saves a training inside an epoch."""

    def should_save(self) -> bool:
        """Return whether this worker wants a checkpoint now; called every few steps."""
        ...

    def save(self, training: "Training") -> None:
        """Save the training; called on all workers at the same step when one of them wants it."""
        ...
