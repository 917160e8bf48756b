"""Exporting a configuration for a final run: plain values, the verdict on it, and where it came from."""

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
    """The configuration that ``trial`` ran, its inference parameters at the values it chose; no space is left."""
    ran = {**trial.ran, "loss.lambda_unit": "raw"} if trial.ran else {}
    return config.with_values({**trial.params, **ran}).model_copy(update={"space": {}})


def export_trial(
    results: StudyResults,
    trial: TrialResult,
    config: Config,
    directory: Path,
    *,
    mlflow_run: str | None = None,
    unconfirmed: bool = False,
) -> Path:
    """Write ``directory/NAME-00007.yaml``, which `uvar-tune train` runs.

    Args:
        unconfirmed: whether a trial without a verdict may be exported, marked as such.

    Raises:
        ConfigError: the trial has no score, or no verdict and that was not asked for, or the directory cannot be written.
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
    tree = final_config(config, trial).model_copy(update={"verdict": word}).tree(exclude=("space",))
    tree["provenance"] = _provenance(results, trial, verdict, mlflow_run)
    path = directory / f"{results.name}-{trial.number:05d}.yaml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, _header(results, trial, verdict) + dump_yaml({"verdict": tree.pop("verdict"), **tree}))
    except OSError as error:
        raise ConfigError(f"{error.filename or directory} cannot be written: {error.strerror}", where="--out") from None
    return path


def _header(results: StudyResults, trial: TrialResult, verdict: dict[str, Any] | None) -> str:
    said = f"{UNCONFIRMED} (the best of several is a candidate, not a result)"
    if verdict is not None:
        interval = "" if verdict["low"] is None else f" [{verdict['low']:.3g}, {verdict['high']:.3g}]"
        said = (
            f"{verdict['verdict']} than the baseline, difference {verdict['difference']:+.3g}{interval} over "
            f"{verdict['pairs']} pairs of seeds"
        ).replace("not distinguishable than", "not distinguishable from")
    return (
        f"# Trial {trial.number} of study {results.name}: {results.objective} {trial.value:.4g}. Verdict: {said}.\n"
        "# Run it: uvar-tune train FILE [key=value …]; repeat the trial: --replay\n"
    )


def _provenance(results: StudyResults, trial: TrialResult, verdict, mlflow_run: str | None) -> dict[str, Any]:
    return {
        "study": results.name,
        "trial": trial.number,
        "kind": trial.kind,
        "objective": results.objective,
        "value": trial.value,
        "scores": dict(trial.scores),
        "protocol": dict(results.protocol),
        "seeds": dict(trial.seeds),
        "mlflow_run": mlflow_run,
        "verdict": verdict,
        **trial.made_by,
    }


def select(results: StudyResults, *, top: int | None = None, number: int | None = None) -> list[TrialResult]:
    """The best ``top`` trials, or the one of that number.

    Raises:
        ConfigError: no such trial, or none has finished.
    """
    if number is not None:
        found = [trial for trial in results.trials if trial.number == number]
        if not found:
            raise ConfigError(
                f"study {results.name!r} has no trial {number} (it has {len(results.trials)})", where="--trial"
            )
        return found
    ranked = results.ranked()
    if not ranked:
        raise ConfigError(f"study {results.name!r} has no finished trial yet", where="--study")
    if top is not None and top < 1:
        raise ConfigError(f"{top} is not a count of trials", where="--top")
    return ranked[: top or 1]
