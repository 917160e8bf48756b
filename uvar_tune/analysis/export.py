"""Export of a trial's configuration for a final run: plain values, its verdict and its provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.safe_load import dump_yaml

UNCONFIRMED = "unconfirmed"


def final_config(config: Config, trial: TrialResult) -> Config:
    """The configuration that ``trial`` ran, at its selected inference point and without a space."""
    effective = trial.effective_parameters
    raw = {**effective, "loss.lambda_unit": "raw"} if effective else {}
    return config.with_values({**trial.params, **raw}).model_copy(update={"space": {}})


def export_trial(
    results: StudyResults,
    trial: TrialResult,
    directory: Path,
    *,
    mlflow_run: str | None = None,
    unconfirmed: bool = False,
) -> Path:
    """Write ``directory/NAME-00007.yaml``, which `uvar-tune train` runs.

    Args:
        results: of the study.
        trial: one of its trials.
        directory: where to write; created if it does not exist.
        mlflow_run: id of the trial's MLflow run.
        unconfirmed: whether a trial without a verdict may be exported, marked as such.

    Returns:
        The path of the file.

    Raises:
        ConfigError: the trial has no score, or no verdict although ``unconfirmed`` is False, or the directory cannot be
            written.
    """
    if trial.state != "COMPLETE":
        raise ConfigError(
            f"trial {trial.number} is {trial.state}: only a trial with a score can be exported",
            where="--trial",
            nearest=str(results.best.number) if results.best else None,
        )
    verdict = results.verdict(trial)
    if verdict is None and not unconfirmed:
        raise ConfigError(
            f"trial {trial.number} is not confirmed: run `uvar-tune sweep … --phase confirm`, or export "
            "the candidate as it is with --unconfirmed",
            where=f"study {results.name!r}",
        )
    word = verdict["verdict"] if verdict else UNCONFIRMED
    config = final_config(Config.model_validate(results.config), trial).model_copy(update={"verdict": word})
    tree = config.tree(exclude=("space",))
    tree["provenance"] = _provenance(results, trial, verdict, mlflow_run)
    text = _header(results, trial, verdict) + dump_yaml({"verdict": tree.pop("verdict"), **tree})
    path = directory / f"{results.name}-{trial.number:05d}.yaml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
    except OSError as error:
        raise ConfigError(f"{error.filename or directory} cannot be written: {error.strerror}", where="--out") from None
    return path


def select_trials(results: StudyResults, *, top: int | None = None, number: int | None = None) -> list[TrialResult]:
    """The best ``top`` trials (default 1), or the trial ``number``.

    Raises:
        ConfigError: no such trial, or none has finished.
    """
    if number is not None:
        matches = [trial for trial in results.trials if trial.number == number]
        if not matches:
            raise ConfigError(
                f"study {results.name!r} has no trial {number} (it has {len(results.trials)})", where="--trial"
            )
        return matches
    ranked = results.ranked()
    if not ranked:
        raise ConfigError(f"study {results.name!r} has no finished trial yet", where="--study")
    if top is not None and top < 1:
        raise ConfigError(f"{top} is not a number of trials", where="--top")
    return ranked[: top or 1]


def _header(results: StudyResults, trial: TrialResult, verdict: dict[str, Any] | None) -> str:
    summary = f"{UNCONFIRMED} (the best of several is a candidate, not a result)"
    if verdict is not None:
        interval = "" if verdict["low"] is None else f" [{verdict['low']:.3g}, {verdict['high']:.3g}]"
        preposition = "from" if verdict["verdict"] == "not distinguishable" else "than"
        summary = (
            f"{verdict['verdict']} {preposition} the baseline, difference {verdict['difference']:+.3g}{interval} over "
            f"{verdict['pairs']} pairs of seeds"
        )
    return (
        f"# Trial {trial.number} of study {results.name}: {results.metric} {trial.value:.4g}. Verdict: {summary}.\n"
        "# Run it: uvar-tune train FILE [key=value …]; repeat the trial: --replay\n"
    )


def _provenance(
    results: StudyResults, trial: TrialResult, verdict: dict[str, Any] | None, mlflow_run: str | None
) -> dict[str, Any]:
    return {
        "study": results.name,
        "trial": trial.number,
        "kind": trial.kind,
        "metric": results.metric,
        "value": trial.value,
        "scores": dict(trial.scores),
        "protocol": dict(results.protocol),
        "seeds": dict(trial.seeds),
        "mlflow_run": mlflow_run,
        "verdict": verdict,
        **trial.provenance,
    }
