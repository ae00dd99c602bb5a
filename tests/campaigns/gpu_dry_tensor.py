"""Tensors that claim to be on a GPU and are computed on the CPU: what code does with devices, seen without a card.

A `CudaTensor` is on cuda:0 or cuda:1 for Python, for autograd and for torch's choice of kernels; its values are those of a
CPU tensor. gpu_dry_ledger.py checks every operation on the device (all tensors on one device), counts it, and carries it out
on the values. Operations for which the host would wait for a GPU are syncs, recorded with the line that asks for them.

torch's own FakeTensorMode checks devices too, but its tensors have no values: an evaluation ends at the first `.tolist()`.
"""

from typing import Any, ClassVar

import torch


class CudaTensor(torch.Tensor):
    """A tensor on a device that is not there.

    Attributes:
        values_on_cpu: what it holds.
        claimed: the device.
        ledger: the Ledger that keeps account of all of them.
    """

    ledger: ClassVar[Any] = None

    values_on_cpu: torch.Tensor
    claimed: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor, device: torch.device) -> "CudaTensor":
        """Return a tensor that shares the memory of a CPU tensor."""
        made = torch.Tensor._make_subclass(cls, values, False, dispatch_device=True, device_for_backend_keys=device)
        made.values_on_cpu, made.claimed = values, device
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation that no mode has taken."""
        if func is torch.ops.prim.device.default:
            return args[0].claimed
        return CudaTensor.ledger.carry_out(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Return the device that the tensor claims to be on."""
        return self.claimed

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Return what an error message needs."""
        return f"CudaTensor({tuple(self.shape)}, {self.dtype}, {self.claimed})"

    def tolist(self) -> Any:
        """Return the values; the host waits once."""
        CudaTensor.ledger.wait("tolist")
        return self.values_on_cpu.tolist()

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        """Refuse, as torch does."""
        raise TypeError(f"can't convert {self.claimed} device type tensor to numpy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the CPU tensor that `torch.load(map_location="cpu")` would give."""
        CudaTensor.ledger.wait("torch.save")
        return self.values_on_cpu.detach().clone().__reduce_ex__(protocol)
