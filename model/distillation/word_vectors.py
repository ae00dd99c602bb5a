"""Static word vectors from a pretrained encoder: each word alone through the encoder, reduced to a tagger's embedding.

A word's state is the mean over its sub-words. The principal components of all states, scaled to one spread, are the
vectors, so that words that training never saw begin with what the encoder knows of them, at no cost in use.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model import storage
from model.config import TaggerConfig
from model.data.batching import length_sorted_batches
from model.data.subword_batches import subword_batch
from model.data.subwords import SubwordTokenizer
from model.data.tokenizer import UNKNOWN
from model.errors import UserError
from model.inference.bundle import load_bundle
from model.network.encoder import Encoder
from model.network.encoder_files import load_encoder

_BATCH = 256  # words read at a time
_SPREAD = 0.1  # standard deviation of the values, that of an embedding's random ones


@dataclass
class WordVectors:
    """Vectors of words, with the part of gensim's KeyedVectors that `model.prepare.vectors` uses.

    Attributes:
        vector_size: dimensions of a vector.
        vectors: (words, vector_size).
        key_to_index, index_to_key: the words.
    """

    vector_size: int
    vectors: npt.NDArray[np.float32]
    key_to_index: dict[str, int]
    index_to_key: list[str]

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        """Return the vector of a word."""
        return self.vectors[self.key_to_index[name]]

    def __len__(self) -> int:
        return len(self.index_to_key)


class WordEncoder:
    """Makes vectors of words with a pretrained encoder."""

    def __init__(self, location: str, device: str = "cpu") -> None:
        """Load the encoder.

        Args:
            location: path, URI or name on the hub of an encoder; or a bundle that has one, as its training left it.
            device: where to compute.

        Raises:
            UserError: the encoder cannot be read, or the bundle has none.
        """
        self.location, self.device = location, torch.device(device)
        encoder, self._subwords = _load(location)
        self._encoder = encoder.to(self.device).eval()

    def __call__(self, words: list[str], size: int) -> WordVectors:
        """Return the vectors of some words.

        Args:
            words: distinct, more than `size`.
            size: dimensions of a vector, at most those of the encoder's states.

        Raises:
            UserError: there are too few words, or the encoder's states are smaller.
        """
        limit = min(self._encoder.outputs, len(words))
        if size > limit:
            what = f"the encoder's states have {limit} values" if limit < len(words) else f"there are {limit} words"
            raise UserError(f"--vectors-from {self.location}: {what}, and --vector-size is {size}; lower it")
        vectors = _principal_components(self._states(words), size)
        return WordVectors(size, vectors, {word: i for i, word in enumerate(words)}, words)

    @torch.no_grad()
    def _states(self, words: list[str]) -> npt.NDArray[np.float32]:
        """Return the states (words, outputs) of words, each read alone."""
        states = np.empty((len(words), self._encoder.outputs), np.float32)
        for rows in length_sorted_batches(np.array([len(word) for word in words]), _BATCH):
            states[rows] = self._read([words[i] for i in rows])
        return states

    def _read(self, words: list[str]) -> npt.NDArray[np.float32]:
        ends = np.array([len(word) for word in words], np.int32)
        begins, ones = np.arange(len(words) + 1), np.ones(len(words), np.int64)
        subwords = self._subwords(words, np.zeros_like(ends), ends, begins)
        batch = subword_batch(subwords, torch.full((len(words), 1), UNKNOWN), ones)
        found: npt.NDArray[np.float32] = (
            self._encoder(type(batch)(*(each.to(self.device) for each in batch))).cpu().numpy()
        )
        return found[:, 0]


def _load(location: str) -> tuple[Encoder, SubwordTokenizer]:
    """Return an encoder whose word states are the means over the last layer's sub-words."""
    if storage.exists(storage.join(location, "weights.safetensors")):
        bundle = load_bundle(location)
        if bundle.tagger.encoder is None or bundle.subwords is None:
            raise UserError(
                f"--vectors-from {location}: is a bundle without an encoder; name an encoder, or a bundle with one"
            )
        return Encoder(TaggerConfig(encoder=location, pooling="mean"), bundle.tagger.encoder.model), bundle.subwords
    files = load_encoder(location)
    return files.build(TaggerConfig(encoder=location, pooling="mean")), files.subwords()


def _principal_components(states: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Return the projections (words, size) on the first principal components, with one standard deviation over all values.

    The sign of each component is the one that makes its largest weight positive, so that it does not depend on the solver.
    """
    centered = states - states.mean(0, dtype=np.float64).astype(np.float32)
    _, components = np.linalg.eigh((centered.T @ centered).astype(np.float64))
    components = components[:, ::-1][:, :size]
    largest = np.abs(components).argmax(0)
    components = components * np.sign(components[largest, np.arange(size)])
    projected = centered @ components.astype(np.float32)
    found: npt.NDArray[np.float32] = projected * np.float32(_SPREAD / max(float(projected.std()), 1e-12))
    return found
