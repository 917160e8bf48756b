"""Exporting a configuration for a final run: plain values, the verdict on it, and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uvar_tune.config import Config
from uvar_tune.errors import ConfigError
from uvar_tune.study.files import StudyFiles, dump_yaml
from uvar_tune.study.results import StudyResults, TrialResult

UNCONFIRMED = "unconfirmed"


def final_config(config: Config, trial: TrialResult) -> Config:
    """The configuration that ``trial`` ran, its inference parameters at the values it chose; no space is left."""
    ran = {**trial.ran, "objective.lambda_unit": "raw"} if trial.ran else {}
    return config.with_values({**trial.params, **ran}).model_copy(update={"space": {}, "verdict": UNCONFIRMED})


def export_trial(results: StudyResults, trial: TrialResult, config: Config, directory: Path,
                 mlflow_run: str | None = None) -> Path:
    """Write ``directory/NAME-00007.yaml``, which `python -m uvar_tune.train` runs.

    Raises:
        ConfigError: the trial has no score, or the directory cannot be written.
    """
    if trial.state != "COMPLETE":
        raise ConfigError(f"trial {trial.number} is {trial.state}: only a trial with a score can be exported",
                          where="--trial", nearest=str(results.best.number) if results.best else None)
    tree = final_config(config, trial).tree(exclude=("space",))
    tree["provenance"] = _provenance(results, trial, mlflow_run)
    header = (f"# Trial {trial.number} of study {results.name}: {results.objective} {trial.value:.4g}. Verdict: {UNCONFIRMED} "
              "(the best of several is a candidate, not a result).\n# Run it: python -m uvar_tune.train FILE [key=value …]; "
              "repeat the trial: --replay\n")
    path = directory / f"{results.name}-{trial.number:05d}.yaml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".tmp")
        staged.write_text(header + dump_yaml({"verdict": tree.pop("verdict"), **tree}))
        staged.replace(path)
    except OSError as error:
        raise ConfigError(f"{error.filename or directory} cannot be written: {error.strerror}", where="--out") from None
    return path


def _provenance(results: StudyResults, trial: TrialResult, mlflow_run: str | None) -> dict[str, Any]:
    return {"study": results.name, "trial": trial.number, "kind": trial.kind, "objective": results.objective,
            "value": trial.value, "scores": dict(trial.scores), "protocol": dict(results.protocol),
            "seeds": dict(trial.seeds), "mlflow_run": mlflow_run, **trial.made_by}


def select(results: StudyResults, *, top: int | None = None, number: int | None = None) -> list[TrialResult]:
    """The best ``top`` trials, or the one of that number.

    Raises:
        ConfigError: no such trial, or none has finished.
    """
    if number is not None:
        found = [trial for trial in results.trials if trial.number == number]
        if not found:
            raise ConfigError(f"study {results.name!r} has no trial {number} (it has {len(results.trials)})", where="--trial")
        return found
    ranked = results.ranked()
    if not ranked:
        raise ConfigError(f"study {results.name!r} has no finished trial yet", where="--study")
    if top is not None and top < 1:
        raise ConfigError(f"{top} is not a count of trials", where="--top")
    return ranked[: top or 1]


def export_directory(files: StudyFiles, out: str | None) -> Path:
    return Path(out) if out else files.export


