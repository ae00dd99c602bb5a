"""The joint-layer RNN (Zhang et al., EMNLP 2016, section 3).

    word -> embedding -> window of neighbours -> recurrent layer 1 -> keyword head (2 classes)
                                                        |
                                                 recurrent layer 2 -> keyphrase head (BIOES, 5 classes)

The states of a pretrained encoder can take the place of the embedding, or stand beside it; without recurrent layers, both
heads read them.

Shapes: B texts, T tokens, N packed tokens, W window, D embedding, V words of the vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.data.batching import TableRows
from model.data.features import NUM_FEATURES
from model.data.features import ROWS as FEATURE_ROWS
from model.data.subword_batches import EncoderInputs, WordStates
from model.data.tokenizer import PAD
from model.network.cpu.dropout import dropout_mask
from model.network.cpu.layer import packed_rnn_from_ids, packed_rnn_with_head
from model.network.cpu.packing import gather_windows, pack
from model.network.crf import CrfTransitions
from model.network.encoder import Encoder, build_config, encoder_outputs
from model.network.encoder_files import EncoderFiles
from model.network.layers import BiRnn, context_windows, packed_id_windows, unpack
from model.network.logits import EmbeddingRows, Logits, SpanDecoding

# Standard deviation of the initial embedding. With torch's own 1.0 a rare word, which a sparse optimizer moves only when
# it occurs, hardly leaves its random place: F1 0.44 against 0.50 on 10,722 tweets after 8 epochs.
_EMBEDDING_STD = 0.1
# Without gradients, torch's own layers take 0.6 to 0.9 of our time for fewer tokens, and up to 1.2 for more.
_FEW_TOKENS = 2048
_INITIAL_THRESHOLD = 0.5  # until an evaluation on the validation split has tuned it


class Tagger(nn.Module):
    """The dual-loss keyphrase tagger.

    Attributes:
        encoder: pretrained; None where there is none, and where a frozen one's states are computed before.
        threshold, agreement: buffers of span decoding, saved with the weights: they are learned, but not by gradients.
    """

    encoder: Encoder | None
    threshold: torch.Tensor | None
    agreement: torch.Tensor | None

    def __init__(
        self,
        config: TaggerConfig,
        words: int,
        vectors: torch.Tensor | None = None,
        encoder: Encoder | None = None,
        encoder_outputs: int = 0,
    ) -> None:
        """
        Args:
            config: the architecture.
            words: V.
            vectors: (V, D) initial embedding; random where None.
            encoder: of a tagger with one.
            encoder_outputs: size of a word's states, where a frozen encoder computes them before and is not given.
        """
        super().__init__()
        encoder_outputs = encoder.outputs if encoder else encoder_outputs
        self.config, self.encoder_outputs = config, encoder_outputs
        self.embedding = _embedding(words, config.embedding_dim, vectors) if config.embedding_dim else None
        self.word_feature_embedding = (
            _embedding(FEATURE_ROWS, config.word_feature_dim) if config.word_feature_dim else None
        )
        self.crf = CrfTransitions() if config.crf else None
        inputs = config.window * (config.embedding_dim + NUM_FEATURES * config.word_feature_dim) + encoder_outputs
        self.keyword_rnn = self.keyphrase_rnn = None
        # Linear heads read one layer of the encoder each.
        keyword_inputs = keyphrase_inputs = inputs - (encoder_outputs // 2 if config.keyword_layer else 0)
        if config.cell != "none":
            self.keyword_rnn = BiRnn(config.cell, inputs, config.keyword_hidden, config.bidirectional)
            keyword_inputs = self.keyword_rnn.outputs
            self.keyphrase_rnn = BiRnn(config.cell, keyword_inputs, config.keyphrase_hidden, config.bidirectional)
            keyphrase_inputs = self.keyphrase_rnn.outputs
        for name, value in (("threshold", _INITIAL_THRESHOLD), ("agreement", 0.0)):
            self.register_buffer(name, torch.tensor(value) if config.decoding == "spans" else None)
        self.keyword_head = nn.Linear(keyword_inputs, 2)
        self.keyphrase_head = nn.Linear(keyphrase_inputs, 5)
        self.encoder = encoder

    @property
    def tables(self) -> list[nn.Embedding]:
        """Return the embedding tables: weights of which a step uses few rows."""
        return [each for each in (self.embedding, self.word_feature_embedding) if each is not None]

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
        encoder_inputs: EncoderInputs | None = None,
    ) -> Logits:
        """Return the logits of a batch.

        Args:
            ids: (B, T) vocabulary ids, PAD after the end of each text.
            lengths: (B,) tokens of each text, at least 1.
            word_features: (B, T, NUM_FEATURES) rows of the feature table, for a tagger that uses them.
            rows: in training by rows, of each embedding table; then the tables themselves are not used.
            encoder_inputs: for a tagger with an encoder, what it reads, or its states.
        """
        lookups = rows or self._whole_tables(ids, word_features)
        keyword, keyphrase = self._heads(ids, lengths, lookups, self._encoder_states(encoder_inputs))
        word_ids = encoder_inputs.word_keys if encoder_inputs else self._word_ids(ids, word_features)
        return Logits(keyword, keyphrase, self.crf() if self.crf else None, self._decoding(word_ids))

    def _encoder_states(self, inputs: EncoderInputs | None) -> torch.Tensor | None:
        if inputs is None or isinstance(inputs, WordStates):
            return inputs and inputs.states
        assert self.encoder is not None
        return self.encoder(inputs)

    def _whole_tables(self, ids: torch.Tensor, word_features: torch.Tensor | None) -> list[EmbeddingRows]:
        lookups = [] if self.embedding is None else [EmbeddingRows(self.embedding.weight, ids)]
        if self.word_feature_embedding is not None:
            assert word_features is not None
            lookups.append(EmbeddingRows(self.word_feature_embedding.weight, word_features))
        return lookups

    def _decoding(self, word_ids: torch.Tensor) -> SpanDecoding | None:
        if self.threshold is None or self.agreement is None:
            return None
        return SpanDecoding(self.threshold, self.agreement, word_ids, self.config.max_span_tokens)

    def _word_ids(self, ids: torch.Tensor, word_features: torch.Tensor | None) -> torch.Tensor:
        """Return equal numbers (B, T) for equal words."""
        if self.word_feature_embedding is None or word_features is None:
            return ids
        # Words outside the vocabulary are distinguished by two of their features: first three letters and last three.
        return (ids * FEATURE_ROWS + word_features[..., 1]) * FEATURE_ROWS + word_features[..., 2]

    def _heads(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        lookups: Sequence[EmbeddingRows],
        encoder_states: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._uses_cpu_kernels(ids):
            return self._packed_heads(ids, lengths, lookups, encoder_states)
        vectors = [F.embedding(indices, table, padding_idx=PAD) for table, indices in lookups]
        parts = [context_windows(each.flatten(2), self.config.window) for each in vectors]
        if encoder_states is not None:
            parts.append(encoder_states)
        inputs = self._dropout(torch.cat(parts, dim=-1))
        if self.keyword_rnn is None or self.keyphrase_rnn is None:
            lower, upper = self._head_inputs(inputs)
            return self.keyword_head(lower), self.keyphrase_head(upper)
        keyword_states = self.keyword_rnn(inputs, lengths)
        keyphrase_states = self.keyphrase_rnn(keyword_states, lengths)
        return self.keyword_head(keyword_states), self.keyphrase_head(keyphrase_states)

    def _head_inputs(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what linear heads read: with a `keyword_layer`, that layer of the encoder, and its last one."""
        if self.config.keyword_layer is None:
            return inputs, inputs
        half = self.encoder_outputs // 2
        *beside, lower, upper = inputs.split([inputs.shape[-1] - 2 * half, half, half], dim=-1)
        return torch.cat([*beside, lower], dim=-1), torch.cat([*beside, upper], dim=-1)

    def _uses_cpu_kernels(self, ids: torch.Tensor) -> bool:
        """Return whether the packed recurrence of model/network/cpu/ replaces torch's: in float32 on a CPU."""
        full_precision = self.keyword_head.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return self.config.cpu_kernels and self.config.cell != "none" and full_precision and ids.device.type == "cpu"

    def _packed_heads(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        lookups: Sequence[EmbeddingRows],
        encoder_states: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keyword_rnn is not None and self.keyphrase_rnn is not None
        learns = self.training or torch.is_grad_enabled()
        few = not learns and int(lengths.sum()) < _FEW_TOKENS
        packing = pack(lengths.numpy(), ids.shape[1], fill=not few)
        positions = packing.positions

        def layer(rnn: BiRnn, head: nn.Linear, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if few:
                states = rnn.packed(inputs, packing.batch_sizes)
                return states, head(states)
            return packed_rnn_with_head(inputs, packing, rnn.kernel, rnn.directions, head)

        if learns or few or encoder_states is not None:
            inputs = self._packed_inputs(lookups, encoder_states, positions)
            states, keyword = layer(self.keyword_rnn, self.keyword_head, inputs)
        else:
            rnn, head = self.keyword_rnn, self.keyword_head
            windows = [(table, packed_id_windows(rows, self.config.window, positions)) for table, rows in lookups]
            states, keyword = packed_rnn_from_ids(windows, packing, rnn.kernel, rnn.directions, head)
        _, keyphrase = layer(self.keyphrase_rnn, self.keyphrase_head, states)
        return unpack(keyword, positions, ids.shape), unpack(keyphrase, positions, ids.shape)

    def _packed_inputs(
        self, lookups: Sequence[EmbeddingRows], encoder_states: torch.Tensor | None, positions: torch.Tensor
    ) -> torch.Tensor:
        """Return the windows of packed tokens with dropout, (N, I), side by side with the encoder's states."""
        parts = []
        for table, rows in lookups:
            windows = packed_id_windows(rows, self.config.window, positions)
            mask = self._dropout_mask((len(windows), windows.shape[1] * table.shape[1]))
            parts.append(gather_windows(table, windows, mask))
        if encoder_states is not None:
            parts.append(self._packed_states(encoder_states, positions))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _packed_states(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the encoder's states with dropout: (B, T, outputs) to (N, outputs)."""
        flat = F.pad(states.flatten(0, 1), (0, 0, 0, 1))  # what fills steps up points to one row more
        mask = self._dropout_mask((len(positions), states.shape[2]))
        packed = flat.index_select(0, positions)
        return packed if mask is None else packed * mask

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


def new_tagger(
    config: TaggerConfig,
    words: int,
    seed: int,
    vectors: torch.Tensor | None = None,
    encoder: EncoderFiles | None = None,
) -> Tagger:
    """Return a tagger with initial weights that depend on the seed and the pretrained encoder alone.

    A frozen encoder is not a part of it: its states are computed once, by `model.training.encoder_states`.

    Args:
        config, words, vectors: see `Tagger`.
        seed: of the random weights.
        encoder: for a tagger with one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if encoder is None:
            return Tagger(config, words, vectors)
        if config.encoder_frozen:
            outputs = encoder_outputs(config, build_config(encoder.config))
            return Tagger(config, words, vectors, encoder_outputs=outputs)
        return Tagger(config, words, vectors, encoder.build(config))
