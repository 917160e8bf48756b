"""The training loop of both stages: a generator of events that knows neither Ray nor MLflow.

A step takes the next ``batch_size`` positions of the data order; each rank takes its share of each of ``accumulate``
micro-batches. All randomness is drawn from (seed, position). The state of a training is therefore its parameters, its
optimizer state and the number of images seen, and neither the number of ranks nor an interruption changes the numbers.

Legend: S steps, M values of a step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from uvar_tune.config.schema import TrainingConfig
from uvar_tune.errors import ConfigError, Diverged, OutOfMemory, first_line
from uvar_tune.training.config import RunContext, hyperparameters, require_same
from uvar_tune.training.memory import is_out_of_memory
from uvar_tune.training.optim import Average, adamw, rate_factor


@dataclass(frozen=True)
class Progress:
    """Values since the previous Progress, averaged over steps and ranks.

    Attributes:
        images: seen so far.
        values: metric name → value; the same on every rank, except ``images_per_sec``.
    """

    images: int
    values: dict[str, float]


@dataclass(frozen=True)
class CheckpointEvent:
    """A moment at which a checkpoint is due.

    Attributes:
        images: seen so far.
        state: returns the state that `train` takes as ``start``, with the averaged weights under ``ema`` where the
            training has them. To be called before the generator is advanced.
        stopped: whether a stop was requested; the training then ends here, before its length.
    """

    images: int
    state: Callable[[], dict[str, Any]]
    stopped: bool = False


@dataclass(frozen=True)
class TrainingWarning:
    """Something that needs attention and does not end the training."""

    images: int
    text: str


Event = Progress | CheckpointEvent | TrainingWarning
DDP_OPTIONS = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
"""Of DistributedDataParallel: all buffers are constants, and gradients are views of the buckets instead of copies."""


class TrainingTask(Protocol):
    """A stage of training: its model, its data and its loss.

    Attributes:
        model: to be trained; may be wrapped in DistributedDataParallel.
        data: content hashes and size of the data set, recorded with the state.
        names: of the values of a step; the first is minimized.
    """

    model: nn.Module
    data: Mapping[str, Any]
    names: tuple[str, ...]

    def losses(self, positions: range) -> Mapping[str, torch.Tensor]:
        """Scalars under ``names``, means over these positions of the data order."""

    def after_step(self, seen: int, optimizer: torch.optim.Optimizer) -> Iterator[TrainingWarning]:
        """Anything else that is due once ``seen`` images have been seen; called on every rank."""

    def synchronize(self) -> None:
        """Reduce over the ranks what `extra_values` and `state` read; called before them, on every rank."""

    def extra_values(self) -> dict[str, float]:
        """Further values of a Progress."""

    def state(self) -> dict[str, Any]:
        """The state of the task beyond parameters, optimizer and position."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its data-parallel wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def run_training(
    task: TrainingTask,
    config: TrainingConfig,
    run: RunContext,
    *,
    start: dict[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Train ``task`` from the beginning, or from the state of a CheckpointEvent.

    Args:
        task: the stage.
        config: with its precision resolved.
        run: with its intervals resolved.
        start: the state of a CheckpointEvent.
        stop: polled in each step; once it returns True on any rank, all end after that step with a CheckpointEvent.

    Raises:
        ConfigError: ``start`` is the state of another training.
        Diverged: a loss or gradient is not finite; on every rank, with the images seen before the step.
        OutOfMemory: on the rank whose memory ran out; the others wait for it.
    """
    training = _Training(task, config, run, stop)
    if start is not None:
        training.load(start)
    return training.events()


class _Training:
    def __init__(self, task: TrainingTask, config: TrainingConfig, run: RunContext, stop: Callable[[], bool] | None):
        self.task, self.config, self.run, self.stop_requested = task, config, run, stop
        self.model, self.bare = task.model, unwrap(task.model)
        self.seen, self.stopping = 0, False
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        self.optimizer = adamw(self.bare, weight_decay=config.weight_decay, betas=config.betas)
        self.window = MetricWindow((*task.names, "grad_norm"), run.world_size)
        self.average = None
        if config.ema is not None:
            self.average = Average(self.bare, half_life_images=config.ema, batch_size=config.batch_size)

    def events(self) -> Iterator[Event]:
        config, run = self.config, self.run
        logged, busy_sec = self.seen, 0.0  # the consumer's time between two events is not counted
        while self.seen < config.images:
            began = time.perf_counter()
            self._guarded_step()
            self.seen += config.batch_size
            warnings = list(self.task.after_step(self.seen, self.optimizer))
            last = self.seen == config.images
            log_due = last or self.seen % run.log_images == 0
            checkpoint_due = last or self.stopping or self.seen % run.checkpoint_images == 0 or self.seen in run.also_at
            if log_due or checkpoint_due:
                self.window.synchronize(self.seen, config.batch_size)
                self.task.synchronize()
            busy_sec += time.perf_counter() - began
            yield from warnings
            if log_due:
                yield self._progress((self.seen - logged) / busy_sec)
                logged, busy_sec = self.seen, 0.0
            if checkpoint_due:
                yield CheckpointEvent(self.seen, self.state, stopped=self.stopping and not last)
            if self.stopping:
                return

    def _progress(self, images_per_sec: float) -> Progress:
        values = {
            **self.window.take(),
            **self.task.extra_values(),
            "learning_rate": self._rate(self.seen - self.config.batch_size),
            "images_per_sec": images_per_sec,
        }
        return Progress(self.seen, values)

    def _guarded_step(self) -> None:
        """A step whose memory errors are typed."""
        self.model.train()
        try:
            self._step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # from None: the frames of the original error hold the tensors that filled the memory
            raise OutOfMemory(first_line(error), images=self.seen) from None

    def _rate(self, seen: int) -> float:
        return self.config.learning_rate * rate_factor(seen, self.config)

    def _step(self) -> None:
        config, run = self.config, self.run
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.seen)
        part = config.batch_size // config.accumulate
        share = part // run.world_size
        rows = []
        for turn in range(config.accumulate):
            first = self.seen + turn * part + run.rank * share
            rows.append(self._backward(range(first, first + share), reduces=turn == config.accumulate - 1))
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, config.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self.window.add(torch.cat([torch.stack(rows).mean(0), norm.float().reshape(1)]))

    def _backward(self, positions: range, *, reduces: bool) -> torch.Tensor:
        """Accumulate the gradient of the mean loss over these positions; return the detached values.

        Args:
            positions: this rank's share of a micro-batch.
            reduces: whether the gradients are reduced over the ranks after this pass.
        """
        device = self.run.device
        local = isinstance(self.model, nn.parallel.DistributedDataParallel) and not reduces
        with self.model.no_sync() if local else contextlib.nullcontext():
            failure = None
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                    values = self.task.losses(positions)
            except Diverged as error:
                failure = error
            # A rank that ended by itself would leave the others waiting in the all-reduce of the gradients.
            continues = self.stop_requested is None or not self.stop_requested()
            finite, continues = all_ranks_agree((failure is None, continues), self.run.world_size, device)
            self.stopping = self.stopping or not continues
            if not finite:
                self.window.synchronize(self.seen, self.config.batch_size)  # an earlier gradient may be the cause
                raise Diverged(
                    str(failure or "loss is not a finite number on another rank"), images=self.seen
                ) from failure
            (values[self.task.names[0]] / self.config.accumulate).backward()
        return torch.stack([values[name].detach().float() for name in self.task.names])

    def _hyperparameters(self) -> dict[str, Any]:
        return hyperparameters(self.config, self.run.seed, self.task.data)

    def state(self) -> dict[str, Any]:
        state = {
            "images": self.seen,
            "hyperparameters": self._hyperparameters(),
            "optimizer": self.optimizer.state_dict(),
            "window": self.window.rows(),
            "task": self.task.state(),
        }
        return state if self.average is None else {**state, "ema": self.average.state()}

    def load(self, state: dict[str, Any]) -> None:
        require_same(
            state["hyperparameters"], self._hyperparameters(), where=f"checkpoint of {state['images']:,} images"
        )
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ConfigError(f"the optimizer state is that of another model ({error})", where="checkpoint") from error
        self.window.load(state["window"])
        self.task.load(state["task"])
        if self.average is not None:
            self.average.load(state["ema"])
        self.seen = state["images"]


class MetricWindow:
    """Values of the steps since the last Progress, kept on the device: no step waits for them.

    Args:
        names: of the M values.
        world_size: number of ranks over which rows are averaged.
    """

    def __init__(self, names: Sequence[str], world_size: int):
        self.names, self._world_size = tuple(names), world_size
        self._pending: list[torch.Tensor] = []
        self._rows_SM = torch.empty(0, len(self.names))

    def add(self, row_M: torch.Tensor) -> None:
        """Append the values of a step on this rank."""
        self._pending.append(row_M)

    def synchronize(self, seen: int, batch_size: int) -> None:
        """Average the pending rows over the ranks and move them to the host.

        Raises:
            Diverged: a value is not finite, with the images seen before its step.
        """
        if not self._pending:
            return
        rows_SM = torch.stack(self._pending)
        if self._world_size > 1:
            dist.all_reduce(rows_SM)
            rows_SM /= self._world_size
        rows_SM, self._pending = rows_SM.cpu(), []
        nonfinite = (~torch.isfinite(rows_SM)).nonzero()
        if len(nonfinite):
            step, column = nonfinite[0].tolist()
            raise Diverged(
                f"{self.names[column]} is {rows_SM[step, column].item()}",
                images=seen - (len(rows_SM) - step) * batch_size,
            )
        self._rows_SM = torch.cat([self._rows_SM, rows_SM])

    def take(self) -> dict[str, float]:
        """The means over the synchronized rows, which are then dropped."""
        mean_M = self._rows_SM.double().mean(0)
        self._rows_SM = self._rows_SM[:0]
        return dict(zip(self.names, mean_M.tolist(), strict=True))

    def rows(self) -> torch.Tensor:
        """The synchronized rows (S, M)."""
        return self._rows_SM

    def load(self, rows_SM: torch.Tensor) -> None:
        """Restore what `rows` returned."""
        self._rows_SM = rows_SM


def all_ranks_agree(flags: Sequence[bool], world_size: int, device: torch.device) -> list[bool]:
    """For each flag, whether it is True on every rank."""
    if world_size == 1:
        return list(flags)
    minima = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(minima, op=dist.ReduceOp.MIN)
    return [bool(flag) for flag in minima.tolist()]
