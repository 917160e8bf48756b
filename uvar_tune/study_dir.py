"""The directory of a study below `run.root`: its files, its lock, and the configuration that it belongs to.

run.root/NAME/{study.yaml, optuna.journal, report/, export/}
run.root/NAME/trials/00007/{config.yaml, metrics.jsonl, checkpoints/, samples/}
run.root/cache/{tokenizers,tokens,references,features}/<hash>/      run.root/mlflow.db
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uvar_tune.config.loading import validate
from uvar_tune.config.paths import INPUT_PATHS, in_ray_job, same_path
from uvar_tune.config.schema import Config
from uvar_tune.errors import ConfigError, nearest
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.io.locks import FileLock, LockHeldError
from uvar_tune.io.safe_load import dump_yaml, parse_yaml, read_text
from uvar_tune.io.uri import redact_url

EXPERIMENT = "uvar_tune"  # of all studies in MLflow
# Settings that may differ when a study is resumed, by section (None: all of them): how much to run, where, how fast.
MUTABLE_SETTINGS = {
    "study": (
        "trials",
        "question",
        "max_gpu_hours",
        "max_wall_time",
        "noise_replicates",
        "confirm_replicates",
        "queue",
    ),
    "run": None,
    "final": None,
    "verdict": None,
    "provenance": None,
}
_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
)  # longer than the schema's: final runs and tokenizers add a suffix


class StudyDirectory:
    """The files of one study, final run or tokenizer.

    Args:
        root: `run.root` as an absolute path.
        name: of the study.

    Raises:
        ConfigError: an invalid name. Names never lead outside `run.root`.
    """

    def __init__(self, root: Path, name: str):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a study (letters, digits, '.', '_', '-')", where="--study")
        self.root, self.name = root, name
        self.directory = root / name
        self.config = self.directory / "study.yaml"
        self.journal = self.directory / "optuna.journal"
        self.report = self.directory / "report"
        self.export = self.directory / "export"
        self.cache = root / "cache"

    def trial(self, number: int) -> Path:
        """The directory of a trial of the search."""
        return self.directory / "trials" / f"{number:05d}"

    def storage_url(self, config: Config) -> str:
        """The Optuna storage: UVAR_STORAGE, else `run.storage`, else a journal file in the study's directory.

        `run.storage` is stored without user and password, so a URL that needs them belongs in the environment.
        """
        return os.environ.get("UVAR_STORAGE") or config.run.storage or f"journal:{self.journal}"

    def tracking_uri(self) -> str:
        """The MLflow server: MLFLOW_TRACKING_URI, else a SQLite file below `run.root`."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    def open_experiment(self):
        """A connection to the experiment of all studies, at `tracking_uri`.

        Raises:
            TransientError: the server does not answer.
        """
        from uvar_tune.tracking.mlflow_client import MLflowExperiment

        return MLflowExperiment(self.tracking_uri(), EXPERIMENT, self.root / "mlartifacts")

    def open_tracker(self):
        """An `MLflowTracker` that logs the study to the server at `tracking_uri`."""
        from uvar_tune.tracking import MLflowTracker

        return MLflowTracker(
            tracking_uri=self.tracking_uri(),
            experiment=EXPERIMENT,
            study=self.name,
            artifact_root=self.root / "mlartifacts",
            outbox_dir=self.directory / "mlflow",
        )

    def create(self) -> None:
        """Create the directories that every study has.

        Raises:
            ConfigError: one of them cannot be written.
        """
        try:
            for directory in (self.directory / "trials", self.cache):
                directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.directory} cannot be written: {error.strerror}", where="run.root"
            ) from None

    def remove_if_unused(self) -> None:
        """Remove the directory if it holds no more than `create` and `lock` put there."""
        trials, lock = self.directory / "trials", self.directory / ".lock"
        if set(self.directory.iterdir()) <= {trials, lock} and not any(trials.glob("*")):
            with contextlib.suppress(OSError):
                trials.rmdir()
                lock.unlink(missing_ok=True)
                self.directory.rmdir()

    def free_space_error(self) -> str | None:
        """The message of the system if 1 MiB cannot be written here, else None."""
        probe = self.directory / ".writable"
        try:
            probe.write_bytes(bytes(1 << 20))
        except OSError as error:
            return error.strerror
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for the duration of a ``with`` block.

        Raises:
            ConfigError: another process holds it, or the file system has no locks.
        """
        lock = FileLock(self.directory / ".lock")
        try:
            lock.acquire(timeout_sec=0)
        except LockHeldError as error:
            raise ConfigError(
                f"study {self.name!r} is being run by {error.holder or 'another process'}; "
                "wait for it or choose another --study name",
                where=str(self.directory),
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{self.directory} is on a file system without locks: {error.strerror}", where="run.root"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def create_or_verify(self, config: Config) -> None:
        """Write study.yaml; of an existing study, verify that only mutable settings differ.

        Raises:
            ConfigError: an existing study has another configuration; the message names the first differences.
        """
        self.verify_config(config)
        write_text_atomic(self.config, dump_yaml(config.tree(exclude=("verdict", "provenance"))))

    def verify_config(self, config: Config) -> None:
        """Raise `ConfigError`, with the first differences, if a study with another configuration exists here."""
        if self.config.exists() and (difference := differences(self.load_config(), config)):
            raise ConfigError(
                f"study {self.name!r} exists with another configuration: {'; '.join(difference[:4])}; "
                "choose another --study name",
                where=str(self.config),
            )

    def load_config(self) -> Config:
        """The configuration of the existing study.

        Raises:
            ConfigError: there is no such study; the message names the study with the most similar name.
        """
        if not self.config.exists():
            studies = [path.parent.name for path in self.root.glob("*/study.yaml")]
            raise ConfigError(
                f"no study {self.name!r} below {self.root}", where="--study", nearest=nearest(self.name, studies)
            )
        return validate(parse_yaml(read_text(self.config), str(self.config)), str(self.config))


def resolve_root(config_root: str | None) -> Path:
    """`run.root` as an absolute path.

    The default is ``runs/`` in the current directory; in a Ray job, whose directory is a temporary copy, it is
    ``~/uvar_tune_runs``.

    Raises:
        ConfigError: a URL, or a relative path in a Ray job.
    """
    if config_root is None:
        config_root = "~/uvar_tune_runs" if in_ray_job() else "runs"
    elif "://" in config_root:
        raise ConfigError(
            f"{redact_url(config_root)!r} is not a path: mount the bucket and give its directory", where="run.root"
        )
    elif in_ray_job() and not os.path.isabs(os.path.expanduser(config_root)):
        raise ConfigError(
            f"{config_root!r} is relative, and a Ray job runs in a temporary copy: give an absolute path",
            where="run.root",
            nearest=f"~/{config_root}",
        )
    return Path(os.path.expandvars(config_root)).expanduser().absolute()


def differences(old: Config, new: Config) -> list[str]:
    """The settings that make ``new`` another study than ``old``, a line each."""
    return [f"{name} was {before!r}, is {after!r}" for name, before, after in _walk(old.tree(), new.tree())]


def _walk(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section in old:
        mutable = MUTABLE_SETTINGS.get(section, ())
        if mutable is None or old[section] == new[section]:
            continue
        for key in dict.fromkeys([*old[section], *new[section]]):
            before, after = old[section].get(key), new[section].get(key)
            if key in mutable or before == after:
                continue
            if isinstance(before, dict) and isinstance(after, dict):
                yield from (
                    (f"{section}.{key}.{part}", before.get(part), after.get(part))
                    for part in dict.fromkeys([*before, *after])
                    if before.get(part) != after.get(part)
                )
            else:
                name = f"{section}.{key}"
                if not (name in INPUT_PATHS and before and after and same_path(before, after)):
                    yield name, before, after
