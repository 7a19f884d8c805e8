"""Reads a model's bytes as the service does; whatever they are, only one kind of error may come.

Run as a script it is a target of libFuzzer's, through atheris; its arguments are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzz.mutations import mutate

if __name__ == "__main__":
    import atheris  # type: ignore[import-untyped] # has no types

    # The fuzzer is led by which lines of these have run.
    with atheris.instrument_imports(include=["onnx_auditors"]):
        import onnx_auditors.network  # noqa: F401

from onnx_auditors.errors import AuditError
from onnx_auditors.network import Limits, load

LIMITS = Limits(
    max_nodes=500,
    max_steps=2_000,
    max_iterations=50,
    max_initializer_bytes=1 << 20,
    max_value_bytes=1 << 24,
)
WEIGHTS = bytes(range(256))
"""What lies beside every model, as "w.bin"."""


def read(content: bytes, folder: Path) -> str:
    """Reads a model with its folder.

    Returns:
        The reason for which it was refused, empty where it was taken.

    Raises:
        Exception: Anything but an AuditError, which is a fault.
    """
    path = folder / "model.onnx"
    path.write_bytes(content)
    try:
        load(path, limits=LIMITS)
    except AuditError as error:
        return error.reason
    return ""


def main() -> None:
    """Fuzzes until libFuzzer's arguments say that it is enough."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "w.bin").write_bytes(WEIGHTS)

        def change(content: bytes, size: int, seed: int) -> bytes:
            if seed % 8 == 0:
                return bytes(atheris.Mutate(content, size))
            changed = mutate(content, seed)
            return changed if len(changed) <= size else content

        atheris.Setup(sys.argv, lambda content: read(content, folder), custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
