"""A headless Chromium, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test without one."""
    with sync_playwright() as playwright:
        path = _path(playwright)
        if path is None:
            pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed, nor playwright's own")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def _path(playwright: Playwright) -> str | None:
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else next(filter(None, map(shutil.which, _NAMES)), None)
