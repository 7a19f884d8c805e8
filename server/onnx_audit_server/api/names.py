"""Resource names, digests and page tokens: what is well formed, and errors for what is not."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.store.records import Cursor

DIGEST = re.compile(r"[0-9a-f]{64}")
AUDIT_ID = re.compile(r"[0-9a-z-]{1,64}")
DEFAULT_PAGE = 50
MAX_PAGE = 1000
MAX_TOKEN = 200
"""Longest page token, in characters."""
MAX_TIME = 2**63 - 1
"""Latest time in a page token, in microseconds since 1970: what databases take."""


def check_digest(value: str, field: str) -> str:
    """Returns a SHA-256 digest.

    Raises:
        ServiceError: It is not 64 lower-case hexadecimal characters.
    """
    if not DIGEST.fullmatch(value):
        raise invalid((field, f"{value!r} is not 64 lower-case hexadecimal characters"))
    return value


def parse(name: str, collection: str, field: str = "name") -> str:
    """The id in a name such as `models/{sha256}`.

    Raises:
        ServiceError: The name has another form.
    """
    head, _, identifier = name.partition("/")
    pattern, form = (AUDIT_ID, "{id}") if collection == "audits" else (DIGEST, "{sha256}")
    if head != collection or not pattern.fullmatch(identifier):
        raise invalid((field, f"{name!r} is not of the form {collection}/{form}"))
    return identifier


def parse_report(name: str, field: str = "name") -> str:
    """The audit's id in `audits/{id}/report`.

    Raises:
        ServiceError: The name has another form.
    """
    head, _, tail = name.rpartition("/")
    if tail != "report":
        raise invalid((field, f"{name!r} is not of the form audits/{{id}}/report"))
    return parse(head, "audits", field)


def page_size(asked: int) -> int:
    """The number of rows of a page.

    Raises:
        ServiceError: It is negative; too large ones are cut, as AIP-158 asks.
    """
    if asked < 0:
        raise invalid(("page_size", f"{asked} is negative; 0 means {DEFAULT_PAGE}"))
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def encode_token(cursor: Cursor | None) -> str:
    """A page token that stands for a cursor."""
    if cursor is None:
        return ""
    text = json.dumps([cursor.created_us, cursor.key])
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode_token(token: str) -> Cursor | None:
    """The cursor of a page token, None for the first page.

    Raises:
        ServiceError: No response of this service had this token.
    """
    if not token:
        return None
    created, key = _decoded(token)
    whole = type(created) is int and 0 <= created <= MAX_TIME
    if not whole or not isinstance(key, str) or not AUDIT_ID.fullmatch(key):
        raise invalid(("page_token", "is not a token that a response of this service had"))
    return Cursor(created, key)


def _decoded(token: str) -> tuple[Any, Any]:
    if len(token) > MAX_TOKEN:
        return None, None
    try:
        created, key = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError):
        return None, None
    return created, key


def not_found(name: str) -> ServiceError:
    """The error for a resource that does not exist."""
    return ServiceError("NOT_FOUND", f"{name} does not exist", metadata={"resource": name})
