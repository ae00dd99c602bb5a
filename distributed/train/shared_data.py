"""What a training, or all trials of a sweep, learn from, once in each node's memory."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.config import TaggerConfig
from model.data.dataset import Dataset, Split


class SharedData(NamedTuple):
    """What a training, or all trials of a sweep, learn from; it lies once in each node's shared memory."""

    train: Split
    valid: Split
    words: int
    vectors: npt.NDArray[np.float32] | None

    @classmethod
    def load(cls, location: str, word_features: bool) -> "SharedData":
        """From a dataset directory; `word_features` as in `Dataset.load`."""
        dataset = Dataset(location)
        train, valid = (dataset.load(split, word_features) for split in ("train", "valid"))
        return cls(train, valid, dataset.info["words"], dataset.vectors())

    def vectors_for(self, config: TaggerConfig) -> torch.Tensor | None:
        """What a tagger's embedding begins from; None for random numbers."""
        if not config.pretrained_vectors or self.vectors is None:
            return None
        return torch.from_numpy(self.vectors.copy())  # shared memory is read-only, which torch does not know
