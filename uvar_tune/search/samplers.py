"""Samplers by name. Each proposal is drawn with a seed of its own (study seed, trial number): what is proposed depends
on the finished trials alone, not on how often the driver was restarted.

The baseline has no parameters. Optuna intersects the parameters of all trials to find what it can model jointly, and
with the baseline among them finds nothing: `gp` and `nsga2` would draw at random for ever. Samplers see the other
trials only. `gp` and `nsga2` look at completed trials alone, so to them a trial that ended early counts as no better
than the worst; and they model what all trials have, so a parameter with a condition is drawn at random (`tpe` models
each group of its own).

`grid` is no `GridSampler` of Optuna's: that one numbers its points by trial, counts the baseline among them, and stops
a study that is asked and told with an error.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import optuna
import scipy  # whose parts are loaded when they are used
from optuna.trial import FrozenTrial, TrialState

from uvar_tune import seeds
from uvar_tune.config.schema import Config
from uvar_tune.config.space import grid_point
from uvar_tune.config.space_entry import SpaceEntry


def make_sampler(config: Config, number: int, space: dict[str, SpaceEntry]) -> optuna.samplers.BaseSampler:
    """The sampler that proposes trial ``number``: a scrambled Sobol point at the start, then `study.sampler`; of a
    grid, its points in order.
    """
    study = config.study
    seed = seeds.derive(study.seed, "explore", number, "proposal") % 2**32
    if study.sampler == "random" or number == 0 or not space:
        return optuna.samplers.RandomSampler(seed=seed)
    if study.sampler == "grid":
        return _fixed(grid_point(config, number - 1), _random(seed, config))
    if study.sampler == "qmc" or number <= study.startup_trials:
        point = sobol_point(space, number - 1, seeds.derive(study.seed, "explore", 0, "sobol"))
        return _fixed(point, _SAMPLERS["nsga2" if study.sampler == "nsga2" else "random"](seed, config))
    return _SAMPLERS[study.sampler](seed, config)


def _fixed(point: dict[str, Any], base: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(point, base)


def sobol_point(space: dict[str, SpaceEntry], index: int, seed: int) -> dict[str, Any]:
    """Point ``index`` of the scrambled Sobol sequence over the entries of ``space``, in their own units."""
    engine = scipy.stats.qmc.Sobol(d=len(space), scramble=True, rng=seed % 2**32)
    if index:
        engine.fast_forward(index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance needs powers of two; a study takes what it is given
        unit = engine.random(1)[0]
    return {name: _scaled(entry, float(u)) for (name, entry), u in zip(space.items(), unit, strict=True)}


def _scaled(entry: SpaceEntry, u: float):
    if entry.type == "categorical":
        return entry.choices[min(int(u * len(entry.choices)), len(entry.choices) - 1)]
    low, high = entry.low, entry.high
    value = low * (high / low) ** u if entry.log else low + (high - low) * u
    return int(min(round(value), high)) if entry.type == "int" else min(max(value, low), high)


class _OtherTrials(optuna.Study):
    """A study without its baseline; ``scored`` shows trials that ended early as completed with the worst values
    seen.
    """

    def __init__(self, study: optuna.Study, scored: bool):
        self.__dict__.update(study.__dict__)
        self._all, self._scored = study, scored

    def _get_trials(self, deepcopy=True, states=None, use_cache=False) -> list[FrozenTrial]:
        early = self._scored and (states is None or TrialState.COMPLETE in states)
        asked = (*states, TrialState.PRUNED) if early and states is not None else states
        trials = [trial for trial in self._all._get_trials(deepcopy, asked, use_cache) if trial.number > 0]
        return _with_worst(trials, self.directions) if early else trials


def _with_worst(trials: list[FrozenTrial], directions) -> list[FrozenTrial]:
    complete = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return [trial for trial in trials if trial.state != TrialState.PRUNED]
    worst = [
        max(values) if direction == optuna.study.StudyDirection.MINIMIZE else min(values)
        for direction, values in zip(directions, zip(*complete, strict=True), strict=True)
    ]
    excess: dict[str, float] = {}
    for trial in trials:
        for key, value in trial.constraints.items() if trial.state == TrialState.COMPLETE else ():
            excess[key] = max(value, excess.get(key, value))
    return [_as_worst(trial, worst, excess) if trial.state == TrialState.PRUNED else trial for trial in trials]


def _as_worst(trial: FrozenTrial, worst: list[float], excess: dict[str, float]) -> FrozenTrial:
    trial = copy.copy(trial)
    trial.values, trial.state, trial.system_attrs = list(worst), TrialState.COMPLETE, dict(trial.system_attrs)
    for key, value in excess.items():  # `gp` wants every constraint of every trial
        trial.set_constraint(key, value)
    return trial


class _WithoutBaseline(optuna.samplers.BaseSampler):
    """Shows ``base`` the study without its baseline."""

    def __init__(self, base: optuna.samplers.BaseSampler, *, scored: bool):
        self._base, self._scored = base, scored

    def infer_relative_search_space(self, study, trial):
        return self._base.infer_relative_search_space(_OtherTrials(study, self._scored), trial)

    def sample_relative(self, study, trial, search_space):
        return self._base.sample_relative(_OtherTrials(study, self._scored), trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._base.sample_independent(_OtherTrials(study, self._scored), trial, param_name, param_distribution)

    def before_trial(self, study, trial):
        self._base.before_trial(study, trial)

    def after_trial(self, study, trial, state, values):
        self._base.after_trial(study, trial, state, values)


def _random(seed: int, config: Config):
    return optuna.samplers.RandomSampler(seed=seed)


def _tpe(seed: int, config: Config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        base = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
        )
    return _WithoutBaseline(base, scored=False)


def _gp(seed: int, config: Config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        base = optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=1, deterministic_objective=False, warn_independent_sampling=False
        )
    return _WithoutBaseline(base, scored=True)


def _nsga2(seed: int, config: Config):
    """Generations as large as the Sobol start, which is the first of them."""
    base = optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, config.study.startup_trials))
    return _WithoutBaseline(base, scored=True)


_SAMPLERS = {"tpe": _tpe, "gp": _gp, "nsga2": _nsga2, "random": _random}
