"""The phases of a study: calibrate → noise → explore → refine → inference → confirm.

By default a study only searches (explore, then refine) and exports its best trial as unconfirmed. Each phase resumes,
and a finished one does nothing.
"""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

from uvar_tune.analysis.confirmation import (
    BASELINE,
    arm_of,
    baseline_noise,
    confirm_arms,
    control_arms,
    search_values,
    stopped_arms,
    trained_values,
    verdicts,
)
from uvar_tune.analysis.results import StudyResults, TrialResult
from uvar_tune.commands.checks import SEARCH, check_first_phase
from uvar_tune.config.schema import Config
from uvar_tune.config.space import BASELINE as PLAIN
from uvar_tune.config.space import baseline_point
from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.ray_backend.tuner import TuneRunner
from uvar_tune.search.dashboard import SampleGrids, artifact_directory, newest_grid
from uvar_tune.search.load import load_results
from uvar_tune.search.replicates import Replicates, StopRule
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking.metrics_log import last_time

logger = logging.getLogger(__name__)

_EXTREME = 0.5  # share of the spread that one pair has, from which it is said


class SearchWork:
    """The trials of a search as work for `TuneRunner`.

    Args:
        search: proposes the trials.
        phase: names the work in messages.
        folder: directory of the trials below that of the study.
    """

    def __init__(self, search: Search, phase: str = "trial", folder: str = "trials"):
        self.search, self.phase, self.folder = search, phase, folder
        self.ask, self.report, self.remaining = search.ask, search.report, search.remaining
        self.complete, self.prune, self.crashed = search.complete, search.prune, search.crashed

    def configuration(self, proposal) -> Config:
        """The configuration of a trial."""
        return self.search.config.with_values(proposal.values)

    def checkpoint(self, proposal) -> None:
        """None: every trial is trained."""

    def key(self, number: int) -> int | str:
        """Identifies the trial at the tracker."""
        return number if self.folder == "trials" else f"{self.folder}/{number}"

    def name(self, proposal) -> str:
        """Names the trial in messages."""
        return f"{self.phase} {proposal.number}"


class Phases:
    """The phases of one study.

    Args:
        config: of the study.
        files: its directory.
    """

    def __init__(self, config: Config, files: StudyDirectory):
        self.config, self.files = config, files
        self._url = files.storage_url(config)

    def search(self, trials: int | None = None) -> Search:
        """The search, with ``trials`` instead of `study.trials` if given."""
        config = self.config if trials is None else self.config.with_values({"study.trials": trials})
        directory = self.files.directory
        return Search(
            config,
            self._url,
            last_active=lambda number: last_time(self.files.trial(number) / "metrics.jsonl"),
            grids=SampleGrids(artifact_directory(directory), lambda number: newest_grid(self.files.trial(number))),
        )

    def pending(self, names: tuple[str, ...]) -> bool:
        """Whether any of these phases may have work left. Phases other than the search always may."""
        if set(names) <= {SEARCH, "explore", "refine"}:
            search = self._search_of(names[-1])
            return not (search.done() or search.stop_reason())
        return True

    def check(self, names: tuple[str, ...]) -> None:
        """Raise `ConfigError` if the first of these phases needs finished trials and there are none."""
        check_first_phase(names, self.files.name, lambda: bool(self._candidates(load_results(self.config, self.files))))

    def _candidates(self, results: StudyResults) -> list[TrialResult]:
        """The `study.confirm_top` best trials of the search, without the baseline."""
        return [trial for trial in results.ranked() if trial.kind != BASELINE][: self.config.study.confirm_top]

    def run(self, name: str, runner: TuneRunner, concurrent: int) -> None:
        """Run what is missing of one phase.

        Args:
            name: of the phase.
            runner: runs trials and replicates.
            concurrent: how many of them at once.
        """
        searching = f"searching: {self.config.study.trials} trials, {concurrent} at once"
        logger.info(searching if name == SEARCH else f"phase {name}")
        getattr(self, f"_{name}")(runner, concurrent)

    def _calibrate(self, runner: TuneRunner, concurrent: int) -> None:
        """Log the references, which were calibrated when the shared artifacts were prepared."""
        for name, row in runner.assets.facts.get("references", {}).items():
            logger.info(
                f"  reference {name}: " + ", ".join(f"{value:.3g}" for value in row) + " of the anchor, a scale each"
            )

    def _noise(self, runner: TuneRunner, concurrent: int) -> None:
        work = self.noise()
        runner.run(work, concurrent)
        noise = baseline_noise(work.replicates(), self.config.study.metric, self.config.study.noise_samplings)
        if noise is not None:
            self._write_json("noise.json", noise.as_dict())
            gaps = ", ".join(f"{noise.detectable_gap(pairs):.3g} with {pairs} pairs" for pairs in (4, 8, 16))
            logger.info(
                f"  noise of {self.config.study.metric}: standard deviation {noise.training.sd:.3g} over "
                f"training seeds, {noise.sampling.sd:.3g} over sampling seeds; smallest detectable gap {gaps}"
            )

    def noise(self) -> Replicates:
        """Replicates of the baseline, whose scores measure the noise."""
        study = self.config.study
        arms = {
            BASELINE: {
                name: value for name, value in baseline_point(self.config).items() if not name.startswith("inference.")
            }
        }
        return Replicates(
            self.config, self._url, "noise", arms, study.noise_replicates, samplings=study.noise_samplings
        )

    def _search(self, runner: TuneRunner, concurrent: int) -> None:
        self._run_search(runner, concurrent, SEARCH)

    def _explore(self, runner: TuneRunner, concurrent: int) -> None:
        self._run_search(runner, concurrent, "explore")

    _refine = _search

    def _run_search(self, runner: TuneRunner, concurrent: int, name: str) -> None:
        runner.run(SearchWork(self._search_of(name)), concurrent)

    def _search_of(self, name: str) -> Search:
        study = self.config.study
        return self.search(min(study.trials, study.startup_trials + 1) if name == "explore" else None)

    def _inference(self, runner: TuneRunner, concurrent: int) -> None:
        """Score the saved checkpoints of the best trials and the baseline over all confirm axes, without training."""
        results = load_results(self.config, self.files)
        trials = self._candidates(results)
        trials += [trial for trial in (results.baseline,) if trial is not None and trial.value is not None]
        if not trials:
            raise ConfigError("no trial has finished yet", where="--phase inference")
        arms = {arm_of(trial): trained_values(self.config, trial) for trial in trials}
        checkpoints = {arm_of(trial): str(trial.directory) for trial in trials}
        work = Replicates(self.confirmation_config(), self._url, "inference", arms, 1, checkpoints=checkpoints)
        runner.run(work, concurrent)

    def _confirm(self, runner: TuneRunner, concurrent: int) -> None:
        results, tuned = load_results(self.config, self.files), self._tuned_baseline(runner, concurrent)
        if runner.stop.stop_requested:
            return  # the search of the baseline's parameters is incomplete
        work = self.confirm(confirm_arms(self.config, results, tuned))
        if work.phase != "confirm":
            logger.info(f"  the arms have changed: they are confirmed on fresh seeds, as {work.phase}")
        runner.run(work, concurrent)
        if not runner.stop.stop_requested:
            self._decide(work, results)

    def confirm(self, arms: dict[str, dict[str, Any]]) -> Replicates:
        """Replicates of the baseline and the candidates.

        Args:
            arms: values by the name of the arm.
        """
        config, pairs = self.confirmation_config(), self.config.study.confirm_replicates
        rule = StopRule(functools.partial(stopped_arms, self.config), control_arms(self.config, arms))
        return Replicates(config, self._url, "confirm", arms, pairs, stop_rule=rule)

    def confirmation_config(self) -> Config:
        """The configuration for comparing networks: each is scored at its own best point over all confirm axes."""
        return self.config.with_values(
            {
                "inference.search": "per_checkpoint",
                "inference.search_axes": self.config.study.confirm_axes,
                "inference.search_refinements": self.config.study.confirm_refinements,
            }
        )

    def _tuned_baseline(self, runner: TuneRunner, concurrent: int) -> dict[str, Any]:
        """The baseline's best nuisance parameters, from as many trials as the study has; {} if there are none."""
        nuisance = {name: entry for name, entry in self.config.space.items() if entry.role == "nuisance"}
        if not nuisance:
            return {}
        space = {name: entry for name, entry in self.config.space.items() if entry.role in ("nuisance", "inference")}
        config = self.config.model_copy(update={"space": space})
        config = config.with_values({**PLAIN, "study.pruner": "none", "study.rungs": ()})
        search = Search(config, self._url, sub_study="baseline")
        work = SearchWork(search, "baseline", "baseline")
        runner.run(work, concurrent)
        scored = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        if not scored:
            return {}
        best = (min if search.study.directions[0].name == "MINIMIZE" else max)(
            scored, key=lambda trial: trial.values[0]
        )
        return {name: value for name, value in best.user_attrs["values"].items() if name in nuisance}

    def _decide(self, work: Replicates, results: StudyResults) -> None:
        """Test each arm against the baseline; write and log the verdicts."""
        decided, undecided = verdicts(self.config, work.replicates(), search_values(results), work.design)
        self._write_json("verdicts.json", [verdict.as_dict() for verdict in decided])
        for verdict in decided:
            logger.info(_verdict_line(verdict, self.config.study.metric))
        for arm, reason in undecided.items():
            logger.info(f"  {arm}: no verdict ({reason})")

    def _write_json(self, name: str, tree: Any) -> None:
        write_text_atomic(self.files.directory / name, json.dumps(tree, indent=1))


def _verdict_line(verdict, metric: str) -> str:
    low, high = verdict.simultaneous_low, verdict.simultaneous_high
    interval = f"[{low:.3g}, {high:.3g}]" if low is not None else "no interval"
    bias = f", selection bias of the search {verdict.selection_bias:.3g}" if verdict.selection_bias is not None else ""
    if verdict.extreme_share is not None and verdict.extreme_share > _EXTREME:
        bias += f", one pair has {verdict.extreme_share:.0%} of the spread (skewness {verdict.skewness:+.1f})"
    undecided = verdict.seeds_needed and verdict.verdict == "not distinguishable"
    needed = f", would take {verdict.seeds_needed} pairs" if undecided else ""
    against = f"{verdict.baseline:.4g}" + (f" ({verdict.control})" if verdict.control != BASELINE else "")
    return (
        f"  {verdict.arm}: {verdict.verdict}; {metric} {verdict.value:.4g} against {against}, "
        f"difference {verdict.difference:+.3g} {interval} over {verdict.pairs} of at most "
        f"{verdict.max_pairs} pairs{bias}{needed}"
    )
