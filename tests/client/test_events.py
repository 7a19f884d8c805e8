"""Progress as people see it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.client.reports import estimate, full_report

from onnx_audit import v1
from onnx_audit.cli import events
from onnx_audit.cli.distortion_view import thinned
from onnx_audit.cli.events import BarView, PlainView, Tally, event_view
from onnx_audit.cli.report_view import print_report

DISTORTION = v1.AUDITOR_DISTORTION


def plan(items: int = 40, shards: int = 4) -> v1.AuditEvent:
    row = v1.AuditEvent.AuditorPlan(auditor=DISTORTION, shards=shards, items=items, unit="probes")
    return v1.AuditEvent(plan_ready=v1.AuditEvent.PlanReady(auditors=[row]))


def started(shard: int, attempt: int = 1) -> v1.AuditEvent:
    return v1.AuditEvent(
        shard_started=v1.AuditEvent.ShardStarted(auditor=DISTORTION, shard=shard, attempt=attempt)
    )


def progress(shard: int, done: float) -> v1.AuditEvent:
    return v1.AuditEvent(
        shard_progress=v1.AuditEvent.ShardProgress(
            auditor=DISTORTION,
            shard=shard,
            done=done,
            total=10,
            running=estimate(0.5, 0.4, 0.6),
            running_label="median [L2]",
        )
    )


def finished(shard: int) -> v1.AuditEvent:
    return v1.AuditEvent(
        shard_finished=v1.AuditEvent.ShardFinished(auditor=DISTORTION, shard=shard)
    )


def section() -> v1.AuditEvent:
    return v1.AuditEvent(section_ready=v1.AuditEvent.SectionReady(auditor=DISTORTION))


def state(value: v1.AuditState.ValueType) -> v1.AuditEvent:
    return v1.AuditEvent(state_changed=v1.AuditEvent.StateChanged(state=value))


def test_tally_adds_shards_up() -> None:
    """Progress is the sum over shards; one that starts again counts from nothing."""
    tally = Tally()
    row = tally.auditors[DISTORTION]
    steps = [
        (plan(), 0),
        (started(0), 0),
        (progress(0, 4), 4),
        (started(1), 4),
        (progress(1, 5), 9),
        (started(0, attempt=2), 5),
        (progress(0, 2), 7),
        (finished(0), 15),
        (finished(1), 20),
        (section(), 40),
    ]
    for event, done in steps:
        tally.add(event)
        assert row.done == pytest.approx(done)
    assert row.running == "median [L2] 0.5 [0.4, 0.6]"


def test_plain_lines_are_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal each turn is a line, and progress one line now and then."""
    now = [0.0]
    monkeypatch.setattr("onnx_audit.cli.events.time.monotonic", lambda: now[0])
    output = io.StringIO()
    with PlainView(Console(file=output, width=200)) as view:
        view.upload("m.onnx", 10, 20)
        view.upload("m.onnx", 20, 20)
        view.event(state(v1.AUDIT_STATE_RUNNING))
        view.event(plan())
        for step in range(10):
            now[0] += 1
            view.event(progress(0, step))
        view.event(started(0, attempt=2))
        view.event(section())
        view.event(v1.AuditEvent(notice=v1.AuditEvent.Notice(message="look [here]")))
    assert output.getvalue().splitlines() == [
        "uploaded m.onnx (20 bytes)",
        "running",
        "planned distortion (40 probes, 4 shards)",
        "distortion: 4 of 40 probes, median [L2] 0.5 [0.4, 0.6]",
        "distortion: 9 of 40 probes, median [L2] 0.5 [0.4, 0.6]",
        "distortion: shard 0 is done again (attempt 2)",
        "distortion: complete",
        "look [here]",
    ]


def test_bars_show_auditors_and_running_shards() -> None:
    """On a terminal there is a bar per auditor and per running shard, gone when it has ended."""
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    view = event_view(console)
    assert isinstance(view, BarView)
    with view:
        for event in (plan(), started(0), progress(0, 4), started(1), progress(1, 5)):
            view.event(event)
        bars = {task.description: task.percentage for task in view._progress.tasks}
        assert bars == {
            "distortion": pytest.approx(22.5),
            "  distortion shard 0": pytest.approx(40),
            "  distortion shard 1": pytest.approx(50),
        }
        view.event(finished(0))
        assert "  distortion shard 0" not in {task.description for task in view._progress.tasks}


def test_failure_is_shown_with_its_cause() -> None:
    """The line of a failed audit has the explanation."""
    failed = state(v1.AUDIT_STATE_FAILED)
    failed.state_changed.error.message = "answers differ"
    assert events.line_for(failed) == "failed: answers differ"


def test_report_shows_every_section_and_no_unset_figure() -> None:
    """All sections appear, infinite figures as such, and a figure that was not set is no zero."""
    output = io.StringIO()
    print_report(Console(file=output, width=160), full_report())
    text = output.getvalue()
    for expected in (
        "scorer [v2]",
        "FEW_PROBES: only 4 probes [sic]",
        "holds: the network and ONNX Runtime",
        "2 confirmed by ONNX Runtime, 0 not confirmed, none found for 1",
        "[low, high]",
        "0.75 [0.125, ∞]",
        "but for 1e-09",
        "says nothing [of use]",
        "relu_1",
        "torch 2.13.0",
    ):
        assert expected in text
    assert any(line.split()[:5] == ["a", "-", "50.0", "|", "-"] for line in text.splitlines())


def test_most_fragile_probes_come_in_their_order() -> None:
    """The table of fragile probes has label and new answer of each, most fragile first."""
    output = io.StringIO()
    print_report(Console(file=output, width=160), full_report())
    lines = output.getvalue().split("most fragile probes")[1].splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert rows[:2] == [
        ["2", "1", "7", "0.125", "0.875", "0.25"],
        ["0", "3", "8", "0.75", "0.875", "0.25"],
    ]


def test_thinned_curve_keeps_both_ends() -> None:
    """A long curve is thinned evenly, a short one is left alone."""
    points = [v1.CurvePoint(x=x) for x in range(100)]
    short = thinned(points, 5)
    assert [point.x for point in short] == [0, 25, 50, 74, 99]
    assert thinned(short, 12) == short
