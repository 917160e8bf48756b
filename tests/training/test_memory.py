"""Reuse of freed memory between steps, measured by page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from tests.helpers.commands import environment
from uvar_tune.training import is_out_of_memory

STEPS = """
import resource
import torch
from uvar_tune.training.memory import keep_freed_memory


def pages(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(3 * 2**20), torch.ones(2**21)  # 12 and 8 MiB, freed at once
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


usual = pages(20)
keep_freed_memory()
pages(2)
print(usual, pages(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_reused():
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment(), capture_output=True, text=True, check=True)
    usual, retained = map(float, done.stdout.split())
    assert retained < 10 and retained <= usual


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to find an engine to execute this computation"),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp\nLast error:\nCuda failure 2 'out of memory'"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_errors_are_recognized(error):
    assert is_out_of_memory(error)


def test_other_errors_are_not_memory_errors():
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory"))
