"""The data of a training, or of all trials of a sweep, in the shared memory of each node."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.config import TaggerConfig
from model.data.dataset import Dataset, Split


class SharedData(NamedTuple):
    """The data of a training, or of all trials of a sweep; Ray keeps one copy in each node's shared memory.

    Attributes:
        train: the training split.
        valid: the validation split.
        words: size of the vocabulary.
        vectors: (words, size) pretrained word vectors; None where the dataset has none.
    """

    train: Split
    valid: Split
    words: int
    vectors: npt.NDArray[np.float32] | None

    @classmethod
    def load(cls, location: str, word_features: bool) -> "SharedData":
        """Read a dataset directory; `word_features` as in `Dataset.load`."""
        dataset = Dataset(location)
        train, valid = (dataset.load(split, word_features) for split in ("train", "valid"))
        return cls(train, valid, dataset.info["words"], dataset.vectors())

    def vectors_for(self, config: TaggerConfig) -> torch.Tensor | None:
        """Return the initial embedding of a tagger, (words, size); None for random numbers."""
        if not config.pretrained_vectors or self.vectors is None:
            return None
        return torch.from_numpy(self.vectors.copy())  # shared memory is read-only, which torch does not support
