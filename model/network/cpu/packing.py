"""Packing of the tokens of a batch for the recurrence on a CPU, and the embedding of their windows.

Shapes: B texts, T tokens, N packed tokens, W window, D embedding, U rows of a table.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.data.tokenizer import PAD

_LANES = 16  # columns that the matrix product computes at once, and fastest where rows begin at multiples of them


class PackedStep(NamedTuple):
    """How many texts have a token at a step, and the number of columns that it is filled up to."""

    texts: int
    columns: int


class Packing(NamedTuple):
    """The packing of a padded batch (B, T).

    Attributes:
        positions: (N,) index of each packed token in the flattened batch; B * T where it only fills a step up.
        steps: as many as the longest text has tokens; their widths never increase.
        reversal: (N,) index of the packed token that stands in a token's place where each text is read from its end.
    """

    positions: torch.Tensor
    steps: list[PackedStep]
    reversal: torch.Tensor

    @property
    def batch_sizes(self) -> torch.Tensor:
        """Return (steps,) the texts that have a token at each step, as a `PackedSequence` has them."""
        return torch.tensor([step.texts for step in self.steps])


def pack(lengths: npt.NDArray[np.int64], padded_to: int, fill: bool = True) -> Packing:
    """Return the packing of texts of these lengths (B,), padded to T steps; without `fill`, it is that of a PackedSequence."""
    # A product with one column takes a third of the time of one with 16.
    lanes = _LANES if fill and len(lengths) > 1 else 1
    unused = -len(lengths) % lanes
    order = np.pad(np.argsort(-lengths, kind="stable"), (0, unused))
    ordered = np.pad(-np.sort(-lengths), (0, unused))
    steps = np.arange(ordered[0])[:, None]
    real = steps < ordered
    texts = real.sum(1)
    columns = texts + -texts % lanes
    packed = np.arange(len(order)) < columns[:, None]  # (steps, columns of the first)
    positions = np.where(real, order * padded_to + steps, len(lengths) * padded_to)[packed]
    begins = np.cumsum(columns) - columns
    mirrored = np.where(real, ordered - 1 - steps, steps)  # step of the token that is read in its place
    reversal = (begins[mirrored] + np.arange(len(order)))[packed]
    return Packing(
        torch.from_numpy(positions),
        [PackedStep(*each) for each in zip(texts.tolist(), columns.tolist(), strict=True)],
        torch.from_numpy(reversal),
    )


def gather_windows(table: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the embedding of windows, side by side, times a dropout mask.

    Args:
        table: (U, D); the row of PAD receives no gradient.
        ids: (N, W) rows of the table.
        mask: (N, W * D), overwritten in the backward pass; None for 1.

    Returns:
        (N, W * D).
    """
    return _GatherWindows.apply(table, ids, mask)


class _GatherWindows(Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        rows = table.index_select(0, ids.flatten()).view(len(ids), -1)
        ctx.save_for_backward(ids, mask)
        ctx.shape = table.shape
        return rows if mask is None else rows.mul_(mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ids, mask = ctx.saved_tensors
        if mask is not None:
            grad = torch.mul(grad, mask, out=mask)  # its memory is not needed again
        rows = grad.new_zeros(ctx.shape)
        rows.index_add_(0, ids.flatten(), grad.reshape(-1, ctx.shape[1]))
        rows[PAD] = 0
        return rows, None, None
