"""Refuses to serve other machines without asking who they are, unless told to."""

from __future__ import annotations

from onnx_audit_server import logs
from onnx_audit_server.http.security import is_local
from onnx_audit_server.settings import Settings

log = logs.get(__name__)


class ExposedError(Exception):
    """An address that other machines reach would be open to all of them."""


def check_exposure(settings: Settings, *, api: bool) -> None:
    """Checks the addresses that a process is about to serve.

    Args:
        settings: The process's settings.
        api: Whether it serves gRPC and the console; a worker has /metrics and /healthz alone.

    Raises:
        ExposedError: One of them must not be served so.
    """
    open_to_all = not settings.authenticated
    only_metrics = not api and settings.metrics_open
    served = {
        "listen": settings.listen if api else "none",
        "http": "none" if only_metrics else settings.http,
    }
    exposed = {name: address for name, address in served.items() if not _local(address)}
    if exposed and open_to_all and not settings.insecure_no_auth:
        named = " and ".join(f"{name} {address}" for name, address in exposed.items())
        raise ExposedError(
            f"{named} can be reached from other machines, and nobody would be asked who they are. "
            "Ask (--auth, with tokens of `onnx-audit tokens create`; or --tls-client-ca, or "
            "--oidc-issuer), or serve this machine alone (127.0.0.1), or say --insecure-no-auth"
        )
    if exposed and open_to_all:
        log.warning("anybody who reaches it may use this service", **exposed)
    encrypted = {"listen": settings.tls_cert is not None, "http": settings.http_tls}
    for name, address in exposed.items():
        if not open_to_all and not encrypted[name]:
            log.warning("tokens cross the network as they are, without TLS", **{name: address})


def _local(address: str) -> bool:
    """Whether an address is out of other machines' reach."""
    if address == "none" or address.startswith(("unix:", "unix-abstract:")):
        return True
    return is_local(address.rpartition(":")[0].strip("[]"))
