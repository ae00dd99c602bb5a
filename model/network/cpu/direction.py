"""One direction of a recurrent layer on a CPU: all that does not depend on the cell.

That is the order in which steps are read, the product of a step with the recurrent weights, and the gradients of the
weights. The cells are in model/network/cpu/kernels.py.

Shapes: N packed tokens, I inputs, H hidden units, G pre-activations of a token: H times the gates of the cell.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise

import torch

from model.network.cpu.packing import PackedStep


class Direction(ABC):
    """One direction of a layer, over one packed batch.

    Attributes:
        w_ih: (G, I) input weights, in the order of the pre-activations.
        states: (H, N) hidden states.
        kept: matrices that the backward pass needs besides. The first begins as the pre-activations (G, N), which become
            gates in place; a cell that keeps none has its pre-activations become states in place.
        each_state, each_kept: the columns of these, step by step.
    """

    keeps: tuple[int, ...] = ()  # heights of the kept matrices, in H
    factor = 1  # that pre-activations are computed times

    def __init__(
        self,
        steps: list[PackedStep],
        reads_back: bool,
        weights: Sequence[torch.Tensor],
        states: torch.Tensor,
        kept: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """
        Args:
            steps: of the packing.
            reads_back: whether texts are read from their ends.
            weights: those of torch's module, in its order: weight_ih, weight_hh, bias_ih, bias_hh.
            states: (H, N), written by `forward`.
            kept: of the forward pass, where this is the backward pass.
        """
        self.steps, self.reads_back, self.states = steps, reads_back, states
        self.w_ih, self.w_hh, *self.biases = weights
        size, tokens = states.shape
        self.kept = [states.new_empty(size * count, tokens) for count in self.keeps] if kept is None else kept
        self.preactivations = self.kept[0] if self.kept else states
        self.each_state, self.each_kept = self._each(states), [self._each(matrix) for matrix in self.kept]

    def project_inputs(self, inputs: torch.Tensor) -> None:
        """Compute the input projection, W_ih x + b_ih + b_hh, of inputs (I, N)."""
        (b_ih, b_hh), factor = self.biases, self.factor
        torch.addmm(
            (b_ih + b_hh)[:, None],
            self.w_ih,
            inputs,
            beta=factor,
            alpha=factor,
            out=self._input_rows(self.preactivations),
        )

    def set_input_projection(self, projection: torch.Tensor) -> None:
        """Take an input projection (N, G) that lacks the biases, in place of `project_inputs`; it is overwritten."""
        b_ih, b_hh = self.biases
        self._input_rows(self.preactivations).copy_(projection.add_(b_ih).add_(b_hh).mul_(self.factor).t())

    def forward(self) -> None:
        """Compute the states from the input projection, step by step."""
        preactivations, states = self._each(self._recurrent_rows(self.preactivations)), self.each_state
        for step, previous, common in self._order():
            if previous is not None:
                leading(preactivations[step], common).addmm_(
                    self.w_hh, leading(states[previous], common), alpha=self.factor
                )
            self._cell_forward(step, previous, common)
            self._clear(states[step], step)

    def backward(self, grad_states: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the pre-activations (G, N), given that of the states (H, N), which is overwritten."""
        grad_preactivations, grad_each = self._gate_grad_factors(grad_states), self._each(grad_states)
        grad_recurrent = self._each(self._recurrent_rows(grad_preactivations))
        transposed = self.w_hh.t().contiguous()  # a fifth faster where H is 128, a thirtieth slower where it is 300
        for step, previous, common in reversed(self._order()):
            self._clear(grad_each[step], step)
            grad_previous = None if previous is None else leading(grad_each[previous], common)
            self._cell_backward(step, grad_each[step], grad_previous)
            if grad_previous is not None:
                grad_previous.addmm_(transposed, leading(grad_recurrent[step], common))
        return grad_preactivations

    def weight_grads(self, grad_preactivations: torch.Tensor, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients of the weights, in torch's order; inputs are (N, I)."""
        grad_bias = grad_preactivations.sum(1)
        grad_w_ih = self._input_rows(grad_preactivations) @ inputs
        grad_w_hh = self._grad_w_hh(grad_preactivations)
        return [grad_w_ih, grad_w_hh, self._input_rows(grad_bias), self._recurrent_rows(grad_bias)]

    def input_grad(self, grad_preactivations: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the inputs (N, I), in their memory layout."""
        grad = self._input_rows(grad_preactivations)
        return grad.t() @ self.w_ih if inputs.is_contiguous() else (self.w_ih.t() @ grad).t()

    def _grad_w_hh(self, grad_preactivations: torch.Tensor) -> torch.Tensor:
        """Sum one product for each run of steps that are equally wide."""
        grad = self._recurrent_rows(grad_preactivations)
        total = grad.new_zeros(len(grad), len(self.states))
        for tokens, previous in self._runs():
            total.addmm_(grad[:, tokens], self.states[:, previous].t())
        return total

    @abstractmethod
    def _cell_forward(self, step: int, previous: int | None, common: int) -> None:
        """Turn a step's pre-activations into its state.

        Args:
            step: number of the step.
            previous: the step read before it; None for the first.
            common: columns that both have; they are the first of each.
        """

    @abstractmethod
    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        """Return what `_cell_backward` turns into the gradient of the pre-activations (G, N), step by step in place."""

    @abstractmethod
    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        """Compute the gradient of a step's pre-activations from that of its state (H, columns).

        What reaches the previous state other than through the pre-activations is added to `grad_previous`.
        """

    def _input_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the pre-activations, out of all rows, that the inputs contribute to."""
        return rows

    def _recurrent_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the pre-activations, out of all rows, that the previous state contributes to."""
        return rows

    def _each(self, matrix: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the columns of each step."""
        return matrix.split([step.columns for step in self.steps], -1)

    def _order(self) -> list[tuple[int, int | None, int]]:
        """Return each step in reading order, the step read before it, and how many columns both have."""
        order = range(len(self.steps))[:: -1 if self.reads_back else 1]
        found: list[tuple[int, int | None, int]] = [(order[0], None, 0)]
        for previous, step in pairwise(order):
            found.append((step, previous, min(self.steps[step].columns, self.steps[previous].columns)))
        return found

    def _clear(self, columns: torch.Tensor, step: int) -> None:
        """Zero the columns that only fill a step up. Unless texts are read from their ends, no later step reads them."""
        if self.reads_back and self.steps[step].texts < self.steps[step].columns:
            columns[:, self.steps[step].texts :] = 0

    def _runs(self) -> Iterator[tuple[slice, slice]]:
        """Yield runs of tokens with their previous tokens; within a run the distance between the two is the same."""
        begins = [0, *accumulate(step.columns for step in self.steps)]
        for distance, steps in groupby(range(1, len(self.steps)), key=lambda step: self.steps[step - 1].columns):
            first, *_, last = [*steps] * 2
            later = slice(begins[first], begins[last + 1])
            earlier = slice(later.start - distance, later.stop - distance)
            yield (earlier, later) if self.reads_back else (later, earlier)


def leading(columns: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first columns of a matrix."""
    return columns if columns.shape[1] == count else columns[:, :count]
