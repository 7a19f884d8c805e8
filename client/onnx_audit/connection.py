"""Where a service is, how the way there is encrypted, and who calls."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import grpc

from onnx_audit.errors import ConfigError

Token: TypeAlias = str | Callable[[], str]
"""A bearer token, or what returns the present one, asked before every call."""
PathLike: TypeAlias = str | os.PathLike[str]

_TLS: Final = "https://"
_PLAIN: Final = "http://"


@dataclass(frozen=True)
class Connection:
    """How to reach a service.

    Attributes:
        target: Address, host:port. https:// before it asks for TLS, http:// for none; without
            either there is TLS where `tls`, `ca` or `certificate` ask for it.
        token: The bearer token: an API token, or a JWT of the identity provider.
        tls: Whether to use TLS.
        ca: File with the authorities that the service's certificate must be of, PEM; by default
            those that gRPC brings along.
        certificate: File with the client's own certificate, PEM, for a service that wants one.
        key: File with its private key, PEM.
    """

    target: str
    token: Token | None = field(default=None, repr=False)
    tls: bool = False
    ca: PathLike | None = None
    certificate: PathLike | None = None
    key: PathLike | None = None

    def __post_init__(self) -> None:
        """Checks what can be wrong before anything is sent.

        Raises:
            ConfigError: Parts contradict each other, or a token would be sent for all to read.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("certificate and key go together: one is given without the other")
        plain = self.target.startswith(_PLAIN)
        if plain and (self.tls or self.ca or self.certificate):
            raise ConfigError(f"{self.target} asks for no TLS, and other settings ask for it")
        if self.token is not None and not (self.encrypted or plain or _is_local(self.address)):
            raise ConfigError(
                f"the token would be sent to {self.address} for everybody on the way to read: use "
                f"TLS ({_TLS}{self.address}), or say {_PLAIN}{self.address} if that is meant"
            )

    @property
    def encrypted(self) -> bool:
        """Whether the connection has TLS."""
        asked = self.tls or self.ca is not None or self.certificate is not None
        return asked or self.target.startswith(_TLS)

    @property
    def address(self) -> str:
        """The address as gRPC wants it."""
        return self.target.removeprefix(_TLS).removeprefix(_PLAIN).rstrip("/")

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel is opened with; None for one without TLS.

        Raises:
            ConfigError: A file cannot be read.
        """
        if not self.encrypted:
            return None
        return grpc.ssl_channel_credentials(
            _content(self.ca), _content(self.key), _content(self.certificate)
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call.

        Raises:
            ConfigError: The token cannot be one.
        """
        if self.token is None:
            return ()
        token = (self.token() if callable(self.token) else self.token).strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError("the token is empty, or holds what no token can")
        return (("authorization", f"Bearer {token}"),)


def token_file(path: Path) -> Callable[[], str]:
    """A token that is read from a file before every call: it may change there.

    Raises:
        ConfigError: It cannot be read.
    """

    def read() -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the token from {path}: {error}") from error

    return read


def _content(path: PathLike | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _is_local(address: str) -> bool:
    """Whether what is sent to an address stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
