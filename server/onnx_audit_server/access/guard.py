"""Recognises who makes a call, and says whether they may."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from onnx_audit_server.access.attempts import Attempts
from onnx_audit_server.access.certificates import certificate_principal
from onnx_audit_server.access.identity import ANONYMOUS, InvalidTokenError, Principal, Scope
from onnx_audit_server.access.tokens import PREFIX, TokenInfo, Tokens
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.settings import Settings

if TYPE_CHECKING:
    from onnx_audit_server.access.oidc import OidcVerifier

REMEMBERED: Final = 5.0
"""Seconds for which a good token is not looked up again: how late a revocation may come."""
_MOST_REMEMBERED: Final = 10_000
_LONGEST: Final = 16 << 10
_HOW: Final = (
    "send `authorization: Bearer TOKEN` (the client and the command line take it from --token-file "
    "or ONNX_AUDIT_TOKEN; whoever runs the service makes one with `onnx-audit tokens create`)"
)


class Guard:
    """Knows every way in which callers of this service may say who they are."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings = settings
        self._tokens = Tokens(engine)
        self._oidc = _verifier(settings) if settings.oidc_issuer else None
        self._attempts = Attempts(settings.quota_refusals)
        self._known: OrderedDict[bytes, tuple[float, TokenInfo]] = OrderedDict()

    @property
    def asks(self) -> bool:
        """Whether anybody is asked at all."""
        return self._settings.authenticated

    async def identify(
        self, authorization: str, certificate: str | None = None, address: str = ""
    ) -> Principal:
        """Whose call it is; a token counts for more than a certificate.

        Args:
            authorization: The header of this name, empty where there is none.
            certificate: Whom the connection's certificate names, None where there is none.
            address: Where the call comes from.

        Raises:
            ServiceError: UNAUTHENTICATED, for a caller that is not recognised; QUOTA_EXCEEDED,
                where too many from there were not.
        """
        if not self.asks:
            return ANONYMOUS
        if authorization:
            return await self._attempt(authorization, address)
        if certificate is not None:
            return certificate_principal(certificate, self._settings.certificate_scopes)
        raise unauthenticated("this service answers only those that say who they are")

    async def _attempt(self, authorization: str, address: str) -> Principal:
        """Whose a header is; failures count for where it comes from."""
        self._attempts.check(address, authorization)
        try:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise unauthenticated("the authorization header holds no bearer token")
            principal = await self._bearer(token.strip())
        except ServiceError:
            self._attempts.failed(address, authorization)
            raise
        self._attempts.succeeded(authorization)
        return principal

    async def _bearer(self, token: str) -> Principal:
        if not token or len(token) > _LONGEST or not token.isascii():
            raise unauthenticated("the token is empty, too long or malformed")
        if token.startswith(PREFIX):
            info = await self._api_token(token)
            if info.state != "active":
                raise unauthenticated(f"the token {info.identifier} of {info.name} is {info.state}")
            return info.principal
        if self._oidc is None:
            raise unauthenticated("the token is not one of this service's API tokens")
        try:
            return await asyncio.to_thread(self._oidc.verify, token)
        except InvalidTokenError as error:
            raise unauthenticated(f"the token is not accepted: {error}") from None

    async def _api_token(self, token: str) -> TokenInfo:
        key = hashlib.sha256(token.encode()).digest()
        until, info = self._known.pop(key, (0.0, None))
        if info is not None and time.monotonic() < until:
            self._known[key] = until, info
            return info
        found = await asyncio.to_thread(self._tokens.find, token)
        if found is None:
            raise unauthenticated("the token is not one of this service's API tokens")
        self._known[key] = time.monotonic() + REMEMBERED, found
        while len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return found


def _verifier(settings: Settings) -> OidcVerifier:
    # Cryptography takes long to import.
    from onnx_audit_server.access.oidc import OidcVerifier  # noqa: PLC0415

    return OidcVerifier(settings)


def unauthenticated(problem: str) -> ServiceError:
    """The answer to somebody who was not recognised."""
    return ServiceError("UNAUTHENTICATED", f"{problem}; {_HOW}")


def check_scope(principal: Principal, scope: Scope, what: str) -> None:
    """Raises PERMISSION_DENIED where a principal may not do what it asks for."""
    if scope in principal.scopes:
        return
    held = ", ".join(sorted(principal.scopes)) or "none"
    raise ServiceError(
        "PERMISSION_DENIED",
        f"{what} needs the scope {scope}; {principal.name} has {held}: use a token with more "
        "scopes, or have whoever runs the service grant one",
        metadata={"principal": principal.name, "scope": scope, "held": held},
    )
