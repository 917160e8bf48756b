"""Whether an error means that memory ran out: PyTorch, numpy and CUDA's libraries say so in different ways."""

from __future__ import annotations

import torch

_WORDS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """True of an allocation that a device, the host or a library of the device refused."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
