"""The device that computes: its name, its precision, its random numbers, and how the C library keeps its memory."""

import ctypes
import platform
import sys

import numpy as np
import torch

from model.errors import UserError, first_line

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of mallopt, from malloc.h
_MAX_HEAP_BLOCK = 32 * 2**20  # bytes; the largest value that glibc accepts for M_MMAP_THRESHOLD


def tune_malloc() -> None:
    """Make glibc keep the memory that a step frees, for the next one. Does nothing without glibc.

    By default it returns large arrays to the system at each step, and each step waits for a thousand pages to be cleared
    again: a tenth of its time.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _MAX_HEAP_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_TOP_PAD, 2 * _MAX_HEAP_BLOCK)


def with_index(device: torch.device) -> torch.device:
    """Return a device with its number.

    `cuda` alone is the current device of whatever thread uses it: a thread that copies batches would copy them to GPU 0.
    """
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_device(name: str) -> torch.device:
    """Return the device `cpu`, `cuda` or `cuda:N`, with its number.

    Raises:
        UserError: this machine or this build of torch has no such device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(
            f"device {name}: cannot be used here ({reason}); choose cpu, or cuda on a machine that has a GPU"
        ) from None
    return with_index(device)


def processor(device: torch.device) -> str:
    """Return the kind of a device's processor. The same operations give the same bits on two of one kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a CPU or a GPU has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device computes in a precision natively; emulation takes a hundred times as long, or fails.

    Args:
        precision: `float32` or `bfloat16`.
        device: where to compute.

    Raises:
        UserError: the device would emulate the precision.
    """
    if precision != "bfloat16" or has_bfloat16(device):
        return
    if device.type == "cpu":
        raise UserError(
            "training.precision is bfloat16, and this processor has no instructions for it; use float32, or --device cuda"
        )
    raise UserError(
        f"training.precision is bfloat16, and a {processor(device)} has no instructions for it; use float32, or a GPU of the "
        f"Ampere generation or later"
    )


def seed_dropout(seed: int, epoch: int, step: int, rank: int, device: torch.device) -> None:
    """Make the dropout of a step depend on nothing before it: a resumed run draws what an uninterrupted one draws.

    Args:
        seed: of the training.
        epoch, step: from 0.
        rank: of this worker.
        device: whose generator is seeded, besides the CPU's; this thread's current device may be another.
    """
    step_seed = int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])
    torch.default_generator.manual_seed(step_seed)  # torch.manual_seed looks for every kind of device at each call
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(step_seed)
