"""Registration of trials' checkpoints as versions of a model in MLflow's registry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from uvar_tune.analysis.export import UNCONFIRMED
from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.errors import ConfigError, InfrastructureError
from uvar_tune.io.uri import redact_url
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking import run_ids
from uvar_tune.tracking.delivery import PermanentError, TransientError
from uvar_tune.tracking.model_files import model_name, selected_sampling
from uvar_tune.training import latest_valid

_NAME = re.compile(r"[^/:.%\"'\s][^/:.%\"']{0,249}")  # a name in a link models:/NAME/VERSION


def register_models(
    files: StudyDirectory, results: StudyResults, trials: Sequence[TrialResult], name: str
) -> Iterator[str]:
    """Register each trial's newest checkpoint; yields a line for each version.

    Args:
        files: of the study.
        results: of the study.
        trials: some of its trials, the best first.
        name: of the registered model, created if missing. The best trial gets the highest version.

    Raises:
        ConfigError: an invalid name, or a trial without a checkpoint or a run in MLflow.
        InfrastructureError: the server does not answer or refuses the model.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of a model (no '/', ':', '.', '%' or quotes, at most 250 characters)",
            where="--register",
        )
    runs, checkpoints = run_ids(files.directory / "mlflow"), {}
    for trial in trials:
        checkpoint = latest_valid(trial.directory / "checkpoints", on_skip=lambda path, reason: None)
        if checkpoint is None:
            raise ConfigError(f"trial {trial.number} has no valid checkpoint in {trial.directory}", where="--register")
        if trial.number not in runs:
            raise ConfigError(
                f"MLflow has no run of trial {trial.number} yet; `uvar-tune sync --study {files.name}` sends it",
                where="--register",
            )
        checkpoints[trial.number] = checkpoint
    uri = files.tracking_uri()
    try:
        server = files.open_experiment()
        for trial in reversed(trials):
            run_id = runs[trial.number]
            model_id = server.log_model(
                run_id, checkpoints[trial.number], model_name(files.name, trial.number), selected_sampling(trial.params)
            )
            verdict = results.verdict(trial)
            word = verdict["verdict"] if verdict else UNCONFIRMED
            tags = {"uvar.study": files.name, "uvar.trial": str(trial.number), "uvar.verdict": word}
            text = f"Trial {trial.number} of study {files.name}: {results.metric} {trial.value:.4g}, verdict: {word}"
            version = server.register(name, model_id, run_id, tags, text)
            yield f"models:/{name}/{version} (trial {trial.number}, verdict: {word})"
    except (TransientError, PermanentError) as error:
        raise InfrastructureError(f"MLflow at {redact_url(uri)} does not register the model: {error}") from None
