"""Principals: who makes a call, and what they may do."""

from __future__ import annotations

import contextvars
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self


class InvalidTokenError(Exception):
    """A token that is not accepted; says why, in words that hold nothing of the token."""


class Scope(enum.StrEnum):
    """What a principal may do; a later scope includes those before it."""

    READ = "read"
    """See models, audits, reports, blobs, the console and the metrics."""
    SUBMIT = "submit"
    """Upload, start audits, and cancel one's own."""
    ADMIN = "admin"
    """Cancel the audits of others too."""

    @property
    def includes(self) -> frozenset[Scope]:
        """This scope and those that it includes."""
        order = list(Scope)
        return frozenset(order[: order.index(self) + 1])


@dataclass(frozen=True)
class Principal:
    """Somebody who was recognised.

    Attributes:
        name: Kind and name, such as "token:ci", "oidc:repo:acme/models" or "cert:ci.example.org".
        scopes: What they may do.
    """

    name: str
    scopes: frozenset[Scope]

    @classmethod
    def with_scopes(cls, name: str, scopes: Iterable[Scope]) -> Self:
        """A principal with some scopes and all that they include."""
        return cls(name, frozenset(inner for scope in scopes for inner in scope.includes))


ANONYMOUS: Final = Principal.with_scopes("anonymous", [Scope.ADMIN])
"""Everybody, where the service asks nobody who they are."""

_current: contextvars.ContextVar[Principal] = contextvars.ContextVar("principal", default=ANONYMOUS)


def current() -> Principal:
    """The principal of the call that this code works for, also in threads that it waits for."""
    return _current.get()


def enter(principal: Principal) -> None:
    """Notes whose call this context works for from now on."""
    _current.set(principal)
