"""The recurrent cells that a tagger can have: one row each; `tagger.cell` names one of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from model.network.cpu.kernels import GruKernel, LstmKernel, TanhKernel
from model.network.cpu.recurrence import Recurrence


class Cell(NamedTuple):
    """A recurrent cell.

    Attributes:
        module: torch's layer of such cells; it computes everywhere but on the packed CPU path, and is the kernel's oracle.
        packed: torch's function over packed tokens.
        kernel: the recurrence of such a layer on a CPU.
        gates: pre-activations of a hidden unit.
    """

    module: type[nn.RNN | nn.GRU | nn.LSTM]
    packed: Callable[..., Any]
    kernel: type[Recurrence]
    gates: int


CELLS: dict[str, Cell] = {
    "rnn": Cell(nn.RNN, torch.rnn_tanh, TanhKernel, gates=1),  # Elman
    "gru": Cell(nn.GRU, torch.gru, GruKernel, gates=3),  # Cho et al. (2014), in the variant of cuDNN
    "lstm": Cell(nn.LSTM, torch.lstm, LstmKernel, gates=4),  # Hochreiter and Schmidhuber (1997), with forget gates
}
