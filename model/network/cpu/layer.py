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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.data.batching import unique_ids
from model.network.cpu.direction import Direction
from model.network.cpu.packing import PackedStep


def packed_rnn_with_head(
    inputs: torch.Tensor,
    steps: list[PackedStep],
    kernel: type[Direction],
    directions: list[nn.RNNBase],
    head: nn.Linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what torch's recurrent layer over each packed text, and a linear head on its states, give.

    Args:
        inputs: (N, I) packed tokens; the gradient of what only fills a step up must not matter.
        steps: of the packing.
        kernel: of the cell.
        directions: torch's layer that reads forwards and, where there are two, one that reads backwards.
        head: on the states of all directions.

    Returns:
        States (N, H) and logits (N, C).
    """
    return _Layer.apply(inputs, steps, kernel, head.weight, head.bias, *_weights(directions))


def packed_rnn_from_ids(
    table: torch.Tensor,
    ids: torch.Tensor,
    steps: list[PackedStep],
    kernel: type[Direction],
    directions: list[nn.RNNBase],
    head: nn.Linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `packed_rnn_with_head(gather_windows(table, ids, None), ...)` where no gradient is needed.

    Each distinct word is multiplied by the input weights once for each position in the window; the input projection of a
    token is the sum over the words of its window.

    Args:
        table: (V, D) embedding.
        ids: (N, W) vocabulary ids of each token's window.
        steps, kernel, directions, head: see `packed_rnn_with_head`.

    Returns:
        States (N, H) and logits (N, C).
    """
    distinct, index = unique_ids(ids.numpy(), len(table))
    words, window = table[torch.from_numpy(distinct)], ids.shape[1]
    positions = torch.from_numpy(index) * window + torch.arange(window)
    states = words.new_empty(head.in_features, len(ids))
    for direction in _directions(kernel, steps, _weights(directions), states):
        w_ih = direction.w_ih
        by_position = w_ih.view(len(w_ih), window, -1).permute(2, 1, 0).flatten(1)  # (D, W * G)
        projections = (words @ by_position).view(-1, len(w_ih))
        direction.set_input_projection(F.embedding_bag(positions, projections, mode="sum"))
        direction.forward()
    return states.t(), torch.addmm(head.bias[:, None], head.weight, states).t()


class _Layer(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        steps: list[PackedStep],
        kernel: type[Direction],
        head: torch.Tensor,
        head_bias: torch.Tensor,
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = inputs.new_empty(head.shape[1], len(inputs))
        kept: list[torch.Tensor] = []
        for direction in _directions(kernel, steps, weights, states):
            direction.project_inputs(inputs.t())
            direction.forward()
            kept += direction.kept
        ctx.save_for_backward(inputs, states, head, *weights, *kept)
        ctx.steps, ctx.kernel, ctx.count = steps, kernel, len(weights)
        return states.t(), torch.addmm(head_bias[:, None], head, states).t()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_states: torch.Tensor | None, grad_logits: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        inputs, states, head, *others = ctx.saved_tensors
        weights, kept = others[: ctx.count], others[ctx.count :]
        grad = head.t() @ grad_logits.t()  # (H, N)
        if grad_states is not None:
            grad += grad_states.t()
        directions = [*_directions(ctx.kernel, ctx.steps, weights, states, kept)]
        grad_inputs, grad_weights = None, []
        for direction, grad_own in zip(directions, grad.chunk(len(directions)), strict=True):
            grad_preactivations = direction.backward(grad_own)
            grad_weights += direction.weight_grads(grad_preactivations, inputs)
            if ctx.needs_input_grad[0]:
                own = direction.input_grad(grad_preactivations, inputs)
                grad_inputs = own if grad_inputs is None else grad_inputs + own
        return grad_inputs, None, None, grad_logits.t() @ states.t(), grad_logits.sum(0), *grad_weights


def _weights(directions: list[nn.RNNBase]) -> list[torch.Tensor]:
    return [weight for module in directions for weight in module.parameters()]


def _directions(
    kernel: type[Direction],
    steps: list[PackedStep],
    weights: Sequence[torch.Tensor],
    states: torch.Tensor,
    kept: Sequence[torch.Tensor] | None = None,
) -> Iterator[Direction]:
    """Yield the directions of a layer, with their parts of its weights, its states and what its forward pass kept."""
    count = len(weights) // 4
    for i, own in enumerate(states.chunk(count)):
        matrices = None if kept is None else kept[i * len(kernel.keeps) : (i + 1) * len(kernel.keeps)]
        yield kernel(steps, bool(i), weights[4 * i : 4 * i + 4], own, matrices)
