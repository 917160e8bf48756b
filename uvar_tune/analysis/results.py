"""The results of a study as plain data, with DataFrames; tables, reports and exports are made from these.

Importing this module loads neither pandas nor PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvar_tune.config.space import OF_LAMBDA_1
from uvar_tune.errors import ConfigError

if TYPE_CHECKING:
    import pandas

__all__ = [
    "BASELINE",
    "OF_LAMBDA_1",
    "QUEUED",
    "SEARCH",
    "Replicate",
    "StudyResults",
    "TrialResult",
    "require_same_protocol",
]

_NOTEBOOK_ROWS = 10
BASELINE, SEARCH, QUEUED = "baseline", "search", "queued"  # kinds of trials


@dataclass(frozen=True)
class TrialResult:
    """One trial, finished or not.

    Attributes:
        number: of the Optuna trial.
        kind: baseline, search (proposed by the sampler) or queued (by the user).
        state: Optuna's: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        outcome: complete, stopped, diverged, out_of_memory, infeasible or crashed; None while it runs.
        params: dotted name → the value that ran; a parameter of the inference search (the CFG scale) at its selected
            value.
        value: of the study metric, if COMPLETE.
        scores: metric → value at the selected inference point, on the evaluation seeds.
        inference_points: every scored point in order: {cfg_scale, …, seeds: selection or evaluation, metric → value}.
        inference_at_bound: inference parameters whose selected value is an end of the range that was searched.
        attempts: number of starts.
        seconds: wall time of the last attempt.
        cpu_sec: phase → CPU seconds of that attempt's rank 0.
        directory: holds config.yaml, metrics.jsonl, checkpoints/, samples/.
        seeds: purpose → seed.
        provenance: commit, source hash, versions, machine.
        effective_parameters: λ by dotted name, if the space searches shares of the gradient.
        metric_values: study metric → value, if COMPLETE; the first is ``value``.
        violations: constraint → excess over its bound in the metric's unit, at most 0 if it holds; {} without
            constraints.
        rungs: training images → value of the rung metric there.
        wall_sec: wall seconds of the last attempt before its first step (start-up) and after it (work), and of the
            attempts before it (earlier).
    """

    number: int
    kind: str
    state: str
    outcome: str | None
    params: dict[str, Any]
    value: float | None
    scores: dict[str, float]
    inference_points: list[dict[str, Any]]
    attempts: int
    seconds: float | None
    cpu_sec: dict[str, float]
    directory: Path
    seeds: dict[str, int]
    provenance: dict[str, Any]
    effective_parameters: dict[str, float] = field(default_factory=dict)
    metric_values: dict[str, float] = field(default_factory=dict)
    violations: dict[str, float] = field(default_factory=dict)
    rungs: dict[int, float] = field(default_factory=dict)
    wall_sec: dict[str, float] = field(default_factory=dict)
    inference_at_bound: list[str] = field(default_factory=list)

    @property
    def feasible(self) -> bool:
        """Whether no measured constraint is violated."""
        return not self.violated

    @property
    def violated(self) -> list[str]:
        """The constraints that the trial violates."""
        return [name for name, excess in self.violations.items() if excess > 0]

    def learning_curves(self) -> pandas.DataFrame:
        """Metrics over training, from ``metrics.jsonl``.

        Returns:
            One row for each logged number of images, with the columns images, time (seconds since the epoch) and one
            for each metric. An attempt that resumed from a checkpoint replaces what was logged after that checkpoint.
        """
        import pandas

        from uvar_tune.tracking.metrics_log import read_records

        rows: dict[int, dict[str, Any]] = {}
        for record in read_records(self.directory / "metrics.jsonl")[0]:
            if record["kind"] == "metrics":
                row = rows.setdefault(record["images"], {"images": record["images"]})
                row |= {"time": record["time"], **record["values"]}
        table = [rows[images] for images in sorted(rows)]
        return pandas.DataFrame(table, columns=None if table else ["images", "time"])

    def _repr_html_(self) -> str:
        """What a notebook displays: the state, the settings and the scores."""
        rows = {"outcome": self.outcome or self.state.lower(), **self.params, "value": self.value, **self.scores}
        cells = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td>{escape(_notebook_text(value))}</td></tr>'
            for name, value in rows.items()
        )
        return f"<table><caption>Trial {self.number} ({escape(self.kind)})</caption><tbody>{cells}</tbody></table>"

    def pipeline(self, **options: Any):
        """The trained network as a `uvar_tune.VARPipeline`.

        Args:
            options: passed on to `VARPipeline.from_checkpoint`.

        Raises:
            ConfigError: the trial has no valid checkpoint.
            RuntimeError: `uvar_tune.api`, which provides the pipeline, is not imported.
        """
        if _Pipelines.open is None:
            raise RuntimeError("import uvar_tune.api first: it provides the pipeline")
        return _Pipelines.open(self.directory, **options)


class _Pipelines:
    """How `TrialResult.pipeline` opens a checkpoint; set from above, since pipelines are built on trials."""

    open: Callable[..., Any] | None = None


def set_pipeline(opener: Callable[..., Any]) -> None:
    """Have `TrialResult.pipeline` call ``opener(trial_directory, **options)``."""
    _Pipelines.open = opener


@dataclass(frozen=True)
class Replicate:
    """One replicate of an arm, finished or not: the arm's configuration under the seeds of one index.

    Attributes:
        number: of its Optuna trial.
        arm: name of the configuration.
        index: of its seeds; equal indices of different arms form a pair.
        state: Optuna's.
        value: of the study metric; None if it has none (``state`` and ``attributes["outcome"]`` say why).
        attributes: what the storage has of it: scores, inference_points, protocol, seconds, …
    """

    number: int
    arm: str
    index: int
    state: str
    value: float | None
    attributes: dict[str, Any]


@dataclass(frozen=True)
class StudyResults:
    """All trials of a study by number, and what is needed to read them.

    Attributes:
        name: of the study.
        metric: the study metric, by which trials are ranked.
        direction: minimize or maximize.
        trials: by number, finished or not.
        space: dotted name → its entry (role, type, low, high, log, choices, …).
        protocol: under which all scores were measured; {} before the first.
        seed: `study.seed`.
        directory: of the study.
        config: the configuration as nested sections, without the space.
        verdicts: arm of the phase `confirm` → its `Verdict` as plain data.
        untested: arm → why it has no verdict.
        noise: the baseline's `Noise` as plain data, after the phase `noise`.
        further_metrics: name → direction.
        pareto: numbers of the feasible trials that no other dominates, best in the study metric first; () with one
            metric.
        confirmed: arm of the phase `confirm` → {values: {replicate index: value}, mean, points: {inference parameter →
            median of the selected values}}; arms with a score only.
        factorial: cell of the 2×2 design (none, second, semantic, both) → its arm; {} before the phase `confirm`.
        rung_correlation: rows of `search.pruning.rung_correlation`.
        idle_sec: wall seconds of unused places for a trial, counting as many places as trials ever ran at once.
        compute_importances: computes `importances`; None if they are unknown.
    """

    name: str
    metric: str
    direction: str
    trials: tuple[TrialResult, ...]
    space: dict[str, dict[str, Any]]
    protocol: dict[str, Any]
    seed: int
    directory: Path
    config: dict[str, Any]
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    untested: dict[str, str] = field(default_factory=dict)
    noise: dict[str, Any] | None = None
    further_metrics: dict[str, str] = field(default_factory=dict)
    pareto: tuple[int, ...] = ()
    confirmed: dict[str, dict[str, Any]] = field(default_factory=dict)
    factorial: dict[str, str] = field(default_factory=dict)
    rung_correlation: tuple[dict[str, Any], ...] = ()
    idle_sec: float = 0.0
    compute_importances: Callable[[], dict[str, dict[str, float | None] | None]] | None = field(
        default=None, repr=False, compare=False
    )

    def ranked(self) -> list[TrialResult]:
        """The trials with a score, best first: feasible before infeasible ones, ties by number."""
        return list(self._ranked)

    @cached_property
    def _ranked(self) -> tuple[TrialResult, ...]:
        sign = 1 if self.direction == "minimize" else -1
        scored = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return tuple(
            sorted(
                (trial for trial in scored if math.isfinite(trial.value)),
                key=lambda trial: (not trial.feasible, sign * trial.value, trial.number),
            )
        )

    @property
    def best(self) -> TrialResult | None:
        """The first of `ranked`, which may be the baseline; None if no trial has a score."""
        return self._ranked[0] if self._ranked else None

    @property
    def baseline(self) -> TrialResult | None:
        """The trial with λ1 = λ2 = 0, with or without a score."""
        return next((trial for trial in self.trials if trial.kind == BASELINE), None)

    @cached_property
    def importances(self) -> dict[str, dict[str, float | None] | None]:
        """Evaluator → {parameter → share}, or None if it has no answer; computed at the first access, in seconds."""
        return self.compute_importances() if self.compute_importances else {}

    def verdict(self, trial: TrialResult) -> dict[str, Any] | None:
        """The verdict of the phase `confirm` on a trial; None if it was not tested."""
        return self.verdicts.get(f"trial {trial.number}")

    def _repr_html_(self) -> str:
        """What a notebook displays: the best ten trials and the baseline."""
        ranked = self.ranked()
        shown = [trial for rank, trial in enumerate(ranked) if rank < _NOTEBOOK_ROWS or trial is self.baseline]
        names = [name for name in self.space if any(name in trial.params for trial in shown)]
        heads = ["trial", "kind", self.metric, "verdict", *names]
        body = ""
        for trial in shown:
            verdict = (self.verdict(trial) or {}).get("verdict")
            cells = [trial.number, trial.kind, trial.value, verdict, *(trial.params.get(name) for name in names)]
            body += "<tr>" + "".join(f"<td>{escape(_notebook_text(cell))}</td>" for cell in cells) + "</tr>"
        head = "".join(f"<th>{escape(name)}</th>" for name in heads)
        caption = f"{escape(self.name)}: {len(shown)} of {len(self.trials):,} trials, {escape(self.metric)} to "
        return (
            f"<table><caption>{caption}{self.direction}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a trial.

        Returns:
            The columns number, kind, state, outcome, the parameters by dotted name, value, the scores by metric,
            feasible, verdict, attempts, seconds and directory.
        """
        import pandas

        parameters = dict.fromkeys(name for trial in self.trials for name in trial.params)
        metrics = dict.fromkeys(name for trial in self.trials for name in trial.scores)
        columns = ["number", "kind", "state", "outcome", *parameters, "value", *metrics]
        columns += ["feasible", "verdict", "attempts", "seconds", "directory"]
        rows = [
            {
                **trial.params,
                **trial.scores,
                **{name: getattr(trial, name) for name in columns if hasattr(trial, name)},
                "verdict": (self.verdict(trial) or {}).get("verdict"),
                "directory": str(trial.directory),
            }
            for trial in self.trials
        ]
        return pandas.DataFrame(rows, columns=columns)

    def cfg_curves(self) -> pandas.DataFrame:
        """The scores of every inference point of every trial.

        Returns:
            The columns trial, cfg_scale and further inference parameters, seeds (selection or evaluation), and one for
            each metric.
        """
        import pandas

        rows = [{"trial": trial.number, **point} for trial in self.trials for point in trial.inference_points]
        return pandas.DataFrame(rows, columns=None if rows else ["trial", "cfg_scale", "seeds"])

    def export(
        self,
        *,
        top: int | None = None,
        trial: int | None = None,
        directory: str | Path | None = None,
        unconfirmed: bool = False,
    ) -> list[Path]:
        """Write configurations for final runs, with their provenance; the best trial by default.

        Args:
            top: how many of the best trials.
            trial: number of the one trial to export instead.
            directory: where to write (default: the study's ``export/``).
            unconfirmed: whether trials without a verdict are exported.

        Raises:
            ConfigError: a trial does not exist, has no score, or no verdict although ``unconfirmed`` is False.
        """
        from uvar_tune.analysis.export import export_trial, select_trials
        from uvar_tune.tracking import run_ids

        runs = run_ids(self.directory / "mlflow")
        target = Path(directory) if directory else self.directory / "export"
        return [
            export_trial(self, one, target, mlflow_run=runs.get(one.number), unconfirmed=unconfirmed)
            for one in select_trials(self, top=top, number=trial)
        ]


def _notebook_text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def require_same_protocol(protocol: Mapping[str, Any], reference: Mapping[str, Any], *, where: str, of: str) -> None:
    """Check that two numbers may be compared: they must have been measured under one protocol.

    Args:
        protocol: of the number that ``where`` names.
        reference: the protocol that it must equal.
        where: names the number in the message.
        of: names what has the reference protocol.

    Raises:
        ConfigError: naming the first field that differs.
    """
    for name in dict.fromkeys([*reference, *protocol]):
        if protocol.get(name) != reference.get(name):
            raise ConfigError(
                f"protocol.{name} is {protocol.get(name)!r}, and {reference.get(name)!r} in {of}: the numbers cannot "
                "be compared",
                where=where,
            )
