"""Logging in to the console with a real browser."""

from __future__ import annotations

from pathlib import Path

from tests.browser import Watched, browser
from tests.server.site import Site

from onnx_audit_server.access.identity import Scope
from onnx_audit_server.access.tokens import Tokens


def test_people_log_in_with_a_browser(tmp_path: Path) -> None:
    """From a page to the form, back to the page, and out again; nothing breaks the page's rules."""
    with Site(tmp_path, auth=True) as site, browser() as chromium:
        token = Tokens(site.engine).create("ada", (Scope.READ,), None)
        site.model(1, "scorer")
        watched = Watched(chromium, f"http://{site.address}")
        page = watched.page
        watched.open("/history?model=scorer")
        assert page.url.startswith(watched.origin + "/login")
        page.fill("#token", "oat_wrong")
        page.click("main button")
        page.wait_for_selector("[role=alert]")
        # The browser itself tells of the refusal; from here on nothing may be told.
        watched.complaints.clear()
        page.fill("#token", token)
        page.click("main button")
        page.wait_for_url(watched.origin + "/history?model=scorer")
        assert "token:ada" in page.inner_text("header")
        assert page.evaluate("document.cookie") == ""
        for path in ("/", "/models", "/health"):
            watched.open(path)
        page.click("text=Log out")
        page.wait_for_url(watched.origin + "/login")
        watched.open("/models")
        assert page.url.startswith(watched.origin + "/login")
        assert watched.complaints == []
