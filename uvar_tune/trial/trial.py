"""One attempt at one configuration, on one rank: build, continue from the last valid checkpoint, train, score.

Knows no Ray: rank, world size, device and the DDP wrapping are arguments. Rank 0 writes the trial's directory:
config.yaml, metrics.jsonl, checkpoints/<images>/, samples/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import Config
from uvar_tune.data import TokenCache
from uvar_tune.errors import Diverged, OutOfMemory, StepFailed, first_line
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.safe_load import dump_yaml
from uvar_tune.specs import OutcomeKind, TrialOutcome, TrialSpec
from uvar_tune.tracking.metrics_log import MetricsLog, open_metrics_log
from uvar_tune.training import (
    CheckpointEvent,
    Progress,
    RunContext,
    TrainingWarning,
    dump_failed_batch,
    is_out_of_memory,
    release_cached_memory,
    retain,
    save_checkpoint,
    train,
)
from uvar_tune.trial.factory import new_var, open_tokenizer, training_loss
from uvar_tune.trial.local_cache import copy_to_local_disk
from uvar_tune.trial.resume import InfeasibleTrial, best_available_weights, resolve_lambdas, resume
from uvar_tune.trial.scoring import CheckpointScorer, Ranks, ScoreLog, score_trial


class PhaseTimer:
    """CPU seconds of this process by phase, and wall seconds before the first step."""

    def __init__(self):
        self.cpu_sec = {"start-up": time.process_time()}
        self._created = self._built = time.time()

    def mark_built(self) -> None:
        """The first step comes next."""
        self._built = time.time()

    def start_up(self, spec: TrialSpec) -> dict[str, Any]:
        """Fields of `TrialOutcome`: seconds from the start of the attempt to the first step, and their parts."""
        driven = spec.started if spec.driven is None else spec.driven
        return {
            "start_up_seconds": self._built - spec.started,
            "start_up_parts": {
                "driver": driven - spec.started,
                "workers": self._created - driven,
                "building": self._built - self._created,
            },
        }

    @contextlib.contextmanager
    def __call__(self, phase: str):
        """Add the CPU seconds of the block to ``phase``."""
        before = time.process_time()
        try:
            yield
        finally:
            self.cpu_sec[phase] = self.cpu_sec.get(phase, 0.0) + time.process_time() - before


class TrainingEnded(Exception):
    """Training ended before its length, with this outcome."""

    def __init__(self, outcome: TrialOutcome):
        super().__init__(outcome.message)
        self.outcome = outcome


@dataclasses.dataclass(frozen=True)
class RankContext:
    """This process within its worker group.

    Args:
        rank: of this process.
        world_size: number of processes.
        device: of the model.
        wrap: makes the data-parallel model, e.g. DDP.
        report: gets each rung, {images, value}, on every rank (the value on rank 0). It may end this process.
        stop_requested: called at each step; if it returns True on any rank, training saves a checkpoint and ends.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model
    report: Callable[[dict[str, Any]], None] = lambda rung: None
    stop_requested: Callable[[], bool] | None = None


def run_attempt(spec: TrialSpec, context: RankContext) -> TrialOutcome:
    """Train and score one attempt on one rank.

    Raises:
        Exception: whatever is no typed outcome of a trial.
    """
    with open_metrics_log(Path(spec.directory), rank=context.rank, attempt=spec.attempt) as log:
        return _Attempt(spec, context, log).run()


class _Attempt:
    """One attempt on one rank.

    Args:
        log: of rank 0; None on the others.
    """

    def __init__(self, spec: TrialSpec, context: RankContext, log: MetricsLog | None):
        assets = copy_to_local_disk(spec.assets, spec.config.run.scratch)
        self._spec, self._context, self._log = dataclasses.replace(spec, assets=assets), context, log
        self._timer = PhaseTimer()

    def run(self) -> TrialOutcome:
        """Train, score and add the costs."""
        try:
            outcome = self._train_and_score()
        except InfeasibleTrial as error:
            outcome = TrialOutcome(kind=OutcomeKind.INFEASIBLE, message=str(error))
        except TrainingEnded as end:
            outcome = end.outcome
        except Diverged as error:  # a sample is not finite
            outcome = TrialOutcome(
                kind=OutcomeKind.DIVERGED, message=str(error), images=error.images, single_rank_failure=True
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            outcome = TrialOutcome(kind=OutcomeKind.OUT_OF_MEMORY, message=first_line(error), single_rank_failure=True)
        outcome = dataclasses.replace(outcome, **self._costs())
        if self._log is not None:
            self._log.event("ended", outcome=outcome.kind.value, cpu_sec=outcome.cpu_sec, seconds=outcome.seconds)
            self._log.flush()
        return outcome

    def _costs(self) -> dict[str, Any]:
        device = self._context.device
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        return {
            "cpu_sec": self._timer.cpu_sec,
            "seconds": time.time() - self._spec.started,
            "gpu_peak_gib": peak,
            **self._timer.start_up(self._spec),
        }

    def _train_and_score(self) -> TrialOutcome:
        spec, context = self._spec, self._context
        vqvae = open_tokenizer(spec.assets.tokenizer, spec.config).to(context.device).eval().requires_grad_(False)
        config, lambdas = resolve_lambdas(spec.config, spec, vqvae, context.device, self._log)
        var = new_var(config, vqvae, spec.assets.num_classes, spec.seeds["initialisation"]).to(context.device)
        scorer = CheckpointScorer(
            config,
            spec.assets,
            var,
            vqvae,
            spec.seeds,
            entries=spec.inference_axes,
            ranks=Ranks(context.rank, context.world_size, context.device),
            observer=ScoreLog(self._log, config.training.images),
        )
        if spec.score_only:
            var.load_state_dict(best_available_weights(spec.score_only))
        else:
            self._train(config, var, vqvae, scorer)
        with self._evaluation():
            return TrialOutcome(
                kind=OutcomeKind.COMPLETE,
                images=config.training.images,
                effective_parameters=lambdas,
                **score_trial(scorer, self._log, Path(spec.directory), config.training.images),
            )

    def _train(self, config: Config, var, vqvae, scorer: CheckpointScorer) -> None:
        """Train to the end. ``var`` then holds the weights to be scored: the averaged ones if there are any."""
        checkpoints, settings = Path(self._spec.directory) / "checkpoints", checkpoint_settings(self._spec)
        state = resume(checkpoints, var, self._log, settings)
        averaged, images = (state or {}).get("ema"), (state or {}).get("images", 0)
        if images in config.study.rungs:  # saved before its score, which may not have been reported
            self._score_rung(images, var, averaged, scorer)
        events = self._events(config, var, vqvae, state)
        self._timer.mark_built()
        while (event := self._next(events, config, var)) is not None:
            if self._log and isinstance(event, Progress):
                self._log.metrics(event.images, event.values)
            elif self._log and isinstance(event, TrainingWarning):
                self._log.event("log", text=event.text)
            elif isinstance(event, CheckpointEvent):
                averaged = event.state()["ema"] if config.training.ema else None
                if self._log:
                    self._save(event, var, checkpoints, settings)
                if event.stopped:
                    raise TrainingEnded(interruption(self._log, event.images))
                if event.images in config.study.rungs:
                    self._score_rung(event.images, var, averaged, scorer)
        if averaged is not None:
            var.load_state_dict(averaged)

    def _next(self, events: Iterator, config: Config, var) -> Any:
        """The next event of the training; None at its end.

        Raises:
            TrainingEnded: a step failed.
        """
        try:
            with self._timer("training"):
                return next(events, None)
        except StepFailed as error:
            single = isinstance(error, OutOfMemory)  # a loss that is not finite is known to every rank
            dump = f"; {self._dump_failed_batch(error, config, var)}" if self._context.rank == 0 or single else ""
            outcome = TrialOutcome(
                kind=OutcomeKind.OUT_OF_MEMORY if single else OutcomeKind.DIVERGED,
                message=f"{error}{dump}",
                images=error.images,
                single_rank_failure=single,
            )
            raise TrainingEnded(outcome) from error

    def _save(self, event: CheckpointEvent, var, checkpoints: Path, settings: dict[str, Any]) -> None:
        self._log.flush()
        save_checkpoint(
            checkpoints / f"{event.images:012d}",
            var_state=var.state_dict(),
            config=settings,
            tokenizer={"path": self._spec.assets.tokenizer},
            training_state=event.state(),
            class_names=self._spec.assets.class_names,
        )
        retain(checkpoints, max_bytes=self._spec.config.run.checkpoint_bytes)

    @contextlib.contextmanager
    def _evaluation(self):
        """Time an evaluation; GPU memory that training or evaluation has cached is released before the other starts."""
        release_cached_memory(self._context.device)
        with self._timer("evaluation"):
            yield
        release_cached_memory(self._context.device)

    def _score_rung(self, images: int, var, averaged, scorer: CheckpointScorer) -> None:
        with self._evaluation(), swapped_weights(var, averaged):
            value = scorer.rung_value()
        if self._log:
            self._log.metrics(images, {f"rung/{scorer.config.study.pruning_metric}": value})
        self._context.report({"images": images, "value": value})  # on every rank: Ray waits for all of them

    def _dump_failed_batch(self, error: StepFailed, config: Config, var) -> str:
        """Write the batch of the failed step to disk; where it is, in words."""
        directory = Path(self._spec.directory)
        try:
            path = dump_failed_batch(
                directory,
                error,
                var,
                TokenCache.open(self._spec.assets.tokens["train"]),
                seed=self._spec.seeds["training"],
                batch_size=config.training.batch_size,
                tokenizer=self._spec.assets.tokenizer,
            )
        except (OSError, RuntimeError, MemoryError) as failure:
            return f"its batch could not be kept: {first_line(failure)}"
        return f"its batch: {directory.parent.name}/{directory.name}/{path.name}"

    def _events(self, config: Config, var, vqvae, state) -> Iterator:
        spec, context = self._spec, self._context
        model = context.wrap(var)
        var.activation_checkpointing = config.training.activation_checkpointing
        cache = TokenCache.open(spec.assets.tokens["train"])
        loss = training_loss(config, spec.assets, vqvae, var, context.device)
        run = RunContext(
            seed=spec.seeds["training"],
            rank=context.rank,
            world_size=context.world_size,
            device=context.device,
            log_images=log_images(config),
            checkpoint_images=checkpoint_images(config),
            also_at=config.study.rungs,
        )
        return train(model, vqvae, cache, loss, config.training, run, start=state, stop=context.stop_requested)


@contextlib.contextmanager
def swapped_weights(var, averaged):
    """Context in which ``var`` has the averaged weights, if there are any."""
    if averaged is None:
        yield
        return
    own = {name: value.clone() for name, value in var.state_dict().items()}
    var.load_state_dict(averaged)
    try:
        yield
    finally:
        var.load_state_dict(own)


def interruption(log: MetricsLog | None, images: int) -> TrialOutcome:
    """The outcome of an attempt that saved a checkpoint and ends because a stop was requested."""
    if log is not None:
        log.event("log", text=f"saved at {images:,} images")
    return TrialOutcome(kind=OutcomeKind.INTERRUPTED, message="a stop was requested", images=images)


def checkpoint_settings(spec: TrialSpec) -> dict[str, Any]:
    """The configuration as checkpoints store it."""
    return spec.config.tree(exclude=("space", "provenance"))


def log_images(config: Config) -> int:
    """`run.log_images`, or what makes about 200 points of the trial."""
    t = config.training
    return config.run.log_images or max(1, round(t.images / t.batch_size / 200)) * t.batch_size


def checkpoint_images(config: Config) -> int:
    """`run.checkpoint_images`, or what makes about four checkpoints of the trial."""
    t = config.training
    return config.run.checkpoint_images or max(1, t.images // t.batch_size // 4) * t.batch_size


def write_config(directory: Path, config: Config) -> None:
    """Write `config.yaml` of a trial, without space and provenance."""
    directory.mkdir(parents=True, exist_ok=True)
    tree = config.tree(exclude=("space", "final", "verdict", "provenance"))
    write_text_atomic(directory / "config.yaml", dump_yaml(tree))
