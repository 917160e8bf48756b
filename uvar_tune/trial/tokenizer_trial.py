"""The training of a tokenizer on one rank: continue from the last valid checkpoint, train, score on held-out images.

Knows no Ray: rank, world size, device and the DDP wrapping are arguments. Rank 0 writes the run's directory:
metrics.jsonl, checkpoints/<images>/, samples/reconstructions-<images>.png, and the tokenizer itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import ImageSet
from uvar_tune.errors import Diverged
from uvar_tune.evaluation.reconstruction import picture, reconstruction
from uvar_tune.specs import OutcomeKind, TokenizerSpec, TrialOutcome
from uvar_tune.tracking.metrics_log import MetricsLog, open_metrics_log
from uvar_tune.training import (
    CheckpointEvent,
    Progress,
    RunContext,
    TrainingWarning,
    check_tokenizer,
    latest_valid,
    load_tokenizer,
    load_training_state,
    retain,
    save_tokenizer,
    train_tokenizer,
)
from uvar_tune.trial.factory import load_split, new_vqvae, tokenizer_seed
from uvar_tune.trial.resume import broadcast_choice, require_shapes
from uvar_tune.trial.trial import RankContext, interruption


def check_run(config: Config) -> dict[str, str]:
    """Everything that a worker would refuse, before anything is trained; the hash of each split.

    Raises:
        ConfigError: images, sizes, lengths or LPIPS weights that cannot be used.
    """
    images = {split: load_split(config, split) for split in ("train", "validation")}
    device = torch.device("cuda" if config.run.gpus_per_worker else "cpu")
    context = RankContext(world_size=config.run.workers, device=device)
    _events(config, new_vqvae(config), images["train"], None, context)
    return {split: found.sha256 for split, found in images.items()}


def run_tokenizer_attempt(spec: TokenizerSpec, context: RankContext) -> TrialOutcome:
    """Train the tokenizer and score it, on one rank.

    Raises:
        Exception: whatever is no typed outcome of a trial.
    """
    with open_metrics_log(Path(spec.directory), rank=context.rank) as recorder:
        return _run(spec, context, recorder)


def _run(spec: TokenizerSpec, context: RankContext, recorder: MetricsLog | None) -> TrialOutcome:
    config, directory = spec.config, Path(spec.directory)
    images = {split: load_split(config, split) for split in ("train", "validation")}
    if recorder is not None:
        for note in dict.fromkeys(note for split in images.values() for note in split.notes):
            recorder.event("log", text=note)
    vqvae = new_vqvae(config)
    state = _resume(directory / "checkpoints", vqvae, recorder, context.device)
    model = context.wrap(vqvae.to(context.device))
    try:
        for event in _events(config, model, images["train"], state, context):
            if recorder is not None:
                _note(event, config, directory, vqvae, images["validation"], recorder)
            if isinstance(event, CheckpointEvent) and event.stopped:
                return interruption(recorder, event.images)
    except Diverged as error:
        return TrialOutcome(kind=OutcomeKind.DIVERGED, message=str(error), images=error.images)
    scores = reconstruction(vqvae.eval(), images["validation"], rank=context.rank, world_size=context.world_size)
    if context.rank == 0:
        save_tokenizer(spec.tokenizer, vqvae)
    return TrialOutcome(kind=OutcomeKind.COMPLETE, images=config.tokenizer.images, scores=scores)


def _events(config: Config, model: torch.nn.Module, images: ImageSet, start, context: RankContext):
    run = RunContext(
        seed=tokenizer_seed(config),
        rank=context.rank,
        world_size=context.world_size,
        device=context.device,
        log_images=config.run.log_images,
        checkpoint_images=config.run.checkpoint_images,
    )
    return train_tokenizer(model, images, config.tokenizer, run, start=start, stop=context.stop_requested)


def _note(event, config: Config, directory: Path, vqvae, held_out: ImageSet, recorder: MetricsLog) -> None:
    if isinstance(event, Progress):
        recorder.metrics(event.images, event.values)
    elif isinstance(event, TrainingWarning):
        recorder.event("log", text=event.text)
    elif isinstance(event, CheckpointEvent):
        checkpoints = directory / "checkpoints"
        save_tokenizer(checkpoints / f"{event.images:012d}", vqvae, training_state=event.state())
        retain(checkpoints, max_bytes=config.run.checkpoint_bytes, check=check_tokenizer)
        picture(vqvae, held_out, directory / "samples" / f"reconstructions-{event.images:012d}.png")


def _resume(checkpoints: Path, vqvae, recorder: MetricsLog | None, device: torch.device) -> dict[str, Any] | None:
    """Bring ``vqvae`` to the newest checkpoint that it can be brought to; its training state, None where there is
    none.
    """

    def check(path: Path, *, training_state: bool) -> None:
        check_tokenizer(path, training_state=training_state)
        require_shapes(load_tokenizer(path).state_dict(), vqvae.state_dict(), str(path))
        load_training_state(path)

    def skipped(path: Path, why: str) -> None:
        if recorder:
            recorder.event("log", text=f"checkpoint {path.name} is not used: {why}")

    found = broadcast_choice(
        lambda: latest_valid(checkpoints, on_skip=skipped, training_state=True, check=check), recorder, device
    )
    if found is None:
        return None
    vqvae.load_state_dict(load_tokenizer(found).state_dict())
    state = load_training_state(found)
    if recorder:
        recorder.event("log", text=f"continues at {state['images']:,} images")
    return state
