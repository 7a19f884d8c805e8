"""Collects garbage from time to time, in one server of all."""

from __future__ import annotations

import os
import secrets
import socket
import threading

import sqlalchemy as sa

from onnx_audit_server import logs
from onnx_audit_server.jobs.queue import JobQueue
from onnx_audit_server.retention.collecting import Collection, Figures
from onnx_audit_server.retention.marking import Policy
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.chores import Chore

CHORE = "gc"
LOOKS = 60.0
"""Most seconds between two looks whether a collection is due."""

log = logs.get(__name__)


class BusyError(Exception):
    """Another process is collecting."""


class Janitor:
    """Runs the garbage collection, now or from time to time."""

    def __init__(
        self, settings: Settings, engine: sa.Engine, blobs: BlobStore, queue: JobQueue
    ) -> None:
        self._engine = engine
        self._blobs = blobs
        self._queue = queue
        self._interval = settings.gc_interval
        self._policy = Policy(
            audits=settings.retain_audits,
            inputs=settings.retain_inputs,
            blobs=settings.retain_blobs,
        )
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._chore = Chore(engine, CHORE, holder)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="janitor", daemon=True)

    def start(self) -> None:
        """Starts to collect whenever it is due, unless the interval is 0."""
        if self._interval:
            self._thread.start()

    def stop(self) -> None:
        """Ends after the piece that is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def collect(self, *, dry_run: bool = False) -> Figures:
        """Collects now.

        Raises:
            BusyError: Another process does.
        """
        if not self._chore.begin():
            raise BusyError("another process is collecting garbage; try again when it has ended")
        return self._collect(dry_run=dry_run)

    def _collect(self, *, dry_run: bool = False) -> Figures:
        done = False
        try:
            figures = Collection(
                self._engine,
                self._blobs,
                self._queue,
                self._policy,
                dry_run=dry_run,
                alive=self._alive,
            ).run()
            done = not dry_run
        finally:
            self._chore.end(done=done)
        return figures

    def _alive(self) -> None:
        if self._stopping.is_set():
            raise InterruptedError("the process is ending")
        self._chore.renew()

    def _loop(self) -> None:
        while not self._stopping.wait(min(LOOKS, self._interval / 10)):
            try:
                if self._chore.begin(self._interval):
                    figures = self._collect()
                    log.info("garbage collected", **figures.counts, freed_bytes=figures.freed_bytes)
            except InterruptedError:
                return
            except Exception:
                log.exception("garbage collection failed")
