"""optuna-dashboard as a test starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.helpers.postgresql_server import free_port

STATES = {"COMPLETE": "Complete", "PRUNED": "Pruned", "RUNNING": "Running", "FAIL": "Fail"}


class Dashboard:
    """The real program on the loopback interface."""

    def __init__(self, storage: str, log: Path, *options: str):
        self._port, self._log = free_port(), log
        program = Path(sys.executable).parent / "optuna-dashboard"
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [program, storage, "--host", "127.0.0.1", "--port", str(self._port), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def studies(self, deadline_sec: float = 60) -> list[dict]:
        """Summaries of all studies, as soon as the server listens."""
        deadline = time.monotonic() + deadline_sec
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            try:
                return self.get("studies")["study_summaries"]
            except OSError:
                time.sleep(0.1)

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self.root}/api/{path}", timeout=30) as answer:
            return json.load(answer)

    def shows(self, wanted, deadline_sec: float = 120) -> list[dict]:
        """The trials of the only study, as soon as they are as ``wanted``."""
        deadline, trials = time.monotonic() + deadline_sec, None
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()
            try:
                (study,) = self.get("studies")["study_summaries"]
                trials = self.get(f"studies/{study['study_id']}")["trials"]
            except ConnectionError:
                trials = None
            except OSError as error:  # urllib's own wrapping of a refused connection, before the server listens
                assert isinstance(getattr(error, "reason", None), ConnectionError), error
            if trials is not None and wanted(trials):
                return trials
            time.sleep(0.1)
        raise AssertionError(f"the dashboard never showed it: {trials}\n{self._log.read_text()}")
