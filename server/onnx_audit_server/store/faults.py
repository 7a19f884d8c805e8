"""Which errors mean that a store is out of reach for now, so that the same call may yet succeed."""

from __future__ import annotations

import sqlalchemy as sa
from obstore.exceptions import GenericError


def is_transient(error: BaseException) -> bool:
    """Whether an error of the database or the blob store may pass by itself.

    These are lost and refused connections, time-outs, deadlocks, a full disk, and answers of the
    blob store that say nothing of the request.
    """
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(
        error,
        (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, GenericError),
    )
