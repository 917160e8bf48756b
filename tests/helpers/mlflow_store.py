"""A study as the driver tracks it, in MLflow's own SQLite store, and what MLflow's client finds there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tests.helpers.mlflow_server import query
from uvar_tune.tracking import MLflowTracker
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.tracking.mlflow_client import ENVIRONMENT, LOGGERS

for name, value in ENVIRONMENT.items():  # as the command line does
    os.environ.setdefault(name, value)
for name in LOGGERS:
    logging.getLogger(name).setLevel(logging.CRITICAL)


class MLflowStore:
    """One ``run.root``: its database and the studies in it."""

    def __init__(self, root: Path):
        self.root = root
        self.use("mlflow.db")

    def use(self, database: str) -> None:
        """Use another database in the root; one that MLflow has open in this process must not vanish."""
        self.file = self.root / database
        self.uri = f"sqlite:///{self.file}"

    def tracker(self, study: str, uri: str | None = None) -> MLflowTracker:
        return MLflowTracker(
            tracking_uri=uri or self.uri,
            experiment="uvar_tune",
            study=study,
            artifact_root=self.root / "mlartifacts",
            outbox_dir=self.root / study / "mlflow",
        )

    def trial(self, study: str, number: int) -> Path:
        directory = self.root / study / "trials" / f"{number:05d}"
        (directory / "samples").mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text("training: {images: 640}\n", encoding="utf-8")
        return directory

    def write(self, study: str, number: int, points: range, attempt: int = 1) -> MetricsLog:
        """Log steps of 64 images with two values each."""
        return record(self.trial(study, number), points, attempt)

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def query(self, sql: str, *arguments) -> list[tuple]:
        return query(self.file, sql, *arguments)

    def rows(self, run_id: str) -> list[tuple]:
        """(key, step, value) of every metric row of a run, with duplicates, which the client does not show."""
        return sorted(self.query("select key, step, value from metrics where run_uuid = ?", run_id))

    def active_runs(self) -> list:
        """Every run that is not deleted."""
        client = self.client
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, max_results=1000))

    def tags(self, run_id: str) -> dict[str, str]:
        return self.client.get_run(run_id).data.tags

    def params(self, run_id: str) -> dict[str, str]:
        return self.client.get_run(run_id).data.params

    def runs(self, tag: str, value: str) -> list[str]:
        return [run.info.run_id for run in self.active_runs() if run.data.tags.get(tag) == value]

    def study_runs(self, study: str) -> list[str]:
        """Ids of the parent runs of the studies of this name."""
        runs = [run for run in self.active_runs() if run.data.tags.get("uvar.level") == "study"]
        return [run.info.run_id for run in runs if run.data.tags["uvar.study"] == study]

    def status(self, run_id: str) -> str:
        return self.client.get_run(run_id).info.status

    def artifacts(self, run_id: str, folder: str = "") -> set[str]:
        """Paths of the artifact files of a run."""
        return _artifacts(self.client, run_id, folder)


class PostgresqlStore(MLflowStore):
    """A study whose MLflow is a PostgreSQL database, used directly or through a ``server``."""

    def __init__(self, root: Path, database: str, server=None):
        super().__init__(root)
        self.database, self.server, self.uri = database, server, server.uri if server else database

    def query(self, sql: str, *arguments) -> list[tuple]:
        import psycopg

        with psycopg.connect(self.database.replace("+psycopg", "")) as connection:
            return connection.execute(sql.replace("%", "%%").replace("?", "%s"), arguments).fetchall()


def _artifacts(client, run_id: str, folder: str) -> set[str]:
    paths = set()
    for entry in client.list_artifacts(run_id, folder or None):
        paths |= _artifacts(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return paths


def record(directory: Path, points: range, attempt: int = 1) -> MetricsLog:
    """Log steps of 64 images with two values each."""
    metrics_log = MetricsLog(directory / "metrics.jsonl", attempt=attempt)
    for i in points:
        metrics_log.metrics(64 * i, {"loss/total": 1 / (i + 1), "grad_norm": 2.0 + i})
    return metrics_log


def expected(points: range) -> list[tuple]:
    """The rows of `MLflowStore.write`."""
    return sorted(
        row for i in points for row in (("loss/total", 64 * i, 1 / (i + 1)), ("optimizer/grad_norm", 64 * i, 2.0 + i))
    )
