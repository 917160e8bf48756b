"""Memory that a training keeps from one step to the next, seen by what the system is asked for again."""

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
def test_what_is_freed_is_not_asked_for_again():
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment(), capture_output=True, text=True, check=True)
    usual, kept = map(float, done.stdout.split())
    assert kept < 10 and kept <= usual
