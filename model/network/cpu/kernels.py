"""The cells of the recurrence on a CPU: from a step's pre-activations to its state, and back for the gradients.

Each step is a few calls on small matrices, so every call counts. tanh(x) is computed as 2 sigmoid(2x) - 1, which takes a
third of the time of torch's tanh and is off by at most 2e-7. For LSTM and GRU the gradient of the pre-activations is that
of the state times factors that do not depend on it; these are computed for all tokens at once.

Shapes: N packed tokens, R directions, H hidden units of a direction.
"""

from collections.abc import Sequence

import torch

from model.network.cpu.packing import Packing
from model.network.cpu.recurrence import Recurrence, Weights, leading

_MINUS_ONE, _TWO = torch.tensor(-1.0), torch.tensor(2.0)  # a call with a Python number makes a tensor of it each time
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class TanhKernel(Recurrence):
    """Elman: `h = tanh(a)`. The pre-activations a are computed twice as large, and become states in place."""

    factor = 2

    def _cell_forward(self, step: int, previous: torch.Tensor | None) -> None:
        _tanh_of_half(self.each_state[step])

    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        return grad_states

    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        _tanh_backward(grad_state, self.each_state[step], grad_input=grad_state)


class LstmKernel(Recurrence):
    """LSTM: `c = f c_previous + i g` and `h = o tanh(c)`. Kept are the gates i, f, g, o, then c, then tanh(c)."""

    keeps = (4, 1, 1)

    def forward(self) -> torch.Tensor:
        """Compute the states from the input projections, see `Recurrence.forward`."""
        gates, cells, squashed = self.kept
        self.each_gates, self.each_cells, self.each_squashed = self.each(gates), self.each(cells), self.each(squashed)
        return super().forward()

    def _cell_forward(self, step: int, previous: torch.Tensor | None) -> None:
        gates, cells, squashed = self.each_gates[step], self.each_cells[step], self.each_squashed[step]
        i, f, g, o = gates.chunk(4, 1)
        g.mul_(_TWO)
        gates.sigmoid_()
        torch.add(_MINUS_ONE, g, alpha=2, out=g)
        torch.mul(i, g, out=cells)
        if previous is not None:
            cells.addcmul_(f, leading(self.each_cells[step - 1], cells.shape[-1]))
        _tanh_of_half(torch.mul(cells, _TWO, out=squashed))
        torch.mul(o, squashed, out=self.each_state[step])

    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        # Factors of the gradient of c for i, f and g; of the gradient of h for o and c.
        gates, cells, squashed = self.kept
        factors, cell_factors = torch.empty_like(gates), torch.empty_like(cells)
        (i, f, g, o), (i_factor, f_factor, g_factor, o_factor) = gates.chunk(4, 1), factors.chunk(4, 1)
        _sigmoid_backward(g, i, grad_input=i_factor)
        f_factor.zero_()
        for step, previous in self.runs():
            _sigmoid_backward(cells[..., previous], f[..., step], grad_input=f_factor[..., step])
        _tanh_backward(i, g, grad_input=g_factor)
        _sigmoid_backward(squashed, o, grad_input=o_factor)
        _tanh_backward(o, squashed, grad_input=cell_factors)
        self.each_factors = self.each(factors.unflatten(1, (4, -1)))
        self.each_cell_factors, self.each_f = self.each(cell_factors), self.each(f)
        self.grad_cells = torch.zeros_like(self.each_state[0])  # (R, H, columns) of one step
        return factors

    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        grad_cells, factors = leading(self.grad_cells, grad_state.shape[-1]), self.each_factors[step]
        grad_cells.addcmul_(grad_state, self.each_cell_factors[step])
        factors[:, :3].mul_(grad_cells[:, None])
        factors[:, 3].mul_(grad_state)
        grad_cells.mul_(self.each_f[step])


class GruKernel(Recurrence):
    """GRU: `n = tanh(a + r q)` and `h = n + z (h_previous - n)`, where a is the input projection of the candidate n and q
    its recurrent projection, each with its bias.

    Kept are n, r, z, q. In this order the pre-activations that the inputs contribute to are adjacent (n, r, z), and so are
    those that the previous state contributes to (r, z, q): one product each. torch's weights are in the order r, z, n.
    """

    keeps = (4,)

    def __init__(
        self,
        packing: Packing,
        weights: Sequence[Weights],
        states: torch.Tensor,
        kept: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self.size = size = states.shape[1]
        own = [
            (w_ih.roll(size, 0), w_hh, b_ih.roll(size), torch.cat([b_hh.new_zeros(size), b_hh[: 2 * size]]))
            for w_ih, w_hh, b_ih, b_hh in weights
        ]
        self.b_q = [b_hh[2 * size :, None] for *_, b_hh in weights]
        super().__init__(packing, own, states, kept)

    def forward(self) -> torch.Tensor:
        """Compute the states from the input projections, see `Recurrence.forward`; q begins as its bias."""
        size, [gates] = self.size, self.kept
        for rows, bias in zip(gates[:, 3 * size :], self.b_q, strict=True):
            rows.copy_(bias)
        self.each_n, _, self.each_z, self.each_q = (self.each(gate) for gate in gates.chunk(4, 1))
        self.each_r_z = self.each(gates[:, size : 3 * size])
        return super().forward()

    def weight_grads(self, grad_preactivations: torch.Tensor, inputs: torch.Tensor) -> list[list[torch.Tensor]]:
        """Return the gradients of the weights of each direction, in torch's order: r, z, n."""
        return [
            [grad_w_ih.roll(-self.size, 0), grad_w_hh, grad_b_ih.roll(-self.size), grad_b_hh]
            for grad_w_ih, grad_w_hh, grad_b_ih, grad_b_hh in super().weight_grads(grad_preactivations, inputs)
        ]

    def _input_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[:, : 3 * self.size]

    def _recurrent_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[:, self.size :]

    def _cell_forward(self, step: int, previous: torch.Tensor | None) -> None:
        n, z, state = self.each_n[step], self.each_z[step], self.each_state[step]
        r = self.each_r_z[step].sigmoid_()[:, : self.size]
        n.addcmul_(r, self.each_q[step])
        _tanh_of_half(n.mul_(_TWO))
        if previous is None:
            torch.addcmul(n, n, z, value=-1, out=state)
        else:
            torch.lerp(n, previous, z, out=state)

    def _gate_grad_factors(self, grad_states: torch.Tensor) -> torch.Tensor:
        # All are factors of the gradient of h.
        [gates] = self.kept
        factors = torch.empty_like(gates)
        (n, r, z, q), (n_factor, r_factor, z_factor, q_factor) = gates.chunk(4, 1), factors.chunk(4, 1)
        _tanh_backward(torch.sub(1, z, out=n_factor), n, grad_input=n_factor)
        torch.mul(n_factor, r, out=q_factor)
        _sigmoid_backward(torch.mul(n_factor, q, out=r_factor), r, grad_input=r_factor)
        torch.neg(n, out=z_factor)
        for step, previous in self.runs():
            z_factor[..., step] += self.states[..., previous]
        _sigmoid_backward(z_factor, z, grad_input=z_factor)
        self.each_factors, self.each_z = self.each(factors.unflatten(1, (4, -1))), self.each(z)
        return factors

    def _cell_backward(self, step: int, grad_state: torch.Tensor, grad_previous: torch.Tensor | None) -> None:
        self.each_factors[step].mul_(grad_state[:, None])
        if grad_previous is not None:
            grad_previous.addcmul_(leading(grad_state, grad_previous.shape[-1]), self.each_z[step])


def _tanh_of_half(x: torch.Tensor) -> torch.Tensor:
    return torch.add(_MINUS_ONE, x.sigmoid_(), alpha=2, out=x)
