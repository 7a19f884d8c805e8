"""Keys that sign and verify: ECDSA on P-256 or Ed25519, as PEM in a file or in the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined] # exported

from onnx_audit.errors import ConfigError

ENVIRONMENT: Final = "env:"
_KINDS: Final = "an ECDSA key on P-256 or an Ed25519 key, as PEM"


def load_signer(source: str) -> CryptoSigner:
    """Reads a private key.

    Args:
        source: A file, or `env:NAME` for a variable that holds the PEM itself.

    Raises:
        ConfigError: It is missing, encrypted, or of another kind.
    """
    content = _read(source)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigError(
            f"{source}: the key is encrypted; expected one without password"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{source}: not a private key: {error}; expected {_KINDS}") from None
    if isinstance(key, ed25519.Ed25519PrivateKey) or _is_p256(key):
        return CryptoSigner(key)
    raise ConfigError(f"{source}: {_kind(key)}; expected {_KINDS}")


def load_verifier(source: str) -> SSlibKey:
    """Reads a public key.

    Args:
        source: A file, or `env:NAME` for a variable that holds the PEM itself.

    Raises:
        ConfigError: It is missing, or of another kind.
    """
    content = _read(source)
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{source}: holds a private key; give its public key, which "
            "`openssl pkey -pubout` makes of it"
        )
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{source}: not a public key: {error}; expected {_KINDS}") from None
    if isinstance(key, ed25519.Ed25519PublicKey) or _is_p256(key):
        return SSlibKey.from_crypto(key)
    raise ConfigError(f"{source}: {_kind(key)}; expected {_KINDS}")


def _read(source: str) -> bytes:
    if source.startswith(ENVIRONMENT):
        name = source.removeprefix(ENVIRONMENT)
        if not (text := os.environ.get(name, "")):
            raise ConfigError(f"the environment variable {name} is not set; expected {_KINDS}")
        return text.encode()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None


def _is_p256(key: object) -> bool:
    known = isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey)
    return known and isinstance(key.curve, ec.SECP256R1)  # type: ignore[attr-defined] # both have it


def _kind(key: object) -> str:
    """What a key is, for errors: "an RSA key", "a key on secp384r1"."""
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return f"a key on {key.curve.name}"
    return f"a key of the kind {type(key).__name__.strip('_').replace('Key', '')}"
