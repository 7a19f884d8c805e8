"""The command line's options about identity, access and TLS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click


def refuse_password(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Refuses a URL that would show its password to everybody who may list processes."""
    if value is not None and urlsplit(value).password:
        name = (parameter.name or "").upper()
        raise click.BadParameter(
            "a password on the command line can be read by everybody on this machine; "
            f"set the URL in the environment, as ONNX_AUDIT_{name}"
        )
    return value


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def access_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say who may use a process of the service, and how it is encrypted."""
    options = [
        click.option(
            "--tls-cert",
            type=_FILE,
            metavar="FILE",
            help="Certificate of the server, PEM; read again when it changes.",
        ),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key, PEM."),
        click.option(
            "--tls-client-ca",
            type=_FILE,
            metavar="FILE",
            help="Authorities, PEM, of which every gRPC client must show a certificate.",
        ),
        click.option(
            "--http-tls", is_flag=True, default=None, help="Speak TLS on the HTTP port too."
        ),
        click.option(
            "--auth",
            is_flag=True,
            default=None,
            help="Answer only those that say who they are, by token.",
        ),
        click.option(
            "--insecure-no-auth",
            is_flag=True,
            default=None,
            help="Serve other machines without asking who they are.",
        ),
        click.option(
            "--metrics-open", is_flag=True, default=None, help="Show /metrics without a token."
        ),
        click.option(
            "--oidc-issuer", metavar="URL", help="Accept the JWTs of this identity provider."
        ),
        click.option("--oidc-audience", help="What their claim aud must hold."),
        click.option(
            "--oidc-jwks",
            metavar="URL|FILE",
            help="The provider's keys.  [default: where its discovery document says]",
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
