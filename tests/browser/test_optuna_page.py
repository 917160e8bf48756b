"""optuna-dashboard in a real browser: names of metrics, notes, sample grids, constraints and the Pareto front."""

import os

import pytest

from tests.helpers.browser import save_screenshot
from tests.helpers.dashboard import Dashboard
from tests.helpers.search_cases import NARROW, details, scored, study_config
from tests.helpers.shown_study import QUESTION
from uvar_tune.search.dashboard import artifact_directory
from uvar_tune.search.study import Search

pytestmark = pytest.mark.server


def test_names_notes_and_samples_are_shown(shown, tab, tmp_path):
    files = shown.study.files
    options = ["--artifact-dir", str(artifact_directory(files.directory))]
    with Dashboard(str(files.journal), tmp_path / "dashboard.log", *options) as dashboard:
        study = next(one for one in dashboard.studies() if one["study_name"] == "shown")["study_id"]
        page = tab.open(f"{dashboard.root}/dashboard/studies/{study}", "Hyperparameter Importance")
        page.get_by_text("fid").first.wait_for()
        assert page.get_by_text("Objective 0").count() == 0
        page = tab.open(f"{dashboard.root}/dashboard/studies/{study}/note", "State:")
        assert QUESTION in page.locator("body").inner_text()
        best = shown.results.best.number
        page = tab.open(f"{dashboard.root}/dashboard/studies/{study}/trials?numbers={best}", "Rank 1")
        assert page.get_by_text("Against the baseline:").count() == 1
        picture = page.locator("img").first
        picture.wait_for()
        page.wait_for_function("image => image.naturalWidth > 10", arg=picture.element_handle())
        save_screenshot(page, shown.screenshots, "optuna_trial.png")
    assert tab.errors == []


def test_constraints_and_pareto_front_are_shown(tab, tmp_path):
    path = tmp_path / "optuna.journal"
    config = study_config(space=NARROW, trials=4, further_metrics=["kid"], constraints={"nll_token": {"max": 3.0}})
    search = Search(config, f"journal:{path}")
    for fid, kid, nll in ((5.0, 0.3, 2.0), (4.0, 0.2, 2.0), (3.0, 0.4, 2.5), (2.0, 0.1, 3.5)):  # the last one violates
        number = search.ask().number
        search.complete(number, scored(fid, details(fid=fid, kid=kid, nll_token=nll)))
    with Dashboard(str(path), tmp_path / "dashboard.log") as dashboard:
        dashboard.studies()  # it listens
        page = tab.open(f"{dashboard.root}/dashboard/studies/0", "Pareto Front")
        page.wait_for_function("() => document.body.textContent.includes('Infeasible')")
        body = page.locator("body").text_content()
        assert "fid" in body and "kid" in body and "Objective 0" not in body
        save_screenshot(page, os.environ.get("UVAR_SCREENSHOTS"), "optuna_pareto.png")
