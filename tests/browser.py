"""A real browser for tests, where one is installed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

SIZES = {"phone": (390, 844), "laptop": (1280, 800)}


def program() -> str:
    """Path of the browser; skips the test where there is none."""
    named = os.environ.get("ONNX_AUDIT_BROWSER")
    found = named or next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed; name one with ONNX_AUDIT_BROWSER")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser."""
    path = program()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield launched
        finally:
            launched.close()


class Watched:
    """A page whose errors and requests are noted."""

    def __init__(self, chromium: Browser, origin: str, *, dark: bool = False) -> None:
        width, height = SIZES["phone" if dark else "laptop"]
        self.page: Page = chromium.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        self.origin = origin
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type != "log" else None,
        )
        self.page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith((origin, "data:"))
                else self.complaints.append(f"request to {asked.url}")
            ),
        )

    def open(self, path: str) -> None:
        """Opens a page of the console, which must fit the window's width."""
        answer = self.page.goto(self.origin + path)
        assert answer is not None
        assert answer.ok, path
        self.require_fit()

    def require_fit(self) -> None:
        """Checks that nothing is wider than the window."""
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.page.evaluate(wide) <= 0

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Waits until JavaScript is true; the page's own policy forbids what Playwright offers."""
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression} never came true"
            self.page.wait_for_timeout(50)
