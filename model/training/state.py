"""What a checkpoint of a training holds."""

from typing import TypedDict

import torch
from torch.optim.optimizer import StateDict


class TrainingState(TypedDict):
    """All that a training needs to resume; `losses` and `seconds` are those of the epoch that `step` is in."""

    tagger: dict[str, torch.Tensor]
    optimizers: list[StateDict]
    epoch: int
    step: int
    losses: list[float]
    seconds: float
    history: list[dict[str, float]]
