"""Signed envelopes: DSSE v1.0 (https://github.com/secure-systems-lab/dsse) with one signature.

The file has one form only, compact JSON with sorted keys and canonical base64, so that no byte of
it can be altered unnoticed: neither those that are signed nor those around them.
"""

from __future__ import annotations

import json
from typing import Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined] # exported

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MOST_BYTES: Final = 16 * 1024 * 1024
"""Largest envelope that is read."""


class NotVerified(Exception):  # noqa: N818 - an answer, not a fault
    """An attestation does not say what it was asked for; the message says why."""


def sign(payload: bytes, signer: CryptoSigner) -> bytes:
    """Signs an in-toto statement; returns the envelope's file."""
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return _encode(envelope)


def verify(content: bytes, key: SSlibKey) -> bytes:
    """Returns the payload of an envelope that the key's owner has signed.

    Raises:
        NotVerified: It is no such envelope.
    """
    if len(content) > MOST_BYTES:
        raise NotVerified(f"the envelope has {len(content)} bytes, more than {MOST_BYTES}")
    try:
        envelope = Envelope.from_dict(json.loads(content))
        canonical = _encode(envelope)
    except (ValueError, KeyError, TypeError, AttributeError, FormatError):
        raise NotVerified("it is not a DSSE envelope") from None
    if canonical != content:
        raise NotVerified("the envelope is not in the form in which it was written")
    if envelope.payload_type != PAYLOAD_TYPE:
        raise NotVerified(f"the payload is {envelope.payload_type!r}, not {PAYLOAD_TYPE!r}")
    try:
        envelope.verify([key], 1)
    except VerificationError:
        others = [keyid for keyid in envelope.signatures if keyid != key.keyid]
        raise NotVerified(
            f"the signature is of another key ({others[0][:12]}..., not {key.keyid[:12]}...)"
            if others
            else "the signature does not fit the content: one of them was altered"
        ) from None
    payload: bytes = envelope.payload
    return payload


def _encode(envelope: Envelope) -> bytes:
    fields = envelope.to_dict()
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"
