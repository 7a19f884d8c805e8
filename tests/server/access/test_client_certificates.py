"""A real server that wants a certificate of every client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.access.credentials import Authority
from tests.service import ServiceProcess

from onnx_audit import Client, PermissionDenied, RetryPolicy
from onnx_audit.errors import FailedPrecondition, Unavailable

ONCE = RetryPolicy(attempts=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs for server and clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def service(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """A server that lets ci.example.org submit, and everybody of example.org read."""
    own = authority.issue("server")
    files = ("--tls-cert", own.certificate, "--tls-key", own.key, "--tls-client-ca", authority.file)
    scopes = '{"ci.example.org": ["submit"], "*.example.org": ["read"]}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_AUDIT_CERTIFICATE_SCOPES", scopes)
        process = ServiceProcess(
            tmp_path_factory.mktemp("service") / "data", *map(str, files), "--no-worker"
        )
        with process:
            yield process


def client(service: ServiceProcess, authority: Authority, name: str = "") -> Client:
    """A client with a certificate of a name, or none."""
    options: dict[str, Any] = {"ca": authority.file, "retries": ONCE}
    if name:
        own = authority.issue(name, dns=name)
        options |= {"certificate": own.certificate, "key": own.key}
    return Client(service.target, **options)


def test_without_a_certificate_there_is_no_connection(
    service: ServiceProcess, authority: Authority, tmp_path: Path
) -> None:
    """Nor with one of another authority."""
    with client(service, authority) as stranger, pytest.raises(Unavailable):
        list(stranger.models())
    forged = Authority(tmp_path, "other").issue("x", dns="ci.example.org")
    options: dict[str, Any] = {"certificate": forged.certificate, "key": forged.key}
    forger = Client(service.target, ca=authority.file, retries=ONCE, **options)
    with forger, pytest.raises(Unavailable):
        list(forger.models())


def test_scopes_go_by_the_certificate_s_name(
    service: ServiceProcess, authority: Authority, tmp_path: Path
) -> None:
    """What the settings give a name, and nothing to others, whoever signed for them."""
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with client(service, authority, "ci.example.org") as ci:
        ci.upload_files([file])
        with pytest.raises(FailedPrecondition):  # let in, and then told what is missing
            ci.audit("models/" + "0" * 64, "probes/" + "0" * 64)
    with client(service, authority, "reader.example.org") as reader:
        assert list(reader.models()) == []
        with pytest.raises(PermissionDenied, match=r"cert:reader\.example\.org has read"):
            reader.upload_files([file])
    other = client(service, authority, "example.net")
    with other, pytest.raises(PermissionDenied, match=r"cert:example\.net has none"):
        list(other.models())
    principals = {line.get("principal") for line in service.log_lines()}
    assert {"cert:ci.example.org", "cert:reader.example.org"} <= principals
