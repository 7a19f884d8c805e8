"""How far an audit is, for its page: events added up, and sent on as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from onnx_audit import v1
from onnx_audit_server import metrics
from onnx_audit_server.jobs.events import ends_audit
from onnx_audit_server.reports.words import number, short

HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent, so that a dead connection is found out."""
RETRY: Final = 2000
"""Milliseconds after which a browser comes back."""
_LONGEST: Final = 120


@dataclass
class AuditorProgress:
    """How far one auditor is, in items of its plan."""

    name: str
    items: float = 0.0
    unit: str = "items"
    shards: int = 1
    running: str = ""
    by_shard: dict[int, float] = field(default_factory=dict)

    @property
    def done(self) -> float:
        """Items done over all shards, at most all."""
        return min(sum(self.by_shard.values()), self.items)

    def as_json(self) -> dict[str, Any]:
        """What the page shows."""
        return {
            "name": self.name,
            "done": round(self.done, 1),
            "total": self.items,
            "text": f"{self.done:.0f} of {self.items:.0f} {self.unit}",
            "running": self.running,
        }


class Tally:
    """Adds up what events say of an audit."""

    def __init__(self) -> None:
        self.state = v1.AUDIT_STATE_QUEUED
        self.auditors: dict[v1.Auditor.ValueType, AuditorProgress] = {}

    def add(self, event: v1.AuditEvent) -> None:
        """Takes an event into account."""
        kind = event.WhichOneof("event")
        if kind == "state_changed":
            self.state = event.state_changed.state
        elif kind == "plan_ready":
            for plan in event.plan_ready.auditors:
                name = metrics.auditor_label(plan.auditor)
                self.auditors[plan.auditor] = AuditorProgress(
                    name, float(plan.items), plan.unit, max(plan.shards, 1)
                )
        elif kind == "shard_started":  # a shard that is done again starts from nothing
            self._of(event.shard_started.auditor).by_shard[event.shard_started.shard] = 0.0
        elif kind == "shard_progress":
            self._add_progress(event.shard_progress)
        elif kind == "shard_finished":
            row = self._of(event.shard_finished.auditor)
            shard = event.shard_finished.shard
            row.by_shard[shard] = max(row.by_shard.get(shard, 0.0), row.items / row.shards)
        elif kind == "section_ready":
            row = self._of(event.section_ready.auditor)
            row.by_shard = {0: row.items}
            source = event.section_ready.reused_from
            row.running = f"reused from {source}" if source else ""

    def as_json(self) -> dict[str, Any]:
        """What the page shows."""
        return {
            "state": metrics.state_label(self.state),
            "auditors": [row.as_json() for row in self.auditors.values()],
        }

    def _add_progress(self, step: v1.AuditEvent.ShardProgress) -> None:
        row = self._of(step.auditor)
        row.by_shard[step.shard] = step.done
        if step.HasField("running"):
            label = short(step.running_label, _LONGEST)
            row.running = f"{label} {number(step.running.value)} so far"

    def _of(self, auditor: v1.Auditor.ValueType) -> AuditorProgress:
        return self.auditors.setdefault(auditor, AuditorProgress(metrics.auditor_label(auditor)))


async def stream(
    events: AsyncGenerator[v1.AuditEvent, None], after: int, closing: asyncio.Event
) -> AsyncIterator[str]:
    """Yields server-sent events: the audit's state after each of its events.

    See https://html.spec.whatwg.org/multipage/server-sent-events.html.

    Args:
        events: The audit's events from the first on.
        after: Number of the last event that the reader has; those before are added up silently.
        closing: Set when the server stops.
    """
    tally = Tally()
    yield f"retry: {RETRY}\n\n"
    stopped = asyncio.ensure_future(closing.wait())
    coming: asyncio.Future[v1.AuditEvent] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            either: set[asyncio.Future[Any]] = {coming, stopped}
            await asyncio.wait(either, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return
            if not coming.done():
                yield ": still here\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            tally.add(event)
            if event.sequence > after:
                kind = "end" if ends_audit(event) else "progress"
                data = json.dumps(tally.as_json(), allow_nan=False)
                yield f"id: {event.sequence}\nevent: {kind}\ndata: {data}\n\n"
    finally:
        stopped.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()
