"""Early stopping: what a trial scores at its rungs, and Optuna's pruner, which decides from the storage alone.

A rung is a number of training images at which the study's own objective is scored at a smaller sample count. With one
objective the rung values are the trial's intermediate values. Optuna keeps none for several objectives: there the
values of `study.rung_metric` lie in a study of their own, `NAME/rungs`, with the same trial numbers, in the same
storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
import scipy  # whose parts are loaded when they are used
from optuna.trial import FrozenTrial, Trial, TrialState

from uvar_tune.config.schema import Config
from uvar_tune.metrics import metric
from uvar_tune.search.storage import open_study

# The median of fewer finished trials says nothing; the baseline is one of them.
_MEDIAN_AFTER = 5


def make_pruner(config: Config) -> optuna.pruners.BasePruner:
    """Optuna's pruner of the name `study.pruner`, its step being images."""
    study = config.study
    if study.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=_MEDIAN_AFTER)
    if study.pruner == "successive_halving":
        following = study.rungs[1] if len(study.rungs) > 1 else config.training.images
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=study.rungs[0], bootstrap_count=0, reduction_factor=following // study.rungs[0]
        )
    return optuna.pruners.NopPruner()


class Rungs:
    """Reports rung values to the pruner. ``study`` is the search itself, whose trials are the caller's."""

    def __init__(self, config: Config, study: optuna.Study, storage):
        self._beside: optuna.Study | None = None
        self._reconciled = False
        study.pruner = make_pruner(config)
        if config.study.further_metrics and config.study.rungs:
            direction = metric(config.study.pruning_metric).direction
            self._beside = open_study(storage, f"{study.study_name}/rungs", [direction], {})
            self._beside.pruner, self._beside.sampler = study.pruner, optuna.samplers.RandomSampler(seed=0)
            self._storage, self._beside_id = storage, storage.get_study_id_from_name(f"{study.study_name}/rungs")
            self._count = len(self._beside.get_trials(deepcopy=False))

    def report(self, trial: Trial, images: int, value: float) -> bool:
        """Store the value; whether the pruner would stop the trial here."""
        if self._beside is not None:
            trial = self._twin(trial.number)
        trial.report(value, images)
        return bool(trial.should_prune())  # a pruner may answer in NumPy, which JSON does not take

    def finished(self, number: int, state: TrialState, value: float | None) -> None:
        """Tell `NAME/rungs` that a trial has ended, if it is kept and knows the trial."""
        if self._beside is not None and number < self._count:
            self._beside.tell(
                number, value if state == TrialState.COMPLETE else None, state=state, skip_if_finished=True
            )

    def reconcile(self, study: optuna.Study, which: int) -> None:
        """Once, by the driver: end in `NAME/rungs` what ended in the study just before an earlier driver died.

        Args:
            which: index of the rungs' objective among the study's.
        """
        if self._beside is None or self._reconciled:
            return
        self._reconciled = True
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                self.finished(trial.number, trial.state, trial.values[which] if trial.values else None)

    def _twin(self, number: int) -> Trial:
        while self._count <= number:
            self._beside.ask()
            self._count += 1
        return Trial(self._beside, self._storage.get_trial_id_from_study_id_trial_number(self._beside_id, number))


def rung_values(trials: Iterable[FrozenTrial]) -> dict[int, dict[int, float]]:
    """Trial number → {images: value of `study.pruning_metric`}, of the stored trials that reached a rung."""
    return {
        trial.number: {int(images): told["value"] for images, told in trial.user_attrs["rungs"].items()}
        for trial in trials
        if "rungs" in trial.user_attrs
    }


def rung_correlation(rungs: Mapping[int, Mapping[int, float]], final: Mapping[int, float]) -> list[dict[str, Any]]:
    """Does a short run rank the trials as a long one does? Rank correlation of each rung with each later one and the
    end.

    Only trials with both values count, so trials that were stopped are missing from what came later: where the pruner
    worked, the correlation is that of the survivors.

    Args:
        rungs: trial number → {images: value}.
        final: trial number → value at the end.

    Returns:
        Rows {rung, later (images, or "end"), trials, spearman, kendall}; the two are None below three trials or where a
        side does not vary.
    """
    lengths = sorted({images for values in rungs.values() for images in values})
    sides = {
        images: {number: values[images] for number, values in rungs.items() if images in values} for images in lengths
    }
    rows = []
    for index, images in enumerate(lengths):
        later = [(other, sides[other]) for other in lengths[index + 1 :]]
        for name, values in [*later, ("end", final)]:
            both = sorted(sides[images].keys() & values.keys())
            pair = [[sides[images][number] for number in both], [values[number] for number in both]]
            varied = len(both) >= 3 and all(len(set(side)) > 1 for side in pair)
            rows.append(
                {
                    "rung": images,
                    "later": name,
                    "trials": len(both),
                    "spearman": float(scipy.stats.spearmanr(*pair).statistic) if varied else None,
                    "kendall": float(scipy.stats.kendalltau(*pair).statistic) if varied else None,
                }
            )
    return rows
