"""What the queue's engine does in this process, as far as its public interface does not tell."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

INTERVAL = 0.1
"""Seconds between two looks for work."""
SHORT_INTERVAL, BUSY = 0.02, 1.0
"""The same, and for how many seconds since something has happened in the queue."""
LONG_INTERVAL, QUIET = 0.25, 10.0
"""The same, and after how many seconds without anything."""
AT_ONCE = 0.001
"""Seconds that the engine itself waits before a look: `Running.look` has waited already."""
REREAD = 1.0
"""Seconds for which what the database says of a queue holds."""


class Running:
    """The jobs that run in this process."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        """Nothing runs yet.

        Args:
            limits: How many jobs of each queue this process does at once.
        """
        self.limits = limits
        self._changed = threading.Condition()
        # A job that was put back may come again while its first run still stands still.
        self._jobs: Counter[str] = Counter()
        self._of_queue: Counter[str] = Counter()
        self._stirred = dict.fromkeys(limits, float("-inf"))
        self._looked = dict(self._stirred)
        self._claimed: dict[str, dict[str, float]] = {name: {} for name in limits}

    @contextmanager
    def noted(self, queue: str, job: str) -> Iterator[None]:
        """Counts a job of a queue as running."""
        with self._changed:
            self._claimed[queue].pop(job, None)
            self._jobs[job] += 1
            self._of_queue[queue] += 1
        try:
            yield
        finally:
            with self._changed:
                self._jobs[job] -= 1
                self._of_queue[queue] -= 1
                self.stir(queue)

    def stir(self, queue: str) -> None:
        """Makes the queue be looked at soon: a slot has become free, or there is new work."""
        with self._changed:
            self._stirred[queue] = time.monotonic()
            self._changed.notify_all()

    def claim(self, queue: str, jobs: Iterable[str]) -> None:
        """Counts jobs that have been taken from a queue, until they run or should have begun."""
        until = time.monotonic() + BUSY
        with self._changed:
            self._claimed[queue].update(dict.fromkeys(jobs, until))

    def look(self, queue: str) -> int:
        """Waits until it is time to look for jobs; returns how many to look for.

        What happens in this process is known at once; others' work is looked for often while one
        job follows the other, seldom while there has been none for long.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free(queue), timeout=INTERVAL)
            since = time.monotonic() - self._stirred[queue]
            pause = SHORT_INTERVAL if since < BUSY else INTERVAL if since < QUIET else LONG_INTERVAL
            self._changed.wait_for(
                lambda: self._stirred[queue] != self._looked[queue], timeout=pause
            )
            self._looked[queue] = self._stirred[queue]
            return self._free(queue)

    def _free(self, queue: str) -> int:
        now = time.monotonic()
        claimed = {job: until for job, until in self._claimed[queue].items() if until > now}
        self._claimed[queue] = claimed
        return max(0, self.limits[queue] - self._of_queue[queue] - len(claimed))

    def ids(self) -> set[str]:
        """The jobs that run now."""
        with self._changed:
            self._jobs = +self._jobs
            return set(self._jobs)


def set_slots(dbos: Any, running: Running) -> None:  # noqa: ANN401 - of a part that has no public type
    """Limits how many jobs of each queue this process does at once, and says when to look for more.

    DBOS keeps both with the queue, the same for all workers, and reads them anew at each look for
    work; a machine with eight devices and one with a single one need limits of their own.
    """
    system = dbos._sys_db  # noqa: SLF001 - see above
    read = system.get_queue
    start = system.start_queued_workflows
    known: dict[str, tuple[float, Any]] = {}

    def get_queue(name: str, **options: Any) -> Any:  # noqa: ANN401
        if threading.current_thread().name != f"queue-worker-{name}" or name not in running.limits:
            return read(name, **options)
        free = running.look(name)
        until, queue = known.get(name, (0.0, None))
        if queue is None or time.monotonic() > until:
            queue = read(name, **options)
            known[name] = time.monotonic() + REREAD, queue
        if queue is not None:
            # Beside those whose end is being written down: their slots are free already.
            active = dbos._active_workflows_set.count_for_queue(name)  # noqa: SLF001
            queue._worker_concurrency = active + free  # noqa: SLF001
            queue._polling_interval_sec = AT_ONCE  # noqa: SLF001
        return queue

    def start_queued_workflows(queue: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        found = start(queue, *arguments, **options)
        if queue.name in running.limits:
            running.claim(queue.name, found[0])
        return found

    system.get_queue = get_queue
    system.start_queued_workflows = start_queued_workflows
