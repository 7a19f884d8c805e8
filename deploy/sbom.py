"""Writes a bill of materials (CycloneDX 1.6, JSON) of installed packages; runs in .tools-sbom.

    sbom.py --site FOLDER [--extras server,tracing] [--dpkg STATUS] --output FILE

Packages and what they need come from the metadata in a site-packages folder. With --extras only
what onnx-audit with these extras needs is listed: what `pip install` of the wheel brings. With
--dpkg Debian's packages are listed too: for an image.
"""

from __future__ import annotations

import argparse
import email
import os
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "onnx-audit"
VERSION = SchemaVersion.V1_6
LONGEST = 100
"""Characters of a licence's name; where there are more, the package states the whole text."""

Installed = dict[str, Distribution]


def installed(site: Path) -> Installed:
    """Distributions of a site-packages folder by canonical name."""
    return {canonicalize_name(d.metadata["Name"]): d for d in distributions(path=[str(site)])}


def needs(distribution: Distribution, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """Names, and extras of them, that a distribution with some extras requires here."""
    for text in distribution.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield canonicalize_name(requirement.name), set(requirement.extras)


def closure(packages: Installed, extras: set[str]) -> dict[str, set[str]]:
    """Names that the root with some extras needs, each with the extras that are asked of it.

    Raises:
        SystemExit: One of them is not installed.
    """
    found: dict[str, set[str]] = {}
    open_ends = [(ROOT, extras)]
    while open_ends:
        name, asked = open_ends.pop()
        if name in found and asked <= found[name]:
            continue
        if name not in packages:
            sys.exit(f"{name} is needed and not installed")
        found[name] = found.get(name, set()) | asked
        open_ends += needs(packages[name], found[name])
    return found


def python_component(name: str, distribution: Distribution) -> Component:
    """One package of Python, with the licence that it states."""
    metadata = distribution.metadata
    stated = metadata.get("License-Expression") or metadata.get("License") or ""
    licences = [LicenseFactory().make_from_string(stated)] if 0 < len(stated) < LONGEST else []
    url = PackageURL("pypi", None, name, distribution.version)
    kind = ComponentType.APPLICATION if name == ROOT else ComponentType.LIBRARY
    return Component(
        name=name,
        version=distribution.version,
        type=kind,
        purl=url,
        bom_ref=url.to_string(),
        licenses=licences,
    )


def debian_components(status: Path) -> Iterator[Component]:
    """The packages that dpkg has installed."""
    for paragraph in status.read_text(encoding="utf-8").strip().split("\n\n"):
        fields = email.message_from_string(paragraph)
        if fields["Status"] != "install ok installed":
            continue
        qualifiers = {"arch": fields["Architecture"]}
        url = PackageURL("deb", "debian", fields["Package"], fields["Version"], qualifiers)
        yield Component(
            name=fields["Package"],
            version=fields["Version"],
            type=ComponentType.LIBRARY,
            purl=url,
            bom_ref=url.to_string(),
        )


def bill(packages: Installed, extras: set[str] | None, status: Path | None) -> Bom:
    """The bill; of everything that is installed where no extras are named."""
    # In an image the server and everything it may use is there: what is missing is not needed.
    wanted = (
        {name: {"server", "tracing"} if name == ROOT else set() for name in packages}
        if extras is None
        else closure(packages, extras)
    )
    components = {name: python_component(name, packages[name]) for name in sorted(wanted)}
    bom = Bom()
    bom.metadata.component = components[ROOT]
    for name, component in components.items():
        if name != ROOT:
            bom.components.add(component)
        required = {needed for needed, _ in needs(packages[name], wanted[name])}
        bom.register_dependency(
            component, [components[n] for n in sorted(required & wanted.keys())]
        )
    for component in debian_components(status) if status else ():
        bom.components.add(component)
        bom.register_dependency(component)
    references = "\n".join(sorted(str(component.bom_ref) for component in bom.components))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, references)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    return bom


def main() -> None:
    """Writes what the arguments ask for, once it fulfils CycloneDX's schema."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--extras")
    parser.add_argument("--dpkg", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    extras = None if given.extras is None else set(given.extras.split(","))
    bom = bill(installed(given.site), extras, given.dpkg)
    text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=2)
    if (wrong := JsonStrictValidator(VERSION).validate_str(text)) is not None:
        sys.exit(f"the bill is not valid: {wrong}")
    given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
