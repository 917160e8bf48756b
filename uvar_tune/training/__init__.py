"""Training: one loop for both stages, and its checkpoints.

train, train_tokenizer ─► Progress, CheckpointEvent, TrainingWarning
save_checkpoint, latest_valid, load_checkpoint ─► ``start`` of the next attempt
"""

from uvar_tune.training.checkpoint import Checkpoint, latest_valid, load_checkpoint, retain, save_checkpoint
from uvar_tune.training.config import RunContext, differences, require_same, resolve_precision
from uvar_tune.training.debug_dump import dump_failed_batch
from uvar_tune.training.loop import CheckpointEvent, Progress, TrainingWarning
from uvar_tune.training.memory import is_out_of_memory, release_cached_memory
from uvar_tune.training.optim import SCHEDULES, parameter_groups, rate_factor
from uvar_tune.training.perceptual import open_lpips
from uvar_tune.training.tokenizer_io import (
    check_tokenizer,
    load_tokenizer,
    load_training_state,
    save_tokenizer,
    tokenizer_hash,
)
from uvar_tune.training.tokenizer_stage import train_tokenizer
from uvar_tune.training.var_stage import train

__all__ = [
    "SCHEDULES",
    "Checkpoint",
    "CheckpointEvent",
    "Progress",
    "RunContext",
    "TrainingWarning",
    "check_tokenizer",
    "differences",
    "latest_valid",
    "load_checkpoint",
    "load_tokenizer",
    "load_training_state",
    "open_lpips",
    "is_out_of_memory",
    "parameter_groups",
    "rate_factor",
    "release_cached_memory",
    "require_same",
    "resolve_precision",
    "retain",
    "save_checkpoint",
    "dump_failed_batch",
    "save_tokenizer",
    "tokenizer_hash",
    "train",
    "train_tokenizer",
]
