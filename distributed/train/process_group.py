"""The workers of a training that runs on several processes, through torch.distributed."""

import math

import torch
import torch.distributed as dist
from torch import nn


class TorchCommunicator:
    """The default process group as `model.training.communicator.Workers`.

    In place of torch's DistributedDataParallel: the network is small, so that its gradients go in one exchange after the
    backward pass. On two processes of one core each DDP's buckets and their threads took 16 ms of a step and this takes 6;
    and DDP would exchange the embedding table whole, which is most of the parameters and of which a step touches few rows.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        # Of each table, for each token of a global batch: rows that an exchange has room for, the most that there have been.
        self._room: dict[nn.Parameter, float] = {}

    def all_reduce_gradients(self, module: nn.Module, tokens: int, dtype: torch.dtype = torch.float32) -> None:
        """Sums all gradients; sparse ones by their rows, after which they are coalesced."""
        gradients = {each: each.grad for each in module.parameters() if each.grad is not None}
        dense = {each: gradient for each, gradient in gradients.items() if not gradient.is_sparse}
        whole = torch.cat([gradient.flatten() for gradient in dense.values()]).to(dtype)
        underway = dist.all_reduce(whole, async_op=True)
        for each, gradient in gradients.items():
            if gradient.is_sparse:
                each.grad = self._sum_rows(each, gradient.coalesce(), tokens, dtype)
        underway.wait()
        parts = whole.to(torch.float32).split([each.numel() for each in dense])
        for each, part in zip(dense, parts, strict=True):
            each.grad = part.view_as(each)

    def _sum_rows(self, table: nn.Parameter, own: torch.Tensor, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """Exchanges the touched rows of a table: each rank's row gradients and, as last columns, the bits of their ids.

        How many rows a rank has is told in the same exchange, which is made again where they were too many for it.
        """
        count = torch.tensor([own.values().shape[0]], device=own.device)
        ids = _bits(torch.cat([count, own.indices()[0]]), dtype)
        sent = torch.cat([nn.functional.pad(own.values().to(dtype), (0, 0, 1, 0)), ids], dim=1)
        while True:
            room = math.ceil(self._room.get(table, 0.0) * tokens)
            received = self._gather(sent, room + 1)
            counts = _number(torch.stack([part[0, -ids.shape[1] :] for part in received])).tolist()
            if max(counts) <= room:
                break
            self._room[table] = max(counts) / tokens
        every = torch.cat([part[1 : count + 1] for part, count in zip(received, counts, strict=True)])
        rows, values = _number(every[:, -ids.shape[1] :]), every[:, : -ids.shape[1]].to(torch.float32)
        return torch.sparse_coo_tensor(rows[None], values, own.shape, check_invariants=False).coalesce()

    def _gather(self, sent: torch.Tensor, rows: int) -> list[torch.Tensor]:
        """So many rows of each rank's tensor, zeros after its last."""
        padded = nn.functional.pad(sent[:rows], (0, 0, 0, max(0, rows - len(sent))))
        received = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(received, padded)
        return received

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce into a new tensor."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total


def _bits(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers (N,) in the memory of another dtype, (N, 1) or (N, 2), to be sent and not calculated on."""
    return numbers.int()[:, None].view(dtype)


def _number(bits: torch.Tensor) -> torch.Tensor:
    """What `_bits` was given."""
    return bits.contiguous().view(torch.int32)[:, 0].long()
