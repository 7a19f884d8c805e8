"""Takes secrets out of text that leaves the process, whoever has put them there."""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "***"
_SECRETS: Final = (
    # API tokens: the part that is no secret stays, so that one can be found and revoked.
    (re.compile(r"(oat_[0-9a-f]{12}_)[A-Za-z0-9_-]+"), rf"\1{HIDDEN}"),
    # Signed JWTs: header, claims, signature.
    (re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), HIDDEN),
    (re.compile(r"((?i:bearer)\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{HIDDEN}"),
    # The password in a URL; it may itself hold a slash or an @ that nobody has quoted.
    (re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s:/@\"]*:)[^\s\"]+(?=@)"), rf"\1{HIDDEN}"),
)


def redact(text: str) -> str:
    """The text with tokens and the passwords of URLs made unreadable."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
