"""A console in this process, on records made by hand."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_audit import v1
from onnx_audit_server.access.certificates import CertificateFiles
from onnx_audit_server.access.guard import Guard
from onnx_audit_server.access.quotas import ProcessQuotas
from onnx_audit_server.http import HttpServer
from onnx_audit_server.http.access import Access
from onnx_audit_server.http.console import Console
from onnx_audit_server.jobs.events import EventTail
from onnx_audit_server.reports import assemble
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.database import connect, migrate
from onnx_audit_server.store.records import Records, state_changed


class Site:
    """A console in a thread, with the records that it shows."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0", **settings: Any) -> None:
        self.settings = Settings(data=folder, **settings)
        self.engine = connect(f"sqlite:///{folder / 'records.sqlite'}")
        migrate(self.engine)
        self.records = Records(self.engine)
        self.blobs = BlobStore(folder)
        self._listen = listen
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._end: Callable[[], object] = threading.Event
        self._connections: list[http.client.HTTPConnection] = []
        self.address = ""

    def __enter__(self) -> Site:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a stream keeps the server from stopping"
        for connection in self._connections:
            connection.close()
        self.engine.dispose()

    async def _serve(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(stop.set)
        tail = EventTail(self.records)
        access = Access(
            Guard(self.settings, self.engine),
            ProcessQuotas(self.settings),
            metrics_open=self.settings.metrics_open,
        )
        certificates = CertificateFiles(self.settings) if self.settings.http_tls else None
        console = Console(self.records, self.blobs, tail)
        server = HttpServer(self._listen, self.records, console, access, certificates=certificates)
        self.address = await server.start()
        self._ready.set()
        await stop.wait()
        await tail.close()
        await server.stop()

    def open(self, path: str, **headers: str) -> http.client.HTTPResponse:
        """Asks for a page; the connection is closed with the console."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        self._connections.append(connection)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=names)
        return connection.getresponse()

    def page(self, path: str, status: int = 200) -> str:
        """Text of a page."""
        response = self.open(path)
        text = response.read().decode()
        assert response.status == status, text
        return text

    def model(self, number: int, name: str, **tags: str) -> str:
        """Registers a model; returns its name."""
        digest = f"{number:064x}"
        model = v1.Model(name=f"models/{digest}", display_name=name, tags=tags)
        return self.records.put_model(digest, model).name

    def audit(self, identifier: str, model: str, **fields: Any) -> v1.Audit:
        """Accepts an audit that nobody runs."""
        audit = v1.Audit(
            name=f"audits/{identifier}",
            model=model,
            probe_set="probes/" + "2" * 64,
            state=v1.AUDIT_STATE_QUEUED,
            auditors=v1.AuditorConfigs(distortion=v1.DistortionConfig()),
            **fields,
        )
        return self.records.create_audit(audit, "", identifier, lambda _: None)

    def succeed(self, audit: v1.Audit, report: v1.Report) -> None:
        """Ends an audit with a report."""
        report.digest = assemble.digest(report)
        blob = self.blobs.put(assemble.to_json(report), "application/json")
        identifier = audit.name.partition("/")[2]

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            audit.state = v1.AUDIT_STATE_SUCCEEDED
            audit.report_digest = report.digest
            return [state_changed(audit)]

        self.records.end_audit(identifier, change, blob.sha256)


def plan_and_progress(site: Site, identifier: str, done: float) -> None:
    """Two shards of five probes each, and how far the first one is."""
    plan = v1.AuditEvent.AuditorPlan(
        auditor=v1.AUDITOR_DISTORTION, shards=2, items=10, unit="probes"
    )
    step = v1.AuditEvent.ShardProgress(
        auditor=v1.AUDITOR_DISTORTION,
        done=done,
        total=5,
        running=v1.Estimate(value=0.25),
        running_label="median L2",
    )
    site.records.append_events(
        identifier,
        [
            v1.AuditEvent(plan_ready=v1.AuditEvent.PlanReady(auditors=[plan])),
            v1.AuditEvent(shard_progress=step),
        ],
    )
