"""Certificates, keys and tokens made for a test."""

from __future__ import annotations

import datetime
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

ISSUER = "https://issuer.example.org"
AUDIENCE = "onnx-audit"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def serial(self) -> int:
        """Tells it from others."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def issue(self, file: str, common: str = "", uri: str = "", dns: str = "") -> Certificate:
        """Writes a certificate for this machine and some names, over one that is there."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        if dns:
            names.append(x509.DNSName(dns))
        builder = self._builder(x509.Name(subject), key).add_extension(
            x509.SubjectAlternativeName(names), critical=not subject
        )
        written = Certificate(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        # The key first: for a moment the two do not go together, as when files are replaced.
        written.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        written.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        return written

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        moment, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - day)
            .not_valid_after(moment + day)
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Provider:
    """An identity provider: two keys, and tokens signed with them."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())

    @property
    def key_set(self) -> dict[str, Any]:
        """The public keys, beside entries that are of no use here."""
        rsa_key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa.public_key()))
        ec_key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.ec.public_key()))
        return {
            "keys": [
                {**rsa_key, "kid": "rsa", "use": "sig"},
                {**ec_key, "kid": "ec"},
                {**rsa_key, "kid": "encryption", "use": "enc"},
                {"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXg"},
                {"kty": "new", "kid": "unknown"},
            ]
        }

    def token(
        self,
        *,
        key: Any = None,
        algorithm: str = "RS256",
        kid: str = "rsa",
        without: str = "",
        **claims: Any,
    ) -> str:
        """A good token, but for what is asked otherwise."""
        moment = datetime.datetime.now(datetime.UTC)
        content = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "repo:acme/models",
            "exp": moment + datetime.timedelta(minutes=5),
            "scope": "openid onnx-audit:submit",
            **claims,
        }
        content.pop(without, None)
        chosen = self.rsa if key is None else key
        return jwt.encode(content, chosen, algorithm, headers={"kid": kid})
