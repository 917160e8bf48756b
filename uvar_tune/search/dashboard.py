"""What optuna-dashboard shows of a study besides its trials: names of metrics, notes, and sample grids as artifacts.

The artifacts are files in `artifact_directory`, which the dashboard takes as ``--artifact-dir``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna

from uvar_tune.config.schema import Config
from uvar_tune.errors import first_line
from uvar_tune.search import _optuna_compat as compat
from uvar_tune.search.storage import open_storage

_LOG = logging.getLogger(__name__)


class SampleGrids:
    """The sample grids of trials as artifacts of their Optuna trials.

    Args:
        directory: of the artifact store; created with the first artifact.
        samples: trial number → its newest sample grid; None if there is none.
    """

    def __init__(self, directory: Path, samples: Callable[[int], Path | None]):
        self._directory, self._samples = directory, samples

    def attach(self, trial: optuna.Trial) -> None:
        """Attach the grid of a running trial; a trial that has ended takes no more attributes.

        A disk that refuses the file costs the picture, not the trial.
        """
        path = self._samples(trial.number)
        if path is None:
            return
        from optuna.artifacts import FileSystemArtifactStore, upload_artifact

        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            store = FileSystemArtifactStore(self._directory)
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, storage=trial.storage)
        except OSError as error:
            _LOG.warning(f"trial {trial.number}: optuna-dashboard lacks its samples: {first_line(error)}")


def artifact_directory(study_directory: Path) -> Path:
    """The directory of a study's artifacts for optuna-dashboard."""
    return study_directory / "artifacts"


def newest_grid(trial_directory: Path) -> Path | None:
    """The sample grid of a trial that was written last; None if there is none."""
    paths = sorted((trial_directory / "samples").glob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return paths[-1] if paths else None


def name_metrics(study: optuna.Study, names: Sequence[str]) -> None:
    """Name the objectives of a study, which are "Objective 0", … otherwise."""
    if study.metric_names != list(names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(names))


def save_notes(config: Config, storage_url: str, study_note: str, trial_notes: Mapping[int, str]) -> None:
    """Write notes (Markdown); those that have this text already are left alone.

    Args:
        config: of the study.
        storage_url: of its storage.
        study_note: of the study.
        trial_notes: trial number → note.
    """
    from optuna_dashboard import get_note, save_note

    storage = open_storage(storage_url)
    study = optuna.load_study(study_name=config.study.name, storage=storage)
    study_id = storage.get_study_id_from_name(config.study.name)
    trials = {
        number: compat.reopen_trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))
        for number in trial_notes
    }
    for subject, note in [(study, study_note), *((trials[number], note) for number, note in trial_notes.items())]:
        if get_note(subject) != note:
            save_note(subject, note)
