"""The joint-layer RNN (Zhang et al., EMNLP 2016, section 3).

    word -> embedding -> window of neighbours -> recurrent layer 1 -> keyword head (2 classes)
                                                        |
                                                 recurrent layer 2 -> keyphrase head (BIOES, 5 classes)

Shapes: B texts, T tokens, D embedding size, W window, H1 and H2 hidden sizes (twice as many when bidirectional).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.errors import UserError
from model.tokenizer import PAD, UNKNOWN

_CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

# Standard deviation of the first embedding. With torch's own 1.0 a rare word, which a sparse optimiser moves only when it
# is seen, hardly leaves its random place: F1 0.44 against 0.50 on 10,722 tweets after 8 epochs.
_EMBEDDING_SPREAD = 0.1


class Logits(NamedTuple):
    """What the heads say of each token: keyword (B, T, 2) and keyphrase (B, T, 5)."""

    keyword: torch.Tensor
    keyphrase: torch.Tensor


class Recurrent(nn.Module):
    """A recurrent layer in one or both directions, in which padding at the end never reaches a real token."""

    def __init__(self, cell: str, inputs: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.forwards = _CELLS[cell](inputs, hidden, batch_first=True)
        self.backwards = _CELLS[cell](inputs, hidden, batch_first=True) if bidirectional else None
        self.outputs = hidden * (2 if bidirectional else 1)

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, inputs) -> (B, T, outputs)."""
        ahead, _ = self.forwards(inputs)
        if self.backwards is None:
            return ahead
        # Each text is turned round within its own length, so that the backward pass begins at its last real token.
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        turned = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)[..., None]
        back, _ = self.backwards(torch.take_along_dim(inputs, turned, dim=1))
        return torch.cat([ahead, torch.take_along_dim(back, turned, dim=1)], dim=-1)


class Tagger(nn.Module):
    """The dual-loss keyphrase tagger."""

    def __init__(self, config: TaggerConfig, words: int, vectors: torch.Tensor | None = None) -> None:
        """
        Args:
            config: the architecture.
            words: size of the vocabulary.
            vectors: (words, D) to begin the embedding from; drawn at random where None.
        """
        super().__init__()
        self.window = config.window
        self.dropout = config.dropout
        self.word_dropout = config.word_dropout
        # Sparse gradients: a step touches a small part of the table, and only that part is exchanged and updated.
        self.embedding = nn.Embedding(words, config.embedding, padding_idx=PAD, sparse=True)
        with torch.no_grad():
            if vectors is None:
                self.embedding.weight.mul_(_EMBEDDING_SPREAD)
            else:
                self.embedding.weight.copy_(vectors)
            self.embedding.weight[PAD] = 0
        self.layer1 = Recurrent(config.cell, config.window * config.embedding, config.hidden1, config.bidirectional)
        self.layer2 = Recurrent(config.cell, self.layer1.outputs, config.hidden2, config.bidirectional)
        self.keyword_head = nn.Linear(self.layer1.outputs, 2)
        self.keyphrase_head = nn.Linear(self.layer2.outputs, 5)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> Logits:
        """
        Args:
            ids: (B, T) vocabulary ids, PAD after the end of each text.
            lengths: (B,) tokens of each text.
        """
        if self.training and self.word_dropout:
            dropped = (torch.rand(ids.shape, device=ids.device) < self.word_dropout) & (ids != PAD)
            ids = ids.masked_fill(dropped, UNKNOWN)
        x = windows(self.embedding(ids), self.window)  # (B, T, W * D)
        x = F.dropout(x, self.dropout, self.training)
        h1 = self.layer1(x, lengths)
        h2 = self.layer2(h1, lengths)
        return Logits(self.keyword_head(h1), self.keyphrase_head(h2))


def device_of(name: str) -> torch.device:
    """The device `cpu`, `cuda` or `cuda:N`. Raises UserError where this machine or this build of torch has none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name}: cannot be used here ({reason}); choose cpu, or cuda where there is one"
        ) from None
    return device


def windows(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Each vector between its neighbours, zeros beyond the ends: (B, T, D) -> (B, T, size * D), leftmost first."""
    time, reach = vectors.shape[1], size // 2
    padded = F.pad(vectors, (0, 0, reach, reach))
    return torch.cat([padded[:, shift : shift + time] for shift in range(size)], dim=-1)
