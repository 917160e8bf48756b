"""Memory of the host: whether an error means that it ran out, and keeping it from one step to the next."""

from __future__ import annotations

import ctypes
import sys

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt
_WORDS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def keep_freed_memory() -> None:
    """Have this process keep what it frees for its next step, where its C library is glibc.

    By default every tensor of some size is given back to the system, which zeroes its pages when the next step asks for them
    again: some 5 % of a small network's step on a CPU. The most that is held at a time stays what it was.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**30), (_TOP_PAD, 2**26)):
            libc.mallopt(option, value)


def out_of_memory(error: BaseException) -> bool:
    """True of an allocation that a device, the host or a library of the device refused; PyTorch, numpy and CUDA's libraries say
    so in different ways."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
