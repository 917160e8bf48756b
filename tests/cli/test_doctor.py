"""The command doctor: what a job would upload."""

from __future__ import annotations

import pytest

from tests.helpers.commands import REPOSITORY
from uvar_tune.cli.doctor import _upload_sizes, doctor


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with weights in several places, and the ignore files of this repository."""
    for name, size in (("a.py", 10), ("data/x.png", 200), ("uvar_tune/data/b.py", 30), ("weights/w.bin", 400)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "weights" / "vae.pth").write_bytes(bytes(500))
    for name in (".gitignore", ".rayignore"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ignored_files_are_not_counted(project):
    sizes = _upload_sizes(project)
    assert {name: sizes[name] for name in ("a.py", "uvar_tune", "weights")} == {
        "a.py": 10,
        "uvar_tune": 30,
        "weights": 400,
    }
    assert "data" not in sizes


def test_large_copy_names_its_largest_entries(project, capsys, monkeypatch):
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert doctor(str(project / "runs")) == 0
    assert "ok   job copy ray job submit --working-dir . uploads 0.0 MiB" in capsys.readouterr().out
    with open(project / "weights" / "w.bin", "wb") as handle:
        handle.truncate(300 * 2**20)
    assert doctor(str(project / "runs")) == 0
    assert "more than Ray takes (100): weights 300 MiB, " in capsys.readouterr().out
