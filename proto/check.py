"""Checks the schema: buf's lint rules; no breaking change against the first release, nor main."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from generate import ROOT, include_paths
from grpc_tools import protoc

BUF = Path(sys.executable).with_name("buf")


FIRST_RELEASE = ROOT / "proto" / "first_release.binpb"
"""Image of the schema of the first release, which every later v1 must go together with."""


def build_image(schema: Path, image: Path) -> None:
    """Compiles the schema below `schema` into a self-contained image."""
    files = sorted(str(path) for path in schema.rglob("*.proto"))
    arguments = [f"-I{schema}", *include_paths()[1:], "--include_imports", "--include_source_info"]
    if code := protoc.main(["protoc", *arguments, f"--descriptor_set_out={image}", *files]):
        sys.exit(code)


def buf(*arguments: str) -> None:
    """Runs buf on this package's files alone; its findings go to standard output."""
    command = [str(BUF), *arguments, "--config", str(ROOT / "buf.yaml"), "--path", "onnx_audit"]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def last_schema_on_main(folder: Path) -> Path | None:
    """Unpacks the schema of the last commit on main.

    Returns None where there is no such commit: a source archive, or the first commit.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)

    names = ("origin/main", "main", "HEAD")
    base = next((n for n in names if git("rev-parse", "-q", "--verify", n).returncode == 0), None)
    if base is None:
        return None
    archive = git("archive", base, "proto")
    if archive.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder / "proto"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "new.binpb"
        build_image(ROOT / "proto", image)
        buf("lint", str(image))
        buf("breaking", str(image), "--against", str(FIRST_RELEASE))
        old = last_schema_on_main(folder)
        if old is None:
            print("proto: no earlier schema to compare with")
            return
        build_image(old, folder / "old.binpb")
        buf("breaking", str(image), "--against", str(folder / "old.binpb"))


if __name__ == "__main__":
    main()
