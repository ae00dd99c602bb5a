"""One direction of a recurrent layer on a CPU: what is the same whatever its cells are.

That is the order in which steps are read, a step's product, and the gradients of the weights. The cells are in
model/network/cpu/kernels.py.

Shapes: N packed tokens, I inputs, H hidden units, S sums of a token: H, or as many times as a cell has gates.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise

import torch

from model.network.cpu.packing import PackedStep


class Direction(ABC):
    """One direction of a layer.

    Attributes:
        w_ih: (S, I), in the order of the sums.
        states: (H, N).
        kept: matrices that the backward pass needs besides. The first begins as the sums (S, N), which become gates in place;
            a cell that keeps none has its sums become states in place.
        each_state, each_kept: their columns, step by step.
    """

    keeps: tuple[int, ...] = ()  # the heights of the kept matrices, in H
    factor = 1  # that the sums are multiplied with

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
            weights: those of torch's module, in its order.
            states: written by `recur`.
            kept: of the forward pass, where this is the backward pass.
        """
        self.steps, self.reads_back, self.states = steps, reads_back, states
        self.w_ih, self.w_hh, *self.biases = weights
        size, tokens = states.shape
        self.kept = [states.new_empty(size * count, tokens) for count in self.keeps] if kept is None else kept
        self.sums = self.kept[0] if self.kept else states
        self.each_state, self.each_kept = self._each(states), [self._each(matrix) for matrix in self.kept]

    def project_inputs(self, inputs: torch.Tensor) -> None:
        """Computes the sums of the inputs (I, N)."""
        (one, other), factor = self.biases, self.factor
        torch.addmm(
            (one + other)[:, None], self.w_ih, inputs, beta=factor, alpha=factor, out=self._of_inputs(self.sums)
        )

    def set_input_projection(self, sums: torch.Tensor) -> None:
        """Takes the sums of the inputs (N, S) from somebody who has added up all but the biases."""
        one, other = self.biases
        self._of_inputs(self.sums).copy_(sums.add_(one).add_(other).mul_(self.factor).t())

    def forward(self) -> None:
        """From the sums of the inputs to the states, step by step."""
        sums, states = self._each(self._of_states(self.sums)), self.each_state
        for step, before, both in self._order():
            if before is not None:
                leading(sums[step], both).addmm_(self.w_hh, leading(states[before], both), alpha=self.factor)
            self._cell_forward(step, before, both)
            self._clear(states[step], step)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """From the gradient of the states (H, N), which is overwritten, to that of the sums (S, N)."""
        of_sums, gradients = self._gate_grad_factors(gradient), self._each(gradient)
        recurrent = self._each(self._of_states(of_sums))
        transposed = self.w_hh.t().contiguous()  # a fifth faster where H is 128, a thirtieth slower where it is 300
        for step, before, both in reversed(self._order()):
            self._clear(gradients[step], step)
            earlier = None if before is None else leading(gradients[before], both)
            self._cell_backward(step, gradients[step], earlier)
            if earlier is not None:
                earlier.addmm_(transposed, leading(recurrent[step], both))
        return of_sums

    def weight_grads(self, of_sums: torch.Tensor, inputs: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of the weights, in torch's order; inputs are (N, I)."""
        of_bias = of_sums.sum(1)
        of_w_ih = self._of_inputs(of_sums) @ inputs
        return [of_w_ih, self._of_w_hh(of_sums), self._of_inputs(of_bias), self._of_states(of_bias)]

    def input_grad(self, of_sums: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The gradient of the inputs (N, I), which lies as they do."""
        of_sums = self._of_inputs(of_sums)
        return of_sums.t() @ self.w_ih if inputs.is_contiguous() else (self.w_ih.t() @ of_sums).t()

    def _of_w_hh(self, of_sums: torch.Tensor) -> torch.Tensor:
        """One product for each run of steps that are equally wide."""
        of_sums = self._of_states(of_sums)
        total = of_sums.new_zeros(len(of_sums), len(self.states))
        for step, before in self._runs():
            total.addmm_(of_sums[:, step], self.states[:, before].t())
        return total

    @abstractmethod
    def _cell_forward(self, step: int, before: int | None, both: int) -> None:
        """Turns a step's sums into its state; the step read before it has its first columns, `both` of them."""

    @abstractmethod
    def _gate_grad_factors(self, gradient: torch.Tensor) -> torch.Tensor:
        """What `_derive` turns into the gradient of the sums (S, N), step by step and in place."""

    @abstractmethod
    def _cell_backward(self, step: int, gradient: torch.Tensor, earlier: torch.Tensor | None) -> None:
        """The gradient of a step's sums, from that of its state (H, columns).

        What reaches the state before not by way of the sums is added to its gradient, `earlier`.
        """

    def _of_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """The sums, out of all rows, that the inputs take part in."""
        return rows

    def _of_states(self, rows: torch.Tensor) -> torch.Tensor:
        """The sums, out of all rows, that the state before takes part in."""
        return rows

    def _each(self, whole: torch.Tensor) -> Sequence[torch.Tensor]:
        """The columns of each step."""
        return whole.split([step.columns for step in self.steps], -1)

    def _order(self) -> list[tuple[int, int | None, int]]:
        """Each step in reading order, the step read before it, and how many columns both have."""
        order = range(len(self.steps))[:: -1 if self.reads_back else 1]
        found: list[tuple[int, int | None, int]] = [(order[0], None, 0)]
        for before, step in pairwise(order):
            found.append((step, before, min(self.steps[step].columns, self.steps[before].columns)))
        return found

    def _clear(self, columns: torch.Tensor, step: int) -> None:
        """What fills a step up is not read by what comes after it, except where texts are read from their ends."""
        if self.reads_back and self.steps[step].texts < self.steps[step].columns:
            columns[:, self.steps[step].texts :] = 0

    def _runs(self) -> Iterator[tuple[slice, slice]]:
        """Runs of tokens, and those read before them; in a run all stand equally far off."""
        begins = [0, *accumulate(step.columns for step in self.steps)]
        for distance, steps in groupby(range(1, len(self.steps)), key=lambda step: self.steps[step - 1].columns):
            first, *_, last = [*steps] * 2
            later = slice(begins[first], begins[last + 1])
            earlier = slice(later.start - distance, later.stop - distance)
            yield (earlier, later) if self.reads_back else (later, earlier)


def leading(columns: torch.Tensor, count: int) -> torch.Tensor:
    """The first columns."""
    return columns if columns.shape[1] == count else columns[:, :count]
