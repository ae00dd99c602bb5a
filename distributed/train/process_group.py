"""Communication between the workers of a training, through torch.distributed."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.config import TrainingConfig
from model.training.communicator import GradientSync

# Dense parameters from which DistributedDataParallel's overlap pays on CPUs, between the sizes measured by
# tests/campaigns/gradient_sync.py: it was 3 % slower with 5 million, and 10 % faster with 22 million.
_DDP_PARAMETERS = 10_000_000


class TorchCommunicator:
    """The default process group as a `model.training.communicator.Communicator`."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sync_gradients(self, module: nn.Module, config: TrainingConfig) -> GradientSync:
        """Return DistributedDataParallel or one flat all-reduce, as `training.gradient_sync` chooses."""
        dtype = getattr(torch, config.gradient_dtype)
        return DdpSync(module, dtype) if _uses_ddp(module, config.gradient_sync) else FlatSync(module, dtype)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks, in a new tensor."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total


def _uses_ddp(module: nn.Module, gradient_sync: str) -> bool:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    large = sum(parameter.numel() for parameter in trained) >= _DDP_PARAMETERS
    return gradient_sync == "ddp" or (gradient_sync == "auto" and (large or trained[0].is_cuda))


class FlatSync:
    """One all-reduce of all gradients after the backward pass.

    For a small network it is faster than DistributedDataParallel, whose buckets have nothing to overlap with.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """
        Args:
            module: whose gradients.
            dtype: in which gradients are sent; they are float32 before and after.
        """
        self.module, self.dtype = module, dtype

    def no_sync(self) -> AbstractContextManager[None]:
        """Do nothing: gradients accumulate until `all_reduce`."""
        return nullcontext()

    def all_reduce(self, rows: list[torch.Tensor]) -> None:
        """Sum the gradients of the module and of `rows` over the ranks."""
        trained = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        all_reduce_flat([*trained, *rows], self.dtype)


class DdpSync:
    """torch's DistributedDataParallel, which sums gradients while the backward pass computes further ones.

    Embedding tables of which a step uses few rows are not trained parameters of the module; their rows are summed apart.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """
        Args:
            module: whose trainable parameters, equal on all ranks; all of them take part in each step.
            dtype: in which gradients are sent; they are float32 before and after.
        """
        self.dtype = dtype
        with warnings.catch_warnings():
            # torch 2.13 has another argument for this, which earlier versions do not know.
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            # The weights of all ranks follow from one seed, or are read from one checkpoint.
            self._ddp = DistributedDataParallel(
                module, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._ddp.register_comm_hook(dtype, sum_bucket)
        self.module: nn.Module = self._ddp

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients without communication."""
        return self._ddp.no_sync()

    def all_reduce(self, rows: list[torch.Tensor]) -> None:
        """Sum the gradients of `rows`; the backward pass has summed those of the module."""
        if rows:
            all_reduce_flat(rows, self.dtype)


def sum_bucket(dtype: torch.dtype, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """Sum a bucket of gradients over the ranks: a communication hook of DistributedDataParallel.

    Its own hooks take the mean, and the objective is already divided by the tokens of the global batch.
    """
    buffer = bucket.buffer()
    sent = buffer.to(dtype)
    future = dist.all_reduce(sent, async_op=True).get_future()
    return future.then(lambda done: buffer if sent is buffer else buffer.copy_(done.value()[0]))


def all_reduce_flat(tensors: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Sum the gradients of some tensors over the ranks, in one all-reduce."""
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).to(dtype)
    dist.all_reduce(flat)
    parts = flat.to(torch.float32).split([gradient.numel() for gradient in gradients])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.grad = part.view_as(tensor)
