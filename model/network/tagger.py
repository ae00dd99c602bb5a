"""The joint-layer RNN (Zhang et al., EMNLP 2016, section 3).

    word -> embedding -> window of neighbours -> recurrent layer 1 -> keyword head (2 classes)
                                                        |
                                                 recurrent layer 2 -> keyphrase head (BIOES, 5 classes)

Shapes: B texts, T tokens, D embedding size, W window, H1 and H2 hidden sizes (twice as many when bidirectional).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.data.features import NUM_FEATURES
from model.data.features import ROWS as SPELLINGS
from model.data.tokenizer import PAD, UNKNOWN
from model.network.cells import CELLS
from model.network.cpu.dropout import dropout_mask
from model.network.cpu.layer import packed_rnn_from_ids, packed_rnn_with_head
from model.network.cpu.packing import gather_windows, pack
from model.network.crf import CrfScores, CrfTransitions

# Standard deviation of the first embedding. With torch's own 1.0 a rare word, which a sparse optimiser moves only when it
# is seen, hardly leaves its random place: F1 0.44 against 0.50 on 10,722 tweets after 8 epochs.
_EMBEDDING_SPREAD = 0.1
_UNSETTLED = 0.5  # the threshold of a tagger that no validation split has seen


class SpanDecoding(NamedTuple):
    """How likely spans are read as keyphrases.

    Attributes:
        threshold: keyphrases are spans more likely than this; a scalar.
        agreement: 1 where the same words are as likely a keyphrase wherever they stand in a text, else 0; a scalar.
        words: (B, T) what word a token is: equal numbers for equal words.
    """

    threshold: torch.Tensor
    agreement: torch.Tensor
    words: torch.Tensor


class Logits(NamedTuple):
    """What the heads say of each token: keyword (B, T, 2) and keyphrase (B, T, 5); how they are read as keyphrases.

    Attributes:
        chain: learned scores of one tag after another; None where each tag is learned by itself.
        reading: of likely spans; None where the likeliest sequence is read.
    """

    keyword: torch.Tensor
    keyphrase: torch.Tensor
    chain: CrfScores | None = None
    reading: SpanDecoding | None = None


class BiRnn(nn.Module):
    """A recurrent layer in one or both directions, in which padding at the end never reaches a real token."""

    def __init__(self, cell: str, inputs: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.kernel, module = CELLS[cell].kernel, CELLS[cell].module
        self.forward_rnn = module(inputs, hidden, batch_first=True)
        self.backward_rnn = module(inputs, hidden, batch_first=True) if bidirectional else None
        self.outputs = hidden * (2 if bidirectional else 1)

    @property
    def directions(self) -> list[nn.RNNBase]:
        """One layer for each direction that is read in."""
        return [self.forward_rnn] if self.backward_rnn is None else [self.forward_rnn, self.backward_rnn]

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, inputs) -> (B, T, outputs)."""
        ahead, _ = self.forward_rnn(inputs)
        if self.backward_rnn is None:
            return ahead
        # Each text is turned round within its own length, so that the backward pass begins at its last real token.
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        turned = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)[..., None]
        back, _ = self.backward_rnn(torch.take_along_dim(inputs, turned, dim=1))
        return torch.cat([ahead, torch.take_along_dim(back, turned, dim=1)], dim=-1)


class Tagger(nn.Module):
    """The dual-loss keyphrase tagger."""

    threshold: torch.Tensor | None
    agreement: torch.Tensor | None
    counts: torch.Tensor | None

    def __init__(self, config: TaggerConfig, words: int, vectors: torch.Tensor | None = None) -> None:
        """
        Args:
            config: the architecture.
            words: size of the vocabulary.
            vectors: (words, D) to begin the embedding from; drawn at random where None.
        """
        super().__init__()
        self.config = config
        # Sparse gradients: a step touches a small part of the table, and only that part is exchanged and updated.
        self.embedding = nn.Embedding(words, config.embedding_dim, padding_idx=PAD, sparse=True)
        with torch.no_grad():
            if vectors is None:
                self.embedding.weight.mul_(_EMBEDDING_SPREAD)
            else:
                self.embedding.weight.copy_(vectors)
            self.embedding.weight[PAD] = 0
        self.word_feature_embedding = _spelling_table(config.word_feature_dim) if config.word_feature_dim else None
        self.crf = CrfTransitions() if config.crf else None
        inputs = config.window * (config.embedding_dim + NUM_FEATURES * config.word_feature_dim)
        self.keyword_rnn = BiRnn(config.cell, inputs, config.keyword_hidden, config.bidirectional)
        self.keyphrase_rnn = BiRnn(config.cell, self.keyword_rnn.outputs, config.keyphrase_hidden, config.bidirectional)
        # Saved with the weights: they are learned too, though not by gradients.
        for name, value in (("threshold", _UNSETTLED), ("agreement", 0.0)):
            self.register_buffer(name, torch.tensor(value) if config.decoding == "spans" else None)
        # How often each word stands in the training texts: needed in training alone, and so no part of what is saved.
        self.register_buffer("counts", torch.ones(words) if config.rare_word_dropout else None, persistent=False)
        self.keyword_head = nn.Linear(self.keyword_rnn.outputs, 2)
        self.keyphrase_head = nn.Linear(self.keyphrase_rnn.outputs, 5)

    @property
    def tables(self) -> list[nn.Embedding]:
        """The embeddings, of which a step touches few rows."""
        return (
            [self.embedding] if self.word_feature_embedding is None else [self.embedding, self.word_feature_embedding]
        )

    def count_words(self, ids: npt.NDArray[np.int32]) -> None:
        """Counts the words of the training texts, for `rare_word_dropout`; each counts as one until then.

        Args:
            ids: (tokens,) vocabulary ids of all of them.
        """
        if self.counts is not None:
            counts = np.bincount(ids, minlength=len(self.counts)).clip(min=1)
            self.counts.copy_(torch.from_numpy(counts))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor, views: torch.Tensor | None = None) -> Logits:
        """
        Args:
            ids: (B, T) vocabulary ids, PAD after the end of each text.
            lengths: (B,) tokens of each text.
            views: (B, T, VIEWS) how each word is written, for a tagger that looks at it.
        """
        keyword, keyphrase = self._heads(ids, lengths, views)
        chain = self.crf() if self.crf else None
        return Logits(keyword, keyphrase, chain, self._reading(ids, views))

    def _reading(self, ids: torch.Tensor, views: torch.Tensor | None) -> SpanDecoding | None:
        if self.threshold is None or self.agreement is None:
            return None
        words = ids
        if self.word_feature_embedding is not None and views is not None:
            # Words that are not in the vocabulary are told apart by how they are written.
            words = (ids * SPELLINGS + views[..., 1]) * SPELLINGS + views[..., 2]
        return SpanDecoding(self.threshold, self.agreement, words)

    def _heads(
        self, ids: torch.Tensor, lengths: torch.Tensor, views: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            ids = self._drop_words(ids)
        if self._packs(ids):
            return self._packed_heads(ids, lengths, views)
        vectors = [self.embedding(ids)] + (
            [] if self.word_feature_embedding is None else [self.word_feature_embedding(views).flatten(2)]
        )
        x = self._drop(torch.cat([context_windows(each, self.config.window) for each in vectors], dim=-1))
        h1 = self.keyword_rnn(x, lengths)
        h2 = self.keyphrase_rnn(h1, lengths)
        return self.keyword_head(h1), self.keyphrase_head(h2)

    def _drop_words(self, ids: torch.Tensor) -> torch.Tensor:
        """Reads some words as <unk>, rare ones more often (Kiperwasser and Goldberg, TACL 2016).

        What stands for words that training never saw is then learned from words that are nearly so.
        """
        share: torch.Tensor | float = self.config.word_dropout
        if self.counts is not None:
            rare = self.config.rare_word_dropout
            share = 1 - (1 - share) * (1 - rare / (rare + self.counts[ids]))
        elif not share:
            return ids
        dropped = (torch.rand(ids.shape, device=ids.device) < share) & (ids != PAD)
        return ids.masked_fill(dropped, UNKNOWN)

    def _packs(self, ids: torch.Tensor) -> bool:
        """Whether the recurrence of model/network/cpu/layer.py takes the place of torch's."""
        whole = self.embedding.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return self.config.cpu_kernels and whole and ids.device.type == "cpu"

    def _packed_heads(
        self, ids: torch.Tensor, lengths: torch.Tensor, views: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places, steps = pack(lengths.numpy(), ids.shape[1])
        around = _around(ids, self.config.window)[places].flatten(1)  # (N, W)
        layer1 = (steps, self.keyword_rnn.kernel, self.keyword_rnn.directions, self.keyword_head)
        if self.training or torch.is_grad_enabled() or self.word_feature_embedding is not None:
            inputs = self._inputs(self.embedding, around)
            if self.word_feature_embedding is not None:
                assert views is not None
                spelled = self._inputs(
                    self.word_feature_embedding, _around(views, self.config.window)[places].flatten(1)
                )
                inputs = torch.cat([inputs, spelled], dim=1)
            h1, keyword = packed_rnn_with_head(inputs, *layer1)
        else:
            h1, keyword = packed_rnn_from_ids(self.embedding.weight, around, *layer1)
        _, keyphrase = packed_rnn_with_head(
            h1, steps, self.keyphrase_rnn.kernel, self.keyphrase_rnn.directions, self.keyphrase_head
        )
        return _padded(keyword, places, ids.shape), _padded(keyphrase, places, ids.shape)

    def _inputs(self, table: nn.Embedding, around: torch.Tensor) -> torch.Tensor:
        """(N, rows) -> (N, rows * D)."""
        mask = self._mask((len(around), around.shape[1] * table.embedding_dim))
        if table.sparse:
            return gather_windows(table.weight, around, mask)
        return table(around).flatten(1) * (1.0 if mask is None else mask)

    def _drop(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.config.cpu_dropout and inputs.device.type == "cpu":
            mask = self._mask((inputs.shape[:-1].numel(), inputs.shape[-1]))
            return inputs if mask is None else inputs * mask.view_as(inputs)
        return F.dropout(inputs, self.config.dropout, self.training)

    def _mask(self, shape: tuple[int, int]) -> torch.Tensor | None:
        """What inputs of the first layer are multiplied with; None for no dropout."""
        if not self.training or not self.config.dropout:
            return None
        if self.config.cpu_dropout:
            return dropout_mask(shape, self.config.dropout)
        return F.dropout(torch.ones(shape), self.config.dropout)


def _padded(packed: torch.Tensor, places: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(N, C) -> (B, T, C), zeros in the padding."""
    whole = packed.new_zeros(shape.numel() + shape[1], packed.shape[1])
    return whole.index_copy(0, places, packed)[: shape.numel()].unflatten(0, shape)


def _around(rows: torch.Tensor, window: int) -> torch.Tensor:
    """Each token's rows and those of its neighbours: (B, T, ...) -> (B * T + T, W, ...).

    One text of padding more, for what fills steps up.
    """
    reach, beyond = window // 2, [0, 0] * (rows.dim() - 2)
    filled = F.pad(rows, (*beyond, reach, reach, 0, 1), value=PAD)
    return filled.unfold(1, window, 1).movedim(-1, 2).flatten(0, 1)


def _spelling_table(size: int) -> nn.Embedding:
    table = nn.Embedding(SPELLINGS, size, padding_idx=PAD, sparse=True)
    with torch.no_grad():
        table.weight.mul_(_EMBEDDING_SPREAD)
    return table


def context_windows(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Each vector between its neighbours, zeros beyond the ends: (B, T, D) -> (B, T, size * D), leftmost first."""
    time, reach = vectors.shape[1], size // 2
    padded = F.pad(vectors, (0, 0, reach, reach))
    return torch.cat([padded[:, shift : shift + time] for shift in range(size)], dim=-1)


def new_tagger(config: TaggerConfig, words: int, seed: int, vectors: torch.Tensor | None = None) -> Tagger:
    """A tagger with first weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tagger(config, words, vectors)
