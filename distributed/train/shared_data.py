"""The data of a training, or of all trials of a sweep, in the shared memory of each node."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import Dataset, Split
from model.distillation.teacher_split import add_labeled_texts, teacher_labels
from model.errors import UserError
from model.network.encoder_files import EncoderFiles, encoder_of
from model.network.tagger import Tagger, new_tagger
from model.training.encoder_states import with_encoder_states
from model.training.training_texts import StreamedSplit

STREAM_TOKENS = 200_000_000  # of a training split that `training.data=auto` leaves on storage; 1 GB in memory


class SharedData(NamedTuple):
    """The data of a training, or of all trials of a sweep; Ray keeps one copy in each node's shared memory.

    Attributes:
        train: the training split, with the texts that a teacher labeled; or what to read from storage.
        valid: the validation split.
        words: size of the vocabulary.
        vectors: (words, size) pretrained word vectors; None where the dataset has none.
        encoder: pretrained, for taggers with one.
    """

    train: Split | StreamedSplit
    valid: Split
    words: int
    vectors: npt.NDArray[np.float32] | None
    encoder: EncoderFiles | None = None

    @classmethod
    def load(
        cls,
        location: str,
        tagger: TaggerConfig,
        training: TrainingConfig,
        word_features: bool = False,
    ) -> "SharedData":
        """Read a dataset directory, the encoder of a tagger and the labels of its teachers.

        Args:
            location: path or URI of the dataset.
            tagger: what its taggers need.
            training: its teachers, and where the training split is to be.
            word_features: whether some of the taggers need word features, even if this one does not.

        Raises:
            UserError: the dataset, the encoder or the labels cannot be read, or do not belong together.
        """
        dataset, labels = Dataset(location), teacher_labels(training)
        encoder = encoder_of(tagger)
        subwords = encoder.subwords() if encoder else None
        word_features = word_features or tagger.uses_word_features
        valid = dataset.load("valid", word_features, subwords)
        dataset.require("train")
        train: Split | StreamedSplit
        large = dataset.info["splits"]["train"]["tokens"] >= STREAM_TOKENS
        in_memory = training.needs_split_in_memory or tagger.encoder_frozen
        if training.data == "stream" or (training.data == "auto" and large and not in_memory):
            train = StreamedSplit.open(dataset, word_features, subwords)
        else:
            train = dataset.load("train", word_features, subwords)
            if labels:
                train = add_labeled_texts(train, labels, dataset, word_features, subwords)
        return cls(train, valid, dataset.info["words"], dataset.vectors(), encoder)

    def new_tagger(self, config: TaggerConfig, seed: int) -> Tagger:
        """Return a tagger with its initial weights."""
        return new_tagger(config, self.words, seed, self.vectors_for(config), self.encoder if config.encoder else None)

    def splits_for(self, config: TaggerConfig, device: torch.device) -> tuple[Split | StreamedSplit, Split]:
        """Return the training and the validation split with what a tagger reads.

        Args:
            config: of the tagger. The states of a frozen encoder are computed, unless this node has them already.
            device: where to compute them.

        Raises:
            UserError: the encoder is frozen, and the training split is too large for the memory.
        """
        if not config.encoder:  # a trial of a sweep whose others have one
            return replace(self.train, subwords=None), replace(self.valid, subwords=None)
        if not (self.encoder and config.encoder_frozen):
            return self.train, self.valid
        if not isinstance(self.train, Split):
            raise UserError("tagger.encoder_frozen=true needs the training split in memory; set training.data=memory")
        return (
            with_encoder_states(self.train, self.encoder, config, device),
            with_encoder_states(self.valid, self.encoder, config, device),
        )

    def vectors_for(self, config: TaggerConfig) -> torch.Tensor | None:
        """Return the initial embedding of a tagger, (words, size); None for random numbers."""
        if not config.pretrained_vectors or self.vectors is None or not config.embedding_dim:
            return None
        return torch.from_numpy(self.vectors.copy())  # shared memory is read-only, which torch does not support
