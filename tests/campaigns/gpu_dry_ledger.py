"""What code asks of devices that are not there: each operation is checked, counted and carried out on the CPU."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_dry_cudnn import CUDNN_MODES, CudnnOnCpu, cudnn_layer
from gpu_dry_tensor import CudaTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
ROOT = Path(__file__).parents[2]
PRODUCT = tuple(f"{ROOT / top}/" for top in ("model", "distributed", "jobs"))
IN_BACKWARD = "backward pass"

# Kernels that end with a copy of one or more numbers to the host.
WAITING = {
    aten._local_scalar_dense: 1, aten.nonzero: 1, aten.masked_select: 1, aten._unique2: 1, aten.unique_dim: 1,
    aten.unique_consecutive: 1, aten._coalesce: 1, aten.bincount: 2, aten.equal: 1, aten.isin: 2,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_}
NO_KERNEL = {aten.empty, aten.empty_strided, aten.new_empty, aten.empty_like, aten.detach}


class WrongDeviceError(RuntimeError):
    """Tensors on different devices in one operation."""


class Ledger:
    """What was asked of the devices, counted by the phase that the asking thread was in.

    Attributes:
        syncs: by phase and place.
        pageable: copies to a device that nobody waits for, out of memory that is not pinned; by phase and place.
        kernels: operations on a device that are no views; by phase.
    """

    def __init__(self) -> None:
        self.syncs: Counter[tuple[str, str]] = Counter()
        self.pageable: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.thread = threading.local()
        self._main_phase = "start"
        self._pinned: dict[int, torch.Tensor] = {}  # by address; they are kept, so that no address is used twice
        self._cudnn = CudnnOnCpu()

    @property
    def phase(self) -> str:
        """Return what this thread does; threads of autograd do what the main thread does."""
        return getattr(self.thread, "phase", self._main_phase)

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """Count for a phase."""
        main, before = threading.current_thread() is threading.main_thread(), self.phase
        try:
            self._set_phase(name, main)
            yield
        finally:
            self._set_phase(before, main)

    def _set_phase(self, name: str, main: bool) -> None:
        if main:
            self._main_phase = name
        else:
            self.thread.phase = name

    def counted(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts for a phase, in whatever thread it is called."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                with self.in_phase(phase):
                    return function(*args, **kwargs)
            with self.in_phase(phase), DryCuda(self), DryFunctions(self):  # modes belong to threads
                return function(*args, **kwargs)

        return run

    def wait(self, what: str, times: int = 1) -> None:
        """Record syncs at this place."""
        self.syncs[self.phase, place(what)] += times

    def device_of(self, device: torch.device | str | int | None) -> torch.device | None:
        """Return a CUDA device with its index, by default the current one of this thread; None for other devices."""
        if device is None or (found := torch.device(device)).type != "cuda":
            return None
        return torch.device("cuda", torch._C._cuda_getDevice() if found.index is None else found.index)

    def carry_out(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Check and count an operation, and return its result."""
        operation, target = func.overloadpacket, self.device_of(kwargs.get("device"))
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        mine = [each for each in tensors if isinstance(each, CudaTensor)]
        if operation in (aten._pin_memory, aten.is_pinned):
            return self._pin(operation, args[0])
        if not mine and target is None:
            return func(*args, **kwargs)
        own = mine[0].claimed if mine else target
        self._check(operation, args, tensors, mine)
        self._account(func, args, kwargs, bool(mine), target)
        if operation is aten.copy_:
            own = args[0].claimed if isinstance(args[0], CudaTensor) else None
        if kwargs.get("device") is not None:
            own, kwargs = target, kwargs | {"device": torch.device("cpu")}
            kwargs.pop("pin_memory", None)
        values, named = tree_map(_values, (args, kwargs))
        if operation is aten._cudnn_rnn:
            result = self._cudnn.forward(*values)
        elif operation is aten._cudnn_rnn_backward:
            result = self._cudnn.backward(*values)
        else:
            result = func(*values, **named)
        known = {id(each.values_on_cpu): each for each in mine}  # what an operation in place returns
        return tree_map(lambda each: known[id(each)] if id(each) in known else _claim(each, own), result)

    def _check(self, operation: Any, args: Any, tensors: list[torch.Tensor], mine: list[CudaTensor]) -> None:
        """Raise WrongDeviceError where a kernel would fail, or read memory that it cannot reach."""
        if operation in COPIES or not mine:
            return
        if operation in INDEXING:  # torch moves indices itself
            tensors = [each for each in tensors if isinstance(each, CudaTensor) or all(each is not i for i in args[1])]
        lists = operation.__name__.startswith(("_foreach", "_fused", "_cudnn"))
        on_cpu = [each for each in tensors if not isinstance(each, CudaTensor) and (each.dim() or lists)]
        devices = {str(each.claimed) for each in mine} | ({"cpu"} if on_cpu else set())
        if len(devices) > 1:
            raise WrongDeviceError(f"{operation.__name__}: tensors on {', '.join(sorted(devices))}; {place('')}")

    def _account(self, func: Any, args: Any, kwargs: dict[str, Any], mine: bool, target: torch.device | None) -> None:
        operation = func.overloadpacket
        if mine and operation in WAITING and not kwargs.get("assume_unique"):
            self.wait(operation.__name__, WAITING[operation])
        if operation in INDEXING:
            masks = sum(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
            on_cpu = sum(each is not None and not isinstance(each, CudaTensor) for each in args[1])
            if masks or on_cpu:
                self.wait("boolean index" if masks else "index on the CPU", masks + on_cpu)
        if operation in COPIES:
            self._account_copy(operation, args, kwargs, target)
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not view and operation not in NO_KERNEL:
            self.kernels[self.phase] += 1

    def _account_copy(self, operation: Any, args: Any, kwargs: dict[str, Any], target: torch.device | None) -> None:
        into = operation is aten.copy_
        source = args[1] if into else args[0]
        from_device = isinstance(source, CudaTensor)
        if into:
            to_device = isinstance(args[0], CudaTensor)
        else:
            to_device = from_device if kwargs.get("device") is None else target is not None
        waits = not (kwargs.get("non_blocking") or (into and len(args) > 2 and args[2]))
        if from_device and not to_device and waits:
            self.wait("copy to the CPU")
        elif to_device and not from_device and waits:
            self.wait("copy to the device")
        elif to_device and not from_device and source.data_ptr() not in self._pinned:
            self.pageable[self.phase, place("copy from pageable memory")] += 1

    def _pin(self, operation: Any, tensor: torch.Tensor) -> Any:
        if operation is aten.is_pinned:
            return tensor.data_ptr() in self._pinned
        copy = tensor.clone()
        self._pinned[copy.data_ptr()] = copy
        return copy


class DryCuda(TorchDispatchMode):
    """Carries out the operations on CUDA devices of this thread."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation."""
        if func is torch.ops.prim.device.default:
            return args[0].claimed
        return self.ledger.carry_out(func, args, kwargs or {})


class DryFunctions(TorchFunctionMode):
    """Replaces the functions of this thread that would call the driver before they come to an operation."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, or what replaces it."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in CUDNN_MODES and isinstance(args[0], CudaTensor):
            return cudnn_layer(name, *args)
        if name == "scaled_dot_product_attention" and isinstance(args[0], CudaTensor):
            return attention(*args, **kwargs)
        device = self.ledger.device_of(kwargs.get("device")) if name in ("tensor", "as_tensor") else None
        if device is not None and not isinstance(args[0], torch.Tensor):
            return func(*args, **kwargs | {"device": "cpu"}).to(device)
        return func(*args, **kwargs)


def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **kwargs: Any) -> Any:
    """Compute, in more kernels, what torch's fused one computes, which asks the driver what the GPU can do."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    return torch._scaled_dot_product_attention_math(query, key, value, attn_mask, **kwargs)[0]


def _values(each: Any) -> Any:
    return each.values_on_cpu if isinstance(each, CudaTensor) else each


def _claim(each: Any, device: torch.device | None) -> Any:
    return CudaTensor(each, device) if isinstance(each, torch.Tensor) and device is not None else each


def place(what: str) -> str:
    """Return the innermost line of the product that this thread is in, and what it does there."""
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("torch/autograd/graph.py"):
            break
        if name.startswith(PRODUCT):
            return f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno} {what}".strip()
        frame = frame.f_back
    outside = threading.current_thread() is threading.main_thread() and frame is None
    return f"{'outside the product' if outside else IN_BACKWARD} {what}".strip()
