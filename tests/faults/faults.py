"""What can befall a fleet; each fault happens, lasts, and is over when its function returns."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from tests.faults.fleet import TAKEOVER, Fleet, Member

Fault = Callable[[Fleet, random.Random], None]


def kill_worker(fleet: Fleet, draw: random.Random) -> None:
    """Kill -9 of a worker, which comes back at once."""
    worker = _kill(draw.choice(fleet.workers))
    worker.start()


def lose_worker(fleet: Fleet, draw: random.Random) -> None:
    """Kill -9 of a worker, which does not come back before the others have noticed."""
    worker = _kill(draw.choice(fleet.workers))
    time.sleep(2 * TAKEOVER)
    worker.start()


def pause_worker(fleet: Fleet, draw: random.Random) -> None:
    """A worker stands still for a while, perhaps until others have taken it for dead."""
    worker = draw.choice(fleet.workers)
    worker.signal(signal.SIGSTOP)
    time.sleep(draw.choice([0.3, 1.0, 2 * TAKEOVER]))
    worker.signal(signal.SIGCONT)
    # One that was taken for dead ends when it notices.
    time.sleep(1.0)
    if not worker.alive:
        worker.start()


def drain_worker(fleet: Fleet, draw: random.Random) -> None:
    """SIGTERM of a worker, which comes back when it has ended."""
    _drain(draw.choice(fleet.workers))


def kill_runner(fleet: Fleet, draw: random.Random) -> None:
    """Kill -9 of the isolated processes of a worker."""
    for pid in draw.choice(fleet.workers).runners():
        os.kill(pid, signal.SIGKILL)


def kill_server(fleet: Fleet, draw: random.Random) -> None:
    """Kill -9 of a server, which comes back at once."""
    server = _kill(draw.choice(fleet.servers))
    server.start()
    fleet.start()


def pause_server(fleet: Fleet, draw: random.Random) -> None:
    """A server stands still for a while."""
    server = draw.choice(fleet.servers)
    server.signal(signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 2.0))
    server.signal(signal.SIGCONT)


def drain_server(fleet: Fleet, draw: random.Random) -> None:
    """SIGTERM of a server, which comes back when it has ended."""
    _drain(draw.choice(fleet.servers))
    fleet.start()


def cut_database(fleet: Fleet, draw: random.Random) -> None:
    """All connections to the database break, and there are no new ones for a while."""
    assert fleet.stores.database is not None
    fleet.stores.database.cut()
    time.sleep(draw.choice([0.0, 0.5, 2.0, 1.5 * TAKEOVER]))
    fleet.stores.database.mend()


def restart_database(fleet: Fleet, draw: random.Random) -> None:
    """The database's server is stopped, in order or as in a crash, and started again."""
    assert fleet.stores.postgres is not None
    fleet.stores.postgres.stop(draw.choice([signal.SIGINT, signal.SIGQUIT]))
    time.sleep(draw.choice([0.0, 1.0]))
    fleet.stores.postgres.start()


def pause_database(fleet: Fleet, draw: random.Random) -> None:
    """The database's server stands still for a while."""
    assert fleet.stores.postgres is not None
    os.kill(fleet.stores.postgres.pid, signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 2.0))
    os.kill(fleet.stores.postgres.pid, signal.SIGCONT)


def cut_blobs(fleet: Fleet, draw: random.Random) -> None:
    """All connections to the blob store break, and there are no new ones for a while."""
    assert fleet.stores.blobs is not None
    fleet.stores.blobs.cut()
    time.sleep(draw.choice([0.0, 0.5, 3.0]))
    fleet.stores.blobs.mend()


def pause_blobs(fleet: Fleet, draw: random.Random) -> None:
    """The blob store's server stands still for a while."""
    assert fleet.stores.s3 is not None
    fleet.stores.s3.send_signal(signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 2.0))
    fleet.stores.s3.send_signal(signal.SIGCONT)


OF_PROCESSES: tuple[Fault, ...] = (
    kill_worker,
    lose_worker,
    pause_worker,
    drain_worker,
    kill_runner,
    kill_server,
    pause_server,
    drain_server,
)
OF_STORES: tuple[Fault, ...] = (
    cut_database,
    restart_database,
    pause_database,
    cut_blobs,
    pause_blobs,
)
"""Those that need real servers."""


def _kill(member: Member) -> Member:
    member.kill()
    return member


def _drain(member: Member) -> None:
    member.stop()
    member.start()
