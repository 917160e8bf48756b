"""Command ui: MLflow's page, opened on the ranked trials of a study."""

from __future__ import annotations

import contextlib
import signal
import webbrowser
from typing import Annotated

import typer

from uvar_tune.cli.options import Root, echo
from uvar_tune.errors import FAILED, ConfigError


def ui(
    study: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of the study (default: the newest).")
    ] = None,
    root: Root = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1 (default: the first free one from 5000).")
    ] = None,
    charts: Annotated[bool, typer.Option("--charts", help="Open the charts instead of the table.")] = False,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
):
    """Open MLflow on a study's ranked trials. Ctrl-C ends it."""
    from uvar_tune.io.uri import redact_url
    from uvar_tune.study_dir import StudyDirectory, resolve_root
    from uvar_tune.tracking import Outbox
    from uvar_tune.tracking.saved_view import view_url
    from uvar_tune.tracking.ui_server import ui_server

    directory = resolve_root(root)
    files = StudyDirectory(directory, study or _newest(directory))
    outbox, uri = Outbox(files.directory / "mlflow"), files.tracking_uri()
    if not outbox.directory.exists():
        files.load_config()  # raises, with the nearest name, if there is no such study
    if view_url(uri, outbox) is None:
        raise ConfigError(
            f"MLflow has no page of study {files.name!r} yet; `uvar-tune sync --study {files.name}` sends what is "
            "pending",
            where=redact_url(uri),
        )
    if any(pending := outbox.pending()):
        echo(f"not sent to MLflow yet: {pending}; `uvar-tune sync --study {files.name}` sends it")
    if uri.startswith(("http://", "https://")):
        if port is not None:
            raise ConfigError("MLFLOW_TRACKING_URI names a server, which has its own port", where="--port")
        _open(view_url(uri, outbox, charts=charts), browser)
        return 0
    with ui_server(uri, port) as server, _ended_by_signals():
        _open(view_url(uri, outbox, charts=charts, port=server.port), browser)
        echo("Ctrl-C ends the server")
        server.wait()
        echo("the MLflow server has ended")
        return FAILED
    return 0


def _newest(root) -> str:
    from uvar_tune.commands.overview import newest_study

    return newest_study(root)


def _open(url: str, browser: bool) -> None:
    echo(url)
    if browser and not webbrowser.open(url):
        echo("no browser here: open the link")


@contextlib.contextmanager
def _ended_by_signals():
    """Context that Ctrl-C and SIGTERM leave without an error."""
    previous = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise_interrupt(*_) -> None:
    raise KeyboardInterrupt
