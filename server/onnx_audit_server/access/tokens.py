"""API tokens: made here, shown once, kept as digests."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from onnx_audit_server.access.identity import Principal, Scope
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.tables import tokens

PREFIX: Final = "oat_"
"""Begins every token, so that people and scanners of secrets know one when they see it."""
_TOKEN: Final = re.compile(r"oat_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_SECRET_BYTES: Final = 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,99}")
"""What a token may be called."""


@dataclass(frozen=True)
class TokenInfo:
    """What is known of a token besides its secret.

    Attributes:
        identifier: Tells it from others; a part of the token that is no secret.
        name: Whose it is; tokens of one name are one principal.
        scopes: What it allows.
        created_us: When it was made, in microseconds since 1970.
        expires_us: When it ends, None if it does not.
        revoked_us: When it was revoked, None if it was not.
    """

    identifier: str
    name: str
    scopes: tuple[Scope, ...]
    created_us: int
    expires_us: int | None
    revoked_us: int | None

    @property
    def state(self) -> str:
        """One of "active", "expired" and "revoked"."""
        if self.revoked_us is not None:
            return "revoked"
        expired = self.expires_us is not None and now_us() >= self.expires_us
        return "expired" if expired else "active"

    @property
    def principal(self) -> Principal:
        """Whom the token stands for."""
        return Principal.with_scopes(f"token:{self.name}", self.scopes)


class Tokens:
    """The table of tokens; every method is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(read_only=True)

    def create(self, name: str, scopes: tuple[Scope, ...], lifetime: float | None) -> str:
        """Makes a token and returns it, for the only time.

        Its secret has 256 random bits: no dictionary helps against its digest, so that one round of
        SHA-256 is enough.

        Args:
            name: Whose it is; must match NAME.
            scopes: What it allows; at least one.
            lifetime: Seconds until it ends, None for never.

        Raises:
            ValueError: The name or the scopes cannot be.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for a token: 1 to 100 of A-Z a-z 0-9 . _ @ / -, beginning "
                "with a letter or digit"
            )
        if not scopes:
            raise ValueError("a token needs at least one scope")
        identifier = secrets.token_hex(6)
        token = f"{PREFIX}{identifier}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        created = now_us()
        row = {
            "id": identifier,
            "name": name,
            "sha256": _digest(token),
            "scopes": ",".join(scopes),
            "created_us": created,
            "expires_us": None if lifetime is None else created + round(lifetime * 1e6),
        }
        with self._engine.begin() as connection:
            connection.execute(sa.insert(tokens).values(row))
        return token

    def list(self) -> list[TokenInfo]:
        """All tokens, oldest first."""
        query = sa.select(tokens).order_by(tokens.c.created_us, tokens.c.id)
        with self._reader.begin() as connection:
            return [_info(row) for row in connection.execute(query)]

    def revoke(self, identifier: str) -> TokenInfo | None:
        """Makes a token useless; None where there is none of this id."""
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(tokens)
                .where(tokens.c.id == identifier, tokens.c.revoked_us.is_(None))
                .values(revoked_us=now_us())
            )
            row = connection.execute(sa.select(tokens).where(tokens.c.id == identifier)).first()
        return None if row is None else _info(row)

    def find(self, token: str) -> TokenInfo | None:
        """What is known of a token, in whatever state; None for one that was never given out."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        query = sa.select(tokens).where(tokens.c.id == match.group(1))
        with self._reader.begin() as connection:
            row = connection.execute(query).first()
        known = row.sha256 if row is not None else ""
        if not hmac.compare_digest(known, _digest(token)) or row is None:
            return None
        return _info(row)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _info(row: sa.Row[tuple[object, ...]]) -> TokenInfo:
    return TokenInfo(
        identifier=row.id,
        name=row.name,
        scopes=tuple(Scope(scope) for scope in row.scopes.split(",")),
        created_us=row.created_us,
        expires_us=row.expires_us,
        revoked_us=row.revoked_us,
    )
