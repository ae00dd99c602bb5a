"""The workers of a training that runs on several processes, through torch.distributed."""

import torch
import torch.distributed as dist
from torch import nn


class Group:
    """The default process group as `model.workers.Workers`.

    In place of torch's DistributedDataParallel: the network is small, so that its gradients go in one exchange after the
    backward pass. DDP's buckets and their threads cost ten times as much on two processes of one core each, and it would
    exchange the embedding table whole, which is most of the parameters and of which a step touches few rows.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._room = 0  # rows that an exchange has room for; grows to the largest share there has been

    def sum_gradients(self, module: nn.Module) -> None:
        """Sums all gradients; sparse ones by their rows, after which they are coalesced."""
        gradients = {each: each.grad for each in module.parameters() if each.grad is not None}
        dense = {each: gradient for each, gradient in gradients.items() if not gradient.is_sparse}
        whole = torch.cat([gradient.flatten() for gradient in dense.values()])
        underway = dist.all_reduce(whole, async_op=True)
        for each, gradient in gradients.items():
            if gradient.is_sparse:
                each.grad = self._sum_rows(gradient.coalesce())
        underway.wait()
        for each, part in zip(dense, whole.split([each.numel() for each in dense]), strict=True):
            each.grad = part.view_as(each)

    def _sum_rows(self, own: torch.Tensor) -> torch.Tensor:
        """Exchanges the touched rows of a table: each rank's row gradients and, as one more column, their ids.

        How many rows a rank has is told in the same exchange, which is made again where they were too many for it.
        """
        rows, values = own.indices()[0].int(), own.values()
        sent = values.new_zeros(len(rows) + 1, values.shape[1] + 1)
        bits = sent.view(torch.int32)  # of the same memory: nobody calculates on ids and counts
        bits[0, -1] = len(rows)
        bits[1:, -1], sent[1:, :-1] = rows, values
        while True:
            received = self._gather(sent, self._room + 1)
            counts = torch.stack([part[0, -1] for part in received]).view(torch.int32).tolist()
            if max(counts) <= self._room:
                break
            self._room = max(counts)
        every = torch.cat([part[1 : count + 1] for part, count in zip(received, counts, strict=True)])
        rows = every[:, -1].contiguous().view(torch.int32).long()
        return torch.sparse_coo_tensor(rows[None], every[:, :-1], own.shape, check_invariants=False).coalesce()

    def _gather(self, sent: torch.Tensor, rows: int) -> list[torch.Tensor]:
        """So many rows of each rank's tensor, zeros after its last."""
        padded = nn.functional.pad(sent[:rows], (0, 0, 0, max(0, rows - len(sent))))
        received = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(received, padded)
        return received

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce into a new tensor."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total
