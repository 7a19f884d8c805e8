"""What the figures depend on besides model and probes; no host names, paths or times."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnxruntime
import torch

from onnx_audit import v1
from onnx_auditors.context import Context


def provenance(context: Context) -> v1.Provenance:
    """Returns versions, device, precision and threads of an audit."""
    device = context.device
    software = {
        "onnx-audit": _own_version(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": version("pillow"),
        "scipy": version("scipy"),
        "torch": torch.__version__,
    }
    return v1.Provenance(
        seed=context.seed,
        software=[v1.SoftwareVersion(name=n, version=v) for n, v in software.items()],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        machine=platform.machine(),
        precision=[
            "float32",
            f"tf32={'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}",
            f"deterministic={'on' if torch.are_deterministic_algorithms_enabled() else 'off'}",
        ],
        providers=context.session.providers,
        threads=torch.get_num_threads(),
    )


def code_digest() -> str:
    """SHA-256 over the source files of this package, by path.

    A version may stand for many states of the code; this stands for one.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(root).as_posix()}\n".encode())
    return digest.hexdigest()


def _own_version() -> str:
    try:
        return version("onnx-audit")
    except PackageNotFoundError:
        return "source"
