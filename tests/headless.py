"""A headless browser for the tests of pages; a test that asks for one is skipped without."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest

# Names of Chromium and its kin on Linux and macOS.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# As root, as in containers, Chromium has no sandbox; the rest keeps it off the network.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@contextlib.contextmanager
def new_page(**options) -> Iterator[tuple]:
    """(page, messages): a playwright page, and what went wrong in it, to be empty at the end.

    `options` go to playwright's `new_page`, e.g. viewport, color_scheme, offline.
    """
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        page = browser.new_page(**options)
        messages: list[str] = []
        page.on("pageerror", lambda error: messages.append(f"error: {error}"))
        page.on("requestfailed", lambda request: messages.append(f"failed: {request.url[:80]}"))

        def on_console(message) -> None:
            if message.type in ("error", "warning"):
                messages.append(f"{message.type}: {message.text}")

        page.on("console", on_console)
        try:
            yield page, messages
        finally:
            browser.close()
