"""Samplers by name.

Every proposal is drawn with a seed of its own (study seed, trial number), so it depends on the finished trials alone
and not on how often the driver was restarted.

The baseline has no parameters. Optuna models the intersection of the parameters of all trials, which the baseline would
leave empty: `gp` and `nsga2` would draw at random for ever. So samplers see the trials without the baseline. `gp` and
`nsga2` read completed trials only, so a trial that ended early is shown to them with the worst values so far; and they
model the parameters that all trials have, so a conditional parameter is drawn at random (`tpe` models each group of
parameters).

Finished trials of other programs, and those of `study.warm_start`, are shown as far as their parameters are in the
space.

`grid` is not Optuna's `GridSampler`, which numbers its points by trial, counts the baseline among them, and raises at
the end of a study that is driven by ask and tell.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import scipy  # lazy: its subpackages are imported on first use
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from uvar_tune import seeds
from uvar_tune.analysis.results import BASELINE
from uvar_tune.config.schema import Config
from uvar_tune.config.space import grid_point, searched_entries
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.search import _optuna_compat as compat
from uvar_tune.search._optuna_compat import StudyView


def make_sampler(
    config: Config,
    number: int,
    space: dict[str, SpaceEntry],
    *,
    index: int | None = None,
    prior: Sequence[FrozenTrial] = (),
) -> optuna.samplers.BaseSampler:
    """The sampler that proposes one trial.

    Args:
        config: of the study.
        number: of the trial, which seeds the sampler.
        space: the searched parameters.
        index: position of the trial among the sampled ones, the baseline being 0: up to `study.startup_trials` a point
            of the scrambled Sobol sequence, then `study.sampler`; of a grid, its points in order. None for a queued
            trial, whose missing parameters take no point.
        prior: finished trials of another study, in the form of `prior_trials`.
    """
    study = config.study
    seed = seeds.derive(study.seed, "explore", number, "proposal") % 2**32
    if study.sampler == "random" or index == 0 or not space:
        return optuna.samplers.RandomSampler(seed=seed)
    if index is None:
        return _SAMPLERS.get(study.sampler, _random)(seed, config, prior)
    if study.sampler == "grid":
        return _fixed(grid_point(config, index - 1), _random(seed, config, prior))
    if study.sampler == "qmc" or index <= study.startup_trials:
        point = sobol_point(space, index - 1, seeds.derive(study.seed, "explore", 0, "sobol"))
        return _fixed(point, _SAMPLERS["nsga2" if study.sampler == "nsga2" else "random"](seed, config, prior))
    return _SAMPLERS[study.sampler](seed, config, prior)


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
        warnings.simplefilter("ignore", UserWarning)  # a study need not have a power of two of trials
        unit = engine.random(1)[0]
    return {name: _scaled(entry, float(u)) for (name, entry), u in zip(space.items(), unit, strict=True)}


def _scaled(entry: SpaceEntry, u: float):
    if entry.type == "categorical":
        return entry.choices[min(int(u * len(entry.choices)), len(entry.choices) - 1)]
    low, high = entry.low, entry.high
    value = low * (high / low) ** u if entry.log else low + (high - low) * u
    return int(min(round(value), high)) if entry.type == "int" else min(max(value, low), high)


def distribution(entry: SpaceEntry) -> BaseDistribution:
    """Optuna's distribution of a space entry."""
    if entry.type == "categorical":
        return CategoricalDistribution(entry.choices)
    if entry.type == "int":
        return IntDistribution(int(entry.low), int(entry.high), log=entry.log)
    return FloatDistribution(entry.low, entry.high, log=entry.log)


def prior_trials(trials: Sequence[FrozenTrial], space: Mapping[str, SpaceEntry]) -> list[FrozenTrial]:
    """Completed trials of another program or study as this study's samplers can read them.

    Args:
        trials: in any state.
        space: the searched parameters.

    Returns:
        The completed trials with at least one parameter, all of them in the space, under the space's distributions and
        with negative numbers, which no trial of the study has.
    """
    prior = []
    for trial in trials:
        params = {name: value for name, value in trial.params.items() if name in space}
        fits = all(space[name].holds(value) for name, value in params.items())
        if trial.state == TrialState.COMPLETE and params and fits:
            trial = copy.copy(trial)
            trial.params, trial.number = params, -1 - trial.number
            trial.distributions = {name: distribution(space[name]) for name in params}
            prior.append(trial)
    return prior


class _WithoutBaseline(optuna.samplers.BaseSampler):
    """Shows ``base`` the study without its baseline and with prior trials.

    Args:
        base: the sampler.
        space: the searched parameters.
        prior: trials of `study.warm_start`.
        scored: whether trials that ended early are shown as completed with the worst values so far. If so, prior trials
            are shown only with all unconditional parameters, because ``base`` models the common parameters alone.
    """

    def __init__(
        self,
        base: optuna.samplers.BaseSampler,
        space: Mapping[str, SpaceEntry],
        prior: Sequence[FrozenTrial],
        *,
        scored: bool,
    ):
        self._base, self._space, self._scored = base, space, scored
        self._always = {name for name, entry in space.items() if not entry.when}
        self._prior = [trial for trial in prior if self._is_complete(trial)]

    def infer_relative_search_space(self, study, trial):
        return self._base.infer_relative_search_space(self._view(study), trial)

    def sample_relative(self, study, trial, search_space):
        return self._base.sample_relative(self._view(study), trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._base.sample_independent(self._view(study), trial, param_name, param_distribution)

    def before_trial(self, study, trial):
        self._base.before_trial(study, trial)

    def after_trial(self, study, trial, state, values):
        self._base.after_trial(study, trial, state, values)

    def _is_complete(self, trial: FrozenTrial) -> bool:
        return not self._scored or self._always <= trial.params.keys()

    def _view(self, study: optuna.Study) -> StudyView:
        directions = study.directions

        def select(trials: list[FrozenTrial], states: Sequence[TrialState] | None) -> list[FrozenTrial]:
            completed = states is None or TrialState.COMPLETE in states
            own = [
                compat.without_legacy_constraints(trial)
                for trial in trials
                if trial.user_attrs.get("kind", BASELINE) != BASELINE
            ]
            if len(own) + 1 < len(trials) and completed:
                foreign = [trial for trial in trials if "kind" not in trial.user_attrs]
                own += [trial for trial in prior_trials(foreign, self._space) if self._is_complete(trial)]
            if completed:
                own = [*self._prior, *own]
            return _with_worst(own, directions) if self._scored and completed else own

        return StudyView(study, select, (TrialState.PRUNED,) if self._scored else ())


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
    return [_completed(trial, worst, excess) for trial in trials]


def _completed(trial: FrozenTrial, worst: list[float], excess: dict[str, float]) -> FrozenTrial:
    """A trial that ended early with the worst values; a trial without a constraint's excess with the worst excess."""
    finished = trial.state in (TrialState.PRUNED, TrialState.COMPLETE)
    missing = {key: value for key, value in excess.items() if key not in trial.constraints} if finished else {}
    if trial.state != TrialState.PRUNED and not missing:
        return trial
    trial = copy.copy(trial)
    trial.system_attrs = dict(trial.system_attrs)
    if trial.state == TrialState.PRUNED:
        trial.values, trial.state = list(worst), TrialState.COMPLETE
        missing = excess
    for key, value in missing.items():  # `gp` needs every constraint of every trial
        trial.set_constraint(key, value)
    return trial


def _random(seed: int, config: Config, prior: Sequence[FrozenTrial]):
    return optuna.samplers.RandomSampler(seed=seed)


def _tpe(seed: int, config: Config, prior: Sequence[FrozenTrial]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        base = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
        )
    return _WithoutBaseline(base, searched_entries(config), prior, scored=False)


def _gp(seed: int, config: Config, prior: Sequence[FrozenTrial]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        base = optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=1, deterministic_objective=False, warn_independent_sampling=False
        )
    return _WithoutBaseline(base, searched_entries(config), prior, scored=True)


def _nsga2(seed: int, config: Config, prior: Sequence[FrozenTrial]):
    """Generations as large as the Sobol start, which is the first of them."""
    base = optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, config.study.startup_trials))
    return _WithoutBaseline(base, searched_entries(config), prior, scored=True)


_SAMPLERS = {"tpe": _tpe, "gp": _gp, "nsga2": _nsga2, "random": _random}
