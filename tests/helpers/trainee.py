"""A small training for ranks in separate processes, which tests kill and stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from uvar_tune.config.schema import DataConfig, LossConfig, ModelConfig, TokenizerConfig, TrainingConfig
from uvar_tune.data import TokenCache
from uvar_tune.errors import Diverged
from uvar_tune.model import VAR, VQVAE
from uvar_tune.model.scales import split
from uvar_tune.objective import composite_loss
from uvar_tune.training import (
    CheckpointEvent,
    Progress,
    RunContext,
    latest_valid,
    load_checkpoint,
    save_checkpoint,
    save_tokenizer,
    train,
)
from uvar_tune.training.loop import DDP_OPTIONS

SCALES, CODES, CLASSES, IMAGES = (1, 2, 4), 24, 4, 40
TRAINING = dict(
    images=192,
    batch_size=16,
    learning_rate=3e-3,
    schedule="lin0",
    warmup_images=40,
    final_ratio=0.1,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    clip=1.0,
)
RUN = dict(seed=11, log_images=32, checkpoint_images=48)


def settings(**changes) -> tuple[TrainingConfig, RunContext]:
    """The settings of the small training; a change goes where its name belongs."""
    run = {name: changes.pop(name) for name in list(changes) if name in RunContext.__dataclass_fields__}
    return TrainingConfig(**{**TRAINING, **changes}), RunContext(**{**RUN, **run})


def networks() -> tuple[VAR, VQVAE]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vqvae = VQVAE(
            TokenizerConfig(vocab_size=CODES, code_dim=8, channels=16, channel_multipliers=(1, 2), scales=SCALES)
        )
        var = VAR(
            ModelConfig(depth=2, width=32, heads=2, label_dropout=0.2, drop_path=0.3),
            scales=SCALES,
            vocab_size=CODES,
            code_dim=8,
            num_classes=CLASSES,
        )
    return var, vqvae.eval().requires_grad_(False)


def tokens(crops: int = 1) -> TokenCache:
    """Random tokens; image i has label i mod 4."""
    random = np.random.default_rng(2)
    return TokenCache(
        random.integers(CODES, size=(IMAGES * crops, 21)).astype(np.uint16),
        (np.arange(IMAGES * crops) // crops % CLASSES).astype(np.int64),
        crops,
        SCALES,
        CODES,
        IMAGES,
        {"images": "random", "tokenizer": "untrained"},
    )


def loss_with(vqvae: VQVAE, seen: list | None = None, diverges: bool = False):
    """A composite loss; records its tokens and, with ``diverges``, returns NaN from the fifth call on."""
    config = LossConfig(lambda_1=0.5, lambda_2=0.1)
    constants = dict(
        scales=SCALES,
        codebook=vqvae.codebook_VC.detach(),
        classes=torch.arange(CODES) % 3,
        reference_variance=torch.full((3,), 0.05),
    )
    calls = 0

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        nonlocal calls
        calls += 1
        if seen is not None:
            seen.extend(
                zip(tokens_BL.tolist(), noise["label_drop_B"].tolist(), noise["path_keep"].T.tolist(), strict=True)
            )
        logits_BLV = model(labels_B, tokenizer.teacher_input(split(tokens_BL, SCALES)), **noise)
        return composite_loss(
            logits_BLV * (float("nan") if diverges and calls >= 5 else 1), tokens_BL, config, **constants
        )

    return loss


def run_rank(
    directory: Path,
    rank: int = 0,
    world_size: int = 1,
    *,
    die_at: int | None = None,
    diverging: int | None = None,
    stopped_at: int | None = None,
    **changes,
) -> None:
    """Train from the newest checkpoint in ``directory``; rank 0 writes curve.jsonl, checkpoints and the last parameters.

    Args:
        die_at: images at which this process is killed by SIGKILL.
        diverging: the rank whose loss becomes NaN.
        stopped_at: images at which the last rank requests a stop.
    """
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{directory}/meeting-{changes.pop('meeting')}", rank=rank, world_size=world_size
        )
    var, vqvae = networks()
    start = None
    result = latest_valid(directory / "checkpoints", on_skip=lambda path, why: None, training_state=True)
    if result is not None:
        checkpoint = load_checkpoint(result, training_state=True)
        var.load_state_dict(checkpoint.var_state)
        start = checkpoint.training_state
    if rank == 0 and not (directory / "tokenizer").exists():
        save_tokenizer(directory / "tokenizer", vqvae)
    model = torch.nn.parallel.DistributedDataParallel(var, **DDP_OPTIONS) if world_size > 1 else var
    seen: list = []
    reached, stop = 0, None
    if stopped_at is not None:
        stop = lambda: rank == world_size - 1 and len(seen) * world_size >= stopped_at  # noqa: E731
    events = train(
        model,
        vqvae,
        tokens(crops=2),
        loss_with(vqvae, seen, diverging == rank),
        *settings(rank=rank, world_size=world_size, **changes),
        start=start,
        stop=stop,
    )
    try:
        for event in events:
            _record(directory, rank, var, event)
            reached = event.images
            if isinstance(event, Progress) and event.images == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    except Diverged as error:
        (directory / f"diverged-{rank}.json").write_text(json.dumps([error.images, str(error)]))
        return
    (directory / f"seen-{rank}.json").write_text(json.dumps(seen))
    if rank == 0 and reached == TRAINING["images"]:
        torch.save(var.state_dict(), directory / "last.pt")


def _record(directory: Path, rank: int, var: VAR, event) -> None:
    if rank == 0 and isinstance(event, Progress):
        values = {name: value for name, value in event.values.items() if name != "images_per_sec"}
        with (directory / "curve.jsonl").open("a") as handle:
            handle.write(json.dumps([event.images, values]) + "\n")
    elif rank == 0 and isinstance(event, CheckpointEvent):
        save_checkpoint(
            directory / "checkpoints" / f"{event.images:012d}",
            var_state=var.state_dict(),
            config={"a": 1},
            tokenizer={"path": str(directory / "tokenizer")},
            training_state=event.state(),
        )


def curve(directory: Path) -> list:
    return [json.loads(line) for line in (directory / "curve.jsonl").read_text().splitlines()]


def parameters(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "last.pt", weights_only=True)


def run_tokenizer_rank(directory: Path, rank: int, world_size: int, *, meeting: int = 0) -> None:
    """Train a small tokenizer on the digits; every rank leaves its codebook, rank 0 the curve too."""
    from uvar_tune.data import load_images
    from uvar_tune.training import train_tokenizer

    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{directory}/meeting-{meeting}", rank=rank, world_size=world_size
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vqvae = VQVAE(TokenizerConfig(vocab_size=32, code_dim=8, channels=8, channel_multipliers=(1, 2), scales=SCALES))
    model = torch.nn.parallel.DistributedDataParallel(vqvae, **DDP_OPTIONS) if world_size > 1 else vqvae
    images = load_images(DataConfig(image_size=8), "train")
    config = TokenizerConfig(images=640, batch_size=32, learning_rate=2e-3)
    run = RunContext(seed=1, rank=rank, world_size=world_size, log_images=160)
    for event in train_tokenizer(model, images, config, run):
        if isinstance(event, Progress):
            _record(directory, rank, vqvae, event)
    torch.save(vqvae.state_dict(), directory / f"tokenizer-{rank}.pt")
