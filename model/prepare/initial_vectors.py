"""The initial word vectors of a dataset: read from a file, trained on unlabeled texts, or made with an encoder."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa
from safetensors.numpy import save

from model import storage
from model.config import TaggerConfig
from model.data.dataset_info import DistilledInfo, PretrainingInfo, VectorsInfo
from model.data.labeled_text import SkipCounts
from model.data.tokenizer import SPECIAL
from model.errors import UserError
from model.prepare.vectors import KeyedVectors, extra_words, initial_embedding, read_vectors
from model.prepare.word2vec import MIN_FREQUENCY, frequent_words, train_word2vec
from model.readers.readers import unlabeled_inputs

if TYPE_CHECKING:
    from model.prepare.builder import PrepareConfig

Progress = Callable[[int], None]
WordEncoder = Callable[[list[str], int], KeyedVectors]


class InitialVectors:
    """The initial word vectors of a dataset, if it has any."""

    def __init__(self, config: "PrepareConfig", encode_words: WordEncoder | None) -> None:
        """Check the configuration. Raises UserError if it contradicts itself, or a file is missing or empty."""
        self._config, self._encode_words = config, encode_words
        if config.vectors_from and config.vectors is not None:
            raise UserError("--vectors-from and --vectors: both set the initial word vectors; leave one of them out")
        if config.pretrain and config.vectors is not None:
            raise UserError("--pretrain and --vectors: both set the initial word vectors; leave one of them out")
        pretrain_only = {"--vector-size": config.vector_size, "--pretrain-frequency": config.pretrain_frequency}
        for option, value in pretrain_only.items():
            made = config.pretrain or (option == "--vector-size" and config.vectors_from)
            if value is not None and not made:
                raise UserError(
                    f"{option} {value}: applies to the vectors of --pretrain; add --pretrain, or leave it out"
                )
        if config.join is not None and not config.pretrain and config.vectors is None:
            raise UserError(f"--join {config.join}: applies to words with vectors; add --pretrain or --vectors")
        if config.vectors is not None and not storage.exists(config.vectors):
            raise UserError(f"{config.vectors}: no such file of word vectors")
        self._texts = unlabeled_inputs(config.pretrain)
        self._vectors: KeyedVectors | None = None
        self._training: PretrainingInfo | None = None
        self._distilled: DistilledInfo | None = None
        self._skips = SkipCounts()  # lines of the file of vectors
        self._joined: dict[str, str] = {}  # words that only the vectors have, with their names there

    def extend(self, vocabulary: pa.ChunkedArray, progress: Progress) -> pa.ChunkedArray:
        """Read or train the vectors; return the vocabulary with words added that only the vectors have."""
        config = self._config
        if self._encode_words is not None:
            self._vectors = self._distil(vocabulary.to_pylist(), self._encode_words, progress)
            limit = len(self._vectors)
        elif self._texts:
            self._vectors, self._training = train_word2vec(
                self._texts,
                config.vector_size or TaggerConfig().embedding_dim,
                config.pretrain_frequency or MIN_FREQUENCY,
                config.skip_bad_lines,
                progress=progress,
            )
            limit = len(self._vectors) if config.join is None else config.join
        elif config.vectors is not None:
            self._vectors = read_vectors(config.vectors, None if config.strict else self._skips)
            limit = config.join or 0
        else:
            return vocabulary
        room = max(config.max_words - len(SPECIAL) - len(vocabulary), 0)
        self._joined = extra_words(self._vectors, vocabulary.to_pylist(), min(limit, room))
        return pa.chunked_array([*vocabulary.chunks, pa.array(list(self._joined), pa.string())])

    def _distil(self, vocabulary: list[str], encode_words: WordEncoder, progress: Progress) -> KeyedVectors:
        """Return vectors for a vocabulary and for the frequent words of the unlabeled texts that may join it."""
        config, words, texts = self._config, list[str](), None
        frequency = config.pretrain_frequency or MIN_FREQUENCY
        if self._texts:
            words, texts = frequent_words(self._texts, frequency, config.skip_bad_lines, progress)
        self._distilled = {"encoder": str(config.vectors_from), "frequency": frequency, "texts": texts}
        known = set(vocabulary)
        room = max(config.max_words - len(SPECIAL) - len(vocabulary), 0)
        extra = [word for word in words if word not in known][: room if config.join is None else min(config.join, room)]
        return encode_words([*vocabulary, *extra], config.vector_size or TaggerConfig().embedding_dim)

    def write(self, folder: str, vocabulary: pa.ChunkedArray) -> VectorsInfo | None:
        """Write the vectors of the vocabulary; return what dataset.json contains about them."""
        if self._vectors is None:
            return None
        embedding = initial_embedding(self._vectors, [*SPECIAL, *vocabulary.to_pylist()], self._joined)
        self._vectors = None  # it may be large
        content = save({"vectors": embedding.table})
        storage.write(storage.join(folder, "vectors.safetensors"), content)
        words, size = embedding.table.shape
        info: VectorsInfo = {
            "words_joined": len(self._joined),
            "size": size,
            "words_covered": embedding.covered,
            "words": words,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if self._training:
            return {"pretrained": self._training, **info}
        if self._distilled:
            return {"distilled": self._distilled, **info}
        assert self._config.vectors is not None
        skips = self._skips
        return {"path": self._config.vectors, "skipped": skips.counts, "skipped_places": skips.places, **info}
