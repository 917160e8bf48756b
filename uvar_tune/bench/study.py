"""A study of a thousand trials, fifty at a time, with simulated training: the driver's cost of proposals and reports.

CPU seconds of this process per trial, by party: `sampler` and `pruner` (Optuna's, including their reads of the
storage), `storage` (Optuna's, called by us), `own` (all else of ask, report and tell, including Optuna's share). Rows
compare the first, the middle and the last trials, whose cost must not grow.

Memory is that of the later half: growth of the process, growth of our own objects (`Search` without Optuna's), and the
size of a trial's attributes, which Optuna's storage keeps.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from uvar_tune.config.loading import validate
from uvar_tune.config.schema import Config
from uvar_tune.search import study as search_module
from uvar_tune.search.attempts import RunningTrials
from uvar_tune.search.budget import Ledger
from uvar_tune.search.study import Search
from uvar_tune.specs import OutcomeKind, TrialOutcome

TRIALS = {"journal": 1000, "sqlite": 150}  # a database needs minutes where a journal needs seconds
IN_FLIGHT, WINDOW = 50, 50
PARTIES = ("own", "sampler", "pruner", "storage")
_STORAGE = [name for name in dir(optuna.storages.BaseStorage) if name.startswith(("get_", "set_", "create_", "check_"))]
_SAMPLER = ("infer_relative_search_space", "sample_relative", "sample_independent", "before_trial", "after_trial")


class _Account:
    """CPU seconds by party; storage calls of sampler and pruner are charged to them."""

    def __init__(self):
        self.spent = dict.fromkeys(PARTIES, 0.0)
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def of(self, party: str):
        self._pass()
        caller = self._stack[-1] if self._stack else None
        self._stack.append(caller if caller in ("sampler", "pruner") else party)
        try:
            yield
        finally:
            self._pass()
            self._stack.pop()

    def _pass(self) -> None:
        now = time.process_time()
        if self._stack:
            self.spent[self._stack[-1]] += now - self._since
        self._since = now

    def watch(self, thing, party: str, names):
        """The same object, with its methods charged to ``party``."""
        for name in names:
            method = getattr(thing, name)

            def paid(*args, _method=method, **kwargs):
                with self.of(party):
                    return _method(*args, **kwargs)

            setattr(thing, name, paid)
        return thing


def _config(sampler: str, trials: int) -> Config:
    entry = {"role": "scientific", "type": "float", "log": True, "baseline": 0}
    return validate(
        {
            "study": {
                "name": "bench",
                "trials": trials,
                "sampler": sampler,
                "pruner": "median",
                "rungs": [8000, 16000],
            },
            "space": {
                "loss.lambda_1": {**entry, "low": 0.01, "high": 6},
                "loss.lambda_2": {**entry, "low": 0.004, "high": 0.9},
                "loss.reference": {"role": "scientific", "type": "categorical", "choices": ["normal", "semantic"]},
                "loss.neighbours": {
                    "role": "nuisance",
                    "type": "float",
                    "low": 2,
                    "high": 32,
                    "log": True,
                    "when": {"loss.reference": "semantic"},
                },
            },
        },
        "bench",
    )


PROVENANCE = {"commit": "0" * 40, "versions": {f"package_{i}": "1.2.3" for i in range(12)}}


def _outcome(kind: OutcomeKind, value: float, draw: random.Random) -> TrialOutcome:
    """As large as a real trial's: scores at six inference points."""
    scores = {f"score_{i}": draw.random() for i in range(20)}
    points = [{"cfg_scale": i, "seeds": "selection", **dict(list(scores.items())[:6])} for i in range(6)]
    return TrialOutcome(
        kind=kind,
        value=value,
        scores={"fid": value, **scores},
        inference_points=points,
        inference_parameters={"inference.cfg_scale": 2.0},
        seconds=60.0,
        images=32_000,
        cpu_sec={"training": 50.0, "evaluation": 9.0},
    )


def _weight(thing: Any, seen: set[int]) -> int:
    """Bytes of plain objects and their contents, without Optuna's, the configuration and code."""
    if (
        id(thing) in seen
        or callable(thing)
        or type(thing).__module__.split(".")[0] in ("optuna", "uvar_tune")
        and not (dataclasses.is_dataclass(thing) or isinstance(thing, (Search, RunningTrials, Ledger)))
    ):
        return 0
    seen.add(id(thing))
    parts = (
        [*thing, *thing.values()] if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple, set)) else ()
    )
    held = getattr(thing, "__dict__", {}).values()
    return sys.getsizeof(thing) + sum(_weight(part, seen) for part in [*parts, *held])


def _memory(search: Search) -> dict[str, float]:
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10, "own": _weight(search, set())}


def _run(url: str, sampler: str, trials: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Run a study with simulated training.

    Returns:
        CPU seconds by party of each result with the proposal that follows it, and bytes: growth of the process and of
        our own objects over the later half, and size of a trial's attributes.
    """
    account, draw = _Account(), random.Random(0)
    make, halfway = search_module.make_sampler, {}
    search = Search(_config(sampler, trials + IN_FLIGHT), url)
    account.watch(search.study._storage, "storage", _STORAGE)  # for a database, Optuna's cache around it
    account.watch(search.study.pruner, "pruner", ("prune",))
    search_module.make_sampler = lambda *args, **kwargs: account.watch(make(*args, **kwargs), "sampler", _SAMPLER)
    in_flight, costs, before = deque(), [], dict(account.spent)
    try:
        while len(costs) < trials:
            with account.of("own"):
                in_flight.append(search.ask())
            if len(in_flight) < IN_FLIGHT:
                before = dict(account.spent)
                continue
            ended = in_flight.popleft()
            value = draw.random() + abs(ended.values["loss.lambda_1"] - 1)
            with account.of("own"):
                if any(search.report(ended.number, rung, value * 2) for rung in search.config.study.rungs):
                    search.prune(ended.number, _outcome(OutcomeKind.STOPPED, value, draw), PROVENANCE)
                else:
                    search.complete(ended.number, _outcome(OutcomeKind.COMPLETE, value, draw), PROVENANCE)
            costs.append({party: account.spent[party] - before[party] for party in before})
            before = dict(account.spent)
            if len(costs) == trials // 2:
                halfway = _memory(search)
    finally:
        search_module.make_sampler = make
    grown = {key: value - halfway[key] for key, value in _memory(search).items()}
    ended = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return costs, {**grown, "attributes": sum(_weight(trial.user_attrs, set()) for trial in ended) / len(ended)}


def run(*, small: bool = False, repeats: int = 1) -> list[dict]:
    """Rows of the first, middle and last trials of each storage and sampler.

    ``own_ms``, ``sampler_ms``, ``pruner_ms`` and ``storage_ms`` are medians; ``own_to_first`` is relative to the first
    trials. ``grown_kib_a_trial`` is the growth of the process over the later half, ``own_kib_a_trial`` that of our
    objects, ``attributes_kib_a_trial`` the size of a trial's attributes.

    Args:
        small: 150 trials on the journal file instead of 1,000 there and 150 on SQLite.
        repeats: studies of each kind; the cheapest window of each counts, because noise only adds.
    """
    machine = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "optuna": optuna.__version__,
        "in_flight": IN_FLIGHT,
    }
    rows = []
    for kind in ("journal",) if small else ("journal", "sqlite"):
        trials = 150 if small else TRIALS[kind]
        for sampler in ("tpe", "random") if kind == "journal" else ("tpe",):
            studies = []
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as directory:
                    path = Path(directory) / "study"
                    studies.append(
                        _run(f"journal:{path}" if kind == "journal" else f"sqlite:///{path}", sampler, trials)
                    )
            first = None
            for start in (0, trials // 2 - WINDOW // 2, trials - WINDOW):
                costs = {
                    party: min(
                        statistics.median(cost[party] for cost in costs[start : start + WINDOW]) for costs, _ in studies
                    )
                    for party in PARTIES
                }
                first = first or costs["own"]
                rows.append(
                    {
                        "storage": kind,
                        "sampler": sampler,
                        "trials": f"{start + 1}-{start + WINDOW}",
                        **{f"{party}_ms": round(1e3 * mean, 3) for party, mean in costs.items()},
                        "own_to_first": round(costs["own"] / first, 2),
                        **{
                            f"{what}_kib_a_trial": round(min(memory[key] for _, memory in studies) / 2**10 / per, 2)
                            for what, key, per in (
                                ("grown", "process", trials / 2),
                                ("own", "own", trials / 2),
                                ("attributes", "attributes", 1),
                            )
                        },
                        **machine,
                    }
                )
    return rows
