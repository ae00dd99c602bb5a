"""The cells of the recurrence on a CPU: how a step's sums become its state, and how the state's gradient becomes theirs.

Each step is a few calls on small matrices, so the calls are counted. tanh(x) is computed as 2 sigmoid(2x) - 1, which takes a
third of the time of torch's tanh and is off by at most 2e-7. For LSTM and GRU the gradient of the sums is that of the state times
factors that do not depend on it, and these are computed for all tokens at once.

Shapes: N packed tokens, H hidden units.
"""

from collections.abc import Sequence
from typing import Any

import torch

from model.network.cpu.direction import Direction, leading
from model.network.cpu.packing import PackedStep

_MINUS_ONE, _TWO = torch.tensor(-1.0), torch.tensor(2.0)  # calls that are given numbers make tensors of them each time
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class TanhKernel(Direction):
    """`h = tanh(sum)`. The sums are computed twice as large, and become states in place."""

    factor = 2

    def _cell_forward(self, step: int, before: int | None, both: int) -> None:
        _tanh_of_half(self.each_state[step])

    def _gate_grad_factors(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

    def _cell_backward(self, step: int, gradient: torch.Tensor, earlier: torch.Tensor | None) -> None:
        _tanh_backward(gradient, self.each_state[step], grad_input=gradient)


class LstmKernel(Direction):
    """`c = f c_before + i g` and `h = o tanh(c)`. Kept are the gates i, f, g, o, then c, then tanh(c)."""

    keeps = (4, 1, 1)

    def _cell_forward(self, step: int, before: int | None, both: int) -> None:
        gates, cells, squashed = (each[step] for each in self.each_kept)
        i, f, g, o = gates.chunk(4)
        g.mul_(_TWO)
        gates.sigmoid_()
        torch.add(_MINUS_ONE, g, alpha=2, out=g)
        torch.mul(i, g, out=cells)
        if before is not None:
            leading(cells, both).addcmul_(leading(f, both), leading(self.each_kept[1][before], both))
        self._clear(cells, step)
        _tanh_of_half(torch.mul(cells, _TWO, out=squashed))
        torch.mul(o, squashed, out=self.each_state[step])

    def _gate_grad_factors(self, gradient: torch.Tensor) -> torch.Tensor:
        # Of i, f and g by the gradient of c; of o and of c by that of h.
        gates, cells, squashed = self.kept
        factors, of_cell = torch.empty_like(gates), torch.empty_like(cells)
        (i, f, g, o), (of_i, of_f, of_g, of_o) = gates.chunk(4), factors.chunk(4)
        _sigmoid_backward(g, i, grad_input=of_i)
        of_f.zero_()
        for step, before in self._runs():
            _sigmoid_backward(cells[:, before], f[:, step], grad_input=of_f[:, step])
        _tanh_backward(i, g, grad_input=of_g)
        _sigmoid_backward(squashed, o, grad_input=of_o)
        _tanh_backward(o, squashed, grad_input=of_cell)
        self.each_factors = self._each(factors.unflatten(0, (4, -1)))
        self.each_of_cell, self.each_f = self._each(of_cell), self._each(f)
        self.of_cells = gradient.new_zeros(len(gradient), self.steps[0].columns)  # (H, columns) of one step
        return factors

    def _cell_backward(self, step: int, gradient: torch.Tensor, earlier: torch.Tensor | None) -> None:
        of_cells, factors = leading(self.of_cells, gradient.shape[1]), self.each_factors[step]
        self._clear(of_cells, step)
        of_cells.addcmul_(gradient, self.each_of_cell[step])
        factors[:3].mul_(of_cells)
        factors[3].mul_(gradient)
        of_cells.mul_(self.each_f[step])


class GruKernel(Direction):
    """`n = tanh(sum + r q)` and `h = n + z (h_before - n)`, where q is what the state before gives to n, with its bias.

    Kept are n, r, z, q. In this order the sums that the inputs take part in lie side by side (n, r, z), and so do those that
    the state before takes part in (r, z, q): one product each. torch's weights are in the order r, z, n.
    """

    keeps = (4,)

    def __init__(
        self, steps: list[PackedStep], reads_back: bool, weights: Sequence[torch.Tensor], *matrices: Any
    ) -> None:
        w_ih, w_hh, b_ih, b_hh = weights
        self.size = len(b_hh) // 3
        of_r_z, self.bias_of_q = b_hh[: 2 * self.size], b_hh[2 * self.size :, None]
        own = [w_ih.roll(self.size, 0), w_hh, b_ih.roll(self.size), torch.cat([b_hh.new_zeros(self.size), of_r_z])]
        super().__init__(steps, reads_back, own, *matrices)

    def forward(self) -> None:
        """From the sums of the inputs to the states; q begins as its bias."""
        self.sums[3 * self.size :] = self.bias_of_q
        super().forward()

    def weight_grads(self, of_sums: torch.Tensor, inputs: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of the weights, turned back into torch's order: r, z, n."""
        of_w_ih, of_w_hh, of_b_ih, of_b_hh = super().weight_grads(of_sums, inputs)
        return [of_w_ih.roll(-self.size, 0), of_w_hh, of_b_ih.roll(-self.size), of_b_hh]

    def _of_inputs(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[: 3 * self.size]

    def _of_states(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[self.size :]

    def _cell_forward(self, step: int, before: int | None, both: int) -> None:
        state, gates = self.each_state[step], self.each_kept[0][step]
        n, r, z, q = gates.chunk(4)
        gates[self.size : 3 * self.size].sigmoid_()
        n.addcmul_(r, q)
        _tanh_of_half(n.mul_(_TWO))
        torch.addcmul(n, n, z, value=-1, out=state)
        if before is not None:
            leading(state, both).addcmul_(leading(z, both), leading(self.each_state[before], both))

    def _gate_grad_factors(self, gradient: torch.Tensor) -> torch.Tensor:
        # All by the gradient of h.
        [gates] = self.kept
        factors = torch.empty_like(gates)
        (n, r, z, q), (of_n, of_r, of_z, of_q) = gates.chunk(4), factors.chunk(4)
        _tanh_backward(torch.sub(1, z, out=of_n), n, grad_input=of_n)
        torch.mul(of_n, r, out=of_q)
        _sigmoid_backward(torch.mul(of_n, q, out=of_r), r, grad_input=of_r)
        torch.neg(n, out=of_z)
        for step, before in self._runs():
            of_z[:, step] += self.states[:, before]
        _sigmoid_backward(of_z, z, grad_input=of_z)
        self.each_factors, self.each_z = self._each(factors.unflatten(0, (4, -1))), self._each(z)
        return factors

    def _cell_backward(self, step: int, gradient: torch.Tensor, earlier: torch.Tensor | None) -> None:
        self.each_factors[step].mul_(gradient)
        if earlier is not None:
            both = earlier.shape[1]
            earlier.addcmul_(leading(gradient, both), leading(self.each_z[step], both))


def _tanh_of_half(x: torch.Tensor) -> torch.Tensor:
    return torch.add(_MINUS_ONE, x.sigmoid_(), alpha=2, out=x)
