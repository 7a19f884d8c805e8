"""Options that say who calls a service, and how the way there is encrypted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from onnx_audit.connection import token_file

VARIABLE: Final = "ONNX_AUDIT_TOKEN"
"""Variable with the token itself; no option takes it, for options can be seen by others."""


def _file_option(flag: str, what: str) -> Callable[[Any], Any]:
    """An option that takes a file; its variable is named after it."""
    return click.option(
        flag,
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="ONNX_AUDIT_" + flag.removeprefix("--").replace("-", "_").upper(),
        show_envvar=True,
        help=what,
    )


ACCESS_OPTIONS: Final = (
    _file_option(
        "--token-file",
        f"File with the token for the service; without it the token is that in ${VARIABLE}.",
    ),
    click.option("--tls", is_flag=True, envvar="ONNX_AUDIT_TLS", help="Use TLS."),
    _file_option("--ca", "Authorities of the service's certificate, PEM."),
    _file_option("--certificate", "Client certificate, PEM, for a service that wants one."),
    _file_option("--certificate-key", "Private key of the client certificate, PEM."),
)


def access_taken(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the options' values out of a command's arguments; returns arguments of `Client`."""
    file: Path | None = given.pop("token_file")
    token = token_file(file) if file is not None else os.environ.get(VARIABLE) or None
    return {
        "token": token,
        "tls": given.pop("tls"),
        "ca": given.pop("ca"),
        "certificate": given.pop("certificate"),
        "key": given.pop("certificate_key"),
    }
