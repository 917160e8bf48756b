"""Values that cross a process boundary: what a trial is to run, and how it ended.

The driver sends a spec to the worker group. Rank 0 writes a `TrialOutcome` into the trial's directory
(`trial/outcome_file.py`), from which the driver records it in the Optuna storage.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

from uvar_tune.config.schema import Config
from uvar_tune.config.space_entry import SpaceEntry


class OutcomeKind(str, enum.Enum):
    """How an attempt ended."""

    COMPLETE = "complete"  # it has a score
    STOPPED = "stopped"  # by the pruner, at a rung
    DIVERGED = "diverged"  # a loss or a sample is not finite
    OUT_OF_MEMORY = "out_of_memory"  # an allocation failed
    INFEASIBLE = "infeasible"  # no λ gives the requested share of the gradient
    INTERRUPTED = "interrupted"  # a stop was requested; the trial resumes later
    CRASHED = "crashed"  # anything else; the trial is retried


PRUNED_KINDS = frozenset({OutcomeKind.STOPPED, OutcomeKind.DIVERGED, OutcomeKind.OUT_OF_MEMORY, OutcomeKind.INFEASIBLE})


class CrashReason(str, enum.Enum):
    """Why an attempt crashed."""

    ERROR = "error"  # a worker raised; `TrialOutcome.error_type` and `message` say what
    LOW_MEMORY = "low_memory"  # Ray killed a worker because its node ran low on memory
    DISK_FULL = "disk_full"  # no space left, or a quota exceeded
    INFRASTRUCTURE = "infrastructure"  # a worker raised `InfrastructureError`
    PROCESS_LOST = "process_lost"  # the process that drives the trial died and left no report


@dataclasses.dataclass(frozen=True)
class Proposal:
    """One attempt at one trial as the search proposes it.

    Args:
        number: of the trial, the same for all of its attempts.
        attempt: counted from 1.
        kind: `baseline` or `search`; of a replicate, its arm.
        values: dotted name → value.
        seeds: purpose → seed.
    """

    number: int
    attempt: int
    kind: str
    values: dict[str, Any]
    seeds: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Assets:
    """Artifacts that all trials of a study share. Paths are absolute.

    Args:
        tokenizer: directory, or official file, of the tokenizer.
        tokens: split → directory of its token cache.
        cache: root of all caches.
        num_classes: number of class labels.
        class_names: in the order of the labels.
        data_sha256: split → hash of its images.
        classifier: directory of the classifier used as feature network, if any.
        facts: reconstruction error, codes in use, classifier accuracy, reference variances, CPU seconds.
    """

    tokenizer: str
    tokens: dict[str, str]
    cache: str
    num_classes: int
    class_names: list[str]
    data_sha256: dict[str, str]
    classifier: str | None
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerGroupSpec:
    """What every worker group needs.

    Args:
        config: made by `worker_config`.
        seeds: purpose → seed.
        directory: of the trial.
        run_name: unique name of the Ray Train run.
        ray_directory: of Ray's own files.
        attempt: counted from 1.
        worker_retries: number of restarts of a failed group by Ray Train.
    """

    config: Config
    seeds: dict[str, int]
    directory: str
    run_name: str
    ray_directory: str
    attempt: int = 1
    worker_retries: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialSpec(WorkerGroupSpec):
    """One attempt at one trial.

    Args:
        number: of the trial.
        assets: of the study.
        baseline_directory: of trial 0, at whose predictions gradient shares are measured.
        cache: directory of all caches.
        started: when the attempt was proposed, in seconds since 1970.
        driven: when the process that drives the trial started its worker group, in seconds since 1970.
        score_only: directory of a trial, or of a checkpoint, that is scored without training.
        inference_axes: inference parameters that the space names in addition to the CFG scale.
    """

    number: int
    assets: Assets
    baseline_directory: str
    cache: str
    started: float
    driven: float | None = None
    score_only: str | None = None
    inference_axes: dict[str, SpaceEntry] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSpec(WorkerGroupSpec):
    """The training of a tokenizer, which is written to the directory `tokenizer`."""

    tokenizer: str


def worker_config(config: Config) -> Config:
    """The configuration as workers get it: without space, provenance and the password of `run.storage`."""
    return Config.model_validate(config.tree(exclude=("space", "provenance")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How an attempt ended.

    Args:
        kind: of end.
        images: training images seen.
        message: one line for people; empty if complete.
        reason: of a crash.
        error_type: class name of the exception behind a crash.
        value: of the study metric, if complete.
        scores: metric → value of the selected inference point, on the evaluation seeds.
        inference_points: each scored point: its parameters, `seeds` (a: selection, b: evaluation) and metrics.
        inference_parameters: dotted name → value of the selected point.
        inference_at_bound: inference parameters whose selected value is an end of the range that was searched.
        repeated_values: of the study metric, on further evaluation seeds.
        protocol: under which the scores are comparable.
        effective_parameters: dotted name → λ, if it was derived from a share of the gradient.
        cpu_sec: phase → CPU seconds of rank 0.
        seconds: wall time of the attempt.
        start_up_seconds: wall time before the first step.
        start_up_parts: part → seconds of it.
        gpu_peak_gib: peak of allocated GPU memory.
        single_rank_failure: only one rank knows; the others wait for it.
    """

    kind: OutcomeKind
    images: int = 0
    message: str = ""
    reason: CrashReason | None = None
    error_type: str | None = None
    value: float | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    inference_points: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    inference_parameters: dict[str, float] = dataclasses.field(default_factory=dict)
    inference_at_bound: list[str] = dataclasses.field(default_factory=list)
    repeated_values: list[float] = dataclasses.field(default_factory=list)
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    effective_parameters: dict[str, float] = dataclasses.field(default_factory=dict)
    cpu_sec: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    start_up_seconds: float | None = None
    start_up_parts: dict[str, float] = dataclasses.field(default_factory=dict)
    gpu_peak_gib: float | None = None
    single_rank_failure: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check = _CHECKS.get(field.type, _is_mapping)
            value = getattr(self, field.name)
            if not check(value):
                raise ValueError(f"{field.name}: {value!r} is not {field.type}")
        if (self.reason is not None) != (self.kind is OutcomeKind.CRASHED):
            raise ValueError("a crash has a reason, any other end has none")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without what is empty."""
        plain = {
            key: value
            for key, value in vars(self).items()
            if not (value is None or value is False or value in ("", {}, []))
        }
        return {key: value.value if isinstance(value, enum.Enum) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> TrialOutcome:
        """The outcome that `to_dict` wrote.

        Raises:
            ValueError: an unknown or missing key, or a value of a wrong type.
        """
        if not isinstance(tree, dict) or "kind" not in tree:
            raise ValueError("not an outcome: no kind")
        if unknown := sorted(tree.keys() - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"not an outcome: unknown key {unknown[0]!r}")
        reason = tree.get("reason")
        enums = {"kind": OutcomeKind(tree["kind"]), "reason": None if reason is None else CrashReason(reason)}
        return cls(**{**tree, **enums})

    def attributes(self) -> dict[str, Any]:
        """User attributes of the Optuna trial: all but what the state and the value of the trial say."""
        return {
            key: value for key, value in self.to_dict().items() if key not in ("kind", "value", "single_rank_failure")
        }

    @property
    def description(self) -> str:
        """One line for people, with the type of the exception if there was one."""
        return f"{self.error_type}: {self.message}" if self.error_type else self.message


def crash(error_type: str | None, message: str, reason: CrashReason = CrashReason.ERROR) -> TrialOutcome:
    """The outcome of an attempt that crashed."""
    return TrialOutcome(kind=OutcomeKind.CRASHED, reason=reason, error_type=error_type, message=message)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return _is_mapping(value) and all(_is_number(number) for number in value.values())


_CHECKS = {  # by the annotation of the field
    "OutcomeKind": lambda value: isinstance(value, OutcomeKind),
    "CrashReason | None": lambda value: value is None or isinstance(value, CrashReason),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "float | None": lambda value: value is None or (_is_number(value) and math.isfinite(value)),
    "dict[str, float]": _is_numbers,
    "list[float]": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "list[dict[str, Any]]": lambda value: isinstance(value, list) and all(map(_is_mapping, value)),
}


class StudyCallbacks:
    """Notifications of a study, called in the driver. Override what is needed; an exception ends the study."""

    def on_trial_start(self, number: int, phase: str, parameters: dict[str, Any]) -> None:
        """An attempt at a trial starts.

        Args:
            number: of the trial, counted from 0 in each phase.
            phase: trial (of the search), noise, confirm, …
            parameters: dotted name → proposed value.
        """

    def on_rung(self, number: int, images: int, value: float) -> None:
        """A trial was scored at a rung, after ``images`` training images."""

    def on_trial_end(self, number: int, phase: str, outcome: OutcomeKind, value: float | None) -> None:
        """An attempt at a trial ended; ``value`` is that of the study metric, if it has a score."""

    def on_study_end(self, results: Any) -> None:
        """The study ended; ``results`` are its `StudyResults`."""
