"""The layers that a tagger is made of: recurrence in one or both directions, and windows of neighboring tokens.

Shapes: B texts, T tokens, N packed tokens, W window, D values of a token, C classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from model.data.tokenizer import PAD
from model.network.cells import CELLS


class BiRnn(nn.Module):
    """A recurrent layer in one or both directions, in which padding at the end never reaches a real token.

    Attributes:
        outputs: states of a token, over all directions.
        kernel: of its cell on a CPU.
    """

    def __init__(self, cell: str, inputs: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self._cell, self.kernel, module = cell, CELLS[cell].kernel, CELLS[cell].module
        self.forward_rnn = module(inputs, hidden, batch_first=True)
        self.backward_rnn = module(inputs, hidden, batch_first=True) if bidirectional else None
        self.outputs = hidden * (2 if bidirectional else 1)

    @property
    def directions(self) -> list[nn.RNNBase]:
        """Return torch's layer of each direction, forward first."""
        return [self.forward_rnn] if self.backward_rnn is None else [self.forward_rnn, self.backward_rnn]

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the states (B, T, outputs) of inputs (B, T, D) by torch's own layers.

        On a GPU they are computed in float32 in any case: under autocast to bfloat16 torch runs cuDNN's recurrence in
        float16, in which small gradients become 0.
        """
        if inputs.device.type == "cuda":
            with torch.autocast("cuda", enabled=False):
                return self._states(inputs.float(), lengths)
        return self._states(inputs, lengths)

    def packed(self, inputs: torch.Tensor, batch_sizes: torch.Tensor) -> torch.Tensor:
        """Return the states (N, outputs) of packed tokens (N, D), where no gradient is needed.

        Args:
            inputs: in the order of a `PackedSequence`.
            batch_sizes: (steps,) int64 on the CPU, texts that have a token at each step.
        """
        weights = [weight for module in self.directions for weight in module.parameters()]
        initial = inputs.new_zeros(len(self.directions), int(batch_sizes[0]), self.forward_rnn.hidden_size)
        state = (initial, initial) if isinstance(self.forward_rnn, nn.LSTM) else initial
        packed, bidirectional = CELLS[self._cell].packed, len(self.directions) == 2
        states: torch.Tensor
        states, *_ = packed(inputs, batch_sizes, state, weights, True, 1, 0.0, False, bidirectional)
        return states

    def _states(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        forward_states, _ = self.forward_rnn(inputs)
        if self.backward_rnn is None:
            return forward_states
        # Each text is reversed within its own length, so that the backward pass begins at its last real token.
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        reversed_steps = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)[..., None]
        backward_states, _ = self.backward_rnn(torch.take_along_dim(inputs, reversed_steps, dim=1))
        return torch.cat([forward_states, torch.take_along_dim(backward_states, reversed_steps, dim=1)], dim=-1)


def context_windows(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Return each vector between its neighbours, zeros beyond the ends: (B, T, D) to (B, T, W * D), leftmost first."""
    steps, reach = vectors.shape[1], size // 2
    padded = F.pad(vectors, (0, 0, reach, reach))
    return torch.cat([padded[:, shift : shift + steps] for shift in range(size)], dim=-1)


def packed_id_windows(ids: torch.Tensor, window: int, positions: torch.Tensor) -> torch.Tensor:
    """Return the ids of each packed token and its neighbours, PAD beyond the ends: (B, T, ...) to (N, W * ...).

    Args:
        ids: (B, T), or (B, T, features).
        window: W.
        positions: (N,) of a `Packing`.
    """
    reach, features = window // 2, [0, 0] * (ids.dim() - 2)
    padded = F.pad(ids, (*features, reach, reach, 0, 1), value=PAD)  # one text more: what fills steps up points to it
    return padded.unfold(1, window, 1).movedim(-1, 2).flatten(0, 1)[positions].flatten(1)


def unpack(packed: torch.Tensor, positions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return packed rows (N, C) in their padded batch (B, T, C), zeros in the padding.

    Args:
        packed: rows.
        positions: (N,) of a `Packing`.
        shape: (B, T).
    """
    padded = packed.new_zeros(shape.numel() + shape[1], packed.shape[1])
    return padded.index_copy(0, positions, packed)[: shape.numel()].unflatten(0, shape)
