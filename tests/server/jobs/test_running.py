"""When a process looks for work, and for how much."""

from __future__ import annotations

import threading
import time

import pytest

from onnx_audit_server.jobs import running
from onnx_audit_server.jobs.running import Running

LONG = 30.0
"""Seconds that a look takes where nothing ends its wait."""


def test_a_slot_that_becomes_free_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While both slots are taken there is nothing to look for; the end of a job ends the wait."""
    monkeypatch.setattr(running, "INTERVAL", LONG)
    jobs = Running({"tasks": 2})
    ended = threading.Event()

    def work() -> None:
        with jobs.noted("tasks", "b"):
            ended.wait()

    with jobs.noted("tasks", "a"):
        thread = threading.Thread(target=work)
        thread.start()
        while jobs.ids() != {"a", "b"}:
            time.sleep(0.001)
        timer = threading.Timer(0.05, ended.set)
        timer.start()
        start = time.monotonic()
        assert jobs.look("tasks") == 1
        assert time.monotonic() - start < LONG / 2
        thread.join()


def test_claimed_jobs_count_until_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job taken from the queue has its slot already; one that never begins loses it again."""
    monkeypatch.setattr(running, "INTERVAL", 0.01)
    monkeypatch.setattr(running, "LONG_INTERVAL", 0.01)
    jobs = Running({"tasks": 2, "audits": 1})
    jobs.claim("tasks", ["a", "b"])
    assert jobs.look("tasks") == 0
    assert jobs.look("audits") == 1
    with jobs.noted("tasks", "a"):
        assert jobs.look("tasks") == 0
    assert jobs.look("tasks") == 1
    monkeypatch.setattr(running, "BUSY", 0.0)
    jobs.claim("tasks", ["c"])
    time.sleep(0.001)
    jobs.stir("tasks")
    assert jobs.look("tasks") >= 1


def test_new_work_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stir ends one wait, that of its queue; otherwise an idle queue waits long."""
    monkeypatch.setattr(running, "LONG_INTERVAL", 0.1)
    jobs = Running({"tasks": 1, "audits": 1})
    for queue, seconds in (("tasks", 0.0), ("audits", 0.1)):
        jobs.stir("tasks")
        start = time.monotonic()
        assert jobs.look(queue) == 1
        assert time.monotonic() - start >= seconds
    monkeypatch.setattr(running, "LONG_INTERVAL", LONG)
    threading.Timer(0.05, lambda: jobs.stir("audits")).start()
    start = time.monotonic()
    jobs.look("audits")
    assert time.monotonic() - start < LONG / 2
