"""Memory: whether an error means that it ran out, and reuse of host memory between steps."""

from __future__ import annotations

import ctypes
import sys

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt
# What PyTorch, CUDA, cuBLAS, cuDNN and NCCL say where no typed error is raised.
_MESSAGES = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2",
    "unable to find an engine",
)


def keep_freed_memory() -> None:
    """Make the C library (glibc) keep freed memory for the next step instead of returning it to the system.

    By default every large tensor is returned, and the system zeroes its pages when the next step allocates them again:
    about 5 % of a small network's step on a CPU. Peak memory does not change.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**30), (_TOP_PAD, 2**26)):
            libc.mallopt(option, value)


def release_cached_memory(device: torch.device | str) -> None:
    """Return the allocator's free memory of a GPU to the driver, between phases that allocate different sizes."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is a failed allocation on the device or the host.

    Libraries of CUDA report one in words of their own, and some of them as a failure to initialize.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
