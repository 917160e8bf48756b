"""Delivery of `StudyCallbacks`: several as one, and the events of the trials that a runner works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uvar_tune.commands.checks import is_config_error
from uvar_tune.errors import ConfigError
from uvar_tune.specs import OutcomeKind, Proposal, StudyCallbacks, TrialOutcome

if TYPE_CHECKING:
    from uvar_tune.ray_backend.tuner import TuneRunner


class CallbackList(StudyCallbacks):
    """Several callbacks as one, called in order."""

    def __init__(self, callbacks: Sequence[StudyCallbacks]):
        self._callbacks = tuple(callbacks)

    def on_trial_start(self, number, phase, parameters) -> None:
        """Notify each."""
        for callback in self._callbacks:
            callback.on_trial_start(number, phase, parameters)

    def on_rung(self, number, images, value) -> None:
        """Notify each."""
        for callback in self._callbacks:
            callback.on_rung(number, images, value)

    def on_trial_end(self, number, phase, outcome, value) -> None:
        """Notify each."""
        for callback in self._callbacks:
            callback.on_trial_end(number, phase, outcome, value)

    def on_study_end(self, results) -> None:
        """Notify each."""
        for callback in self._callbacks:
            callback.on_study_end(results)


class NotifyingRunner:
    """A `TuneRunner` that notifies callbacks of its trials, and ends the study if a trial raises a `ConfigError`."""

    def __init__(self, runner: TuneRunner, callbacks: StudyCallbacks):
        self._runner, self._callbacks = runner, callbacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, work: Any, concurrent: int) -> None:
        """Run the work, as the runner does."""
        self._runner.run(_NotifyingWork(work, self._callbacks), concurrent)


class _NotifyingWork:
    """Work whose attempts are reported to callbacks as they are asked for and recorded."""

    def __init__(self, work: Any, callbacks: StudyCallbacks):
        self._work, self._callbacks = work, callbacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def ask(self) -> Proposal | None:
        proposal = self._work.ask()
        if proposal is not None:
            self._callbacks.on_trial_start(proposal.number, self._work.phase, dict(proposal.values))
        return proposal

    def report(self, number: int, images: int, value: float) -> bool:
        stops = self._work.report(number, images, value)
        self._callbacks.on_rung(number, images, value)
        return stops

    def complete(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        self._work.complete(number, outcome, provenance)
        self._callbacks.on_trial_end(number, self._work.phase, OutcomeKind.COMPLETE, outcome.value)

    def prune(self, number: int, outcome: TrialOutcome, provenance: Mapping[str, Any] | None = None) -> None:
        self._work.prune(number, outcome, provenance)
        self._callbacks.on_trial_end(number, self._work.phase, outcome.kind, None)

    def crashed(self, number: int, outcome: TrialOutcome) -> bool:
        if is_config_error(outcome):  # another attempt would meet the same input
            raise ConfigError(outcome.message)
        retried = self._work.crashed(number, outcome)
        self._callbacks.on_trial_end(number, self._work.phase, OutcomeKind.CRASHED, None)
        return retried
