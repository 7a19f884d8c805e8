"""Generates client/onnx_audit/v1 from the schema; `--check` says whether it is fresh.

The generators are pinned: code from newer ones refuses to run on older protobuf runtimes.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.metadata
import importlib.resources
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "proto"
PACKAGE = Path("onnx_audit/v1")
TARGET = ROOT / "client" / PACKAGE
GRPCIO_TOOLS = "1.74.0"

INIT = '''"""The messages of onnx_audit.v1, by name: `v1.Report`, `v1.DistortionConfig`.

Made by proto/generate.py. A message's module is imported when it is first asked for, so that
users of the messages alone need no gRPC.
"""

import importlib

_MODULES = {{
{entries}
}}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}") from None
    return getattr(importlib.import_module(f"{{__name__}}.{{module}}"), name)
'''


def include_paths() -> list[str]:
    """Import paths of the schema, google.rpc and the well-known types."""
    return [
        f"-I{SCHEMA}",
        # google/rpc comes from googleapis-common-protos, google/protobuf from grpcio-tools.
        f"-I{Path(status_pb2.__file__).parents[2]}",
        f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
    ]


def run_protoc(*arguments: str) -> None:
    """Runs protoc over the whole schema.

    Raises:
        SystemExit: protoc found a mistake; it has printed which.
    """
    files = sorted(str(path) for path in SCHEMA.rglob("*.proto"))
    if code := protoc.main(["protoc", *include_paths(), *arguments, *files]):
        sys.exit(code)


def exported_names(image: Path) -> dict[str, str]:
    """Top-level messages and enums of the package, each with its module."""
    names: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file:
        module = f"{Path(file.name).stem}_pb2"
        names |= {message.name: module for message in file.message_type}
        for enum in file.enum_type:
            names |= {enum.name: module} | {value.name: module for value in enum.value}
    return names


def generate(output: Path) -> None:
    """Writes the generated package below `output`, a source root."""
    output.mkdir(parents=True, exist_ok=True)
    image = output / "image.binpb"
    plugins = Path(sys.executable).parent
    run_protoc(
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={output}",
        f"--grpc_python_out={output}",
        f"--mypy_out=quiet:{output}",
        f"--mypy_grpc_out=quiet:{output}",
        f"--descriptor_set_out={image}",
    )
    names = exported_names(image)
    image.unlink()
    package = output / PACKAGE
    # Files without a service get an empty gRPC module; nobody needs those.
    for module in package.glob("*_pb2_grpc.py"):
        if "class " not in module.read_text():
            module.unlink()
            module.with_suffix(".pyi").unlink(missing_ok=True)
    entries = "\n".join(f'    "{name}": "{module}",' for name, module in sorted(names.items()))
    (package / "__init__.py").write_text(INIT.format(entries=entries))
    stubs = "\n".join(
        f"from onnx_audit.v1.{module} import {name} as {name}"
        for name, module in sorted(names.items(), key=lambda item: (item[1], item[0]))
    )
    (package / "__init__.pyi").write_text(f"{stubs}\n\n__all__: list[str]\n")


def differences(fresh: Path, committed: Path) -> list[str]:
    """Names of the files that differ between the two folders."""
    compared = filecmp.dircmp(fresh, committed, ignore=["__pycache__"])
    _, mismatch, errors = filecmp.cmpfiles(fresh, committed, compared.common_files, shallow=False)
    return sorted([*compared.left_only, *compared.right_only, *mismatch, *errors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    check: bool = parser.parse_args().check
    if (version := importlib.metadata.version("grpcio-tools")) != GRPCIO_TOOLS:
        sys.exit(f"grpcio-tools {GRPCIO_TOOLS} is required, {version} is installed")
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / PACKAGE
        stale = differences(fresh, TARGET) if TARGET.exists() else ["everything"]
        if check:
            if stale:
                sys.exit(f"client/{PACKAGE} is stale, run `make proto`: {', '.join(stale)}")
            return
        TARGET.mkdir(parents=True, exist_ok=True)
        for old in TARGET.glob("*.py*"):
            old.unlink()
        for file in fresh.iterdir():
            (TARGET / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main()
