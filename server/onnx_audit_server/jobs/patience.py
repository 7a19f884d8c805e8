"""Waits for the database and the blob store where they are out of reach for a while."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from onnx_audit_server import logs
from onnx_audit_server.store.faults import is_transient

T = TypeVar("T")

FIRST_DELAY = 0.25
LONGEST_DELAY = 5.0
"""Seconds between two tries."""

log = logs.get(__name__)


class HandedBack(BaseException):
    """This process gives a task or an audit up without a result; another one goes on with it."""


class Patience:
    """Tries again what a store's absence broke."""

    def __init__(self, longest: float) -> None:
        """Sets how long to wait in all, in seconds, before an error is raised after all."""
        self._longest = longest
        self._over = threading.Event()

    def end(self) -> None:
        """Makes whoever waits give up; used when the process ends or has lost its work."""
        self._over.set()

    def __call__(self, function: Callable[[], T]) -> T:
        """Does something that may be done again, until it succeeds or fails for good.

        Raises:
            HandedBack: The process ends.
        """
        start, delay = time.monotonic(), FIRST_DELAY
        while True:
            try:
                return function()
            except Exception as error:
                if not is_transient(error) or time.monotonic() - start > self._longest:
                    raise
                log.warning("waiting for a store", error=str(error)[:300])
            # Not all processes should come back at the same moment.
            if self._over.wait(delay * random.uniform(0.5, 1.0)):  # noqa: S311 - no secret
                raise HandedBack
            delay = min(2 * delay, LONGEST_DELAY)
