"""Early stopping: the scores of trials at their rungs, and Optuna's pruner, which decides from the storage alone.

A rung is a number of training images at which the rung metric is scored on fewer samples. With one study metric the
rung scores are the trial's intermediate values. Optuna keeps none for several metrics; there the scores of
`study.rung_metric` are stored in a shadow study `NAME/rungs` with the same trial numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
import scipy  # lazy: its subpackages are imported on first use
from optuna.trial import FrozenTrial, Trial, TrialState

from uvar_tune.config.schema import Config
from uvar_tune.metrics import metric
from uvar_tune.search._optuna_compat import reopen_trial
from uvar_tune.search.storage import open_study

_MEDIAN_FROM = 5  # finished trials, the baseline among them


def make_pruner(config: Config) -> optuna.pruners.BasePruner:
    """Optuna's pruner named `study.pruner`, with images as its steps."""
    study = config.study
    if study.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=_MEDIAN_FROM)
    if study.pruner == "successive_halving":
        following = study.rungs[1] if len(study.rungs) > 1 else config.training.images
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=study.rungs[0], bootstrap_count=0, reduction_factor=following // study.rungs[0]
        )
    return optuna.pruners.NopPruner()


class Rungs:
    """Reports rung scores to the pruner.

    Args:
        config: of the study.
        study: the search's Optuna study.
        storage: of the study.
    """

    def __init__(self, config: Config, study: optuna.Study, storage):
        self._shadow: optuna.Study | None = None
        self._reconciled = False
        study.pruner = make_pruner(config)
        if config.study.further_metrics and config.study.rungs:
            name, direction = f"{study.study_name}/rungs", metric(config.study.pruning_metric).direction
            self._shadow = open_study(storage, name, [direction], {})
            self._shadow.pruner, self._shadow.sampler = study.pruner, optuna.samplers.RandomSampler(seed=0)
            self._storage, self._shadow_id = storage, storage.get_study_id_from_name(name)
            self._count = len(self._shadow.get_trials(deepcopy=False))

    def report(self, trial: Trial, images: int, value: float) -> bool:
        """Store the score of a trial at a rung; whether the pruner stops it there."""
        if self._shadow is not None:
            trial = self._shadow_trial(trial.number)
        trial.report(value, images)
        return bool(trial.should_prune())  # not NumPy's bool, which JSON does not take

    def finished(self, number: int, state: TrialState, value: float | None) -> None:
        """Finish the shadow of a trial that has ended, if it has one."""
        if self._shadow is not None and number < self._count:
            self._shadow.tell(
                number, value if state == TrialState.COMPLETE else None, state=state, skip_if_finished=True
            )

    def reconcile(self, study: optuna.Study, index: int) -> None:
        """Finish, once, the shadows of trials that ended just before an earlier driver died.

        Args:
            study: the search's Optuna study.
            index: of the rung metric among the study's metrics.
        """
        if self._shadow is None or self._reconciled:
            return
        self._reconciled = True
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                self.finished(trial.number, trial.state, trial.values[index] if trial.values else None)

    def _shadow_trial(self, number: int) -> Trial:
        while self._count <= number:
            self._shadow.ask()
            self._count += 1
        return reopen_trial(
            self._shadow, self._storage.get_trial_id_from_study_id_trial_number(self._shadow_id, number)
        )


def rung_values(trials: Iterable[FrozenTrial]) -> dict[int, dict[int, float]]:
    """Trial number → {images: score}, of the stored trials that reached a rung."""
    return {
        trial.number: {int(images): rung["value"] for images, rung in trial.user_attrs["rungs"].items()}
        for trial in trials
        if "rungs" in trial.user_attrs
    }


def rung_correlation(rungs: Mapping[int, Mapping[int, float]], final: Mapping[int, float]) -> list[dict[str, Any]]:
    """Rank correlation of each rung with each later one and the end: whether a short run ranks the trials as a long
    one.

    Only trials with both values count. Trials that were stopped have no later value, so with a pruner the correlation
    is that of the surviving trials.

    Args:
        rungs: trial number → {images: score}.
        final: trial number → final score.

    Returns:
        Rows {rung, later (images, or "end"), trials, spearman, kendall}; the two are None with fewer than three trials
        or without variation.
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
