"""All seeds are derived by one function of study seed, phase, trial or replicate, and purpose.

Training seeds depend on the trial in ``explore`` and ``refine``. In ``noise`` and ``confirm`` they depend only on the
replicate, so that configurations are paired. All trials of a grid have those of trial 0. Sampling seeds are common to
all trials of a phase (common random numbers).
"""

from __future__ import annotations

import hashlib

SELECTION, EVALUATION = "selection", "evaluation"  # sampling seeds that select an inference point, and that report it
SAMPLING = {SELECTION: "sampling-a", EVALUATION: "sampling-b"}  # their purposes
_COMMON = "sampling"  # purposes that begin with it are common to all trials of a phase


def derive(study_seed: int, phase: str, index: int, purpose: str) -> int:
    """A 63-bit seed that is the same on every machine and Python version.

    Args:
        study_seed: ``study.seed``.
        phase: explore (all trials of a search), noise, confirm, prepare, final, evaluate, …
        index: trial number in a search (0 of a grid), replicate number in noise and confirm.
        purpose: what it seeds: initialisation, order, dropout, proposal, sampling-a, sampling-b, …
    """
    if purpose.startswith(_COMMON):
        index = 0
    digest = hashlib.sha256(f"{study_seed}/{phase}/{index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *extra: int):
    """A CPU ``torch.Generator`` seeded from ``seed`` and further integers (an image index, a step)."""
    import torch

    text = "/".join(str(int(part)) for part in (seed, *extra))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
