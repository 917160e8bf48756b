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

from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache
from uvar_tune.errors import Diverged, OutOfMemory, StepFailed, first_line
from uvar_tune.io.safe_load import dump_yaml
from uvar_tune.tracking.writer_lock import open_metrics_log
from uvar_tune.training import (
    CheckpointEvent,
    Progress,
    RunContext,
    TrainingWarning,
    dump_failed_batch,
    is_out_of_memory,
    retain,
    save_checkpoint,
    train,
)
from uvar_tune.trial.factory import new_var, open_tokenizer, training_loss
from uvar_tune.trial.local_cache import copy_to_local_disk
from uvar_tune.trial.outcome_file import interrupted
from uvar_tune.trial.resume import InfeasibleTrial, best_available_weights, resolve_lambdas, resume
from uvar_tune.trial.scoring import Scorer


class PhaseTimer:
    """CPU seconds of this process by phase, and wall seconds of what comes before the first step."""

    def __init__(self):
        self.cpu_sec = {"start-up": time.process_time()}
        self._began = self._built = time.time()

    def built(self) -> None:
        """The first step comes next."""
        self._built = time.time()

    def start_up(self, job: dict[str, Any]) -> dict[str, Any]:
        """Seconds from the trial's start to the first step (of what is only scored: to its building), and their parts."""
        driven = job.get("driven", job["started"])
        return {
            "start_up_seconds": self._built - job["started"],
            "start_up_parts": {
                "driver": driven - job["started"],
                "workers": self._began - driven,
                "building": self._built - self._began,
            },
        }

    @contextlib.contextmanager
    def __call__(self, phase: str):
        began = time.process_time()
        try:
            yield
        finally:
            self.cpu_sec[phase] = self.cpu_sec.get(phase, 0.0) + time.process_time() - began


class _Ended(Exception):
    """Training ended before its length; ``result`` as `run_attempt` returns it."""

    def __init__(self, result: dict[str, Any]):
        super().__init__(result["reason"])
        self.result = result


def run_attempt(
    job: dict[str, Any],
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train and score; how it ended, as plain data.

    Args:
        report: tells a rung, {images, value}, on every rank (the value on rank 0); who listens may end this process then.
        stop: asked in each step of the training, which ends with a checkpoint once it says so on any rank.

    Returns:
        {outcome: complete, value, scores, profile, params, cpu_sec, seconds, images} or
        {outcome: diverged | out_of_memory | infeasible | interrupted, reason, images, …}; ``alone``: the other ranks do not
        know of it and wait for this one. Any other failure is raised.
    """
    with open_metrics_log(Path(job["directory"]), rank=rank, attempt=job["attempt"]) as recorder:
        return _run(job, recorder, rank, world_size, device, wrap, report, stop)


def _run(job, recorder, rank, world_size, device, wrap, report, stop) -> dict[str, Any]:
    config = Config.model_validate(job["config"])
    job = {**job, "assets": copy_to_local_disk(job["assets"], config.run.scratch)}
    clock = PhaseTimer()
    result: dict[str, Any]
    try:
        vqvae = open_tokenizer(job["assets"]["tokenizer"], config).to(device).eval().requires_grad_(False)
        config, ran = resolve_lambdas(config, job, vqvae, device)
        var = new_var(config, vqvae, job["assets"]["num_classes"], job["seeds"]["initialisation"]).to(device)
        scorer = Scorer(config, job, var, vqvae, rank=rank, world_size=world_size, device=device, recorder=recorder)
        if job.get("score_only"):
            var.load_state_dict(best_available_weights(job["score_only"]))
        else:
            _train(config, job, var, vqvae, recorder, rank, world_size, device, wrap, scorer, clock, report, stop)
        with clock("evaluation"):
            result = {
                "outcome": "complete",
                "images": config.training.images,
                "ran": ran,
                **scorer.score(config.training.images),
            }
    except InfeasibleTrial as error:
        result = {"outcome": "infeasible", "reason": str(error), "images": 0}
    except _Ended as end:
        result = end.result
    except Diverged as error:  # what it generates is not finite
        result = {"outcome": "diverged", "reason": str(error), "images": error.images, "alone": True}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        result = {"outcome": "out_of_memory", "reason": first_line(error), "images": 0, "alone": True}
    result |= {"cpu_sec": clock.cpu_sec, "seconds": time.time() - job["started"], **clock.start_up(job)}
    if device.type == "cuda":
        result["gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    if recorder is not None:
        recorder.event("ended", **{key: result[key] for key in ("outcome", "cpu_sec", "seconds")})
        recorder.settle()
    return result


def _train(config, job, var, vqvae, recorder, rank, world_size, device, wrap, scorer, clock, report, stop) -> None:
    """Train to the end; ``var`` then holds what is to be scored, the averaged weights where there are any."""
    checkpoints = Path(job["directory"]) / "checkpoints"
    state = resume(checkpoints, var, recorder, job["config"])
    averaged, reached = (state or {}).get("ema"), (state or {}).get("images", 0)
    if reached in config.study.rungs:  # its checkpoint is older than its score, which may not have been told
        _score_rung(reached, var, averaged, scorer, clock, report)
    events = _events(config, job, wrap(var), var, vqvae, rank, world_size, device, state, stop)
    clock.built()
    while True:
        try:
            with clock("training"):
                event = next(events, None)
        except StepFailed as error:
            alone = isinstance(error, OutOfMemory)  # of a loss that is not finite every rank is told
            kept = f"; {_kept(error, config, job, var)}" if rank == 0 or alone else ""
            raise _Ended(
                {
                    "outcome": "out_of_memory" if alone else "diverged",
                    "reason": f"{error}{kept}",
                    "images": error.images,
                    "alone": alone,
                }
            ) from error
        if event is None:
            break
        if recorder and isinstance(event, Progress):
            recorder.metrics(event.images, event.values)
        elif recorder and isinstance(event, TrainingWarning):
            recorder.event("log", text=event.text)
        elif isinstance(event, CheckpointEvent):
            averaged = event.state()["ema"] if config.training.ema else None
            if recorder:
                recorder.settle()
                save_checkpoint(
                    checkpoints / f"{event.images:012d}",
                    var_state=var.state_dict(),
                    config=job["config"],
                    tokenizer={"path": job["assets"]["tokenizer"]},
                    training_state=event.state(),
                )
                retain(checkpoints, max_bytes=config.run.checkpoint_bytes)
            if event.stopped:
                raise _Ended(interrupted(recorder, event.images))
            if event.images in config.study.rungs:
                _score_rung(event.images, var, averaged, scorer, clock, report)
    if averaged is not None:
        var.load_state_dict(averaged)


def _score_rung(images: int, var, averaged, scorer: Scorer, clock: PhaseTimer, report) -> None:
    with clock("evaluation"), _holding(var, averaged):
        value = scorer.rung(images)
    report({"images": images, "value": value})  # every rank: Ray waits for all of them


def _kept(error: StepFailed, config: Config, job: dict[str, Any], var) -> str:
    """Write down what the step that failed was fed with; the words that say where."""
    directory = Path(job["directory"])
    try:
        place = dump_failed_batch(
            directory,
            error,
            var,
            TokenCache.open(job["assets"]["tokens"]["train"]),
            seed=job["seeds"]["training"],
            batch_size=config.training.batch_size,
            tokenizer=job["assets"]["tokenizer"],
        )
    except (OSError, RuntimeError, MemoryError) as failure:
        return f"its batch could not be kept: {first_line(failure)}"
    return f"its batch: {directory.parent.name}/{directory.name}/{place.name}"


def _events(config: Config, job: dict[str, Any], model, var, vqvae, rank: int, world_size: int, device, state, stop):
    var.activation_checkpointing = config.training.activation_checkpointing
    cache = TokenCache.open(job["assets"]["tokens"]["train"])
    loss = training_loss(config, job["assets"], vqvae, var, device)
    run = RunContext(
        seed=job["seeds"]["training"],
        rank=rank,
        world_size=world_size,
        device=device,
        log_images=log_images(config),
        checkpoint_images=checkpoint_images(config),
        also_at=config.study.rungs,
    )
    return train(model, vqvae, cache, loss, config.training, run, start=state, stop=stop)


@contextlib.contextmanager
def _holding(var, averaged):
    """``var`` with the averaged weights for as long as it lasts; as it is where there are none."""
    if averaged is None:
        yield
        return
    own = {name: value.clone() for name, value in var.state_dict().items()}
    var.load_state_dict(averaged)
    try:
        yield
    finally:
        var.load_state_dict(own)


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
