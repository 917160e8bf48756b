"""Reuse of freed memory between steps, measured by page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.helpers.commands import environment

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
