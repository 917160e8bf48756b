"""One browser, one small study and one MLflow server, as `uvar-tune ui` starts it, for all tests here."""

import os
from types import SimpleNamespace

import pytest

from tests.helpers.browser import Page, browser
from tests.helpers.mlflow_store import MLflowStore
from tests.helpers.shown_study import ShownStudy


@pytest.fixture(scope="session")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def tab(chromium):
    page = Page(chromium)
    yield page
    page.close()


@pytest.fixture(scope="session")
def shown(chromium, tmp_path_factory):
    """A study of six trials with noise and verdicts, delivered to a database, and MLflow's page on it."""
    from uvar_tune.tracking import Outbox
    from uvar_tune.tracking.saved_view import view_url
    from uvar_tune.tracking.ui_server import ui_server

    store = MLflowStore(tmp_path_factory.mktemp("browser"))
    study = ShownStudy(store, "shown", trials=6).search().confirm(pairs=4)
    results, uri = study.finish(), store.uri
    outbox = Outbox(study.files.directory / "mlflow")
    with ui_server(uri) as server:
        yield SimpleNamespace(
            results=results,
            store=store,
            study=study,
            url=lambda **options: view_url(uri, outbox, port=server.port, **options),
            root=f"http://127.0.0.1:{server.port}",
            run=outbox.load_state().runs,
            screenshots=os.environ.get("UVAR_SCREENSHOTS"),
        )
