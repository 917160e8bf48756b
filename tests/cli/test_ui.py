"""`uvar-tune ui`: what it opens, and what it refuses."""

import socket
import webbrowser

import pytest

from tests.helpers.shown_study import shown_config
from uvar_tune.cli.main import main
from uvar_tune.errors import InfrastructureError
from uvar_tune.search.storage import open_storage, verify_directory_owner
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking.outbox import DeliveryState, Outbox
from uvar_tune.tracking.saved_view import view_page
from uvar_tune.tracking.ui_server import free_port, ui_server


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose view was delivered."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config, files = shown_config("shown", 2), StudyDirectory(tmp_path, "shown")
    files.create()
    files.create_or_verify(config)
    Search(config, files.storage_url(config))
    verify_directory_owner(open_storage(files.storage_url(config)), "shown", files.directory)
    outbox = Outbox(files.directory / "mlflow")
    outbox.replace_all([])
    outbox.save_state(DeliveryState(page=view_page("1", "k")))
    return files


def ui(study, *arguments: str) -> int:
    return main(["ui", *arguments, "--root", str(study.root)])


def test_a_server_of_its_own_is_opened(study, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@host:5000")
    assert ui(study, "--charts") == 0  # the newest study
    page = "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=k&compareRunsMode=CHART"
    assert opened == [f"http://host:5000{page}"] and capsys.readouterr().out.splitlines() == opened
    assert ui(study, "shown", "--port", "5001") == 2
    assert "names a server, which has its own port" in capsys.readouterr().err


def test_what_cannot_be_opened_is_refused(study, capsys, tmp_path):
    assert ui(study, "shwon") == 2
    assert "did you mean 'shown'" in capsys.readouterr().err
    assert main(["ui", "--root", str(tmp_path / "nothing")]) == 2
    assert "no studies below" in capsys.readouterr().err
    (study.directory / "mlflow" / "state.json").unlink()
    assert ui(study, "shown") == 2
    assert "MLflow has no page of study 'shown' yet; `uvar-tune sync --study shown`" in capsys.readouterr().err


def test_a_port_in_use_is_refused(study, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert ui(study, "shown", "--port", str(port)) == 2
        assert f"port {port} is in use" in capsys.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken := free_port()))
        other.listen()
        assert free_port() > taken


@pytest.mark.server
def test_a_server_that_does_not_start_says_why(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database " * 100)
    with (
        pytest.raises(InfrastructureError, match="ended at its start: .*not a database"),
        ui_server(f"sqlite:///{tmp_path / 'mlflow.db'}"),
    ):
        pass
