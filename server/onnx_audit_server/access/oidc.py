"""Bearer tokens of an identity provider: JWTs as of OpenID Connect (RFC 7519, RFC 9068)."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from onnx_audit_server import logs
from onnx_audit_server.access.identity import InvalidTokenError, Principal, Scope
from onnx_audit_server.settings import Settings

LIFESPAN: Final = 600.0
"""Seconds after which the provider's keys are read again."""
PAUSE: Final = 30.0
"""Seconds between two readings that an unknown key, or a provider out of reach, brings about."""
_TIMEOUT: Final = 10.0
_LONGEST: Final = 1 << 20
_DISCOVERY: Final = "/.well-known/openid-configuration"
_LONGEST_SUBJECT: Final = 200
_KINDS: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Kind of key by the first letters of the algorithms that it is for."""

log = logs.get(__name__)


class Keys:
    """The public keys of a provider, by key id."""

    def __init__(
        self,
        load: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keeps what `load` returns, a JSON Web Key Set (RFC 7517), for LIFESPAN seconds."""
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")

    def find(self, identifier: str) -> jwt.PyJWK:
        """The key of this id; keys that are not known are looked for anew, but not all the time.

        Raises:
            InvalidTokenError: The provider has no such key, or has never been reached.
        """
        key = self._known.get(identifier)
        if key is not None and self._clock() - self._read_at < LIFESPAN:
            return key
        # Whoever has a key does not wait for somebody else who is asking a slow provider.
        if self._lock.acquire(blocking=key is None):
            try:
                self._refresh(identifier)
            finally:
                self._lock.release()
            key = self._known.get(identifier)
        if key is None:
            raise InvalidTokenError(
                "it was signed with a key that the identity provider does not have"
            )
        return key

    def _refresh(self, identifier: str) -> None:
        """Reads the keys anew where that is due and was not tried just now."""
        now = self._clock()
        due = identifier not in self._known or now - self._read_at >= LIFESPAN
        if not due or now - self._tried_at < PAUSE:
            return
        self._tried_at = now
        try:
            entries = self._load()["keys"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            # The keys that are known stay good.
            log.warning("cannot read the identity provider's keys", error=str(error))
            return
        self._known = dict(filter(None, map(_key, entries)))
        self._read_at = now


def _key(entry: Mapping[str, Any]) -> tuple[str, jwt.PyJWK] | None:
    """A key set's entry by its id; None for one that signs no tokens, or of an unknown kind."""
    try:
        if entry.get("use", "sig") != "sig" or entry["kty"] not in {"RSA", "EC", "OKP"}:
            return None
        return str(entry["kid"]), jwt.PyJWK(dict(entry))
    except (KeyError, AttributeError, jwt.PyJWTError):
        return None


class OidcVerifier:
    """Says whom a provider's token stands for."""

    def __init__(self, settings: Settings, keys: Keys | None = None) -> None:
        self._settings = settings
        self._keys = keys or Keys(lambda: _read_key_set(settings.oidc_jwks, settings.oidc_issuer))

    def verify(self, token: str) -> Principal:
        """Checks signature, issuer, audience and times; may wait for the provider.

        Raises:
            InvalidTokenError: The token is not good.
        """
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in settings.oidc_algorithms:
                raise InvalidTokenError(
                    f"its algorithm is not one of {', '.join(settings.oidc_algorithms)}"
                )
            key = self._keys.find(str(header.get("kid", "")))
            if _KINDS.get(header["alg"][:2]) != key.key_type:
                raise InvalidTokenError("its algorithm is not that of the key it names")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                issuer=settings.oidc_issuer,
                audience=settings.oidc_audience,
                leeway=settings.oidc_leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise InvalidTokenError(_words(error)) from None
        subject = claims["sub"]
        if not subject or len(subject) > _LONGEST_SUBJECT or not subject.isprintable():
            raise InvalidTokenError(
                f"its subject is not 1 to {_LONGEST_SUBJECT} printable characters"
            )
        return Principal.with_scopes(f"oidc:{subject}", self._scopes(claims))

    def _scopes(self, claims: Mapping[str, Any]) -> list[Scope]:
        given = claims.get(self._settings.oidc_scope_claim, "")
        values = given.split() if isinstance(given, str) else given
        if not isinstance(values, list):
            return []
        table = self._settings.oidc_scopes
        return [table[value] for value in values if isinstance(value, str) and value in table]


def _words(error: jwt.PyJWTError) -> str:
    """What is wrong with a token, without anything out of it."""
    known: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
        (jwt.ExpiredSignatureError, "it has expired"),
        (jwt.ImmatureSignatureError, "it is not valid yet"),
        (jwt.InvalidIssuerError, "its issuer is not the configured one"),
        (jwt.InvalidAudienceError, "it was issued for another audience"),
        (jwt.MissingRequiredClaimError, "it lacks one of the claims exp, iss, aud and sub"),
        (jwt.InvalidSignatureError, "its signature is wrong"),
    )
    return next((words for kind, words in known if isinstance(error, kind)), "it is malformed")


def _read_key_set(source: str, issuer: str) -> Mapping[str, Any]:
    """Reads a key set from a file or URL; without one from where the issuer says (discovery)."""
    if not source:
        found = _fetch(issuer.rstrip("/") + _DISCOVERY)
        if found.get("issuer") != issuer:
            raise ValueError(f"{issuer}{_DISCOVERY} is about another issuer")
        source = str(found["jwks_uri"])
    if "://" in source:
        return _fetch(source)
    content: Mapping[str, Any] = json.loads(Path(source).read_text(encoding="utf-8"))
    return content


def _fetch(url: str) -> Mapping[str, Any]:
    check_url(url)
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 - checked above
        check_url(response.geturl())  # where redirections have led
        content = json.loads(response.read(_LONGEST))
    if not isinstance(content, dict):
        raise ValueError(f"{url} holds no JSON object")  # noqa: TRY004 - the content is wrong
    return content


def check_url(url: str) -> None:
    """Refuses an address from which keys could come that somebody on the way has put there.

    Raises:
        ValueError: It is neither https nor on this machine.
    """
    parts = urlsplit(url)
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError(f"{url!r} must be an https URL: whoever answers decides who is let in")
