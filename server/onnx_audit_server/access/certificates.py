"""TLS of the gRPC server: certificates that may change on disk, and whom a client's names."""

from __future__ import annotations

import functools
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import grpc

from onnx_audit_server import logs
from onnx_audit_server.access.identity import Principal, Scope
from onnx_audit_server.settings import Settings

_PEM: Final = "x509_pem_cert"
"""Key of a peer's certificate in gRPC's auth context."""

_LONGEST_NAME: Final = 200

Content = tuple[bytes, bytes, bytes | None]
"""Certificate chain, key, and the authority for clients, in PEM."""

log = logs.get(__name__)


class CertificateError(Exception):
    """The files of TLS are not what they should be."""


class CertificateFiles:
    """Certificate, key and the authority for clients, as they are on disk now."""

    def __init__(self, settings: Settings) -> None:
        """Reads the files.

        Raises:
            CertificateError: They are not what they should be.
        """
        assert settings.tls_cert is not None  # noqa: S101 - the settings were checked
        assert settings.tls_key is not None  # noqa: S101 - the settings were checked
        self.certificate, self.key = settings.tls_cert, settings.tls_key
        self.client_ca = settings.tls_client_ca
        self._lock = threading.Lock()
        try:
            self._seen = self._stamp()
            self.content = self._read()
        except (OSError, ValueError, TypeError) as error:
            raise CertificateError(f"cannot use the certificates of TLS: {error}") from error

    def refresh(self) -> None:
        """Reads the files again if they have changed.

        Files that do not go together, as in the middle of a change, leave the old ones in use.
        """
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp == self._seen:
                    return
                self.content = self._read()
            except (OSError, ValueError, TypeError) as error:
                log.warning("cannot use the changed certificates yet", error=str(error))
                return
            self._seen = stamp
        log.info("certificates read anew")

    def _files(self) -> list[Path]:
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]

    def _stamp(self) -> list[tuple[int, int, int]]:
        states = [path.stat() for path in self._files()]
        return [(state.st_mtime_ns, state.st_ino, state.st_size) for state in states]

    def _read(self) -> Content:
        # Long to import, and a service without TLS needs nothing of it.
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            load_pem_private_key,
        )

        certificate, key, *rest = [path.read_bytes() for path in self._files()]
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        private = load_pem_private_key(key, password=None)
        if leaf.public_key() != private.public_key():
            raise ValueError(f"{self.key} is not the key of the certificate in {self.certificate}")
        if rest:
            x509.load_pem_x509_certificates(rest[0])
        return certificate, key, rest[0] if rest else None


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files; every handshake looks whether they have changed.

    With an authority for clients, connections without a certificate of it are refused.
    """

    def configuration(content: Content) -> grpc.ServerCertificateConfiguration:
        certificate, key, client_ca = content
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    used = files.content

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        files.refresh()
        if files.content is used:
            return None
        used = files.content
        return configuration(used)

    return grpc.dynamic_ssl_server_credentials(
        configuration(used),
        fetch,  # type: ignore[arg-type] # None means no change, which the stubs do not know
        require_client_authentication=files.client_ca is not None,
    )


def follow_files(context: ssl.SSLContext, files: CertificateFiles) -> None:
    """Makes every handshake of a TLS server look whether the files have changed, and use them."""
    used, latest = files.content, context

    def choose(
        connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        nonlocal used, latest
        files.refresh()
        if files.content is not used:
            latest = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            latest.load_cert_chain(files.certificate, files.key)
            used = files.content
        connection.context = latest

    context.sni_callback = choose


def peer_name(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """Whom the client's certificate names, None where it showed none."""
    found = next(iter(auth_context.get(_PEM, ())), None)
    return None if found is None else _name(bytes(found))


@functools.lru_cache(maxsize=1000)
def _name(pem: bytes) -> str | None:
    """The certificate's URI (as of SPIFFE), DNS name or e-mail address, else its common name."""
    from cryptography import x509  # noqa: PLC0415 - as above

    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    kinds = (x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name)
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    found = [name for kind in kinds for name in names.get_values_for_type(kind)]
    found += [str(attribute.value) for attribute in common]
    name = found[0] if found else ""
    return name if name and len(name) <= _LONGEST_NAME and name.isprintable() else None


def certificate_principal(name: str, scopes: Mapping[str, Sequence[Scope]]) -> Principal:
    """The principal of a certificate.

    Args:
        name: Whom the certificate names.
        scopes: Scopes by pattern of names, as in a shell; those of all that match are given.
    """
    given = [
        scope for pattern, some in scopes.items() if fnmatchcase(name, pattern) for scope in some
    ]
    return Principal.with_scopes(f"cert:{name}", given)
