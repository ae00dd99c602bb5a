"""A recurrent layer with its head on a CPU, in few and large matrix products.

torch's own RNN and GRU on a CPU are sequences of small calls, and so are their backward passes; its LSTM is faster, and
gains less here. The input projection of the whole batch is one product, the recurrence works in place, and each weight's
gradient is one product. The memory layout determines the speed of the small products of the recurrence (measured by
`python -m jobs benchmark`):

- Tokens are packed: step by step, and within a step the longer texts first, so that hardly any padding is computed. A
  step is filled up to a multiple of 16 tokens: a product with 61 columns takes 1.5 times as long as one with 64.
- States are feature-major, (H, N): a step's product is then as fast as one of the whole batch, and a fifth slower if not.
- The head belongs to the layer, so that its gradient is added in that layout too.

Shapes: N packed tokens, W window, D embedding, I inputs, H hidden units of all directions, G pre-activations, C classes.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.data.batching import unique_ids
from model.network.cpu.packing import Packing
from model.network.cpu.recurrence import Recurrence, Weights


def packed_rnn_with_head(
    inputs: torch.Tensor,
    packing: Packing,
    kernel: type[Recurrence],
    directions: list[nn.RNNBase],
    head: nn.Linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what torch's recurrent layer over each packed text, and a linear head on its states, give.

    Args:
        inputs: (N, I) packed tokens; the gradient of what only fills a step up must not matter.
        packing: of the batch.
        kernel: of the cell.
        directions: torch's layer that reads forwards and, where there are two, one that reads backwards.
        head: on the states of all directions.

    Returns:
        States (N, H) and logits (N, C).
    """
    return _Layer.apply(inputs, packing, kernel, head.weight, head.bias, *_weights(directions))


def packed_rnn_from_ids(
    lookups: Sequence[tuple[torch.Tensor, torch.Tensor]],
    packing: Packing,
    kernel: type[Recurrence],
    directions: list[nn.RNNBase],
    head: nn.Linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `packed_rnn_with_head` of the embeddings of windows, side by side, where no gradient is needed.

    Each distinct row of a table is multiplied by the input weights once for each position in the window, not once for
    each token; the input projection of a token is the sum over its window.

    Args:
        lookups: each a table (V, D) and the rows of each token's window, (N, W).
        packing, kernel, directions, head: see `packed_rnn_with_head`.

    Returns:
        States (N, H) and logits (N, C).
    """
    recurrence = _recurrence(kernel, packing, _weights(directions))
    weights, column = torch.cat(recurrence.w_ih).t(), 0  # (I, R * G)
    projections, indices, count = [], [], 0
    for table, ids in lookups:
        for position in ids.T.numpy():
            distinct, index = unique_ids(position, len(table))
            projections.append(table[torch.from_numpy(distinct)] @ weights[column : column + table.shape[1]])
            indices.append(torch.from_numpy(index + count))
            column, count = column + table.shape[1], count + len(distinct)
    projection = F.embedding_bag(torch.stack(indices, 1), torch.cat(projections), mode="sum")  # (N, R * G)
    for direction, own in enumerate(projection.chunk(len(directions), 1)):
        recurrence.set_input_projection(direction, own)
    states = recurrence.forward().flatten(0, 1)
    return states.t(), torch.addmm(head.bias[:, None], head.weight, states).t()


class _Layer(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        packing: Packing,
        kernel: type[Recurrence],
        head: torch.Tensor,
        head_bias: torch.Tensor,
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        recurrence = _recurrence(kernel, packing, weights)
        recurrence.project_inputs(inputs.t())
        states = recurrence.forward().flatten(0, 1)
        ctx.save_for_backward(inputs, states, head, recurrence.states, *recurrence.kept, *weights)
        ctx.packing, ctx.kernel, ctx.count = packing, kernel, len(weights)
        return states.t(), torch.addmm(head_bias[:, None], head, states).t()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_states: torch.Tensor | None, grad_logits: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        inputs, states, head, own_states, *others = ctx.saved_tensors
        kept, weights = others[: -ctx.count], others[-ctx.count :]
        grad = head.t() @ grad_logits.t()  # (H, N)
        if grad_states is not None:
            grad += grad_states.t()
        recurrence = ctx.kernel(ctx.packing, _by_direction(weights), own_states, kept)
        grad_preactivations = recurrence.backward(grad.view_as(own_states))
        grad_weights = chain.from_iterable(recurrence.weight_grads(grad_preactivations, inputs))
        grad_inputs = recurrence.input_grad(grad_preactivations, inputs) if ctx.needs_input_grad[0] else None
        return grad_inputs, None, None, grad_logits.t() @ states.t(), grad_logits.sum(0), *grad_weights


def _weights(directions: list[nn.RNNBase]) -> list[torch.Tensor]:
    return [weight for module in directions for weight in module.parameters()]


def _by_direction(weights: Sequence[torch.Tensor]) -> list[Weights]:
    return [weights[first : first + 4] for first in range(0, len(weights), 4)]


def _recurrence(kernel: type[Recurrence], packing: Packing, weights: Sequence[torch.Tensor]) -> Recurrence:
    directions = _by_direction(weights)
    hidden = directions[0][1].shape[1]
    return kernel(packing, directions, directions[0][1].new_empty(len(directions), hidden, len(packing.positions)))
