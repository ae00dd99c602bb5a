"""A recurrent layer with its head on a CPU, in few and large products.

torch's own RNN and GRU on a CPU are chains of small calls, and so are their backward passes; its LSTM is faster, and gains
less here. The input projection of the whole batch is one product, the recurrence works in place, and each weight's gradient is
one product. How the numbers lie decides how fast the small products of the recurrence are (`python -m jobs benchmark`
compares):

- Tokens are packed: step by step, and within a step the longer texts first, so that hardly any padding is computed. A step is
  filled up to a multiple of 16 tokens: a product with 61 columns takes half as long again as one with 64.
- States are feature-major, (H, N): a step's product is then as fast as one of the whole batch, and else a fifth slower.
- The head belongs to the layer, so that its gradient is added in that layout too.

Shapes: N packed tokens, I inputs, H hidden units, C classes; H stands for both directions where there are two.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.network.cpu.direction import Direction
from model.network.cpu.packing import PackedStep, unique_ids


def packed_rnn_with_head(
    inputs: torch.Tensor,
    steps: list[PackedStep],
    kernel: type[Direction],
    directions: list[nn.RNNBase],
    head: nn.Linear,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a recurrent module of torch's over each packed text and a linear head on its states give.

    Args:
        inputs: (N, I) packed tokens; what fills a step up must not be changed by its gradient.
        steps: of the packing.
        kernel: of the cell.
        directions: torch's layer that reads forwards and, where there are two, one that reads backwards.
        head: on the states of all directions.

    Returns:
        States (N, H) and the head's logits (N, C).
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
    """`layer_with_head(joined_rows(table, ids, None), ...)` where no gradient is wanted.

    Each distinct word goes through the input weights once, for each place in the window; a token adds up what its window's
    words came to.
    """
    touched, number = unique_ids(ids, len(table))
    words, size = table[touched], ids.shape[1]
    places = number * size + torch.arange(size)
    states = words.new_empty(head.in_features, len(ids))
    for direction in _directions(kernel, steps, _weights(directions), states):
        w_ih = direction.w_ih
        by_place = w_ih.view(len(w_ih), size, -1).permute(2, 1, 0).flatten(1)  # (D, W * S)
        came_to = (words @ by_place).view(-1, len(w_ih))
        direction.set_input_projection(F.embedding_bag(places, came_to, mode="sum"))
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
    def backward(ctx: Any, of_states: torch.Tensor | None, of_logits: torch.Tensor) -> tuple[Any, ...]:
        inputs, states, head, *others = ctx.saved_tensors
        weights, kept = others[: ctx.count], others[ctx.count :]
        gradient = head.t() @ of_logits.t()
        if of_states is not None:
            gradient += of_states.t()
        directions = [*_directions(ctx.kernel, ctx.steps, weights, states, kept)]
        of_inputs, of_weights = None, []
        for direction, of_own in zip(directions, gradient.chunk(len(directions)), strict=True):
            of_sums = direction.backward(of_own)
            of_weights += direction.weight_grads(of_sums, inputs)
            if ctx.needs_input_grad[0]:
                own = direction.input_grad(of_sums, inputs)
                of_inputs = own if of_inputs is None else of_inputs + own
        return of_inputs, None, None, of_logits.t() @ states.t(), of_logits.sum(0), *of_weights


def _weights(directions: list[nn.RNNBase]) -> list[torch.Tensor]:
    return [weight for module in directions for weight in module.parameters()]


def _directions(
    kernel: type[Direction],
    steps: list[PackedStep],
    weights: Sequence[torch.Tensor],
    states: torch.Tensor,
    kept: Sequence[torch.Tensor] | None = None,
) -> Iterator[Direction]:
    """The directions of a layer, with their parts of its weights, its states and what its forward pass kept."""
    count = len(weights) // 4
    for i, own in enumerate(states.chunk(count)):
        matrices = None if kept is None else kept[i * len(kernel.keeps) : (i + 1) * len(kernel.keeps)]
        yield kernel(steps, bool(i), weights[4 * i : 4 * i + 4], own, matrices)
