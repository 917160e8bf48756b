"""Whole commands as a user types them, and a small space over the digits that they run on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

TINY = {
    "study": {"name": "tiny", "trials": 3, "metric": "fid", "startup_trials": 2},
    "data": {"name": "digits", "image_size": 16},
    "tokenizer": {"scales": [1, 2, 3, 4], "vocab_size": 64, "images": 4800, "batch_size": 16, "channels": 16},
    "model": {"depth": 1, "width": 32, "heads": 2},
    "training": {"images": 1280, "batch_size": 64, "learning_rate": 2e-3, "warmup_images": 128},
    "inference": {"search": "per_checkpoint", "search_cfg_scales": [0, 2]},
    "evaluation": {"extractor": "digits", "samples": 100},
    "run": {"max_concurrent": 2},
    "space": {
        "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 6, "log": True, "baseline": 0},
        "loss.lambda_2": {"role": "scientific", "type": "float", "low": 0.004, "high": 0.9, "log": True, "baseline": 0},
        "loss.reference": {
            "role": "scientific",
            "type": "categorical",
            "choices": ["normal", "uniform", "dataset", "semantic"],
        },
        "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
    },
}


def free_port() -> int:
    """A port of the loopback interface that nobody holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would lead a study to other servers."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    }
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **changes}


class CommandLine:
    """Runs cli as a user does, in a process of their own."""

    def __init__(self, cwd: Path, **changes: str):
        self.cwd, self.changes = cwd, changes

    def __call__(
        self, command: str, *arguments: str, timeout: float = 600, **changes: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "uvar_tune", command, *map(str, arguments)],
            cwd=self.cwd,
            timeout=timeout,
            env=environment(**{**self.changes, **changes}),
            capture_output=True,
            text=True,
        )

    def start(self, command: str, *arguments: str, **changes: str) -> subprocess.Popen:
        """Begin without waiting, in a session of its own (so that the whole of it can be ended)."""
        return subprocess.Popen(
            [sys.executable, "-m", "uvar_tune", command, *map(str, arguments)],
            cwd=self.cwd,
            text=True,
            env=environment(**{**self.changes, **changes}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_session(process: subprocess.Popen) -> None:
    """End what is left of a process that was started in its own session."""
    if process.poll() is None:
        process.kill()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if process.stdout:
        process.stdout.close()
