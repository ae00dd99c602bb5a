"""The recurrence of a layer on a CPU: all that does not depend on the cell.

That is the order in which steps are read, the product of a step with the recurrent weights, and the gradients of the
weights. The cells are in model/network/cpu/kernels.py. Both directions of a layer are computed in the same calls: the
backward one reads each text from its own last token, so that a step has as many texts in one as in the other.

Shapes: N packed tokens, I inputs, R directions, H hidden units of a direction, G pre-activations of a token in a
direction: H times the gates of the cell.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

import torch

from model.network.cpu.packing import Packing

Weights = Sequence[torch.Tensor]  # of a direction, in torch's order: weight_ih, weight_hh, bias_ih, bias_hh


class Recurrence(ABC):
    """A layer in one or two directions, over one packed batch.

    Attributes:
        w_ih, biases: of each direction, in the order of the pre-activations.
        w_hh: (R, G, H) recurrent weights.
        states: (R, H, N) hidden states, each direction in the order in which it reads.
        kept: matrices that the backward pass needs besides. The first begins as the pre-activations (R, G, N), which
            become gates in place; a cell that keeps none has its pre-activations become states in place.
        each_state: the columns of the states, step by step.
    """

    keeps: tuple[int, ...] = ()  # heights of the kept matrices, in H
    factor = 1  # that pre-activations are computed times

    def __init__(
        self,
        packing: Packing,
        weights: Sequence[Weights],
        states: torch.Tensor,
        kept: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """
        Args:
            packing: of the batch.
            weights: of each direction.
            states: (R, H, N), written by `forward`.
            kept: of the forward pass, where this is the backward pass.
        """
        self.steps, self.reversal, self.states = packing.steps, packing.reversal, states
        self.w_ih, w_hh, *biases = zip(*weights, strict=True)
        self.w_hh, self.biases = torch.stack(w_hh), [*zip(*biases, strict=True)]
        directions, size, tokens = states.shape
        if kept is None:
            kept = [states.new_empty(directions, size * count, tokens) for count in self.keeps]
        self.kept = list(kept)
        self.preactivations = self.kept[0] if self.kept else states
        self.each_state = self.each(states)

    def project_inputs(self, inputs: torch.Tensor) -> None:
        """Compute the input projections, W_ih x + b_ih + b_hh, of inputs (I, N)."""
        for w_ih, (b_ih, b_hh), own in zip(self.w_ih, self.biases, self._input_rows(self.preactivations), strict=True):
            bias = (b_ih + b_hh)[:, None]
            torch.addmm(bias, w_ih, inputs, beta=self.factor, alpha=self.factor, out=own)
        self.reverse(self._input_rows(self.preactivations))

    def set_input_projection(self, direction: int, projection: torch.Tensor) -> None:
        """Take an input projection (N, G) that lacks the biases, in place of `project_inputs`; it is overwritten."""
        b_ih, b_hh = self.biases[direction]
        projection.add_(b_ih + b_hh)
        if self.factor != 1:
            projection.mul_(self.factor)
        if direction:
            projection = projection.index_select(0, self.reversal)
        self._input_rows(self.preactivations)[direction].copy_(projection.t())

    def forward(self) -> torch.Tensor:
        """Compute the states from the input projections, and return them in the order of the packing, (R, H, N)."""
        recurrent = self.each(self._recurrent_rows(self.preactivations))
        for step in range(len(self.steps)):
            previous = self._previous(self.each_state, step)
            if previous is not None:
                add_product(recurrent[step], self.w_hh, previous, self.factor)
            self._cell_forward(step, previous)
        return self.states if len(self.states) == 1 else self.reverse(self.states.clone())

    def backward(self, grad_states: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the pre-activations (R, G, N), given that of the states in the order of the packing.

        The gradient of the states (R, H, N) is overwritten.
        """
        self.reverse(grad_states)
        grad_preactivations, grad_each = self._gate_grad_factors(grad_states), self.each(grad_states)
        grad_recurrent = self.each(self._recurrent_rows(grad_preactivations))
        transposed = self.w_hh.mT.contiguous()  # a fifth faster where H is 128, a thirtieth slower where it is 300
        for step in range(len(self.steps) - 1, -1, -1):
            grad_previous = self._previous(grad_each, step)
            self._cell_backward(step, grad_each[step], grad_previous)
            if grad_previous is not None:
                add_product(grad_previous, transposed, grad_recurrent[step])
        return grad_preactivations

    def weight_grads(self, grad_preactivations: torch.Tensor, inputs: torch.Tensor) -> list[list[torch.Tensor]]:
        """Return the gradients of the weights of each direction.

        Args:
            grad_preactivations: (R, G, N) of `backward`; those that inputs (N, I) contribute to are put in their order.
            inputs: (N, I).
        """
        grad_bias, grad_w_hh = grad_preactivations.sum(2), self._grad_w_hh(grad_preactivations)
        grad_b_hh = self._recurrent_rows(grad_bias).clone()  # gradients are scaled in place, so none shares memory
        grads = self.reverse(self._input_rows(grad_preactivations)), grad_w_hh, self._input_rows(grad_bias), grad_b_hh
        return [[grad @ inputs, w_hh, b_ih, b_hh] for grad, w_hh, b_ih, b_hh in zip(*grads, strict=True)]

    def input_grad(self, grad_preactivations: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the inputs (N, I), in their memory layout; to be called after `weight_grads`."""
        grads = zip(self._input_rows(grad_preactivations), self.w_ih, strict=True)
        if inputs.is_contiguous():
            return sum_of([grad.t() @ w_ih for grad, w_ih in grads])
        return sum_of([w_ih.t() @ grad for grad, w_ih in grads]).t()

    def each(self, matrix: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the columns of each step."""
        return matrix.split([step.columns for step in self.steps], -1)

    def reverse(self, matrix: torch.Tensor) -> torch.Tensor:
        """Reverse, in place, the columns of each text in the backward direction of a matrix (R, ..., N)."""
        for own in matrix[1:]:
            own.copy_(own.index_select(1, self.reversal))
        return matrix

    def runs(self) -> Iterator[tuple[slice, slice]]:
        """Yield runs of tokens with their previous tokens; within a run the distance between the two is the same."""
        begins = [0, *accumulate(step.columns for step in self.steps)]
        for distance, steps in groupby(range(1, len(self.steps)), key=lambda step: self.steps[step - 1].columns):
            first, *_, last = [*steps] * 2
            later = slice(begins[first], begins[last + 1])
            yield later, slice(later.start - distance, later.stop - distance)

    def _previous(self, each: Sequence[torch.Tensor], step: int) -> torch.Tensor | None:
        """Return what the texts of a step have at the one before, (R, H, columns); None for the first."""
        return leading(each[step - 1], self.steps[step].columns) if step else None

    def _grad_w_hh(self, grad_preactivations: torch.Tensor) -> torch.Tensor:
        """Sum one product for each run of steps that are equally wide."""
        grad = self._recurrent_rows(grad_preactivations)
        total = torch.zeros_like(self.w_hh)
        for tokens, previous in self.runs():
            add_product(total, grad[..., tokens], self.states[..., previous].mT)
        return total

    @abstractmethod
    def _cell_forward(self, step: int, previous: torch.Tensor | None) -> None:
        """Turn a step's pre-activations into its state.

        Args:
            step: number of the step.
            previous: (R, H, columns) the states before it; None for the first.
        """

    @abstractmethod
    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        """Return what `_cell_backward` turns into the gradient of the pre-activations (R, G, N), step by step in place."""

    @abstractmethod
    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        """Compute the gradient of a step's pre-activations from that of its state (R, H, columns).

        What reaches the previous state other than through the pre-activations is added to `grad_previous`.
        """

    def _input_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the pre-activations, out of all rows (R, G, ...), that the inputs contribute to."""
        return rows

    def _recurrent_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the pre-activations, out of all rows (R, G, ...), that the previous state contributes to."""
        return rows


def leading(columns: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first columns of matrices (R, ..., columns)."""
    return columns if columns.shape[-1] == count else columns[..., :count]


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: int = 1) -> None:
    """Add a product of matrices (R, ..., ...) in place; `baddbmm_` of a single one would take a tenth longer than `addmm_`."""
    if len(total) == 1:
        total[0].addmm_(left[0], right[0], alpha=alpha)
    else:
        total.baddbmm_(left, right, alpha=alpha)


def sum_of(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of one or two matrices; the first is overwritten."""
    first, *others = matrices
    for other in others:
        first += other
    return first
