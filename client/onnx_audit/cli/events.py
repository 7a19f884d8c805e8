"""Shows the events of an audit as they come: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from onnx_audit import v1
from onnx_audit.cli.figures import auditor_name, estimate_text, state_name

_SECONDS_BETWEEN_LINES: Final = 5.0


@dataclass
class AuditorProgress:
    """How far one auditor is, in items of its plan."""

    items: float = 0.0
    unit: str = "items"
    shards: int = 0
    running: str = ""
    done_by_shard: dict[int, float] = field(default_factory=dict)

    @property
    def done(self) -> float:
        """Items done over all shards, at most all."""
        return min(sum(self.done_by_shard.values()), self.items)


class Tally:
    """Adds up what events say about every auditor's progress."""

    def __init__(self) -> None:
        self.auditors: dict[v1.Auditor.ValueType, AuditorProgress] = defaultdict(AuditorProgress)

    def add(self, event: v1.AuditEvent) -> None:
        """Takes an event into account."""
        kind = event.WhichOneof("event")
        if kind == "plan_ready":
            for plan in event.plan_ready.auditors:
                row = self.auditors[plan.auditor]
                row.items, row.unit, row.shards = float(plan.items), plan.unit, plan.shards
        elif kind == "shard_started":  # a shard that is done again starts from nothing
            self.auditors[event.shard_started.auditor].done_by_shard[event.shard_started.shard] = 0
        elif kind == "shard_progress":
            step = event.shard_progress
            row = self.auditors[step.auditor]
            row.done_by_shard[step.shard] = step.done
            if step.HasField("running"):
                row.running = f"{step.running_label} {estimate_text(step.running)}"
        elif kind == "shard_finished":
            row = self.auditors[event.shard_finished.auditor]
            shard = event.shard_finished.shard
            row.done_by_shard[shard] = max(
                row.done_by_shard.get(shard, 0.0), row.items / max(row.shards, 1)
            )
        elif kind == "section_ready":
            row = self.auditors[event.section_ready.auditor]
            row.done_by_shard = {0: row.items}


class EventView(Protocol):
    """Something that shows uploads and events."""

    def __enter__(self) -> Self:
        """Begins to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends it."""

    def upload(self, name: str, sent: int, total: int) -> None:
        """Shows how far an upload is, in bytes."""

    def event(self, event: v1.AuditEvent) -> None:
        """Shows an event."""

    def say(self, message: str) -> None:
        """Shows a line of text."""


def line_for(event: v1.AuditEvent) -> str | None:
    """What an event other than progress is worth saying, if anything."""
    kind = event.WhichOneof("event")
    if kind == "state_changed":
        change = event.state_changed
        cause = f": {change.error.message}" if change.HasField("error") else ""
        return f"{state_name(change.state)}{cause}"
    if kind == "plan_ready":
        return "planned " + ", ".join(
            f"{auditor_name(plan.auditor)} ({plan.items} {plan.unit}, {plan.shards} shards)"
            for plan in event.plan_ready.auditors
        )
    if kind == "shard_started" and event.shard_started.attempt > 1:
        started = event.shard_started
        return (
            f"{auditor_name(started.auditor)}: shard {started.shard} is done again "
            f"(attempt {started.attempt})"
        )
    if kind == "section_ready":
        ready = event.section_ready
        source = f", reused from {ready.reused_from}" if ready.reused_from else ""
        return f"{auditor_name(ready.auditor)}: complete{source}"
    return event.notice.message if kind == "notice" else None


class PlainView:
    """One line per thing worth saying; progress every few seconds at most."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = Tally()
        self._last_line = time.monotonic()
        self._uploaded: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def upload(self, name: str, sent: int, total: int) -> None:
        """Says once that a file is uploaded."""
        if sent == total and name not in self._uploaded:
            self._uploaded.add(name)
            self.say(f"uploaded {name} ({total} bytes)")

    def event(self, event: v1.AuditEvent) -> None:
        """Says what happened, or now and then how far each auditor is."""
        self._tally.add(event)
        if (line := line_for(event)) is not None:
            self.say(line)
        elif (
            event.WhichOneof("event") == "shard_progress"
            and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES
        ):
            row = self._tally.auditors[event.shard_progress.auditor]
            running = f", {row.running}" if row.running else ""
            name = auditor_name(event.shard_progress.auditor)
            self.say(f"{name}: {row.done:.0f} of {row.items:.0f} {row.unit}{running}")

    def say(self, message: str) -> None:
        """Prints a line."""
        self._last_line = time.monotonic()
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class BarView:
    """A bar per upload, auditor and running shard, with the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = Tally()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[running]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def upload(self, name: str, sent: int, total: int) -> None:
        """Moves the bar of an upload."""
        self._move(f"upload {name}", sent, total)

    def event(self, event: v1.AuditEvent) -> None:
        """Moves the bars of auditors and shards; says what is worth a line above them."""
        self._tally.add(event)
        if (line := line_for(event)) is not None:
            self.say(line)
        for auditor, row in self._tally.auditors.items():
            self._move(auditor_name(auditor), row.done, row.items, row.running)
        kind = event.WhichOneof("event")
        if kind == "shard_progress":
            step = event.shard_progress
            self._move(self._shard(step.auditor, step.shard), step.done, step.total)
        elif kind == "shard_finished":
            finished = event.shard_finished
            task = self._tasks.pop(self._shard(finished.auditor, finished.shard), None)
            if task is not None:
                self._progress.remove_task(task)

    def say(self, message: str) -> None:
        """Prints a line above the bars."""
        self._console.print(message, markup=False, highlight=False)

    def _shard(self, auditor: v1.Auditor.ValueType, shard: int) -> str:
        return f"  {auditor_name(auditor)} shard {shard}"

    def _move(self, name: str, done: float, total: float, running: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(escape(name), running="")
        self._progress.update(
            self._tasks[name], completed=done, total=total, running=escape(running)
        )


def event_view(console: Console) -> EventView:
    """The view that suits a console."""
    return BarView(console) if console.is_terminal else PlainView(console)
