"""The joint-layer RNN (Zhang et al., EMNLP 2016, section 3).

    word -> embedding -> window of neighbours -> recurrent layer 1 -> keyword head (2 classes)
                                                        |
                                                 recurrent layer 2 -> keyphrase head (BIOES, 5 classes)

Shapes: B texts, T tokens, N packed tokens, W window, D embedding, V words of the vocabulary.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.data.features import NUM_FEATURES
from model.data.features import ROWS as FEATURE_ROWS
from model.data.tokenizer import PAD, UNKNOWN
from model.network.cpu.dropout import dropout_mask
from model.network.cpu.layer import packed_rnn_from_ids, packed_rnn_with_head
from model.network.cpu.packing import gather_windows, pack
from model.network.crf import CrfScores, CrfTransitions
from model.network.layers import BiRnn, context_windows, packed_id_windows, unpack

# Standard deviation of the initial embedding. With torch's own 1.0 a rare word, which a sparse optimizer moves only when
# it occurs, hardly leaves its random place: F1 0.44 against 0.50 on 10,722 tweets after 8 epochs.
_EMBEDDING_STD = 0.1
_INITIAL_THRESHOLD = 0.5  # until an evaluation on the validation split has tuned it


class SpanDecoding(NamedTuple):
    """How marginal probabilities of spans become keyphrases.

    Attributes:
        threshold: scalar; keyphrases are spans with a higher marginal.
        agreement: scalar; 1 where equal spans of a text share the highest of their marginals, else 0.
        word_ids: (B, T) int64, equal for equal words.
    """

    threshold: torch.Tensor
    agreement: torch.Tensor
    word_ids: torch.Tensor


class Logits(NamedTuple):
    """What the heads give for each token, and how keyphrases are decoded from it.

    Attributes:
        keyword: (B, T, 2).
        keyphrase: (B, T, 5), by BIOES tag.
        crf: learned transition scores; None where each tag is predicted by itself.
        decoding: of span marginals; None for Viterbi decoding.
    """

    keyword: torch.Tensor
    keyphrase: torch.Tensor
    crf: CrfScores | None = None
    decoding: SpanDecoding | None = None


class Tagger(nn.Module):
    """The dual-loss keyphrase tagger.

    Attributes:
        threshold, agreement: buffers of span decoding, saved with the weights: they are learned, but not by gradients.
        counts: (V,) how often each word occurs in the training texts, for `rare_word_dropout`; not saved.
    """

    threshold: torch.Tensor | None
    agreement: torch.Tensor | None
    counts: torch.Tensor | None

    def __init__(self, config: TaggerConfig, words: int, vectors: torch.Tensor | None = None) -> None:
        """
        Args:
            config: the architecture.
            words: V.
            vectors: (V, D) initial embedding; random where None.
        """
        super().__init__()
        self.config = config
        self.embedding = _embedding(words, config.embedding_dim, vectors)
        self.word_feature_embedding = (
            _embedding(FEATURE_ROWS, config.word_feature_dim) if config.word_feature_dim else None
        )
        self.crf = CrfTransitions() if config.crf else None
        inputs = config.window * (config.embedding_dim + NUM_FEATURES * config.word_feature_dim)
        self.keyword_rnn = BiRnn(config.cell, inputs, config.keyword_hidden, config.bidirectional)
        self.keyphrase_rnn = BiRnn(config.cell, self.keyword_rnn.outputs, config.keyphrase_hidden, config.bidirectional)
        for name, value in (("threshold", _INITIAL_THRESHOLD), ("agreement", 0.0)):
            self.register_buffer(name, torch.tensor(value) if config.decoding == "spans" else None)
        self.register_buffer("counts", torch.ones(words) if config.rare_word_dropout else None, persistent=False)
        self.keyword_head = nn.Linear(self.keyword_rnn.outputs, 2)
        self.keyphrase_head = nn.Linear(self.keyphrase_rnn.outputs, 5)

    @property
    def tables(self) -> list[nn.Embedding]:
        """Return the embedding tables: weights of which a step uses few rows."""
        if self.word_feature_embedding is None:
            return [self.embedding]
        return [self.embedding, self.word_feature_embedding]

    def set_sparse_gradients(self, sparse: bool) -> None:
        """Choose the gradients of the embedding tables: the rows that a step touched (the default), or whole tables."""
        for table in self.tables:
            table.sparse = sparse

    def count_words(self, ids: npt.NDArray[np.int32]) -> None:
        """Set `counts` from the vocabulary ids (tokens,) of all training texts; until then each word counts as 1."""
        if self.counts is not None:
            counts = np.bincount(ids, minlength=len(self.counts)).clip(min=1)
            self.counts.copy_(torch.from_numpy(counts))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor, word_features: torch.Tensor | None = None) -> Logits:
        """Return the logits of a batch.

        Args:
            ids: (B, T) vocabulary ids, PAD after the end of each text.
            lengths: (B,) tokens of each text, at least 1.
            word_features: (B, T, NUM_FEATURES) rows of the feature table, for a tagger that uses them.
        """
        keyword, keyphrase = self._heads(ids, lengths, word_features)
        crf = self.crf() if self.crf else None
        return Logits(keyword, keyphrase, crf, self._decoding(ids, word_features))

    def _decoding(self, ids: torch.Tensor, word_features: torch.Tensor | None) -> SpanDecoding | None:
        if self.threshold is None or self.agreement is None:
            return None
        word_ids = ids
        if self.word_feature_embedding is not None and word_features is not None:
            # Words outside the vocabulary are distinguished by two of their features: first three letters and last three.
            word_ids = (ids * FEATURE_ROWS + word_features[..., 1]) * FEATURE_ROWS + word_features[..., 2]
        return SpanDecoding(self.threshold, self.agreement, word_ids)

    def _heads(
        self, ids: torch.Tensor, lengths: torch.Tensor, word_features: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            ids = self._drop_words(ids)
        if self._uses_cpu_kernels(ids):
            return self._packed_heads(ids, lengths, word_features)
        vectors = [self.embedding(ids)]
        if self.word_feature_embedding is not None:
            vectors.append(self.word_feature_embedding(word_features).flatten(2))
        inputs = torch.cat([context_windows(each, self.config.window) for each in vectors], dim=-1)
        keyword_states = self.keyword_rnn(self._dropout(inputs), lengths)
        keyphrase_states = self.keyphrase_rnn(keyword_states, lengths)
        return self.keyword_head(keyword_states), self.keyphrase_head(keyphrase_states)

    def _drop_words(self, ids: torch.Tensor) -> torch.Tensor:
        """Replace random words by <unk>, rare ones more often (Kiperwasser and Goldberg, TACL 2016, section 4).

        The vector of <unk>, which represents words that training never saw, is then learned from words that it hardly saw.
        """
        probability: torch.Tensor | float = self.config.word_dropout
        if self.counts is not None:
            rare = self.config.rare_word_dropout
            probability = 1 - (1 - probability) * (1 - rare / (rare + self.counts[ids]))
        elif not probability:
            return ids
        dropped = (torch.rand(ids.shape, device=ids.device) < probability) & (ids != PAD)
        return ids.masked_fill(dropped, UNKNOWN)

    def _uses_cpu_kernels(self, ids: torch.Tensor) -> bool:
        """Return whether the packed recurrence of model/network/cpu/ replaces torch's: in float32 on a CPU."""
        full_precision = self.embedding.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return self.config.cpu_kernels and full_precision and ids.device.type == "cpu"

    def _packed_heads(
        self, ids: torch.Tensor, lengths: torch.Tensor, word_features: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positions, steps = pack(lengths.numpy(), ids.shape[1])
        windows = packed_id_windows(ids, self.config.window, positions)
        keyword_layer = (steps, self.keyword_rnn.kernel, self.keyword_rnn.directions, self.keyword_head)
        keyphrase_layer = (steps, self.keyphrase_rnn.kernel, self.keyphrase_rnn.directions, self.keyphrase_head)
        if self.training or torch.is_grad_enabled() or self.word_feature_embedding is not None:
            inputs = self._packed_inputs(self.embedding, windows)
            if self.word_feature_embedding is not None:
                assert word_features is not None
                windows = packed_id_windows(word_features, self.config.window, positions)
                inputs = torch.cat([inputs, self._packed_inputs(self.word_feature_embedding, windows)], dim=1)
            states, keyword = packed_rnn_with_head(inputs, *keyword_layer)
        else:
            states, keyword = packed_rnn_from_ids(self.embedding.weight, windows, *keyword_layer)
        _, keyphrase = packed_rnn_with_head(states, *keyphrase_layer)
        return unpack(keyword, positions, ids.shape), unpack(keyphrase, positions, ids.shape)

    def _packed_inputs(self, table: nn.Embedding, windows: torch.Tensor) -> torch.Tensor:
        """Return the rows of a table with dropout: (N, rows) to (N, rows * D)."""
        mask = self._dropout_mask((len(windows), windows.shape[1] * table.embedding_dim))
        if table.sparse:
            return gather_windows(table.weight, windows, mask)
        return table(windows).flatten(1) * (1.0 if mask is None else mask)

    def _dropout(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.config.cpu_dropout and inputs.device.type == "cpu":
            mask = self._dropout_mask((inputs.shape[:-1].numel(), inputs.shape[-1]))
            return inputs if mask is None else inputs * mask.view_as(inputs)
        return F.dropout(inputs, self.config.dropout, self.training)

    def _dropout_mask(self, shape: tuple[int, int]) -> torch.Tensor | None:
        """Return what inputs of the first layer are multiplied by; None where nothing is dropped."""
        if not self.training or not self.config.dropout:
            return None
        if self.config.cpu_dropout:
            return dropout_mask(shape, self.config.dropout)
        return F.dropout(torch.ones(shape), self.config.dropout)


def _embedding(rows: int, size: int, vectors: torch.Tensor | None = None) -> nn.Embedding:
    # Sparse gradients: a step touches a small part of the table, and only that part is exchanged and updated.
    table = nn.Embedding(rows, size, padding_idx=PAD, sparse=True)
    with torch.no_grad():
        if vectors is None:
            table.weight.mul_(_EMBEDDING_STD)
        else:
            table.weight.copy_(vectors)
        table.weight[PAD] = 0
    return table


def new_tagger(config: TaggerConfig, words: int, seed: int, vectors: torch.Tensor | None = None) -> Tagger:
    """Return a tagger with initial weights that depend on the seed alone; see `Tagger` for the arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tagger(config, words, vectors)
