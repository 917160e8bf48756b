"""The phases of a study: calibrate → noise → explore → refine → inference → confirm.

Without a phase a study searches (explore, then refine) and exports its best as unconfirmed. Each phase resumes by itself, and
does nothing where it has been done.
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
    search_values,
    stopped_arms,
    trained_values,
    verdicts,
)
from uvar_tune.commands.checks import SEARCH
from uvar_tune.config.schema import Config
from uvar_tune.config.space import BASELINE as PLAIN
from uvar_tune.config.space import baseline_point
from uvar_tune.errors import ConfigError
from uvar_tune.ray_backend.tuner import TuneRunner
from uvar_tune.search.load import load_results
from uvar_tune.search.replicates import Replicates
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking.metrics_log import last_time

logger = logging.getLogger(__name__)


class SearchWork:
    """Trials of a search, as the runner sees work."""

    def __init__(self, search: Search, phase: str = "trial", folder: str = "trials"):
        self.search, self.phase, self.folder = search, phase, folder
        self.ask, self.report, self.left = search.ask, search.report, search.left
        self.complete, self.prune, self.crashed = search.complete, search.prune, search.crashed

    def configuration(self, proposal) -> Config:
        return self.search.config.with_values(proposal.values)

    def checkpoint(self, proposal) -> None:
        """Trials are trained."""

    def key(self, number: int) -> int | str:
        return number if self.folder == "trials" else f"{self.folder}/{number}"

    def name(self, proposal) -> str:
        return f"{self.phase} {proposal.number}"


class Phases:
    """Runs phases of one study on a runner."""

    def __init__(self, config: Config, files: StudyDirectory):
        self.config, self.files = config, files
        self._url = files.storage_url(config)

    def search(self, trials: int | None = None) -> Search:
        """The search, up to a number of trials (all of them by default)."""
        config = self.config if trials is None else self.config.with_values({"study.trials": trials})
        return Search(config, self._url, last_seen=lambda number: last_time(self.files.trial(number) / "metrics.jsonl"))

    def pending(self, steps: tuple[str, ...]) -> bool:
        """Whether any of these phases has work left, as far as can be told without beginning it."""
        if set(steps) <= {SEARCH, "explore", "refine"}:
            search = self._search_of(steps[-1])
            return not (search.done() or search.halted())
        return True

    def check(self, steps: tuple[str, ...]) -> None:
        """ConfigError where the first of these phases has nothing to work on."""
        if steps[0] in ("inference", "confirm") and not self._candidates(load_results(self.config, self.files)):
            raise ConfigError(
                f"study {self.files.name!r} has no finished trial to {steps[0]} yet",
                where=f"--phase {steps[0]}",
                nearest="--phase explore",
            )

    def _candidates(self, results) -> list[Any]:
        """The best trials of the search, without the baseline."""
        return [trial for trial in results.ranked() if trial.kind != BASELINE][: self.config.study.confirm_top]

    def run(self, step: str, runner: TuneRunner, concurrent: int) -> None:
        logger.info(
            f"phase {step}" if step != SEARCH else f"searching: {self.config.study.trials} trials, {concurrent} at once"
        )
        getattr(self, f"_{step}")(runner, concurrent)

    def _calibrate(self, runner: TuneRunner, concurrent: int) -> None:
        """The shared assets are made before any phase; here they are shown."""
        for name, row in runner.assets.facts.get("references", {}).items():
            logger.info(
                f"  reference {name}: " + ", ".join(f"{value:.3g}" for value in row) + " of the anchor, a scale each"
            )

    def _noise(self, runner: TuneRunner, concurrent: int) -> None:
        work = self.noise()
        runner.run(work, concurrent)
        found = baseline_noise(work.replicates(), self.config.study.metric, self.config.study.noise_samplings)
        if found is not None:
            tree = found.as_dict()
            (self.files.directory / "noise.json").write_text(json.dumps(tree, indent=1))
            gaps = ", ".join(f"{gap:.3g} with {pairs} pairs" for pairs, gap in _gaps(found))
            logger.info(
                f"  noise of {self.config.study.metric}: standard deviation {found.training.sd:.3g} over training seeds, "
                f"{found.sampling.sd:.3g} over sampling seeds; smallest detectable gap {gaps}"
            )

    def noise(self) -> Replicates:
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
        runner.run(SearchWork(self._search_of(SEARCH)), concurrent)

    def _explore(self, runner: TuneRunner, concurrent: int) -> None:
        runner.run(SearchWork(self._search_of("explore")), concurrent)

    _refine = _search

    def _search_of(self, step: str) -> Search:
        study = self.config.study
        return self.search(min(study.trials, study.startup_trials + 1) if step == "explore" else None)

    def _inference(self, runner: TuneRunner, concurrent: int) -> None:
        """Score the saved checkpoints of the best trials and the baseline over all confirm axes, without training."""
        results = load_results(self.config, self.files)
        chosen = self._candidates(results)
        chosen += [trial for trial in (results.baseline,) if trial is not None and trial.value is not None]
        if not chosen:
            raise ConfigError("no trial has finished yet", where="--phase inference")
        arms = {arm_of(trial): trained_values(self.config, trial) for trial in chosen}
        places = {arm_of(trial): str(trial.directory) for trial in chosen}
        runner.run(Replicates(self.deep(), self._url, "inference", arms, 1, checkpoints=places), concurrent)

    def _confirm(self, runner: TuneRunner, concurrent: int) -> None:
        results, tuned = load_results(self.config, self.files), self._tuned_baseline(runner, concurrent)
        if runner.signals.asked.is_set():
            return  # a baseline that is tuned in part is no arm
        work = self.confirm(confirm_arms(self.config, results, tuned))
        if work.phase != "confirm":
            logger.info(f"  other arms than before: they are confirmed on fresh seeds, as {work.phase}")
        runner.run(work, concurrent)
        if not runner.signals.asked.is_set():
            self.say_verdicts(work, results)

    def confirm(self, arms: dict[str, dict[str, Any]]) -> Replicates:
        config, pairs = self.deep(), self.config.study.confirm_replicates
        rule = functools.partial(stopped_arms, self.config)
        return Replicates(config, self._url, "confirm", arms, pairs, stop_rule=rule)

    def deep(self) -> Config:
        """The configuration under which networks are compared: each at its own best point over all confirm axes."""
        return self.config.with_values(
            {
                "inference.search": "per_checkpoint",
                "inference.search_axes": self.config.study.confirm_axes,
                "inference.search_refinements": self.config.study.confirm_refinements,
            }
        )

    def _tuned_baseline(self, runner: TuneRunner, concurrent: int) -> dict[str, Any]:
        """The baseline's nuisance parameters, searched with as many trials as the study had; {} where none are searched."""
        nuisance = {name: entry for name, entry in self.config.space.items() if entry.role == "nuisance"}
        if not nuisance:
            return {}
        kept = {name: entry for name, entry in self.config.space.items() if entry.role in ("nuisance", "inference")}
        config = self.config.model_copy(update={"space": kept})
        config = config.with_values({**PLAIN, "study.pruner": "none", "study.rungs": ()})
        search = Search(config, self._url, under="baseline")
        runner.run(SearchWork(search, "baseline", "baseline"), concurrent)
        scored = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        if not scored:
            return {}
        best = (min if search.study.directions[0].name == "MINIMIZE" else max)(
            scored, key=lambda trial: trial.values[0]
        )
        return {name: value for name, value in best.user_attrs["values"].items() if name in nuisance}

    def say_verdicts(self, work: Replicates, results) -> None:
        found, lost = verdicts(self.config, work.replicates(), search_values(results), work.design)
        (self.files.directory / "verdicts.json").write_text(json.dumps([one.as_dict() for one in found], indent=1))
        for one in found:
            interval = (
                f"[{one.simultaneous_low:.3g}, {one.simultaneous_high:.3g}]"
                if one.simultaneous_low is not None
                else "no interval"
            )
            flattered = (
                f", the search had flattered it by {one.selection_bias:.3g}" if one.selection_bias is not None else ""
            )
            needed = (
                f", would take {one.seeds_needed} pairs"
                if one.seeds_needed and one.verdict == "not distinguishable"
                else ""
            )
            logger.info(
                f"  {one.arm}: {one.verdict}; {self.config.study.metric} {one.value:.4g} against {one.baseline:.4g}, "
                f"difference {one.difference:+.3g} {interval} over {one.pairs} of at most {one.max_pairs} pairs{flattered}{needed}"
            )
        for arm, why in lost.items():
            logger.info(f"  {arm}: no verdict ({why})")


def _gaps(noise) -> list[tuple[int, float]]:
    return [(pairs, noise.detectable_gap(pairs)) for pairs in (4, 8, 16)]
