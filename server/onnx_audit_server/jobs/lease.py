"""This process's right to work, and the takeover of others' work.

Every worker counts up a number in the database. One whose number stands still for a while, seen by
a worker that could look all the time, is taken for dead: its row is fenced, which no later write of
it passes, and only then is its work put back into the queues. No clocks are compared, and a time in
which the database was away counts for nobody.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import sqlalchemy as sa

from onnx_audit_server import logs
from onnx_audit_server.jobs.patience import HandedBack
from onnx_audit_server.jobs.queue import JobQueue
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.faults import is_transient
from onnx_audit_server.store.workers import NameTakenError, WorkerRecords, WorkerRow, holds

BEATS = 6
"""Heartbeats in the time after which silence means death; as often each looks at the others."""
LONGEST_GAP = 3
"""Heartbeats between two looks beyond which the silence of others says nothing."""
FORGOTTEN_AFTER = 7 * 24 * 3600.0
"""Seconds for which a dead worker's row stays, in case it wakes up and takes new work."""

log = logs.get(__name__)


class WorkerNameInUseError(Exception):
    """Another worker of this name shares the database."""


class Silences:
    """How long each worker has not been heard of, by this process's own clock."""

    def __init__(self, takeover_after: float) -> None:
        """Starts to listen; `takeover_after` as in the settings."""
        self._takeover_after = takeover_after
        self._heard: dict[str, tuple[int, float]] = {}
        self._looked = 0.0

    def dead(self, rows: Iterable[WorkerRow], now: float) -> list[WorkerRow]:
        """Takes note of a look at some workers; returns those that are to be taken for dead."""
        if now - self._looked > LONGEST_GAP * self._takeover_after / BEATS:
            self._heard.clear()
        self._looked = now
        found, heard = [], {}
        for row in rows:
            beat, since = self._heard.get(row.id, (row.beat, now))
            heard[row.id] = (row.beat, now if row.beat != beat else since)
            if now - heard[row.id][1] >= self._takeover_after:
                found.append(row)
        self._heard = heard
        return found


class Lease:
    """The row of this process, held from `acquire` to `release`."""

    def __init__(
        self, settings: Settings, device: str, slots: int, records: WorkerRecords, queue: JobQueue
    ) -> None:
        name = settings.worker_name
        self._row = WorkerRow(
            id=f"{name}.{secrets.token_hex(4)}",
            name=name,
            host=socket.gethostname()[:255],
            process=os.getpid(),
            place=place(settings.data),
            device=device,
            slots=slots,
            started_us=now_us(),
        )
        self._records = records
        self._queue = queue
        self._takeover_after = settings.takeover_after
        self._silences = Silences(settings.takeover_after)
        self._orphans: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def id(self) -> str:
        """What tells this process from all others, also from those of its name."""
        return self._row.id

    def check(self, connection: sa.Connection) -> None:
        """Lets a write of this process's work pass if it has not been taken for dead.

        Raises:
            HandedBack: It has; another one does its work.
        """
        if not holds(connection, self.id):
            raise HandedBack

    def acquire(self) -> None:
        """Enters this process; waits for an earlier one of its name to be known as dead.

        Raises:
            WorkerNameInUseError: One of its name lives.
        """
        silences = Silences(self._takeover_after)
        beats: dict[str, int] = {}
        while True:
            try:
                self._records.add(self._row)
            except NameTakenError:
                for row in self._records.all():
                    if row.name != self._row.name:
                        continue
                    if row.beat != beats.setdefault(row.id, row.beat):
                        raise WorkerNameInUseError(
                            f"a worker named {row.name!r} already runs on host {row.host} (process "
                            f"{row.process}) with the same database; give every worker a name of "
                            "its own (--worker-name)"
                        ) from None
                    # The lock on the data folder is ours, so its last holder is gone.
                    if row.place == self._row.place or silences.dead([row], time.monotonic()):
                        self._take_over(row)
                time.sleep(self._takeover_after / BEATS / 4)
            else:
                return

    def start(self, running: Callable[[], set[str]], lost: Callable[[], None]) -> None:
        """Begins to beat and to look after the others.

        Args:
            running: Tells the ids of the jobs that run in this process.
            lost: Called, from another thread, when this process was taken for dead.
        """
        self._thread = threading.Thread(
            target=self._beat, args=(running, lost), name="lease", daemon=True
        )
        self._thread.start()

    def release(self) -> int:
        """Puts everything that was begun back into the queues; returns how many jobs that were."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        count = self._queue.hand_back([self.id])
        self._records.remove(self.id)
        return count

    def _beat(self, running: Callable[[], set[str]], lost: Callable[[], None]) -> None:
        while not self._stop.wait(self._takeover_after / BEATS):
            try:
                if not self._records.beat(self.id):
                    log.error("taken for dead", worker=self.id)
                    lost()
                    return
                self._look()
                self._put_back_orphans(running())
            except Exception as error:
                if is_transient(error):
                    log.warning("no heartbeat", error=str(error)[:300])
                else:
                    log.exception("no heartbeat")

    def _look(self) -> None:
        """Takes over from workers that have died, and from those that had taken over."""
        rows = [row for row in self._records.all() if row.id != self.id]
        alive = {self.id} | {row.id for row in rows if row.reaper is None}
        for row in self._silences.dead((r for r in rows if r.reaper is None), time.monotonic()):
            self._take_over(row)
        mine = []
        for row in rows:
            if row.reaper is None or row.reaper == self.id:
                mine += [row] if row.reaper else []
            elif row.reaper not in alive and self._records.adopt(row.id, row.reaper, self.id):
                mine.append(row)
        # One that was only paused may take a job before it learns that it is dead.
        if mine:
            self._queue.hand_back([row.id for row in mine])
        for row in mine:
            if now_us() - row.started_us > FORGOTTEN_AFTER * 1e6:
                self._records.remove(row.id)

    def _take_over(self, row: WorkerRow) -> None:
        if not self._records.fence(row.id, row.beat, self.id):
            return
        count = self._queue.hand_back([row.id])
        log.warning("took over from a dead worker", worker=row.id, host=row.host, jobs=count)
        if row.place == self._row.place and row.name == self._row.name:
            self._records.remove(row.id)

    def _put_back_orphans(self, running: set[str]) -> None:
        """Puts back jobs that are this process's in the database alone.

        The answer to a claim may be lost with the connection, and then nobody runs the job; the
        engine may also have been unable to go on with one.
        """
        now = time.monotonic()
        idle = self._queue.begun([self.id]) - running
        self._orphans = {job: self._orphans.get(job, now) for job in idle}
        over = [job for job, since in self._orphans.items() if now - since > self._takeover_after]
        if over:
            log.warning("putting back jobs that do not run", jobs=len(over))
            self._queue.put_back(over)


def place(folder: Path) -> str:
    """Id of a data folder, the same for as long as the folder exists."""
    path = folder / "workers" / "place"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(secrets.token_hex(16))
    except FileExistsError:
        pass
    return path.read_text()
