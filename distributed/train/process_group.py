"""Communication between the workers of a training, through torch.distributed."""

import math

import torch
import torch.distributed as dist
from torch import nn


class TorchCommunicator:
    """The default process group as a `model.training.communicator.Communicator`.

    It replaces torch's DistributedDataParallel. The network is small, so its gradients are sent in one all-reduce after the
    backward pass: on two processes of one core each, DDP's buckets and threads took 16 ms of a step, and this takes 6 ms.
    DDP would also send the whole embedding table, which has most of the parameters and of which a step touches few rows.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        # Of each embedding table: rows that an exchange has room for, per token of a global batch. It grows when needed.
        self._room: dict[nn.Parameter, float] = {}

    def all_reduce_gradients(self, module: nn.Module, tokens: int, dtype: torch.dtype = torch.float32) -> None:
        """Sum all gradients; of sparse ones only the touched rows are sent, and the sums are coalesced."""
        gradients = {parameter: parameter.grad for parameter in module.parameters() if parameter.grad is not None}
        dense = {parameter: gradient for parameter, gradient in gradients.items() if not gradient.is_sparse}
        flat = torch.cat([gradient.flatten() for gradient in dense.values()]).to(dtype)
        pending = dist.all_reduce(flat, async_op=True)
        for parameter, gradient in gradients.items():
            if gradient.is_sparse:
                parameter.grad = self._sum_rows(parameter, gradient.coalesce(), tokens, dtype)
        pending.wait()
        parts = flat.to(torch.float32).split([parameter.numel() for parameter in dense])
        for parameter, part in zip(dense, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _sum_rows(self, table: nn.Parameter, own: torch.Tensor, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """Sum the touched rows of a table over the ranks.

        Each rank sends its row gradients and, as last columns, the bits of their ids. The first row that it sends holds its
        number of rows; where a rank has more than there is room for, the exchange is repeated with more room.
        """
        count = torch.tensor([own.values().shape[0]], device=own.device)
        ids = _bits(torch.cat([count, own.indices()[0]]), dtype)
        sent = torch.cat([nn.functional.pad(own.values().to(dtype), (0, 0, 1, 0)), ids], dim=1)
        while True:
            room = math.ceil(self._room.get(table, 0.0) * tokens)
            received = self._gather(sent, room + 1)
            counts = _integers(torch.stack([part[0, -ids.shape[1] :] for part in received])).tolist()
            if max(counts) <= room:
                break
            self._room[table] = max(counts) / tokens
        every = torch.cat([part[1 : count + 1] for part, count in zip(received, counts, strict=True)])
        rows, values = _integers(every[:, -ids.shape[1] :]), every[:, : -ids.shape[1]].to(torch.float32)
        return torch.sparse_coo_tensor(rows[None], values, own.shape, check_invariants=False).coalesce()

    def _gather(self, sent: torch.Tensor, rows: int) -> list[torch.Tensor]:
        """Gather the first `rows` rows of each rank's tensor, padded with zeros."""
        padded = nn.functional.pad(sent[:rows], (0, 0, 0, max(0, rows - len(sent))))
        received = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(received, padded)
        return received

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks, in a new tensor."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total


def _bits(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Reinterpret whole numbers (N,) as another dtype, (N, 1) or (N, 2): to be sent, not calculated with."""
    return numbers.int()[:, None].view(dtype)


def _integers(bits: torch.Tensor) -> torch.Tensor:
    """Return the whole numbers (N,) that `_bits` reinterpreted."""
    return bits.contiguous().view(torch.int32)[:, 0].long()
