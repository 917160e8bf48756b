"""Section ``run``: resources, files, storage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uvar_tune.config.sections.base import Positive, PositiveFloat, Section


class RunConfig(Section):
    """Where and on what a study runs; may change when it is resumed."""

    root: str | None = None
    """Directory of studies and caches (default: runs, in a Ray job ~/uvar_tune_runs)."""
    storage: str | None = None
    """Optuna storage URL (default: the study's journal file)."""
    workers: Positive = 1
    """DDP workers per trial."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs reserved per worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs reserved per worker."""
    max_concurrent: Positive | None = None
    """Trials that run at once (default: as many as fit the cluster)."""
    wait_resources_sec: PositiveFloat = 1800.0
    """Seconds to wait for an autoscaler to provide the resources of one trial."""
    max_attempts: Positive = 3
    """Attempts that crash without having saved a further checkpoint, before the trial fails."""
    log_images: Positive | None = None
    """Images between two points of the curves (default: about 200 points per trial)."""
    checkpoint_images: Positive | None = None
    """Images between two checkpoints (default: four checkpoints per trial)."""
    checkpoint_bytes: Positive = 20 * 2**30
    """Disk space for the checkpoints of one trial."""
    scratch: str | None = None
    """Node-local directory to which token caches are copied."""
