"""One attempt at one configuration, on one rank: build, continue from the last valid checkpoint, train, score.

Knows no Ray: rank, world size, device and the DDP wrapping are arguments. Rank 0 writes the trial's directory:
config.yaml, metrics.jsonl, checkpoints/<images>/, samples/.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uvar_tune.config import Config
from uvar_tune.data import TokenCache
from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.objective import lambda_for_share
from uvar_tune.orchestration.build import new_var, training_loss
from uvar_tune.orchestration.scoring import Scorer, shares_at
from uvar_tune.study.files import dump_yaml
from uvar_tune.tracking.record import Recorder
from uvar_tune.training import (
    CheckpointDue,
    Progress,
    latest_valid,
    load_checkpoint,
    load_tokenizer,
    retain,
    save_checkpoint,
    train,
)


class Infeasible(Exception):
    """No λ below its limit moves the share of the gradient that was asked for."""


class Clock:
    """CPU seconds of this process by phase."""

    def __init__(self):
        self.cpu_sec = {"start-up": time.process_time()}

    @contextlib.contextmanager
    def __call__(self, phase: str):
        began = time.process_time()
        try:
            yield
        finally:
            self.cpu_sec[phase] = self.cpu_sec.get(phase, 0.0) + time.process_time() - began


def run_attempt(job: dict[str, Any], *, rank: int, world_size: int, device: torch.device,
                wrap: Callable[[torch.nn.Module], torch.nn.Module], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train and score; how it ended, as plain data.

    Args:
        report: tells a rung, {images, value}, on every rank (the value on rank 0); who listens may end this process then.

    Returns:
        {outcome: complete, value, scores, profile, params, cpu_sec, seconds, images} or
        {outcome: diverged | out_of_memory | infeasible, reason, images, …}. Any other failure is raised.
    """
    config, directory = Config.model_validate(job["config"]), Path(job["directory"])
    recorder = Recorder(directory / "metrics.jsonl", attempt=job["attempt"]) if rank == 0 else None
    clock, started = Clock(), time.time()
    result: dict[str, Any]
    try:
        vqvae = load_tokenizer(job["assets"]["tokenizer"]).to(device).eval().requires_grad_(False)
        config, ran = weights_that_run(config, job, vqvae, device)
        var = new_var(config, vqvae, job["assets"]["num_classes"], job["seeds"]["initialisation"]).to(device)
        scorer = Scorer(config, job, var, vqvae, rank=rank, world_size=world_size, device=device, recorder=recorder)
        if job.get("score_only"):
            var.load_state_dict(load_checkpoint(_newest(job["score_only"])).var_state)
        else:
            _train(config, job, var, vqvae, recorder, rank, world_size, device, wrap, scorer, clock, report)
        with clock("evaluation"):
            result = {"outcome": "complete", "images": config.training.images, "ran": ran, **scorer.score(config.training.images)}
    except Infeasible as error:
        result = {"outcome": "infeasible", "reason": str(error), "images": 0}
    except Diverged as error:
        result = {"outcome": "diverged", "reason": str(error), "images": error.images}
    except torch.OutOfMemoryError as error:
        result = {"outcome": "out_of_memory", "reason": str(error).splitlines()[0], "images": 0}
    result |= {"cpu_sec": clock.cpu_sec, "seconds": time.time() - job["started"], "start_up_seconds": started - job["started"]}
    if device.type == "cuda":
        result["gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    if recorder is not None:
        recorder.event("ended", **{key: result[key] for key in ("outcome", "cpu_sec", "seconds")})
    return result


def weights_that_run(config: Config, job: dict[str, Any], vqvae, device) -> tuple[Config, dict[str, float]]:
    """(the configuration with plain λ, those λ by name): under `lambda_unit: share` what moves the asked shares of the
    gradient at the baseline's predictions (docs/method.md); {} where λ is given as it is."""
    if config.objective.lambda_unit != "share":
        return config, {}
    asked = {"second_order": ("objective.lambda_1", config.objective.lambda_1),
             "semantic_entropy": ("objective.lambda_2", config.objective.lambda_2)}
    ran: dict[str, Any] = {name: 0.0 for name, _ in asked.values()}
    if any(share for _, share in asked.values()):
        checkpoint = load_checkpoint(_newest(job["baseline"]))
        baseline = new_var(config, vqvae, job["assets"]["num_classes"], seed=0).to(device)
        baseline.load_state_dict(checkpoint.var_state)
        plain = config.with_values({**ran, "objective.lambda_unit": "raw"})
        shares = shares_at(plain, job["assets"], baseline.eval(), vqvae, device)
        try:
            ran |= {name: lambda_for_share(share, shares[f"{term}_unit"], term=term)
                    for term, (name, share) in asked.items() if share}
        except ConfigError as error:
            raise Infeasible(str(error)) from None
    return config.with_values({**ran, "objective.lambda_unit": "raw"}), ran


def _newest(trial_directory: str) -> Path:
    """The newest sound checkpoint of a trial; ConfigError where it has none."""
    found = latest_valid(Path(trial_directory) / "checkpoints", on_skip=lambda path, why: None)
    if found is None:
        raise ConfigError("this trial has no sound checkpoint any more", where=trial_directory)
    return found


def _train(config, job, var, vqvae, recorder, rank, world_size, device, wrap, scorer, clock, report) -> None:
    t, run, checkpoints = config.training, config.run, Path(job["directory"]) / "checkpoints"
    state = _resume(checkpoints, var, recorder)
    loss = training_loss(config, job["assets"], vqvae, var, device)
    events = train(wrap(var), vqvae, TokenCache.open(job["assets"]["tokens"]["train"]), loss=loss, images=t.images,
                   batch_size=t.batch_size, learning_rate=t.learning_rate, schedule=t.schedule,
                   warmup_images=t.warmup_images, final_ratio=t.final_ratio, weight_decay=t.weight_decay, betas=t.betas,
                   clip=t.clip, seed=job["seeds"]["training"], rank=rank, world_size=world_size, device=device,
                   precision=t.precision, accumulate=t.accumulate, log_images=log_images(config),
                   checkpoint_images=checkpoint_images(config), also_at=config.study.rungs, start=state)
    while True:
        with clock("training"):
            event = next(events, None)
        if event is None:
            return
        if recorder and isinstance(event, Progress):
            recorder.metrics(event.images, event.values)
        if rank == 0 and isinstance(event, CheckpointDue):
            save_checkpoint(checkpoints / f"{event.images:012d}", var_state=var.state_dict(), config=job["config"],
                            tokenizer={"path": job["assets"]["tokenizer"]}, training_state=event.state())
            retain(checkpoints, max_bytes=run.checkpoint_bytes)
        if isinstance(event, CheckpointDue) and event.images in config.study.rungs:
            with clock("evaluation"):
                value = scorer.rung(event.images)
            report({"images": event.images, "value": value})  # every rank: Ray waits for all of them


def _resume(checkpoints: Path, var, recorder):
    """Bring ``var`` to the newest valid checkpoint; its training state, None where there is none."""
    def skipped(path: Path, why: str) -> None:
        if recorder:
            recorder.event("say", text=f"checkpoint {path.name} is not used: {why}")

    found = latest_valid(checkpoints, on_skip=skipped, training_state=True)
    if found is None:
        return None
    checkpoint = load_checkpoint(found, training_state=True)
    var.load_state_dict(checkpoint.var_state)
    if recorder:
        recorder.event("resumed", images=checkpoint.images)
        recorder.event("say", text=f"continues at {checkpoint.images:,} images")
    return checkpoint.training_state


def log_images(config: Config) -> int:
    """`run.log_images`, or what makes about 200 points of the trial."""
    t = config.training
    return config.run.log_images or max(1, round(t.images / t.batch_size / 200)) * t.batch_size


def checkpoint_images(config: Config) -> int:
    """`run.checkpoint_images`, or what makes about four checkpoints of the trial."""
    t = config.training
    return config.run.checkpoint_images or max(1, t.images // t.batch_size // 4) * t.batch_size


def write_config(directory: Path, config: Config) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(dump_yaml(config.tree(exclude=("space", "final", "verdict", "provenance"))))
