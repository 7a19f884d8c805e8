"""Hands an audit's events to any number of watchers with one reader of the database.

Watching costs one small query per interval and process, and one read per new event, however many
watchers there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from onnx_audit import v1
from onnx_audit_server import logs
from onnx_audit_server.store.records import ENDED, Records

INTERVAL = 0.1
"""Seconds between two looks for new events."""
BATCH = 500
"""Events per read."""

log = logs.get(__name__)


def ends_audit(event: v1.AuditEvent) -> bool:
    """Whether no event follows this one."""
    return event.state_changed.state in ENDED


class _Feed:
    """The latest events of one watched audit."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.recent: deque[v1.AuditEvent] = deque(maxlen=BATCH)
        self.watchers = 0
        self.news = asyncio.Event()

    def publish(self, events: list[v1.AuditEvent]) -> None:
        self.recent.extend(events)
        self.last = events[-1].sequence
        self.news.set()
        self.news = asyncio.Event()

    def after(self, sequence: int) -> list[v1.AuditEvent] | None:
        """Events after a number, None where they are no longer here."""
        if sequence >= self.last:
            return []
        if not self.recent or self.recent[0].sequence > sequence + 1:
            return None
        return [event for event in self.recent if event.sequence > sequence]


class EventTail:
    """Follows audits; to be used on one event loop."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._feeds: dict[str, _Feed] = {}
        self._task: asyncio.Task[None] | None = None

    async def follow(self, identifier: str, sequence: int) -> AsyncGenerator[v1.AuditEvent, None]:
        """Yields the events after a number as they come; returns after the audit's last one."""
        feed = self._join(identifier, sequence)
        try:
            while True:
                news = feed.news
                events = feed.after(sequence)
                if events is None:
                    events = await asyncio.to_thread(
                        self._records.events_after, identifier, sequence, BATCH
                    )
                for event in events:
                    sequence = event.sequence
                    yield event
                    if ends_audit(event):
                        return
                if not events:
                    await news.wait()
        finally:
            self._leave(identifier, feed)

    async def close(self) -> None:
        """Stops looking for news."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _join(self, identifier: str, sequence: int) -> _Feed:
        feed = self._feeds.setdefault(identifier, _Feed(sequence))
        feed.watchers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll(), name="event tail")
        return feed

    def _leave(self, identifier: str, feed: _Feed) -> None:
        feed.watchers -= 1
        if not feed.watchers:
            self._feeds.pop(identifier, None)

    async def _poll(self) -> None:
        while self._feeds:
            try:
                await self._look()
            except Exception:
                log.exception("cannot read events")
            await asyncio.sleep(INTERVAL)

    async def _look(self) -> None:
        last = await asyncio.to_thread(self._records.last_sequences, list(self._feeds))
        for identifier, sequence in last.items():
            feed = self._feeds.get(identifier)
            if feed is not None and sequence > feed.last:
                feed.publish(
                    await asyncio.to_thread(
                        self._records.events_after, identifier, feed.last, BATCH
                    )
                )
