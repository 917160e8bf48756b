"""A study as the driver makes it, on MLflow's own SQLite store, and a look at that store's tables."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.mlflow_server import query
from uvar_tune.tracking import MLflowTracker
from uvar_tune.tracking.metrics_log import MetricsLog


class Place:
    """One ``run.root``: its database and the studies in it."""

    def __init__(self, root: Path):
        self.root = root
        self.use("mlflow.db")

    def use(self, database: str) -> None:
        """Another database of this name in the root; a process that MLflow has opened one in must not see it vanish."""
        self.file = self.root / database
        self.uri = f"sqlite:///{self.file}"

    def sink(self, study: str, uri: str | None = None) -> MLflowTracker:
        return MLflowTracker(
            tracking_uri=uri or self.uri,
            experiment="uvar_tune",
            study=study,
            artifact_root=self.root / "mlartifacts",
            spool_dir=self.root / study / "mlflow",
        )

    def trial(self, study: str, number: int) -> Path:
        directory = self.root / study / "trials" / f"{number:05d}"
        (directory / "samples").mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text("training: {images: 640}\n")
        return directory

    def write(self, study: str, number: int, points: range, attempt: int = 1) -> MetricsLog:
        """Steps of 64 images with two values each."""
        return record(self.trial(study, number), points, attempt)

    def query(self, sql: str, *arguments) -> list[tuple]:
        return query(self.file, sql, *arguments)

    def rows(self, run_id: str) -> list[tuple]:
        """(key, step, value) of every metric row of a run, doubled ones doubled."""
        return sorted(self.query("select key, step, value from metrics where run_uuid = ?", run_id))

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.query("select key, value from tags where run_uuid = ?", run_id))

    def params(self, run_id: str) -> dict[str, str]:
        return dict(self.query("select key, value from params where run_uuid = ?", run_id))

    def runs(self, tag: str, value: str) -> list[str]:
        return [
            row[0]
            for row in self.query(
                "select r.run_uuid from runs r join tags t on r.run_uuid = t.run_uuid where "
                "t.key = ? and t.value = ? and r.lifecycle_stage = 'active'",
                tag,
                value,
            )
        ]

    def status(self, run_id: str) -> str:
        return self.query("select status from runs where run_uuid = ?", run_id)[0][0]

    def artifacts(self, run_id: str) -> set[str]:
        folder = self.root / "mlartifacts" / run_id / "artifacts"
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class PostgresqlPlace(Place):
    """A study whose MLflow is a PostgreSQL database, told directly or through a ``server``."""

    def __init__(self, root: Path, database: str, server=None):
        super().__init__(root)
        self.server, self.database, self.uri = server, database, server.uri if server else database

    def query(self, sql: str, *arguments) -> list[tuple]:
        import psycopg

        with psycopg.connect(self.database.replace("+psycopg", "")) as connection:
            return connection.execute(sql.replace("%", "%%").replace("?", "%s"), arguments).fetchall()

    def artifacts(self, run_id: str) -> set[str]:
        if self.server is None:
            return super().artifacts(run_id)
        folders = list((self.server.directory / "artifacts").glob(f"*/{run_id}/artifacts"))
        return {str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*") if path.is_file()}


def record(directory: Path, points: range, attempt: int = 1) -> MetricsLog:
    """Steps of 64 images with two values each."""
    recorder = MetricsLog(directory / "metrics.jsonl", attempt=attempt)
    for i in points:
        recorder.metrics(64 * i, {"loss/total": 1 / (i + 1), "grad_norm": 2.0 + i})
    return recorder


def expected(points: range) -> list[tuple]:
    """The rows of `Place.write`."""
    return sorted(row for i in points for row in (("loss/total", 64 * i, 1 / (i + 1)), ("grad_norm", 64 * i, 2.0 + i)))
