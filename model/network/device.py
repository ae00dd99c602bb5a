"""The C library's memory, kept by the process instead of given back between the steps of a training."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names of them, from malloc.h
_LARGEST = 32 * 2**20  # bytes of what may come from the heap; the most that the library takes


def keep_freed_memory() -> None:
    """Has glibc keep what a step frees for the next one.

    Left to itself it gives large arrays back to the system at each step, and each step then waits for a thousand pages to be
    cleared anew: a tenth of its time. Without glibc nothing happens.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_TOP_PAD, 2 * _LARGEST)
