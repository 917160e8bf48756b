"""One browser, one small study and one MLflow server, as `uvar-tune ui` starts it, for all tests here."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from tests.helpers.browser import Page, browser
from tests.helpers.commands import free_port
from tests.helpers.mlflow_store import MLflowStore
from tests.helpers.shown_study import ShownStudy
from uvar_tune.tracking import Outbox
from uvar_tune.tracking.saved_view import view_url


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
    """A study of six trials with noise and verdicts in a database, and the page that `uvar-tune ui` serves."""
    store = MLflowStore(tmp_path_factory.mktemp("browser"))
    study = ShownStudy(store, "shown", trials=6).search().confirm(pairs=4)
    results, outbox, port = study.finish(), Outbox(study.files.directory / "mlflow"), free_port()
    command = [sys.executable, "-m", "uvar_tune", "ui", "shown", "--no-browser", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--root", str(store.root)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        lines = list(iter(lambda: server.stdout.readline().strip(), "Ctrl-C ends the server"))
        assert lines == [view_url(store.uri, outbox, port=port)]
        yield SimpleNamespace(
            results=results,
            study=study,
            url=lambda **options: view_url(store.uri, outbox, port=port, **options),
            root=f"http://127.0.0.1:{port}",
            run=outbox.load_state().runs,
            screenshots=os.environ.get("UVAR_SCREENSHOTS"),
        )
        listening = {child.pid for child in psutil.Process(server.pid).children(recursive=True)}
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0 and server.stdout.read() == ""
        assert not any(psutil.pid_exists(pid) for pid in listening)
    finally:
        server.kill()
