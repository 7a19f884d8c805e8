"""`onnx-audit tokens`: makes, lists and revokes API tokens, in the service's database."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from onnx_audit_server.access.identity import Scope
from onnx_audit_server.options import (
    SERVICE_ERROR,
    USAGE_ERROR,
    database_options,
    read_settings,
)

if TYPE_CHECKING:
    from onnx_audit_server.access.tokens import TokenInfo, Tokens

_SECONDS: Final = {"h": 3600.0, "d": 86400.0}


def _lifetime(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    if value is None or value == "never":
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})([hd])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no lifetime; write 12h, 90d or never")
    return int(match.group(1)) * _SECONDS[match.group(2)]


def token_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --data and --database-url, joined into the parameter `tokens`."""

    @functools.wraps(command)
    def wrapper(*, data: Path | None, database_url: str | None, **options: Any) -> None:  # noqa: ANN401 - as click gives them
        from onnx_audit_server.access.tokens import Tokens  # noqa: PLC0415 - --help should not wait
        from onnx_audit_server.store.database import (  # noqa: PLC0415
            NewerDatabaseError,
            connect,
            migrate,
        )

        settings = read_settings({"data": data, "database_url": database_url})
        if not settings.database_url:
            settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = connect(settings.records_url)
        try:
            migrate(engine)
            command(tokens=Tokens(engine), **options)
        except NewerDatabaseError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(SERVICE_ERROR)
        finally:
            engine.dispose()

    return database_options(wrapper)


@click.group()
def tokens() -> None:
    """Make, list and revoke API tokens of a service.

    These commands work on the service's database, given as for `serve`; whoever can reach that
    needs no token. Running servers know of a change within 5 seconds.
    """


@tokens.command(
    epilog="\b\n"
    "Examples:\n"
    "  onnx-audit tokens create ci --scope submit --expires 90d > ci.token\n"
    "  onnx-audit tokens create prometheus --scope read --expires never"
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=[Scope.READ.value],
    show_default=True,
    help="What it allows; submit includes read, admin includes both.",
)
@click.option(
    "--expires",
    "lifetime",
    callback=_lifetime,
    default="90d",
    show_default=True,
    help="How long it is good: hours (12h), days (90d), or never.",
)
@token_options
def create(*, tokens: Tokens, name: str, scopes: tuple[str, ...], lifetime: float | None) -> None:
    """Make a token for NAME and print it, once: only its digest is kept."""
    try:
        token = tokens.create(name, tuple(Scope(scope) for scope in scopes), lifetime)
    except ValueError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(USAGE_ERROR)
    click.echo(token)
    click.echo("It is shown this once. Hand it on in a file or as ONNX_AUDIT_TOKEN.", err=True)


@tokens.command("list")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
@token_options
def list_tokens(*, tokens: Tokens, json_output: bool) -> None:
    """List tokens, oldest first, without their secrets."""
    found = tokens.list()
    if json_output:
        click.echo(json.dumps([_as_json(info) for info in found], indent=2))
        return
    for info in found:
        expiry = _moment(info.expires_us) or "never"
        scopes = ",".join(info.scopes)
        click.echo(f"{info.identifier}  {info.state:7}  {scopes:6}  expires {expiry}  {info.name}")


@tokens.command()
@click.argument("identifiers", nargs=-1, required=True, metavar="ID...")
@token_options
def revoke(*, tokens: Tokens, identifiers: tuple[str, ...]) -> None:
    """Make tokens useless; an ID is what `list` shows, the part of the token after `oat_`."""
    unknown = [identifier for identifier in identifiers if tokens.revoke(identifier) is None]
    if unknown:
        click.echo(f"Error: there is no token {', '.join(unknown)}", err=True)
        sys.exit(USAGE_ERROR)


def _as_json(info: TokenInfo) -> dict[str, object]:
    return {
        "id": info.identifier,
        "name": info.name,
        "scopes": list(info.scopes),
        "state": info.state,
        "created": _moment(info.created_us),
        "expires": _moment(info.expires_us),
        "revoked": _moment(info.revoked_us),
    }


def _moment(micros: int | None) -> str | None:
    return None if micros is None else f"{datetime.fromtimestamp(micros // 10**6, UTC):%FT%TZ}"
