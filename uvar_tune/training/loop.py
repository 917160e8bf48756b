"""The loop: a generator of events that knows neither Ray nor MLflow, one for every stage of training.

A step takes the next ``batch_size`` positions of the data order; each rank takes its share of each of ``accumulate``
parts. Everything random is drawn from (seed, position), so the state of a training is its parameters, its optimiser and
the number of images seen, and neither ranks nor interruptions change what is computed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from uvar_tune.errors import ConfigError, Diverged, OutOfMemory, first_line
from uvar_tune.training.config import Place, Plan, require_same
from uvar_tune.training.events import CheckpointEvent, Progress, TrainingWarning
from uvar_tune.training.memory import out_of_memory
from uvar_tune.training.optim import Average, adamw, rate_factor
from uvar_tune.training.window import Window, on_all_ranks

Event = Progress | CheckpointEvent | TrainingWarning


class Task(Protocol):
    """A stage of training.

    Attributes:
        model: to be trained; may be wrapped for data parallelism.
        names: of the values, the first of them minimised.
    """

    model: nn.Module
    names: tuple[str, ...]

    def losses(self, positions: range) -> Mapping[str, torch.Tensor]:
        """Scalars (means over these positions of the data order) under ``names``."""

    def after_step(self, seen: int, optimizer: torch.optim.Optimizer) -> Iterator[TrainingWarning]:
        """What else happens when ``seen`` images have been seen, on every rank."""

    def settle(self) -> None:
        """Exchange between ranks what `extra_values` and `state` need; before these, on every rank."""

    def extra_values(self) -> dict[str, float]:
        """Values of its own, for a Progress."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its data-parallel wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def run(task: Task, plan: Plan, place: Place, start: dict[str, Any] | None = None) -> Iterator[Event]:
    """Train ``task`` as planned, from the beginning or from a state that a CheckpointEvent gave.

    Raises:
        ConfigError: ``start`` is the state of another training.
        Diverged: a loss or gradient that is not finite, on every rank, with the images seen before it.
        OutOfMemory: on the rank whose memory it was; the others wait for it.
    """
    training = _Training(task, plan, place)
    if start is not None:
        training.load(start)
    return training.events()


class _Training:
    def __init__(self, task: Task, plan: Plan, place: Place):
        self.task, self.plan, self.place, self.stops = task, plan, place, False
        self.model, self.bare, self.seen = task.model, unwrap(task.model), 0
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        self.optimizer = adamw(self.bare, weight_decay=plan.weight_decay, betas=plan.betas)
        self.window = Window((*task.names, "grad_norm"), place.world_size)
        self.average = None
        if plan.ema is not None:
            self.average = Average(self.bare, half_life_images=plan.ema, batch_size=plan.batch_size)

    def events(self) -> Iterator[Event]:
        plan, place = self.plan, self.place
        counted, busy_sec = self.seen, 0.0  # what others do between two events is not ours to count
        while self.seen < plan.images:
            began = time.perf_counter()
            self.model.train()
            try:
                self._step()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise OutOfMemory(
                    first_line(error), images=self.seen
                ) from None  # whose frames would hold what they allocated
            self.seen += plan.batch_size
            alarms = list(self.task.after_step(self.seen, self.optimizer))
            last = self.seen == plan.images
            logs = last or self.seen % place.log_images == 0
            due = last or self.stops or self.seen % place.checkpoint_images == 0 or self.seen in place.also_at
            if logs or due:
                self.window.settle(self.seen, plan.batch_size)
                self.task.settle()
            busy_sec += time.perf_counter() - began
            yield from alarms
            if logs:
                yield Progress(
                    self.seen,
                    {
                        **self.window.take(),
                        **self.task.extra_values(),
                        "learning_rate": self._rate(self.seen - plan.batch_size),
                        "images_per_sec": (self.seen - counted) / busy_sec,
                    },
                )
                counted, busy_sec = self.seen, 0.0
            if due:
                yield CheckpointEvent(self.seen, self.state, stopped=self.stops and not last)
            if self.stops:
                return

    def _rate(self, seen: int) -> float:
        plan = self.plan
        return plan.learning_rate * rate_factor(
            seen,
            schedule=plan.schedule,
            images=plan.images,
            batch_size=plan.batch_size,
            warmup_images=plan.warmup_images,
            final_ratio=plan.final_ratio,
        )

    def _step(self) -> None:
        plan, place = self.plan, self.place
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.seen)
        part = plan.batch_size // place.accumulate
        share = part // place.world_size
        rows = []
        for turn in range(place.accumulate):
            first = self.seen + turn * part + place.rank * share
            synchronises = turn == place.accumulate - 1
            rows.append(self._backward(range(first, first + share), synchronises))
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if plan.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, plan.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self.window.add(torch.cat([torch.stack(rows).mean(0), norm.float().reshape(1)]))

    def _backward(self, positions: range, synchronises: bool) -> torch.Tensor:
        """Gradients of the mean loss over these positions, divided by the parts of a step; the values, detached."""
        place, device = self.place, self.place.device
        local = isinstance(self.model, nn.parallel.DistributedDataParallel) and not synchronises
        with self.model.no_sync() if local else contextlib.nullcontext():
            failure = None
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.plan.precision == "bf16"):
                    values = self.task.losses(positions)
            except Diverged as error:
                failure = error
            # a rank that stopped alone would leave the others waiting in the exchange of gradients
            goes_on = place.stop is None or not place.stop()
            finite, goes_on = on_all_ranks((failure is None, goes_on), place.world_size, device)
            self.stops = self.stops or not goes_on
            if not finite:
                self.window.settle(self.seen, self.plan.batch_size)  # it may have begun with an earlier gradient
                raise Diverged(
                    str(failure or "loss is not a finite number on another rank"), images=self.seen
                ) from failure
            (values[self.task.names[0]] / place.accumulate).backward()
        return torch.stack([values[name].detach().float() for name in self.task.names])

    def state(self) -> dict[str, Any]:
        state = {
            "images": self.seen,
            "plan": self.plan.record(),
            "optimizer": self.optimizer.state_dict(),
            "window": self.window.settled(),
            "task": self.task.state(),
        }
        return state if self.average is None else {**state, "ema": self.average.state()}

    def load(self, state: dict[str, Any]) -> None:
        require_same(state["plan"], self.plan.record(), where=f"checkpoint of {state['images']:,} images")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ConfigError(
                f"the optimiser's state is that of another model ({error})", where="checkpoint"
            ) from error
        self.window.load(state["window"])
        self.task.load(state["task"])
        if self.average is not None:
            self.average.load(state["ema"])
        self.seen = state["images"]
