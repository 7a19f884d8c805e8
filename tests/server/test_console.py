"""The console over real HTTP, on records made by hand: pages, streams, names, headers."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.browser import Watched, browser
from tests.client.reports import full_report
from tests.server.site import Site, plan_and_progress

from onnx_audit import v1
from onnx_audit_server.http import history
from onnx_audit_server.http.console import PAGE
from onnx_audit_server.http.security import is_local
from onnx_audit_server.store.records import state_changed

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
EVIL_QUERY = urllib.parse.quote(EVIL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An empty console."""
    with Site(tmp_path) as site:
        yield site


def read_events(response: http.client.HTTPResponse, count: int) -> list[dict[str, Any]]:
    """The next events of a stream: id, kind and data."""
    found: list[dict[str, Any]] = []
    current: dict[str, Any] = {}
    while len(found) < count and (line := response.readline().decode()):
        name, _, value = line.rstrip("\n").partition(": ")
        if name in {"id", "event", "data"}:
            current[name] = value
        elif not name and "data" in current:
            found.append({**current, "data": json.loads(current["data"])})
            current = {}
    return found


def test_the_list_goes_on_page_by_page(site: Site) -> None:
    """Every audit is on one page, newest first; a state has a list of its own."""
    model = site.model(1, "scorer")
    expected: list[str] = []
    for n in range(PAGE + 3):
        expected.insert(0, site.audit(f"a{n:03}", model).name)
    pages, path = [], "/"
    while path:
        text = site.page(path)
        pages.append(text)
        links = Links(text)
        path = links.by_text.get("older", "")
    assert len(pages) == 2
    listed = [f"audits/{part[:4]}" for text in pages for part in text.split('href="/audits/')[1:]]
    assert listed == expected
    assert "a027" in site.page("/?state=queued")
    assert "There is no failed audit" in site.page("/?state=failed")


class Links(HTMLParser):
    """Links of a page by their text, the names of its elements, and its whole text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.by_text: dict[str, str] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._href = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "a":
            self._href = dict(attrs).get("href") or ""

    def handle_data(self, data: str) -> None:
        """Notes text."""
        self.text += data
        if self._href:
            self.by_text[data.strip()] = self._href
            self._href = ""


def test_names_are_never_markup(site: Site) -> None:
    """Names of models, audits, policies, notes and errors are shown as they are."""
    model = site.model(1, EVIL, release=EVIL)
    audit = site.audit("evil", model, display_name=EVIL, input_spec_notes=[EVIL])
    failed = site.audit("failed", model, policy=v1.Policy(display_name=EVIL))

    def fail(audit: v1.Audit) -> list[v1.AuditEvent]:
        audit.state = v1.AUDIT_STATE_FAILED
        audit.error.message = EVIL
        return [state_changed(audit)]

    site.records.update_audit("failed", fail)
    report = full_report()
    report.execution.model_display_name = EVIL
    site.succeed(audit, report)
    history_path = "/history?model=" + EVIL_QUERY
    pages = ["/", "/audits/evil", "/audits/failed", "/models", history_path]
    for path in [*pages, "/audits/evil/report"]:
        links = Links(site.page(path))
        assert EVIL in links.text, path
        assert links.tags.count("script") == (0 if path.endswith("report") else 1)
        assert not [name for name, _ in links.attributes if name.startswith("on")]
        assert "x" not in [value for name, value in links.attributes if name == "src"]
    assert Links(site.page("/")).by_text[EVIL] == history_path.replace("%2F", "/")
    error = Links(site.page("/?state=" + EVIL_QUERY, 404))
    assert "<script>alert(1)</script>" in error.text
    assert error.tags.count("script") == 1
    assert failed.name


def test_headers_forbid_what_pages_do_not_need(site: Site) -> None:
    """Nothing from elsewhere, no inline script, no frames, no referrer, no guessing of types."""
    site.succeed(site.audit("a", site.model(1, "m")), full_report())
    for path in ("/", "/audits/a", "/audits/a/report", "/static/console.js", "/metrics", "/none"):
        headers = site.open(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'unsafe" not in policy
        assert "http:" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    assert "script-src" not in site.open("/audits/a/report").headers["Content-Security-Policy"]


def test_other_names_of_this_machine_are_refused(site: Site) -> None:
    """A page elsewhere whose name leads to this machine reads nothing."""
    port = site.address.rpartition(":")[2]
    for host in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST:80"):
        assert site.open("/", Host=host).status == 200, host
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert site.open("/", Host=host).status == 403, host
    assert is_local("::1")
    assert not is_local("0.0.0.0")  # noqa: S104 - an address to look at


def test_what_does_not_exist(site: Site) -> None:
    """Pages say what is wrong, with the right status."""
    model = site.model(1, "m")
    site.audit("a", model)
    assert "audits/b does not exist" in site.page("/audits/b", 404)
    assert "is QUEUED" in site.page("/audits/a/report", 409)
    assert "page_token" in site.page("/?page=x", 400)
    assert "is not from 0 to" in site.page("/audits/a/events?after=99", 400)
    assert "No audit of a model" in site.page("/history?model=unknown")
    assert site.open("/static/../console.py").status == 404


def test_a_stream_tells_progress_as_it_comes(site: Site) -> None:
    """It starts after the event that the page knows, and adds up those before."""
    site.audit("a", site.model(1, "m"))
    plan_and_progress(site, "a", 1.0)
    response = site.open("/audits/a/events?after=2")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    (first,) = read_events(response, 1)
    assert (first["id"], first["event"]) == ("3", "progress")
    shown = first["data"]["auditors"][0]
    assert (shown["name"], shown["done"], shown["total"]) == ("distortion", 1, 10)
    assert shown["running"] == "median L2 0.25 so far"
    finished = v1.AuditEvent.ShardFinished(auditor=v1.AUDITOR_DISTORTION)
    start = time.monotonic()
    site.records.append_events("a", [v1.AuditEvent(shard_finished=finished)])
    (second,) = read_events(response, 1)
    assert time.monotonic() - start < 10
    assert (second["id"], second["data"]["auditors"][0]["done"]) == ("4", 5)
    response.close()


def test_a_stream_goes_on_where_it_broke_and_ends(site: Site) -> None:
    """Last-Event-ID counts for more than the page's number; after the end there is nothing."""
    audit = site.audit("a", site.model(1, "m"))
    plan_and_progress(site, "a", 1.0)
    site.succeed(audit, full_report())
    response = site.open("/audits/a/events?after=0", Last_Event_ID="2")
    events = read_events(response, 10)
    assert [(event["id"], event["event"]) for event in events] == [
        ("3", "progress"),
        ("4", "end"),
    ]
    assert events[-1]["data"]["state"] == "succeeded"
    assert site.open("/audits/a/events", Last_Event_ID="4").status == 204


def test_a_reused_section_is_said(site: Site) -> None:
    """The page names the audit that computed it."""
    site.audit("a", site.model(1, "m"))
    plan_and_progress(site, "a", 0.0)
    ready = v1.AuditEvent.SectionReady(auditor=v1.AUDITOR_DISTORTION, reused_from="audits/first")
    site.records.append_events("a", [v1.AuditEvent(section_ready=ready)])
    (bar,) = re.findall("<progress[^>]*>", site.page("/audits/a"))
    assert 'max="10.0" value="10.0"' in bar
    text = Links(site.page("/audits/a")).text
    assert "10 of 10 probes" in text
    assert "reused from audits/first" in text


def test_history_draws_one_figure_over_releases(site: Site) -> None:
    """A point for each release with a report, the oldest first, from its latest audit."""
    for number, value in enumerate((0.25, 0.5, 0.75)):
        model = site.model(number + 1, "scorer", release=f"r{number}")
        for attempt, shift in enumerate((0.1, 0.0)):
            report = full_report()
            report.distortion.norms[0].quantiles[0].estimate.value = value + shift
            site.succeed(site.audit(f"a{number}{attempt}", model), report)
    site.model(9, "other")
    metrics = history.metrics(site.records, site.blobs, "scorer")
    path = "distortion.norms[L2].quantiles[0.5]"
    (median,) = [metric for metric in metrics if metric.path == path]
    assert [(point.label, point.value) for point in median.points] == [
        ("r0", 0.25),
        ("r1", 0.5),
        ("r2", 0.75),
    ]
    text = site.page("/history?model=scorer")
    assert text.count("<circle") == 3
    assert Links(site.page("/models")).by_text["scorer"] == "/history?model=scorer"


def test_places_in_the_drawing() -> None:
    """Larger figures are higher, equal steps are equal, intervals without end are cut."""
    points = [
        history.Point("audits/a", "r", value, lower, upper, "")
        for value, lower, upper in [(1.0, 0.5, 1.5), (2.0, 1.5, 2.5), (3.0, 2.5, float("inf"))]
    ]
    marks = history.drawing(points).marks
    assert marks[0].y > marks[1].y > marks[2].y
    assert marks[0].y - marks[1].y == pytest.approx(marks[1].y - marks[2].y, abs=0.2)
    assert marks[0].y_lower > marks[0].y > marks[0].y_upper
    assert 0 < marks[2].y_upper < marks[2].y
    alone = history.drawing([history.Point("audits/a", "r", 0.0, 0.0, 0.0, "")]).marks[0]
    assert 0 < alone.y < history.HEIGHT


def test_health_counts_audits(site: Site) -> None:
    """By state, from the database."""
    site.audit("a", site.model(1, "m"))
    text = " ".join(Links(site.page("/health")).text.split())
    assert "queued1" in text
    assert "succeeded0" in text


def test_a_page_moves_by_itself(site: Site) -> None:
    """In a real browser: bars grow as events come, the end brings the report, nothing complains."""
    audit = site.audit("a", site.model(1, EVIL, release="r1"), display_name="nightly")
    with browser() as chromium:
        watched = Watched(chromium, f"http://{site.address}")
        page = watched.page
        watched.open("/audits/a")
        assert "not divided yet" in page.inner_text("main")
        plan_and_progress(site, "a", 2.0)
        watched.wait_for("document.querySelector('progress')?.value === 2")
        plan_and_progress(site, "a", 4.0)
        watched.wait_for("document.querySelector('progress').value === 4")
        assert page.evaluate("document.querySelector('progress').position") == 0.4
        assert "median L2 0.25 so far" in page.inner_text("#progress")
        assert "not divided yet" not in page.inner_text("main")
        site.succeed(audit, full_report())
        page.wait_for_selector("text=Open the report")
        assert page.inner_text(".state") == "succeeded"
        page.click("text=Open the report")
        page.wait_for_selector("h1")
        small = Watched(chromium, watched.origin, dark=True)
        for path in ("/", "/audits/a", "/models", "/history?model=" + EVIL_QUERY, "/health"):
            watched.open(path)
            small.open(path)
        assert watched.complaints == small.complaints == []
