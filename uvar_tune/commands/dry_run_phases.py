"""`--dry-run` of the phases beside the search: how many trainings, where these can be counted, and what cannot be told."""

from __future__ import annotations

from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError
from uvar_tune.study_dir import StudyDirectory

ENDED = ("COMPLETE", "PRUNED", "FAIL")


def foretold(config: Config, files: StudyDirectory, steps: tuple[str, ...], results: StudyResults | None) -> list[str]:
    """A line for each of the phases that is not of the search.

    Raises:
        ConfigError: the first of them has nothing to work on.
    """
    from uvar_tune.analysis.confirmation import BASELINE

    ranked = [trial for trial in results.ranked() if trial.kind != BASELINE] if results else []
    if steps[0] in ("inference", "confirm") and not ranked:
        raise ConfigError(
            f"study {files.name!r} has no finished trial to {steps[0]} yet",
            where=f"--phase {steps[0]}",
            nearest="--phase explore",
        )
    tell = {"calibrate": _calibrate, "noise": _noise, "inference": _inference, "confirm": _confirm}
    return [f"phase {step}: {tell[step](config, files, results)}" for step in steps if step in tell]


def timed(results: StudyResults | None) -> list[TrialResult]:
    """The trials that finished and tell how long they took."""
    return [trial for trial in results.trials if trial.state == "COMPLETE" and trial.seconds] if results else []


def _calibrate(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    return "trains no trial; what all share (tokenizer, tokens, references) is made where it is missing, and shown"


def _noise(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    study, done = config.study, _ended(config, files, "noise", results, None)
    return (
        f"the baseline under {study.noise_replicates} training seeds, {done} of them done, each scored on "
        f"{study.noise_samplings} sampling seeds; {_hours(max(0, study.noise_replicates - done), results)}"
    )


def _inference(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    return (
        f"trains no trial; the {config.study.confirm_top} best and the baseline are scored over "
        f"{', '.join(config.study.confirm_axes)} where they have not been; how long that takes cannot be told beforehand"
    )


def _confirm(config: Config, files: StudyDirectory, results: StudyResults | None) -> str:
    from uvar_tune.analysis.confirmation import BASELINE, confirm_arms

    study = config.study
    nuisance = any(entry.role == "nuisance" for entry in config.space.values())
    before = f"first a search of the baseline's own nuisance parameters, {study.trials} trials at most; " * nuisance
    over = f", each scored over {', '.join(study.confirm_axes)}"
    if not results or all(trial.kind == BASELINE for trial in results.ranked()):
        return (
            f"{before}{study.confirm_replicates} replicates of {4 + study.confirm_top} arms at most{over}; which arms is known "
            "after the search"
        )
    arms = list(confirm_arms(config, results, {}))
    done = _ended(config, files, "confirm", results, set(arms))
    left = max(0, len(arms) * study.confirm_replicates - done)
    return (
        f"{before}{len(arms)} arms ({', '.join(arms)}) of {study.confirm_replicates} replicates{over}, {done} of them done; "
        f"{_hours(left, results)}"
    )


def _ended(
    config: Config, files: StudyDirectory, phase: str, results: StudyResults | None, arms: set[str] | None
) -> int:
    """How many replicates of a phase have ended; of one with other arms, which begins anew, none."""
    if results is None:
        return 0
    from uvar_tune.search.replicates import load_replicates
    from uvar_tune.search.storage import open_storage

    cells = load_replicates(open_storage(files.storage_url(config)), files.name, phase)
    if arms is not None and not {cell.arm for cell in cells} <= arms:
        return 0
    return sum(cell.state in ENDED for cell in cells)


def _hours(left: int, results: StudyResults | None) -> str:
    """What is left, in trainings and, where trials have finished, in hours of them one after the other."""
    finished = timed(results)
    if not left:
        return "nothing is left to train"
    if not finished:
        return f"{left} trainings are left; hours: unknown until a trial of this study has finished here"
    seconds = sum(trial.seconds for trial in finished) / len(finished)
    return (
        f"{left} trainings are left, {left * seconds / 3600:.2f} hours one after the other at {seconds / 60:.1f} minutes, as "
        "the trials took; scores at more points take longer"
    )
