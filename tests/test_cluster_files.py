"""The deployment files: they parse, name only what exists, carry no secret, and open nothing to the network by themselves."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import REPOSITORY
from uvar_tune.cli.options import split_overrides
from uvar_tune.config.loading import read_config
from uvar_tune.config.schema import dotted_names

CLUSTER = REPOSITORY / "cluster"
YAML = sorted(CLUSTER.glob("*.yaml"))
PAGES = [*sorted(CLUSTER.iterdir()), REPOSITORY / "docs" / "operations.md"]
SECTIONS = sorted({name.split(".")[0] for name in dotted_names()})
FILE_ENDINGS = {"yaml", "pt", "json", "env"}


def compose() -> dict:
    """The compose file with every variable at its default, as `docker compose config` would show it."""
    text = (CLUSTER / "mlflow-compose.yaml").read_text().replace("${HOME}", "~")
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def launcher_commands() -> list[str]:
    tree = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    return [line for key, lines in tree.items() if key.endswith("_commands") for line in lines]


def entrypoint() -> str:
    documents = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    return next(tree["spec"]["entrypoint"] for tree in documents if tree["kind"] == "RayJob")


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path):
    assert all(isinstance(tree, dict) for tree in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_modules_and_settings_exist(path):
    text = path.read_text()
    for module in set(re.findall(r"\buvar_tune\.([a-z_]+)", text)):
        assert importlib.util.find_spec(f"uvar_tune.{module}"), module
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})\.([a-z_0-9]+))(?![\w(])", text)
    unknown = {name for name, key in named if key not in FILE_ENDINGS} - set(dotted_names())
    assert not unknown


def test_named_files_exist():
    for page in (path for path in PAGES if path.suffix == ".md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    for line in (CLUSTER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            assert all((REPOSITORY / source).exists() for source in line.split()[1:-1]), line


@pytest.mark.parametrize(
    "script",
    [(CLUSTER / "slurm.sbatch").read_text(), *launcher_commands()],
    ids=lambda script: script.splitlines()[0][:40],
)
def test_shell_parses(script):
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_submitted_studies_are_valid():
    head = (CLUSTER / "slurm.sbatch").read_text()
    launched = re.search(r"slurm\.sbatch (search_spaces/.*)", head).group(1)
    for command in (entrypoint().split("uvar_tune.sweep ")[1], launched):
        (space,), overrides = split_overrides(shlex.split(command))
        read_config(REPOSITORY / "search_spaces" / space.rsplit("/", 1)[1], overrides)


def test_job_writes_to_an_absolute_root():
    assert re.search(r"run\.root=/", entrypoint())
    assert re.search(r"root=\$\{UVAR_ROOT:-\$SLURM_SUBMIT_DIR/", (CLUSTER / "slurm.sbatch").read_text())


def test_only_loopback_is_bound_by_default():
    for name, service in compose()["services"].items():
        assert "network_mode" not in service and not service.get("privileged")
        for port in service["ports"]:
            host, _, _ = port.rsplit(":", 2)
            assert ipaddress.ip_address(host).is_loopback, f"{name}: {port}"
    starts = " ".join([(CLUSTER / "slurm.sbatch").read_text(), *launcher_commands()])
    assert set(re.findall(r"--dashboard-host[= ](\S+)", starts)) == {"127.0.0.1"}


def test_files_hold_no_secret():
    tree = compose()
    assert "POSTGRES_PASSWORD" not in tree["services"]["postgres"]["environment"]
    assert all(set(secret) == {"file"} for secret in tree["secrets"].values())
    assert all(document["kind"] != "Secret" for document in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))
    for path in PAGES:
        assert not re.search(r"://[^/\s@:]+:[^/\s@]+@", path.read_text()), path.name


def test_every_ray_process_requires_a_token():
    for command in launcher_commands():
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    script = (CLUSTER / "slurm.sbatch").read_text()
    assert script.index("export RAY_AUTH_MODE=token") < script.index("ray start")


def test_options_of_ray_exist():
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import start

    text = "\n".join([(CLUSTER / "slurm.sbatch").read_text().replace("\\\n", " "), *launcher_commands()])
    for command, name in ((start, "ray start"), (submit, "ray job submit")):
        known = {option for parameter in command.params for option in parameter.opts}
        calls = re.findall(rf"{name} (.*?)(?: -- |&|$)", text, re.MULTILINE)
        used = {flag for call in calls for flag in re.findall(r"--[a-z-]+", call)}
        assert used and used <= known, used - known


def test_options_of_the_mlflow_server_exist():
    """Read out of its sources: importing them takes seconds."""
    package = Path(importlib.util.find_spec("mlflow").origin).parent
    sources = "".join(
        path.read_text() for path in (*package.glob("cli/__init__.py"), package / "utils" / "cli_args.py")
    )
    command = compose()["services"]["mlflow"]["command"][-1].split("mlflow server")[1]
    used = set(re.findall(r"(?<=\s)--[a-z-]+", command))
    assert used and all(f'"{flag}"' in sources for flag in used)
    words = shlex.split(command)
    assert all(
        host.endswith(":*") for host in words[words.index("--allowed-hosts") + 1].split(",")
    )  # matched with the port
