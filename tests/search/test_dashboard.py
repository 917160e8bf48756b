"""optuna-dashboard, started as the end of a study says, on the storage of a search that goes on meanwhile."""

from __future__ import annotations

import pytest

from tests.helpers.dashboard import STATES, Dashboard
from tests.helpers.search_cases import NARROW, details, ended, scored, study_config
from uvar_tune.search.study import Search

pytestmark = pytest.mark.server


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_dashboard_shows_trials_as_they_come(tmp_path, kind):
    path = tmp_path / "optuna.journal"
    url, shown = (f"journal:{path}", str(path)) if kind == "journal" else (f"sqlite:///{path}", f"sqlite:///{path}")
    search = Search(study_config(space=NARROW, trials=4, pruner="successive_halving", rungs=[8000, 16000]), url)
    with Dashboard(shown, tmp_path / "dashboard.log") as dashboard:
        recorded: list[tuple] = []
        for number in range(4):
            proposal = search.ask()
            dashboard.shows(lambda trials, before=number: [t["state"] for t in trials[before:]] == [STATES["RUNNING"]])
            search.report(number, 8000, 9.0 - number)
            if number == 2:
                search.prune(2, ended("diverged", {"message": "the loss is nan"}))
            else:
                search.complete(number, scored(5.0 - number, details(fid=5.0 - number)))
            value = 9.0 - number if number == 2 else 5.0 - number  # of what ended early its last rung's
            recorded.append(
                (
                    number,
                    STATES["PRUNED" if number == 2 else "COMPLETE"],
                    [value],
                    {name: drawn for name, drawn in proposal.values.items() if number},
                )
            )
            seen = dashboard.shows(
                lambda trials, after=number + 1: sum(t["state"] != STATES["RUNNING"] for t in trials) == after
            )
            assert [(t["number"], t["state"], t.get("values"), _parameters(t)) for t in seen] == recorded
            assert seen[-1]["intermediate_values"] == [{"step": 8000, "value": 9.0 - number}]
    assert search.done()


def _parameters(trial: dict) -> dict[str, float]:
    return {one["name"]: one["param_internal_value"] for one in trial["params"]}
