"""How the tokens of a batch lie packed for the recurrence on a CPU, and the vectors of their words.

Shapes: B texts of up to T tokens, N packed tokens, W words of a token's window, D embedding size.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.data.tokenizer import PAD

_LANE = 16  # columns that the matrix product works on at once


class PackedStep(NamedTuple):
    """How many texts have a token at a step, and to how many columns it is filled up."""

    texts: int
    columns: int


class Packing(NamedTuple):
    """How the tokens of a padded batch (B, T) lie packed.

    Attributes:
        places: (N,) of each packed token, its index in the flattened batch; B * T where it only fills a step up.
        steps: as many as the longest text has tokens; they never grow.
    """

    places: torch.Tensor
    steps: list[PackedStep]


def pack(lengths: npt.NDArray[np.int64], time: int) -> Packing:
    """The packing of texts of these lengths (B,), padded to `time` steps."""
    unused = -len(lengths) % _LANE
    order = np.pad(np.argsort(-lengths, kind="stable"), (0, unused))
    ordered = np.pad(-np.sort(-lengths), (0, unused))
    steps = np.arange(ordered[0])[:, None]
    real = steps < ordered
    texts = real.sum(1)
    columns = texts + -texts % _LANE
    places = np.where(real, order * time + steps, len(lengths) * time)
    places = places[np.arange(len(order)) < columns[:, None]]
    return Packing(
        torch.from_numpy(places), [PackedStep(*each) for each in zip(texts.tolist(), columns.tolist(), strict=True)]
    )


def gather_windows(table: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The rows (N, W * D) of a table that ids (N, W) name, side by side, times a mask (N, W * D).

    The table's gradient is sparse, has each row once, and leaves out the row of PAD.
    """
    return _Rows.apply(table, ids, mask)


class _Rows(Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        rows = table.index_select(0, ids.flatten()).view(len(ids), -1)
        ctx.save_for_backward(ids, mask)
        ctx.shape = table.shape
        return rows if mask is None else rows.mul_(mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ids, mask = ctx.saved_tensors
        if mask is not None:
            gradient = torch.mul(gradient, mask, out=mask)  # its memory is not needed again
        touched, number = unique_ids(ids, ctx.shape[0])
        values = gradient.new_zeros(len(touched), ctx.shape[1])
        values.index_add_(0, number.flatten(), gradient.reshape(-1, ctx.shape[1]))
        real = slice(int(touched[0] == PAD), None)
        rows = torch.sparse_coo_tensor(
            touched[None, real], values[real], ctx.shape, check_invariants=False, is_coalesced=True
        )
        return rows, None, None


def unique_ids(ids: torch.Tensor, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct ids, ascending, and the number of each id among them.

    As torch.unique gives them, at a fifth of its time: ids are small numbers.
    """
    given = ids.numpy()
    seen = np.zeros(words, np.bool_)
    seen[given] = True
    distinct = np.flatnonzero(seen)
    number = np.empty(words, np.int64)
    number[distinct] = np.arange(len(distinct))
    return torch.from_numpy(distinct), torch.from_numpy(number[given])
