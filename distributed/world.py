"""The workers of a training that runs on several processes, through torch.distributed."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Group:
    """The default process group as `model.workers.Workers`."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def wrap(self, tagger: nn.Module) -> nn.Module:
        """DDP over everything but the embedding, whose rows `average_rows` exchanges.

        The table is most of the parameters and a step touches few of its rows, so that exchanging it whole would cost
        many times the rest.
        """
        tables = [name for name, part in tagger.named_modules() if isinstance(part, nn.Embedding)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            tagger, [f"{name}.weight" for name in tables]
        )
        # DDP lays its buckets out anew after the first step unless it looks for unused parameters. With three workers or more
        # the layout decides in which order gradients are added, and a run that goes on from a checkpoint would end with
        # other bits than one that was not disturbed.
        return DistributedDataParallel(tagger, find_unused_parameters=True)

    def average_rows(self, weight: torch.Tensor) -> None:
        """Exchanges the touched rows: ids and row gradients of each rank, padded to the largest share."""
        assert weight.grad is not None
        own = weight.grad.coalesce()
        rows, values = own.indices()[0], own.values()
        sizes = torch.zeros(self.size, dtype=torch.long, device=rows.device)
        sizes[self.rank] = len(rows)
        counts = self.sum(sizes).tolist()
        largest = max(counts)
        padded_rows = rows.new_zeros(largest)
        padded_values = values.new_zeros(largest, values.shape[1])
        padded_rows[: len(rows)], padded_values[: len(rows)] = rows, values
        all_rows = [torch.empty_like(padded_rows) for _ in counts]
        all_values = [torch.empty_like(padded_values) for _ in counts]
        dist.all_gather(all_rows, padded_rows)
        dist.all_gather(all_values, padded_values)
        rows = torch.cat([each[:count] for each, count in zip(all_rows, counts, strict=True)])
        values = torch.cat([each[:count] for each, count in zip(all_values, counts, strict=True)]) / self.size
        weight.grad = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=False).coalesce()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce into a new tensor."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total
