"""A study whose servers ask for passwords: these stand in nothing that it writes or prints, while all goes well or not."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.helpers.mlflow_server import MLflow
from tests.helpers.postgresql_server import new_database, programs

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SECRETS = (
    "s3cret",
    "hunter2-storage",
    "hunter2-file",
)  # MLflow's, that of UVAR_STORAGE, that of a space file's run.storage


@pytest.fixture
def ray():
    """A place for Ray's own files; its path is short, as those of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="r") as place:
        yield Path(place)


def where_they_stand(place: Path) -> list[str]:
    """Files below ``place`` that hold one of the secrets."""
    return [
        str(path)
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink() and any(secret.encode() in path.read_bytes() for secret in SECRETS)
    ]


def test_passwords_stand_nowhere(cli, space, tmp_path, postgresql, ray):
    """MLflow away at first (the failure is logged), then available; the storage on PostgreSQL; every command that reads the study."""
    root, server = tmp_path / "runs", MLflow(tmp_path)
    storage = new_database(postgresql, "secret_study").replace("uvar@", "uvar:hunter2-storage@")
    path = space(
        study={"name": "secret", "trials": 2},
        training={"images": 640},
        run={
            "root": str(root),
            "max_concurrent": 1,
            "storage": "postgresql+psycopg://bob:hunter2-file@nowhere.invalid/optuna",
        },
    )
    variables = {"MLFLOW_TRACKING_URI": server.uri, "UVAR_STORAGE": storage, "RAY_TMPDIR": str(ray)}
    options = ("--study", "secret", "--root", root)
    said = [cli("sweep", path, timeout=1800, **variables)]
    assert "does not answer" in said[0].stdout and "uvar-tune sync" in said[0].stdout, said[0].stdout + said[0].stderr
    try:
        server.start()
        said += [
            cli(*call, **variables)
            for call in (
                ("sync", *options),
                ("sync", *options, "--rebuild"),
                ("report", *options),
                ("export", *options, "--unconfirmed"),
                ("sweep", path),
            )
        ]
        said.append(cli("doctor", **variables))
    finally:
        server.kill()
    for done in said[:-1]:
        assert done.returncode == 0, done.stdout + done.stderr
    away = storage.replace("127.0.0.1:", "127.0.0.1:1")  # a port that nobody holds, or none at all
    said.append(cli("report", *options, **{**variables, "UVAR_STORAGE": away}))
    assert said[-1].returncode == 2 and "run.storage" in said[-1].stderr
    for done in said:
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS), (done.args, done.stdout, done.stderr)
    path.unlink()  # the one place where the user has put one
    assert where_they_stand(tmp_path) == where_they_stand(cli.cwd) == where_they_stand(ray) == []
    assert any(ray.iterdir()) and any((root / "secret" / "export").glob("*.yaml"))
    dump = subprocess.run(
        [programs() / "pg_dump", storage.replace("+psycopg", "")], capture_output=True, text=True, check=True
    )
    assert "secret" in dump.stdout and not any(secret in dump.stdout for secret in SECRETS)
    stored = yaml.safe_load((root / "secret" / "study.yaml").read_text())
    assert stored["run"]["storage"] == "postgresql+psycopg://nowhere.invalid/optuna"
