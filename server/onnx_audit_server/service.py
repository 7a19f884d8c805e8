"""Puts a process of the service together, runs it, and takes it down without loss."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import grpc
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from onnx_audit.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    blob_pb2,
    blob_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    probe_set_pb2,
    probe_set_pb2_grpc,
)
from onnx_audit_server import logs, metrics, tracing
from onnx_audit_server.access.certificates import CertificateFiles, server_credentials
from onnx_audit_server.access.exposure import check_exposure
from onnx_audit_server.access.guard import Guard
from onnx_audit_server.access.ledger import Ledger
from onnx_audit_server.access.quotas import ProcessQuotas
from onnx_audit_server.api.audits import AuditServicer
from onnx_audit_server.api.blobs import BlobServicer
from onnx_audit_server.api.interceptor import Gate, Interceptor
from onnx_audit_server.api.models import ModelServicer
from onnx_audit_server.api.probe_sets import ProbeSetServicer
from onnx_audit_server.collectors import DeviceCollector, FolderCollector
from onnx_audit_server.health import OFF, HealthPort
from onnx_audit_server.http import HttpServer
from onnx_audit_server.http.access import Access
from onnx_audit_server.http.console import Console
from onnx_audit_server.jobs import queue
from onnx_audit_server.jobs.devices import Slots, devices, kind
from onnx_audit_server.jobs.events import EventTail
from onnx_audit_server.jobs.lease import Lease, WorkerNameInUseError
from onnx_audit_server.jobs.patience import Patience
from onnx_audit_server.jobs.pool import RunnerPool
from onnx_audit_server.jobs.reuse import StoredSections
from onnx_audit_server.jobs.steps import AuditSteps
from onnx_audit_server.jobs.tasks import TaskExecutor
from onnx_audit_server.jobs.workflow import Worker
from onnx_audit_server.retention.janitor import Janitor
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.database import connect, migrate, require_current
from onnx_audit_server.store.records import Records
from onnx_audit_server.store.sections import SectionRecords
from onnx_audit_server.store.uses import Uses
from onnx_audit_server.store.workers import WorkerRecords

SERVICES = {
    service.full_name: [f"/{service.full_name}/{method.name}" for method in service.methods]
    for file in (blob_pb2, model_pb2, probe_set_pb2, audit_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
"""The services of the API, each with the full names of its methods."""
MAX_MESSAGE = 64 << 20
"""Largest gRPC message, in bytes: a report with its tables."""
THREADS = 32
"""Threads for calls that wait for the database, the disk or a runner."""
GRACE = 5.0
"""Seconds that RPCs have to end once the worker has drained."""
START_PATIENCE = 60.0
"""Seconds that a process which starts waits for its database."""
LOST = 75
"""Exit status of a process whose work others have taken over: start it again."""

log = logs.get(__name__)


__all__ = ["FolderInUseError", "Service", "WorkerNameInUseError", "run"]


class FolderInUseError(Exception):
    """Another process already works under the same name on the same data folder."""


class Service:
    """One process of the service: the API, a worker, or both."""

    def __init__(self, settings: Settings, *, api: bool, worker: bool) -> None:
        """Opens the stores.

        Raises:
            CertificateError: The files of TLS are not what they should be.
            ExposedError: An address would be open to everybody.
            FolderInUseError: Another worker of this name runs on the data folder.
        """
        self._settings = settings
        check_exposure(settings, api=api)
        self._certificates = CertificateFiles(settings) if settings.tls_cert else None
        settings.data.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(settings) if worker else None
        engine = open_database(settings)
        self._records = Records(engine)
        uses = Uses(engine, settings.retain_blobs)
        self._blobs = BlobStore(settings.data, settings.blob_url, uses, settings.cache_bytes)
        self._queue = queue.JobQueue(engine)
        self._janitor = Janitor(settings, engine, self._blobs, self._queue) if api else None
        self._guard = Guard(settings, engine)
        self._quotas = ProcessQuotas(settings)
        self._ledger = Ledger(settings, engine)
        name = settings.worker_name if worker else f"api-{os.getpid()}"
        places = devices(settings) if worker else []
        self._pool = RunnerPool(settings, name, keep=len(places))
        self._draining = False
        self._lost = False
        self._tail = EventTail(self._records)
        self._worker = self._make_worker(engine, places) if worker else None
        metrics.SLOTS.set(len(places))
        metrics.REGISTRY.register(DeviceCollector())
        metrics.REGISTRY.register(FolderCollector(settings.data))
        self._health = HealthServicer()
        self._health_port = (
            HealthPort(settings.health, self._health) if settings.health != OFF else None
        )
        self._server = self._make_server() if api else None
        self._http = self._make_http(api=api) if settings.http != "none" else None

    async def run(
        self, ready: Callable[[dict[str, str | None]], None], *, stop_on_eof: bool
    ) -> int:
        """Serves until SIGTERM or SIGINT, then drains; a second signal ends it at once.

        Args:
            ready: Called with the addresses once everything answers.
            stop_on_eof: Whether the end of standard input counts as SIGTERM.

        Returns:
            The exit status: 0, or LOST.

        Raises:
            WorkerNameInUseError: Another worker of this name shares the database.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="service"))

        def on_signal() -> None:
            if stop.is_set():
                self._pool.close()
                os._exit(1)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        if stop_on_eof:
            call_on_eof(lambda: loop.call_soon_threadsafe(stop.set))

        def on_lost() -> None:
            self._lost = True
            loop.call_soon_threadsafe(stop.set)

        addresses = await self._start(on_lost)
        log.info("serving", **addresses)
        ready(addresses)
        await stop.wait()
        await self._drain()
        return LOST if self._lost else 0

    async def _start(self, on_lost: Callable[[], None]) -> dict[str, str | None]:
        """Starts all parts; returns the addresses."""
        if self._worker is not None:
            await asyncio.to_thread(self._worker.start, on_lost)
        addresses: dict[str, str | None] = {"grpc": await self._start_server(), "http": None}
        if self._http is not None:
            addresses["http"] = await self._http.start()
        await self._report_health(serving=True)
        if self._health_port is not None:
            addresses["health"] = await self._health_port.start()
        if self._janitor is not None:
            self._janitor.start()
        if self._lock is not None:
            note_holder(self._lock, addresses["grpc"])
        return addresses

    def _make_worker(self, engine: sa.Engine, places: list[str]) -> Worker:
        settings, blobs = self._settings, self._blobs
        lease = Lease(settings, kind(places[0]), len(places), WorkerRecords(engine), self._queue)
        records = Records(engine, fence=lease.check)
        patience = Patience(settings.store_patience)
        executor = TaskExecutor(settings, records, blobs, self._pool, Slots(places), patience)
        steps = AuditSteps(records, blobs, StoredSections(SectionRecords(engine), blobs))
        return Worker(settings, places, lease, self._queue, executor, steps, patience)

    def _make_http(self, *, api: bool) -> HttpServer:
        console = Console(self._records, self._blobs, self._tail) if api else None
        access = Access(self._guard, self._quotas, metrics_open=self._settings.metrics_open)
        certificates = self._certificates if self._settings.http_tls else None
        return HttpServer(
            self._settings.http, self._records, console, access, self._queue, certificates
        )

    def _make_server(self) -> grpc.aio.Server:
        settings = self._settings
        server = grpc.aio.server(
            interceptors=[Interceptor(Gate(self._guard, self._quotas))],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                # Two servers on one port would share it silently.
                ("grpc.so_reuseport", 0),
            ],
        )
        blob_pb2_grpc.add_BlobServiceServicer_to_server(
            BlobServicer(self._blobs, settings.max_blob_bytes, self._quotas, self._ledger), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(settings, self._records, self._blobs, self._pool), server
        )
        probe_set_pb2_grpc.add_ProbeSetServiceServicer_to_server(
            ProbeSetServicer(self._records, self._blobs), server
        )
        audit_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditServicer(
                settings,
                self._records,
                self._blobs,
                self._queue,
                self._ledger,
                self._tail,
                lambda: self._draining,
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            names = [*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        return server

    async def _start_server(self) -> str | None:
        if self._server is None:
            return None
        host = self._settings.listen.rpartition(":")[0]
        if self._certificates is None:
            port = self._server.add_insecure_port(self._settings.listen)
        else:
            credentials = server_credentials(self._certificates)
            port = self._server.add_secure_port(self._settings.listen, credentials)
        await self._server.start()
        return f"{host}:{port}"

    async def _report_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        for name in ("", *SERVICES):
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def _drain(self) -> None:
        """Takes no new audits, brings running shards to an end, lets go of everything."""
        log.info("draining", timeout=self._settings.drain_timeout)
        self._draining = True
        if self._janitor is not None:
            await asyncio.to_thread(self._janitor.stop)
        await self._report_health(serving=False)
        if self._worker is not None:
            await asyncio.to_thread(self._worker.drain)
        if self._server is not None:
            await self._server.stop(GRACE)
        if self._health_port is not None:
            await self._health_port.stop()
        await self._tail.close()
        if self._http is not None:
            await self._http.stop()
        self._pool.close()
        await asyncio.to_thread(tracing.close)
        log.info("stopped")


def open_database(settings: Settings) -> sa.Engine:
    """Opens the database in the form that this version needs.

    Raises:
        WrongFormError: It has another one, and is newer or not to be migrated by this process.
    """
    engine = connect(settings.records_url)
    patience = Patience(START_PATIENCE)
    try:
        if settings.auto_migrate:
            patience(lambda: migrate(engine))
            patience(lambda: queue.migrate(settings.records_url))
        patience(lambda: require_current(engine))
    except BaseException:
        engine.dispose()
        raise
    return engine


def lock_folder(settings: Settings) -> IO[str]:
    """Makes sure that no second worker of this name runs on the data folder.

    Raises:
        FolderInUseError: One does.
    """
    folder = settings.data / "workers"
    folder.mkdir(exist_ok=True)
    path = folder / f"{settings.worker_name}.lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise FolderInUseError(
            f"a worker named {settings.worker_name!r} already runs on {settings.data}"
            + (f" ({holder})" if holder else "")
            + "; use that one (--server), or another folder (--data)"
        ) from None
    note_holder(file, None)
    return file


def note_holder(file: IO[str], address: str | None) -> None:
    """Writes into the lock file what to tell those who find it locked."""
    file.truncate(0)
    file.write(f"process {os.getpid()}" + (f", gRPC on {address}" if address else ""))
    file.flush()


def write_ready_file(path: Path, addresses: dict[str, str | None]) -> None:
    """Tells whoever started the process where it serves, all at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(addresses))
    partial.replace(path)


def call_on_eof(function: Callable[[], object]) -> None:
    """Calls a function, from another thread, when standard input ends."""

    def wait() -> None:
        while sys.stdin.buffer.read(1):
            pass
        function()

    threading.Thread(target=wait, name="standard input", daemon=True).start()


def _keep_freed_memory() -> None:
    """Lets glibc keep a few dozen MiB of freed memory; elsewhere it changes nothing.

    It else returns a message's memory to the system, and takes it anew for the next one, which
    doubles the time of a large upload. It gives the habit up for good once a block near the largest
    size that it maps for itself has been freed (mallopt(3), M_MMAP_THRESHOLD).
    """
    bytearray(31 << 20)


def run(
    settings: Settings, *, api: bool, worker: bool, ready_file: Path | None, stop_on_eof: bool
) -> None:
    """Runs a process of the service until it is told to stop; does not return.

    Raises:
        FolderInUseError: Another worker of this name runs on the data folder.
        WorkerNameInUseError: Another worker of this name shares the database.
        OSError: An address cannot be had.
    """
    _keep_freed_memory()
    logs.configure(settings.log_level)
    tracing.configure(wanted=settings.tracing, role="server" if api else "worker")
    metrics.export_zeros(method for methods in SERVICES.values() for method in methods)

    def ready(addresses: dict[str, str | None]) -> None:
        gc.freeze()
        gc.enable()
        if ready_file is not None:
            write_ready_file(ready_file, addresses)

    async def main() -> int:
        # gRPC's objects belong to the running loop.
        service = Service(settings, api=api, worker=worker)
        return await service.run(ready, stop_on_eof=stop_on_eof)

    status = asyncio.run(main())
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads whose work was handed back stand still for ever; they hold nothing worth a goodbye.
    os._exit(status)
