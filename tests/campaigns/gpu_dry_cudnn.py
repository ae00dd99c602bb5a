"""cuDNN's recurrent layers, computed on the CPU: for gpu_dry_tensor.py."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

CUDNN_MODES = {"rnn_tanh": 1, "lstm": 2, "gru": 3}  # numbers of cudnnRNNMode_t
_FUNCTIONS: dict[int, Callable[..., Any]] = {number: getattr(torch, name) for name, number in CUDNN_MODES.items()}


def cudnn_layer(
    name: str,
    inputs: torch.Tensor,
    hx: Any,
    weights: list[torch.Tensor],
    bias: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """Call a recurrent layer as torch does on CUDA, but without cuDNN's state of the dropout between layers.

    The arguments after `name` are those of `torch.rnn_tanh`, `torch.gru` and `torch.lstm`.
    """
    assert bias and layers == 1 and not bidirectional, "not used by the product"
    hx, cx = hx if name == "lstm" else (hx, None)
    if torch.is_autocast_enabled("cuda"):  # torch casts to half here, whatever autocast names
        inputs, hx, *weights = (each.half() for each in (inputs, hx, *weights))
        cx = None if cx is None else cx.half()
    size, mode = hx.shape[-1], CUDNN_MODES[name]
    with torch.autocast("cuda", enabled=False):
        output, hy, cy, *_ = torch._cudnn_rnn(
            inputs, list(weights), 4, None, hx, cx, mode, size, 0, 1, batch_first, dropout, train, False, [], None
        )
    return (output, hy, cy) if name == "lstm" else (output, hy)


class CudnnOnCpu:
    """The operations `_cudnn_rnn` and `_cudnn_rnn_backward` on CPU tensors, by torch's own layers and autograd."""

    def __init__(self) -> None:
        self._saved: dict[int, Any] = {}  # by the tensor that stands for cuDNN's reserve space
        self._thread = ThreadPoolExecutor(1)  # autograd is off where operations are carried out, and on in this one

    def forward(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """Return output, hy, cy, reserve and weight buffer."""
        return self._thread.submit(self._forward, *args).result()

    def backward(self, *args: Any) -> tuple[Any, ...]:
        """Return the gradients of the inputs, of hx, of cx and of the weights."""
        return self._thread.submit(self._backward, *args).result()

    def _forward(
        self, inputs: Any, weights: Any, stride: int, buffer: Any, hx: Any, cx: Any, mode: int, *rest: Any
    ) -> tuple[torch.Tensor, ...]:
        leaves = [each.detach().requires_grad_() for each in (inputs, hx, *([] if cx is None else [cx]), *weights)]
        first = 2 if cx is None else 3  # of the weights
        state, batch_first, train = leaves[1] if cx is None else tuple(leaves[1:3]), rest[3], rest[5]
        outputs = _FUNCTIONS[mode](leaves[0], state, leaves[first:], True, 1, 0.0, train, False, batch_first)
        reserve, none = torch.zeros(1, dtype=torch.uint8), torch.zeros(0)
        self._saved[id(reserve)] = (reserve, leaves, outputs, first)
        output, hy, cy = (each.detach() for each in (*outputs, *([none] if cx is None else [])))
        return output, hy, cy, reserve, none

    def _backward(self, *args: Any) -> tuple[Any, ...]:
        gradients, reserve = args[7:10], args[20]
        _, leaves, outputs, first = self._saved.pop(id(reserve))
        given = [(each, grad) for each, grad in zip(outputs, gradients, strict=False) if grad is not None]
        ends, grads = zip(*given, strict=True)
        found = torch.autograd.grad(ends, leaves, grads, allow_unused=True)
        found = tuple(
            torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)
        )
        return found[0], found[1], found[2] if first == 3 else None, list(found[first:])
