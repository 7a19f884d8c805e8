"""Quotas of one process: calls per second, and uploads at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from onnx_audit_server.access.identity import ANONYMOUS, Principal
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.settings import Settings

BURST: Final = 2.0
"""Seconds' worth of calls that may come at once."""
UPLOAD_RETRY: Final = 1.0
"""Seconds after which a refused upload may come again."""
_MOST_BUCKETS: Final = 10_000


class TokenBucket:
    """Lets through so many calls per second, and a burst after a pause."""

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.monotonic, burst: float = BURST
    ) -> None:
        """Starts full.

        Args:
            rate: Calls per second.
            clock: Gives the seconds that go by.
            burst: Seconds' worth of calls that may come at once.
        """
        self._rate = rate
        self._size = max(1.0, rate * burst)
        self._level = self._size
        self._clock = clock
        self._at = clock()

    def wait(self) -> float:
        """Seconds until the next call would be let through, 0 if it would be now."""
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1.0 - self._level) / self._rate)

    def take(self) -> None:
        """Counts a call that is let through."""
        self._level -= 1.0


class ProcessQuotas:
    """What is counted in this process alone; for the event loop and other threads."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        rate = settings.quota_requests_total
        self._total = TokenBucket(rate, clock) if rate else None
        self._uploads: Counter[str] = Counter()

    def count_call(self, principal: Principal) -> None:
        """Lets a call through.

        Raises:
            ServiceError: QUOTA_EXCEEDED, where there are too many; it says how long to wait.
        """
        with self._lock:
            own = self._bucket(principal)
            # A call that one of them refuses counts for neither.
            waits = [bucket.wait() if bucket else 0.0 for bucket in (own, self._total)]
            if not any(waits):
                for bucket in filter(None, (own, self._total)):
                    bucket.take()
                return
        whose, limit = (
            (principal.name, self._settings.quota_requests)
            if waits[0]
            else ("", self._settings.quota_requests_total)
        )
        raise exceeded("requests", whose, limit, limit, "calls per second", retry_after=max(waits))

    @contextlib.contextmanager
    def upload(self, principal: Principal) -> Iterator[None]:
        """Counts an upload for as long as it lasts.

        Raises:
            ServiceError: QUOTA_EXCEEDED, where there are too many at once.
        """
        own, total = self._settings.quota_uploads, self._settings.quota_uploads_total
        if principal == ANONYMOUS:
            own = 0
        with self._lock:
            used, all_used = self._uploads[principal.name], self._uploads.total()
            if own and used >= own:
                raise exceeded(
                    "uploads", principal.name, own, used, "uploads at once", UPLOAD_RETRY
                )
            if total and all_used >= total:
                raise exceeded("uploads", "", total, all_used, "uploads at once", UPLOAD_RETRY)
            self._uploads[principal.name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._uploads[principal.name] -= 1
                self._uploads += Counter()  # drops those at zero

    def _bucket(self, principal: Principal) -> TokenBucket | None:
        """The principal's bucket; those that have not been used for longest are forgotten."""
        if principal == ANONYMOUS or not self._settings.quota_requests:
            return None
        bucket = self._buckets.pop(principal.name, None)
        if bucket is None:
            bucket = TokenBucket(self._settings.quota_requests, self._clock)
        self._buckets[principal.name] = bucket
        while len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return bucket


def exceeded(
    quota: str, whose: str, limit: float, used: float, unit: str, retry_after: float
) -> ServiceError:
    """The answer to a call for which there is no room.

    Args:
        quota: Name of the quota: its setting without "quota_" and "_total".
        whose: The principal, empty for the quota of all together.
        limit: What is allowed.
        used: What is in use.
        unit: What is counted.
        retry_after: Seconds after which there may be room.
    """
    setting = f"quota_{quota}" if whose else f"quota_{quota}_total"
    allowed, found = _plain(limit), _plain(used)
    return ServiceError(
        "QUOTA_EXCEEDED",
        f"{whose or 'this service'} may have {allowed} {unit} ({setting}) and has {found}; "
        f"try again in {retry_after:.3g} s",
        metadata={
            "quota": quota,
            "scope": "principal" if whose else "total",
            "setting": setting,
            "limit": allowed,
            "used": found,
        },
        retry_after=retry_after,
    )


def _plain(number: float) -> str:
    return f"{number:g}" if number % 1 else str(int(number))
