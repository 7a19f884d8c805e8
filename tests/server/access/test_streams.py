"""Streams that are open when their caller's token ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from onnx_audit import Client, RetryPolicy, Unauthenticated, v1
from onnx_audit.v1 import audit_pb2_grpc
from onnx_audit_server.access import guard as guards
from onnx_audit_server.access.guard import Guard
from onnx_audit_server.access.identity import Scope
from onnx_audit_server.access.quotas import ProcessQuotas
from onnx_audit_server.access.tokens import Tokens
from onnx_audit_server.api.interceptor import Gate, Interceptor
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.database import connect, migrate

EVENTS = 4


class Endless(audit_pb2_grpc.AuditServiceServicer):
    """An audit whose second event comes when a test says so."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.watched_from: list[int] = []

    async def WatchAudit(  # noqa: N802 - as gRPC names it
        self, request: v1.WatchAuditRequest, _context: Any
    ) -> AsyncIterator[v1.AuditEvent]:
        """Events one to four, the last of which ends the audit."""
        self.watched_from.append(request.after_sequence)
        for sequence in range(request.after_sequence + 1, EVENTS + 1):
            if sequence == 2:
                await asyncio.to_thread(self.go_on.wait, 60)
            event = v1.AuditEvent(sequence=sequence)
            state = v1.AUDIT_STATE_SUCCEEDED if sequence == EVENTS else v1.AUDIT_STATE_RUNNING
            event.state_changed.state = state
            yield event


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A database with tables."""
    engine = connect(f"sqlite:///{tmp_path / 'records.sqlite'}")
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def watched(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Endless]]:
    """A server in a thread that remembers no token, and what it serves."""
    monkeypatch.setattr(guards, "REMEMBERED", 0.0)
    servicer = Endless()  # type: ignore[abstract] # the other methods are not called
    ready, addresses = threading.Event(), [""]
    stops: list[Any] = []

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        settings = Settings(auth=True)
        gate = Gate(Guard(settings, engine), ProcessQuotas(settings))
        server = grpc.aio.server(interceptors=[Interceptor(gate)])
        audit_pb2_grpc.add_AuditServiceServicer_to_server(servicer, server)
        addresses[0] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield addresses[0], servicer
    servicer.go_on.set()
    stops[0]()
    thread.join(60)


def test_a_stream_ends_with_its_token(engine: sa.Engine, watched: tuple[str, Endless]) -> None:
    """At its next event, which the caller does not get."""
    target, servicer = watched
    tokens = Tokens(engine)
    token = tokens.create("watcher", (Scope.READ,), None)
    with Client(target, token=token, retries=RetryPolicy(initial_delay=0.001)) as client:
        events = client.watch("audits/a")
        assert next(events).sequence == 1
        tokens.revoke(token.split("_")[1])
        servicer.go_on.set()
        with pytest.raises(Unauthenticated, match="is revoked"):
            next(events)
    assert servicer.watched_from == [0]


def test_a_watch_outlasts_its_token(engine: sa.Engine, watched: tuple[str, Endless]) -> None:
    """With a new token it goes on after the last event: audits may last longer than tokens."""
    target, servicer = watched
    tokens = Tokens(engine)
    present = [tokens.create("watcher", (Scope.READ,), None)]
    policy = RetryPolicy(initial_delay=0.001)
    with Client(target, token=lambda: present[0], retries=policy) as client:
        events = client.watch("audits/a")
        assert next(events).sequence == 1
        old, present[0] = present[0], tokens.create("watcher", (Scope.READ,), None)
        tokens.revoke(old.split("_")[1])
        servicer.go_on.set()
        assert [event.sequence for event in events] == [2, 3, 4]
    assert servicer.watched_from == [0, 1]
