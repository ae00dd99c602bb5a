"""The cells of the recurrence on a CPU: from a step's pre-activations to its state, and back for the gradients.

Each step is a few calls on small matrices, so every call counts. tanh(x) is computed as 2 sigmoid(2x) - 1, which takes a
third of the time of torch's tanh and is off by at most 2e-7. For LSTM and GRU the gradient of the pre-activations is that
of the state times factors that do not depend on it; these are computed for all tokens at once.

Shapes: N packed tokens, H hidden units.
"""

from collections.abc import Sequence

import torch

from model.network.cpu.direction import Direction, leading
from model.network.cpu.packing import PackedStep

_MINUS_ONE, _TWO = torch.tensor(-1.0), torch.tensor(2.0)  # a call with a Python number makes a tensor of it each time
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class TanhKernel(Direction):
    """Elman: `h = tanh(a)`. The pre-activations a are computed twice as large, and become states in place."""

    factor = 2

    def _cell_forward(self, step: int, previous: int | None, common: int) -> None:
        _tanh_of_half(self.each_state[step])

    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        return grad_states

    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        _tanh_backward(grad_state, self.each_state[step], grad_input=grad_state)


class LstmKernel(Direction):
    """LSTM: `c = f c_previous + i g` and `h = o tanh(c)`. Kept are the gates i, f, g, o, then c, then tanh(c)."""

    keeps = (4, 1, 1)

    def _cell_forward(self, step: int, previous: int | None, common: int) -> None:
        gates, cells, squashed = (each[step] for each in self.each_kept)
        i, f, g, o = gates.chunk(4)
        g.mul_(_TWO)
        gates.sigmoid_()
        torch.add(_MINUS_ONE, g, alpha=2, out=g)
        torch.mul(i, g, out=cells)
        if previous is not None:
            leading(cells, common).addcmul_(leading(f, common), leading(self.each_kept[1][previous], common))
        self._clear(cells, step)
        _tanh_of_half(torch.mul(cells, _TWO, out=squashed))
        torch.mul(o, squashed, out=self.each_state[step])

    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        # Factors of the gradient of c for i, f and g; of the gradient of h for o and c.
        gates, cells, squashed = self.kept
        factors, cell_factors = torch.empty_like(gates), torch.empty_like(cells)
        (i, f, g, o), (i_factor, f_factor, g_factor, o_factor) = gates.chunk(4), factors.chunk(4)
        _sigmoid_backward(g, i, grad_input=i_factor)
        f_factor.zero_()
        for step, previous in self._runs():
            _sigmoid_backward(cells[:, previous], f[:, step], grad_input=f_factor[:, step])
        _tanh_backward(i, g, grad_input=g_factor)
        _sigmoid_backward(squashed, o, grad_input=o_factor)
        _tanh_backward(o, squashed, grad_input=cell_factors)
        self.each_factors = self._each(factors.unflatten(0, (4, -1)))
        self.each_cell_factors, self.each_f = self._each(cell_factors), self._each(f)
        self.grad_cells = grad_states.new_zeros(len(grad_states), self.steps[0].columns)  # (H, columns) of one step
        return factors

    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        grad_cells, factors = leading(self.grad_cells, grad_state.shape[1]), self.each_factors[step]
        self._clear(grad_cells, step)
        grad_cells.addcmul_(grad_state, self.each_cell_factors[step])
        factors[:3].mul_(grad_cells)
        factors[3].mul_(grad_state)
        grad_cells.mul_(self.each_f[step])


class GruKernel(Direction):
    """GRU: `n = tanh(a + r q)` and `h = n + z (h_previous - n)`, where a is the input projection of the candidate n and q
    its recurrent projection, each with its bias.

    Kept are n, r, z, q. In this order the pre-activations that the inputs contribute to are adjacent (n, r, z), and so are
    those that the previous state contributes to (r, z, q): one product each. torch's weights are in the order r, z, n.
    """

    keeps = (4,)

    def __init__(
        self,
        steps: list[PackedStep],
        reads_back: bool,
        weights: Sequence[torch.Tensor],
        states: torch.Tensor,
        kept: Sequence[torch.Tensor] | None = None,
    ) -> None:
        w_ih, w_hh, b_ih, b_hh = weights
        self.size = len(b_hh) // 3
        b_r_z, self.b_q = b_hh[: 2 * self.size], b_hh[2 * self.size :, None]
        own = [w_ih.roll(self.size, 0), w_hh, b_ih.roll(self.size), torch.cat([b_hh.new_zeros(self.size), b_r_z])]
        super().__init__(steps, reads_back, own, states, kept)

    def forward(self) -> None:
        """Compute the states from the input projection; q begins as its bias."""
        self.preactivations[3 * self.size :] = self.b_q
        super().forward()

    def weight_grads(self, grad_preactivations: torch.Tensor, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients of the weights, in torch's order: r, z, n."""
        grad_w_ih, grad_w_hh, grad_b_ih, grad_b_hh = super().weight_grads(grad_preactivations, inputs)
        return [grad_w_ih.roll(-self.size, 0), grad_w_hh, grad_b_ih.roll(-self.size), grad_b_hh]

    def _input_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[: 3 * self.size]

    def _recurrent_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[self.size :]

    def _cell_forward(self, step: int, previous: int | None, common: int) -> None:
        state, gates = self.each_state[step], self.each_kept[0][step]
        n, r, z, q = gates.chunk(4)
        gates[self.size : 3 * self.size].sigmoid_()
        n.addcmul_(r, q)
        _tanh_of_half(n.mul_(_TWO))
        torch.addcmul(n, n, z, value=-1, out=state)
        if previous is not None:
            leading(state, common).addcmul_(leading(z, common), leading(self.each_state[previous], common))

    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        # All are factors of the gradient of h.
        [gates] = self.kept
        factors = torch.empty_like(gates)
        (n, r, z, q), (n_factor, r_factor, z_factor, q_factor) = gates.chunk(4), factors.chunk(4)
        _tanh_backward(torch.sub(1, z, out=n_factor), n, grad_input=n_factor)
        torch.mul(n_factor, r, out=q_factor)
        _sigmoid_backward(torch.mul(n_factor, q, out=r_factor), r, grad_input=r_factor)
        torch.neg(n, out=z_factor)
        for step, previous in self._runs():
            z_factor[:, step] += self.states[:, previous]
        _sigmoid_backward(z_factor, z, grad_input=z_factor)
        self.each_factors, self.each_z = self._each(factors.unflatten(0, (4, -1))), self._each(z)
        return factors

    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        self.each_factors[step].mul_(grad_state)
        if grad_previous is not None:
            common = grad_previous.shape[1]
            grad_previous.addcmul_(leading(grad_state, common), leading(self.each_z[step], common))


def _tanh_of_half(x: torch.Tensor) -> torch.Tensor:
    return torch.add(_MINUS_ONE, x.sigmoid_(), alpha=2, out=x)
