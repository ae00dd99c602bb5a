"""A plain RNN layer with its head on a CPU, in few and large products.

torch's own `nn.RNN` on a CPU is a chain of small calls, and so is its backward pass. Here the input projection of the whole
batch is one product, the recurrence works in place, and each weight's gradient is one product. How the numbers lie decides
how fast the small products of the recurrence are (`python -m jobs benchmark` compares):

- Tokens are packed: step by step, and within a step the longer texts first, so that hardly any padding is computed. A step is
  filled up to a multiple of 16 tokens: a product with 61 columns takes half as long again as one with 64.
- States are feature-major, (H, N): a step's product is then as fast as one of the whole batch, and else a fifth slower.
- The head belongs to the layer, so that its gradient is added in that layout too.
- tanh(x) is computed as 2 sigmoid(2x) - 1, which takes two thirds of the time and is off by at most 2e-7.

Shapes: N packed tokens, I inputs, H hidden units, C classes; H stands for both directions where there are two.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.tokenizer import PAD

_LANE = 16  # columns that the matrix product works on at once
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class Step(NamedTuple):
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
    steps: list[Step]


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
        torch.from_numpy(places), [Step(*each) for each in zip(texts.tolist(), columns.tolist(), strict=True)]
    )


def joined_rows(table: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
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
        touched, number = _distinct(ids, ctx.shape[0])
        values = gradient.new_zeros(len(touched), ctx.shape[1])
        values.index_add_(0, number.flatten(), gradient.view(-1, ctx.shape[1]))
        real = slice(int(touched[0] == PAD), None)
        rows = torch.sparse_coo_tensor(
            touched[None, real], values[real], ctx.shape, check_invariants=False, is_coalesced=True
        )
        return rows, None, None


def _distinct(ids: torch.Tensor, words: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def layer_with_head(
    inputs: torch.Tensor, steps: list[Step], directions: list[nn.Module], head: nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `nn.RNN` over each packed text and a linear head on its states give.

    Args:
        inputs: (N, I) packed tokens; what fills a step up must not be changed by its gradient.
        steps: of the packing.
        directions: an `nn.RNN` that reads forwards and, where there are two, one that reads backwards.
        head: on the states of all directions.

    Returns:
        States (N, H) and the head's logits (N, C).
    """
    weights = [weight for rnn in directions for weight in rnn.parameters()]
    return _Layer.apply(inputs, steps, head.weight, head.bias, *weights)


def layer_of_words(
    table: torch.Tensor, ids: torch.Tensor, steps: list[Step], directions: list[nn.Module], head: nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer_with_head(joined_rows(table, ids, None), ...)` where no gradient is wanted.

    Each distinct word goes through the input weights once, for each place in the window; a token adds up what its window's
    words came to.
    """
    distinct, number = _distinct(ids, len(table))
    words, size = table[distinct], ids.shape[1]
    places = number * size + torch.arange(size)
    weights = [weight for rnn in directions for weight in rnn.parameters()]
    states = words.new_empty(head.in_features, len(ids))
    for direction in _directions(steps, weights, states):
        w_ih, w_hh, b_ih, b_hh = direction.weights
        by_place = w_ih.view(len(w_ih), size, -1).permute(2, 1, 0).flatten(1)  # (D, W * H)
        came_to = (words @ by_place).view(-1, len(w_ih))
        sums = F.embedding_bag(places, came_to, mode="sum").add_(b_ih).add_(b_hh).mul_(2)
        direction.whole[0].copy_(sums.t())
        direction.recur(w_hh)
    return states.t(), torch.addmm(head.bias[:, None], head.weight, states).t()


class _Layer(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, steps: list[Step], head: torch.Tensor, head_bias: torch.Tensor, *weights: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = inputs.new_empty(head.shape[1], len(inputs))
        for direction in _directions(steps, weights, states):
            w_ih, w_hh, b_ih, b_hh = direction.weights
            torch.addmm((b_ih + b_hh)[:, None], w_ih, inputs.t(), beta=2, alpha=2, out=direction.whole[0])
            direction.recur(w_hh)
        ctx.save_for_backward(inputs, states, head, *weights)
        ctx.steps = steps
        return states.t(), torch.addmm(head_bias[:, None], head, states).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_states: torch.Tensor | None, of_logits: torch.Tensor) -> tuple[Any, ...]:
        inputs, states, head, *weights = ctx.saved_tensors
        gradient = head.t() @ of_logits.t()
        if of_states is not None:
            gradient += of_states.t()
        of_inputs, of_weights = None, []
        for direction in _directions(ctx.steps, weights, states, gradient):
            w_ih, w_hh, *_ = direction.weights
            direction.recur_backwards(w_hh)
            of_sums = direction.whole[1]
            of_bias = of_sums.sum(1)
            of_weights += [of_sums @ inputs, direction.of_recurrent_weight(), of_bias, of_bias]
            if ctx.needs_input_grad[0]:
                own = of_sums.t() @ w_ih if inputs.is_contiguous() else (w_ih.t() @ of_sums).t()
                of_inputs = own if of_inputs is None else of_inputs + own
        return of_inputs, None, of_logits.t() @ states.t(), of_logits.sum(0), *of_weights


class _Direction:
    """One direction of a layer: its weights, and the states and perhaps their gradient, (H, N) each, step by step."""

    def __init__(self, steps: list[Step], reads_back: bool, weights: Any, whole: list[torch.Tensor]) -> None:
        self.steps, self.reads_back, self.weights, self.whole = steps, reads_back, weights, whole
        self.each = [part.split([step.columns for step in steps], 1) for part in whole]

    def recur(self, w_hh: torch.Tensor) -> None:
        """Turns twice each step's sum of inputs into its state, in place: `h = tanh(sum + w_hh h_before)`."""
        [states], minus_one = self.each, torch.tensor(-1.0)
        for step, both, before in self._order(states):
            if before is not None:
                both.addmm_(w_hh, before, alpha=2)
            state = states[step]
            torch.add(minus_one, state.sigmoid_(), alpha=2, out=state)
            self._clear(state, step)

    def recur_backwards(self, w_hh: torch.Tensor) -> None:
        """Turns the gradient of each step's state into that of its sum before tanh, in place."""
        (states, gradients), transposed = self.each, w_hh.t()
        for step, both, before in reversed(self._order(gradients)):
            gradient, state = gradients[step], states[step]
            _tanh_backward(gradient, state, grad_input=gradient)
            self._clear(gradient, step)
            if before is not None:
                before.addmm_(transposed, both)

    def of_recurrent_weight(self) -> torch.Tensor:
        """Its gradient: one product for each run of steps that are equally wide."""
        states, gradient = self.whole
        total = gradient.new_zeros(len(gradient), len(gradient))
        for begin, end, distance in self._runs():
            later, earlier = slice(begin, end), slice(begin - distance, end - distance)
            step, before = (earlier, later) if self.reads_back else (later, earlier)
            total.addmm_(gradient[:, step], states[:, before].t())
        return total

    def _order(self, each: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """Each step in reading order, and what it and the step read before it have in the columns that both have."""
        order = range(len(each))[:: -1 if self.reads_back else 1]
        found: list[tuple[int, torch.Tensor, torch.Tensor | None]] = [(order[0], each[order[0]], None)]
        for before, step in pairwise(order):
            both = min(self.steps[step].columns, self.steps[before].columns)
            found.append((step, _first(each[step], both), _first(each[before], both)))
        return found

    def _clear(self, columns: torch.Tensor, step: int) -> None:
        """What fills a step up is not read by what comes after it, except where texts are read from their ends."""
        if self.reads_back and self.steps[step].texts < self.steps[step].columns:
            columns[:, self.steps[step].texts :] = 0

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """Runs of columns whose texts' tokens one step earlier stand equally far off: begin, end and that distance."""
        begins = [0, *accumulate(step.columns for step in self.steps)]
        for distance, steps in groupby(range(1, len(self.steps)), key=lambda step: self.steps[step - 1].columns):
            first, *_, last = [*steps] * 2
            yield begins[first], begins[last + 1], distance


def _directions(steps: list[Step], weights: Any, *whole: torch.Tensor) -> Iterator[_Direction]:
    """The directions of a layer, with their parts of its weights, states and gradient."""
    count = len(weights) // 4
    for i in range(count):
        yield _Direction(steps, bool(i), weights[4 * i : 4 * i + 4], [part.chunk(count)[i] for part in whole])


def _first(columns: torch.Tensor, count: int) -> torch.Tensor:
    return columns if columns.shape[1] == count else columns[:, :count]
