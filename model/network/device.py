"""The C library's memory, kept by the process instead of given back between the steps of a training."""

import ctypes
import sys

import torch

from model.errors import UserError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names of them, from malloc.h
_LARGEST = 32 * 2**20  # bytes of what may come from the heap; the most that the library takes


def tune_malloc() -> None:
    """Has glibc keep what a step frees for the next one.

    Left to itself it gives large arrays back to the system at each step, and each step then waits for a thousand pages to be
    cleared anew: a tenth of its time. Without glibc nothing happens.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_TOP_PAD, 2 * _LARGEST)


def resolve_device(name: str) -> torch.device:
    """The device `cpu`, `cuda` or `cuda:N`. Raises UserError where this machine or this build of torch has none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name}: cannot be used here ({reason}); choose cpu, or cuda where there is one"
        ) from None
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UserError where a processor would only imitate a precision: it takes a hundred times as long, or fails."""
    imitated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "bfloat16" and imitated:
        raise UserError(
            "training.precision is bfloat16, and this processor has no instructions for it; use float32, or --device cuda"
        )
