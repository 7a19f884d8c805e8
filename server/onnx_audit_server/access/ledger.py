"""Quotas that hold for all processes of a service: they are counted in its database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from onnx_audit_server.access.identity import ANONYMOUS, Principal
from onnx_audit_server.access.quotas import exceeded
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.database import lock
from onnx_audit_server.store.records import ENDED
from onnx_audit_server.store.tables import audits, uploads

STEP: Final = 64 << 20
"""Bytes for which a growing upload asks at once, so that not every chunk costs a transaction."""
AUDITS_RETRY: Final = 10.0
"""Seconds after which there may be room for another audit."""
BYTES_RETRY: Final = 3600.0
"""Seconds after which old blobs may have been removed."""
_LOCKS: Final = {"audits": 0x6F617564, "uploads": 0x6F75706C}
"""Keys of the advisory locks that make counting and adding one step on PostgreSQL."""


class Ledger:
    """Counts audits and stored bytes."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings = settings
        self._engine = engine

    def admit_audit(self, connection: sa.Connection, principal: Principal) -> None:
        """Checks the quotas of audits in the transaction that has added one of the principal's.

        Raises:
            ServiceError: QUOTA_EXCEEDED; the transaction must not be committed.
        """
        own, total = self._settings.quota_audits, self._settings.quota_audits_total
        lock(connection, _LOCKS["audits"])
        live = audits.c.state.not_in([int(state) for state in ENDED])
        for limit, whose in ((own, principal.name), (total, "")):
            if not limit or (whose and principal == ANONYMOUS):
                continue
            query = sa.select(sa.func.count()).select_from(audits).where(live)
            if whose:
                query = query.where(audits.c.principal == whose)
            others = connection.execute(query).scalar_one() - 1
            if others >= limit:
                raise exceeded(
                    "audits", whose, limit, others, "audits queued or running", AUDITS_RETRY
                )

    def reserve(self, sha256: str, principal: Principal, size: int) -> None:
        """Counts a blob of a size, in the place of what was counted for it, for whoever brings it.

        Raises:
            ServiceError: QUOTA_EXCEEDED; what was counted stays.
        """
        with self._engine.begin() as connection:
            lock(connection, _LOCKS["uploads"])
            self._check_bytes(connection, sha256, principal, size)
            values = {"principal": principal.name, "size_bytes": size}
            update = sa.update(uploads).where(uploads.c.sha256 == sha256).values(values)
            if not connection.execute(update).rowcount:
                connection.execute(sa.insert(uploads).values(sha256=sha256, **values))

    def forget(self, digests: Iterable[str]) -> None:
        """Counts blobs, or uploads that were given up, no longer: they have been removed."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(uploads).where(uploads.c.sha256.in_(list(digests))))

    def _check_bytes(
        self, connection: sa.Connection, sha256: str, principal: Principal, size: int
    ) -> None:
        own, total = self._settings.quota_bytes, self._settings.quota_bytes_total
        for limit, whose in ((own, principal.name), (total, "")):
            if not limit or (whose and principal == ANONYMOUS):
                continue
            query = sa.select(sa.func.coalesce(sa.func.sum(uploads.c.size_bytes), 0))
            query = query.where(uploads.c.sha256 != sha256)
            if whose:
                query = query.where(uploads.c.principal == whose)
            used = int(connection.execute(query).scalar_one())
            if used + size > limit:
                raise exceeded("bytes", whose, limit, used, "bytes stored", BYTES_RETRY)


class Reservation:
    """What one upload is counted for, a little ahead of what has come."""

    def __init__(self, ledger: Ledger, sha256: str, principal: Principal) -> None:
        self._ledger = ledger
        self._sha256 = sha256
        self._principal = principal
        self._reserved = -1

    def needs(self, size: int) -> bool:
        """Whether `grow` has to be called before the upload reaches a size."""
        return size > self._reserved

    def grow(self, size: int, *, last: bool) -> None:
        """Counts the upload up to a size at least.

        Args:
            size: Bytes that it is about to have.
            last: Whether it grows no further.

        Raises:
            ServiceError: QUOTA_EXCEEDED.
        """
        ahead = size if last else size + STEP
        try:
            self._ledger.reserve(self._sha256, self._principal, ahead)
        except ServiceError:
            # Close to the limit there may be room for what has come, but not for the step.
            if last:
                raise
            self._ledger.reserve(self._sha256, self._principal, size)
            ahead = size
        self._reserved = ahead

    def settle(self, size: int) -> None:
        """Counts what the upload has in the end."""
        if self._reserved > size:
            self._ledger.reserve(self._sha256, self._principal, size)

    def drop(self) -> None:
        """Counts it no longer: nothing of it was kept."""
        self._reserved = -1
        self._ledger.forget([self._sha256])
