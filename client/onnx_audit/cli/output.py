"""Where commands write: people read one stream, machines the other; reports become files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.figures import norm_name
from onnx_audit.cli.transfer_view import attack_name
from onnx_audit.client import Client
from onnx_audit.errors import ConfigError

_ENDINGS: Final = {"image/png": "png", "image/jpeg": "jpg"}


def people(*, json_output: bool) -> Console:
    """The console for people: standard error where standard output is for machines."""
    return Console(stderr=json_output)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as proto3 JSON with the schema's field names."""
    content: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return content


def to_json(content: object) -> str:
    """JSON with sorted keys, indented; floats that JSON lacks are proto3 JSON's strings."""
    return json.dumps(content, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)


def print_json(content: object) -> None:
    """Prints JSON on standard output."""
    click.echo(to_json(content))


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints aligned columns, never cut, whatever the width: names are there to be copied."""
    lines = [[title.upper() for title in header], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def write_report(client: Client, report: v1.Report, folder: Path) -> list[Path]:
    """Writes report.json and, beside it, what its sections refer to."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(to_json(as_dict(report)) + "\n", encoding="utf-8")
    written = [path]
    for name, blob in _artefacts(report):
        if blob.sha256:
            written.append(client.download(blob, folder / f"{name}.safetensors"))
    return written + _write_galleries(client, report.units, folder)


def _artefacts(report: v1.Report) -> Iterator[tuple[str, v1.BlobRef]]:
    """The files beside a report, by name; those that there are not have no digest."""
    for norm in report.distortion.norms:
        name = f"distortion-{norm_name(norm.norm).lower()}"
        yield name, norm.artefact
        yield f"{name}-training", norm.training_set
        yield f"{name}-training-rounded", norm.rounded.training_set
    for files in report.transfer.artefacts:
        name = f"transfer-{attack_name(files.attack).replace(' ', '-')}"
        yield name, files.examples
        yield f"{name}-training", files.training_set
    yield "lipschitz", report.lipschitz.artefact


def _write_galleries(client: Client, section: v1.UnitsSection, folder: Path) -> list[Path]:
    """Writes the pictures of units, a folder for each layer."""
    written = []
    for number, layer in enumerate(section.layers):
        place = folder / "units" / f"{number:02}-{_file_name(layer.value)}"
        for count, gallery in enumerate(layer.galleries):
            kind = v1.UnitGalleryKind.Name(gallery.kind).removeprefix("UNIT_GALLERY_KIND_").lower()
            place.mkdir(parents=True, exist_ok=True)
            target = place / f"{count}-{kind}.{_ENDINGS[gallery.image.media_type]}"
            written.append(client.download(gallery.image, target))
    if section.depth.image.sha256:
        written.append(client.download(section.depth.image, folder / "units" / "depth.png"))
    return written


def _file_name(value: str) -> str:
    """A value's name as a part of a path; names in graphs may hold anything."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", value)[:60]


def read_report(path: Path) -> v1.Report:
    """Reads a report.json.

    Raises:
        ConfigError: It is not one.
    """
    try:
        return json_format.Parse(path.read_bytes(), v1.Report())
    except (json_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a report of onnx-audit: {error}") from error


def report_source(source: str) -> v1.Report | str:
    """What a command was given as a report: the one in a file or folder, or an audit's name.

    Raises:
        ConfigError: The file is not a report.
    """
    path = Path(source)
    if path.is_dir():
        path /= "report.json"
    if path.is_file() or path.suffix == ".json":
        return read_report(path)
    return source
