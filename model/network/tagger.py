"""The joint-layer RNN (Zhang et al., EMNLP 2016, section 3).

    word -> embedding -> window of neighbours -> recurrent layer 1 -> keyword head (2 classes)
                                                        |
                                                 recurrent layer 2 -> keyphrase head (BIOES, 5 classes)

Shapes: B texts, T tokens, N packed tokens, W window, D embedding, V words of the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.data.batching import TableRows
from model.data.features import NUM_FEATURES
from model.data.features import ROWS as FEATURE_ROWS
from model.data.tokenizer import PAD
from model.network.cpu.dropout import dropout_mask
from model.network.cpu.layer import packed_rnn_from_ids, packed_rnn_with_head
from model.network.cpu.packing import gather_windows, pack
from model.network.crf import CrfTransitions
from model.network.forward_backward import CrfScores
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


class EmbeddingRows(NamedTuple):
    """Rows of an embedding table, and which of them a batch looks up.

    Attributes:
        vectors: (U, D) the whole table, or those of its rows that a step uses; row 0 is that of PAD.
        indices: (B, T), or (B, T, NUM_FEATURES) row of each token.
    """

    vectors: torch.Tensor
    indices: torch.Tensor


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
    """

    threshold: torch.Tensor | None
    agreement: torch.Tensor | None

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
        self.keyword_head = nn.Linear(self.keyword_rnn.outputs, 2)
        self.keyphrase_head = nn.Linear(self.keyphrase_rnn.outputs, 5)

    @property
    def tables(self) -> list[nn.Embedding]:
        """Return the embedding tables: weights of which a step uses few rows."""
        if self.word_feature_embedding is None:
            return [self.embedding]
        return [self.embedding, self.word_feature_embedding]

    def train_by_rows(self, by_rows: bool) -> None:
        """Choose how the embedding tables are trained: by the rows that `gather_rows` takes out, or as whole tables."""
        for table in self.tables:
            table.weight.requires_grad_(not by_rows)

    def gather_rows(self, tables: Sequence[TableRows]) -> list[torch.Tensor]:
        """Return the rows (U, D) that a step uses of each embedding table, as leaves that receive a gradient.

        Args:
            tables: of the step's batches; none where whole tables are trained.
        """
        return [
            table.weight.detach().index_select(0, rows.ids).requires_grad_()
            for table, rows in zip(self.tables, tables, strict=False)
        ]

    def scatter_gradients(self, tables: Sequence[TableRows], gathered: Sequence[torch.Tensor]) -> None:
        """Give the tables the gradients of gathered rows, sparse and coalesced. The row of PAD is not trained."""
        for table, rows, values in zip(self.tables, tables, gathered, strict=False):
            assert values.grad is not None
            table.weight.grad = torch.sparse_coo_tensor(
                rows.ids[None, 1:], values.grad[1:], table.weight.shape, check_invariants=False, is_coalesced=True
            )

    def forward(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        word_features: torch.Tensor | None = None,
        rows: Sequence[EmbeddingRows] = (),
    ) -> Logits:
        """Return the logits of a batch.

        Args:
            ids: (B, T) vocabulary ids, PAD after the end of each text.
            lengths: (B,) tokens of each text, at least 1.
            word_features: (B, T, NUM_FEATURES) rows of the feature table, for a tagger that uses them.
            rows: in training by rows, of each embedding table; then the tables themselves are not used.
        """
        keyword, keyphrase = self._heads(ids, lengths, rows or self._whole_tables(ids, word_features))
        crf = self.crf() if self.crf else None
        return Logits(keyword, keyphrase, crf, self._decoding(ids, word_features))

    def _whole_tables(self, ids: torch.Tensor, word_features: torch.Tensor | None) -> list[EmbeddingRows]:
        lookups = [EmbeddingRows(self.embedding.weight, ids)]
        if self.word_feature_embedding is not None:
            assert word_features is not None
            lookups.append(EmbeddingRows(self.word_feature_embedding.weight, word_features))
        return lookups

    def _decoding(self, ids: torch.Tensor, word_features: torch.Tensor | None) -> SpanDecoding | None:
        if self.threshold is None or self.agreement is None:
            return None
        word_ids = ids
        if self.word_feature_embedding is not None and word_features is not None:
            # Words outside the vocabulary are distinguished by two of their features: first three letters and last three.
            word_ids = (ids * FEATURE_ROWS + word_features[..., 1]) * FEATURE_ROWS + word_features[..., 2]
        return SpanDecoding(self.threshold, self.agreement, word_ids)

    def _heads(
        self, ids: torch.Tensor, lengths: torch.Tensor, lookups: Sequence[EmbeddingRows]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._uses_cpu_kernels(ids):
            return self._packed_heads(ids, lengths, lookups)
        vectors = [F.embedding(indices, table, padding_idx=PAD) for table, indices in lookups]
        inputs = torch.cat([context_windows(each.flatten(2), self.config.window) for each in vectors], dim=-1)
        keyword_states = self.keyword_rnn(self._dropout(inputs), lengths)
        keyphrase_states = self.keyphrase_rnn(keyword_states, lengths)
        return self.keyword_head(keyword_states), self.keyphrase_head(keyphrase_states)

    def _uses_cpu_kernels(self, ids: torch.Tensor) -> bool:
        """Return whether the packed recurrence of model/network/cpu/ replaces torch's: in float32 on a CPU."""
        full_precision = self.embedding.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return self.config.cpu_kernels and full_precision and ids.device.type == "cpu"

    def _packed_heads(
        self, ids: torch.Tensor, lengths: torch.Tensor, lookups: Sequence[EmbeddingRows]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positions, steps = pack(lengths.numpy(), ids.shape[1])
        windows = [packed_id_windows(indices, self.config.window, positions) for _, indices in lookups]
        keyword_layer = (steps, self.keyword_rnn.kernel, self.keyword_rnn.directions, self.keyword_head)
        keyphrase_layer = (steps, self.keyphrase_rnn.kernel, self.keyphrase_rnn.directions, self.keyphrase_head)
        if self.training or torch.is_grad_enabled() or len(lookups) > 1:
            parts = [self._packed_inputs(table, each) for (table, _), each in zip(lookups, windows, strict=True)]
            inputs = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            states, keyword = packed_rnn_with_head(inputs, *keyword_layer)
        else:
            states, keyword = packed_rnn_from_ids(self.embedding.weight, windows[0], *keyword_layer)
        _, keyphrase = packed_rnn_with_head(states, *keyphrase_layer)
        return unpack(keyword, positions, ids.shape), unpack(keyphrase, positions, ids.shape)

    def _packed_inputs(self, table: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """Return the rows of a table with dropout: (N, rows) to (N, rows * D)."""
        mask = self._dropout_mask((len(windows), windows.shape[1] * table.shape[1]))
        return gather_windows(table, windows, mask)

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
    table = nn.Embedding(rows, size, padding_idx=PAD)
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
