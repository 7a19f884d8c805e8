"""What a service holds of the machine: to see that hostile input leaves nothing behind."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import pynvml  # type: ignore[import-untyped] # has no types
import sqlalchemy as sa
from tests.service import ServiceProcess

from onnx_audit_server.store.database import connect
from onnx_audit_server.store.tables import uploads

WARM = 2
"""Runners that may wait for work: a fresh one, and one that has read a model."""
PATIENCE = 20.0
"""Seconds until everything of a refused model has to be gone."""


@dataclass(frozen=True)
class Residue:
    """What is held.

    Attributes:
        files: Open file descriptors of the server.
        threads: Its threads.
        runners: Its living child processes.
        zombies: Its child processes that have ended and that nobody has waited for.
        scratch: Scratch folders.
        staged: Unfinished uploads.
        unaccounted: Bytes of blobs that the ledger of uploads does not know: what audits made.
        gpu_bytes: Memory in use on all GPUs.
    """

    files: int
    threads: int
    runners: int
    zombies: int
    scratch: int
    staged: int
    unaccounted: int
    gpu_bytes: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is there but what waits for work."""
        idle = self.scratch == self.runners <= WARM
        return idle and not (self.zombies or self.staged)


def look(service: ServiceProcess) -> Residue:
    """What the service holds now."""
    server = psutil.Process(service.pid)
    dead = [child.status() == psutil.STATUS_ZOMBIE for child in server.children(recursive=True)]
    blobs = {path.name: path.stat().st_size for path in service.data.glob("blobs/*/*")}
    return Residue(
        files=server.num_fds(),
        threads=server.num_threads(),
        runners=dead.count(False),
        zombies=dead.count(True),
        scratch=len(list(service.data.glob("scratch/*/runner-*"))),
        staged=len(list(service.data.glob("uploads/*"))),
        unaccounted=sum(blobs.values()) - _accounted(service, list(blobs)),
        gpu_bytes=_gpu_bytes(),
    )


def settled(service: ServiceProcess) -> Residue:
    """What the service holds once it has cleaned up; or after a while, if it does not."""
    end = time.monotonic() + PATIENCE
    while not (found := look(service)).is_clean and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _accounted(service: ServiceProcess, digests: list[str]) -> int:
    """Bytes of these blobs in the ledger that quotas and garbage collection go by."""
    engine = connect(f"sqlite:///{service.data / 'onnx-audit.sqlite'}")
    try:
        with engine.begin() as connection:
            total = sa.func.coalesce(sa.func.sum(uploads.c.size_bytes), 0)
            query = sa.select(total).where(uploads.c.sha256.in_(digests))
            return int(connection.execute(query).scalar_one())
    finally:
        engine.dispose()


def _gpu_bytes() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    finally:
        pynvml.nvmlShutdown()
