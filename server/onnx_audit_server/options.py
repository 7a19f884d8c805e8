"""What the service's commands share: where the data is, settings, and exit statuses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from onnx_audit_server.access.options import refuse_password
from onnx_audit_server.settings import Settings, default_data_dir

USAGE_ERROR = 2
SERVICE_ERROR = 3


def database_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say where the database is."""
    options = [
        click.option(
            "--data",
            type=click.Path(file_okay=False, path_type=Path),
            help=f"Folder for database, blobs and scratch space.  [default: {default_data_dir()}]",
        ),
        click.option(
            "--database-url",
            callback=refuse_password,
            help="Records and queue, such as postgresql+psycopg://user@host/db.  "
            "[default: SQLite in the data folder]",
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say where database and blobs are."""
    blobs = click.option(
        "--blob-url",
        help="Blob store, such as s3://bucket/prefix.  [default: the data folder]",
    )
    return database_options(blobs(command))


def read_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options, None for one that is not given, and environment.

    Ends the process where one is wrong.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            click.echo(f"Error: setting {name}: {problem['msg']}", err=True)
        sys.exit(USAGE_ERROR)
