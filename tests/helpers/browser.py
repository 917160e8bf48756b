"""Debian's Chromium, driven by Playwright; tests that need it skip with a word if either is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

CHROMIUM = "/usr/bin/chromium"
# No request leaves this machine, and MLflow's assistant, which it opens at the first visit, stays closed.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
_NO_ASSISTANT = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");'


@contextlib.contextmanager
def browser():
    """A running browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser here: {CHROMIUM} (Debian's package chromium) is missing")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield chromium
        finally:
            chromium.close()


class Page:
    """A page of a browser of its own, with what went wrong in it."""

    def __init__(self, chromium, width: int = 1600, height: int = 900):
        self.context = chromium.new_context(viewport={"width": width, "height": height})
        self.context.add_init_script(_NO_ASSISTANT)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, url: str, wait_for: str):
        """Open a page and wait until it shows a text."""
        self.page.goto(url, wait_until="commit")
        self.page.get_by_text(wait_for).first.wait_for()
        return self.page

    def close(self) -> None:
        self.context.close()


def save_screenshot(page, directory: str | None, name: str) -> None:
    """Save a picture of the page if a directory is given (UVAR_SCREENSHOTS)."""
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(directory) / name))
