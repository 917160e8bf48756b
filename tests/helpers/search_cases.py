"""Spaces, configurations and a clock for the tests of the search."""

from __future__ import annotations

from collections.abc import Callable

from uvar_tune.config.loading import validate
from uvar_tune.config.schema import Config
from uvar_tune.search.study import Search
from uvar_tune.specs import OutcomeKind, Proposal, TrialOutcome

SPACE = {
    "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 6, "log": True, "baseline": 0},
    "loss.lambda_2": {"role": "scientific", "type": "float", "low": 0.004, "high": 0.9, "log": True, "baseline": 0},
    "loss.reference": {"role": "scientific", "type": "categorical", "choices": ["normal", "semantic"]},
    "loss.neighbours": {
        "role": "nuisance",
        "type": "float",
        "low": 2,
        "high": 32,
        "log": True,
        "when": {"loss.reference": "semantic"},
    },
    "model.depth": {"role": "nuisance", "type": "int", "low": 1, "high": 4, "baseline": 2},
    "loss.perplexity": {"role": "fixed", "type": "categorical", "choices": [3.0]},
    "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
}
NARROW = {name: SPACE[name] for name in ("loss.lambda_1", "loss.lambda_2")}


def study_config(name: str = "study", *, space=None, terms=None, run=None, **study) -> Config:
    return validate(
        {
            "study": {"name": name, "startup_trials": 4, **study},
            "space": SPACE if space is None else space,
            "loss": terms or {},
            "run": run or {},
        },
        "test",
    )


class Clock:
    """A clock that a test advances."""

    def __init__(self, now: float = 1e9):
        self.now = now

    def __call__(self) -> float:
        return self.now


def details(**scores: float) -> dict:
    return {"scores": scores, "seconds": 60.0, "inference_parameters": {"inference.cfg_scale": 2.0}}


def scored(value: float, fields: dict | None = None) -> TrialOutcome:
    """The outcome of an attempt that finished with this value and these further fields."""
    return TrialOutcome(kind=OutcomeKind.COMPLETE, value=value, **(fields or {}))


def ended(kind: str, fields: dict | None = None) -> TrialOutcome:
    """The outcome of an attempt that ended without a score."""
    return TrialOutcome(kind=OutcomeKind(kind), **(fields or {}))


def bowl(proposal: Proposal) -> float:
    """A score that is best at λ1 = 0.3, the baseline among the bad."""
    return 5 + abs(proposal.values["loss.lambda_1"] - 0.3)


def run_to_end(search: Search, value: Callable[[Proposal], float] = bowl) -> list[Proposal]:
    """Run one trial after the other with its score; all proposals."""
    asked = []
    while (proposal := search.ask()) is not None:
        asked.append(proposal)
        search.complete(proposal.number, scored(value(proposal), details(fid=value(proposal))))
    return asked
