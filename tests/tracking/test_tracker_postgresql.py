"""MLflow on PostgreSQL: an absent server, sync, rebuild, and a database without a server; each row once."""

import pytest

from tests.helpers.mlflow_server import MLflow
from tests.helpers.mlflow_store import PostgresqlStore
from tests.helpers.postgresql_server import new_database
from tests.helpers.whole_study import content, run_study, sync

pytestmark = pytest.mark.server


@pytest.fixture
def store(tmp_path, postgresql):
    """A study whose server is not running yet and has an empty database."""
    (tmp_path / "server").mkdir()
    database = new_database(postgresql, "mlflow_served")
    server = MLflow(tmp_path / "server", store=database)
    yield PostgresqlStore(tmp_path, database, server)
    server.kill()


def test_study_on_postgresql(store, tmp_path, postgresql):
    assert not run_study(store).close(30)
    store.server.start()
    environment = {"MLFLOW_TRACKING_URI": store.uri}
    done = sync(store, **environment)
    assert done.returncode == 0 and "MLflow is up to date" in done.stdout, done.stdout + done.stderr
    before = content(store)
    assert (
        sorted(before) == ["whole", "whole noise", "whole search", "whole/0", "whole/1", "whole/2", "whole/noise/0"]
        and before["whole/2"][0] == "FAILED"
    )
    assert len(before["whole/0"][1]) == len(set(before["whole/0"][1])) == 10 * 2 + 2
    assert "config.yaml" in before["whole/0"][-1]
    assert sync(store, "--rebuild", **environment).returncode == 0
    assert content(store) == before
    store.server.kill()
    other = PostgresqlStore(tmp_path, new_database(postgresql, "mlflow_direct"))
    done = sync(other, "--rebuild", MLFLOW_TRACKING_URI=other.uri)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert content(other) == before
    assert "s3cret" not in done.stdout + str(before)
