"""The parent's side of the sandbox: what there is of it here, and what a runner is told of it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from onnx_audit_server import logs
from onnx_audit_server.jobs.terms import Terms
from onnx_audit_server.sandbox.confine import Means, means
from onnx_audit_server.settings import Settings

log = logs.get(__name__)


def terms(settings: Settings, scratch: Path) -> Terms:
    """The terms of a runner under these settings."""
    found = sandbox_means()
    return Terms(
        scratch=str(scratch),
        landlock=found.landlock,
        seccomp=found.seccomp,
        cuda=settings.device != "cpu",
        file_bytes=settings.runner_file_bytes,
        device_share=settings.runner_device_share,
        limits={
            "max_nodes": settings.model_nodes,
            "max_subgraph_depth": settings.model_subgraph_depth,
            "max_function_depth": settings.model_function_depth,
            "max_rank": settings.model_rank,
            "max_dimension": settings.model_dimension,
            "max_initializer_bytes": settings.model_initializer_bytes,
            "max_value_bytes": settings.model_value_bytes,
            "domains": [name.strip() for name in settings.model_domains.split(",") if name.strip()],
        },
    )


@lru_cache(maxsize=1)
def sandbox_means() -> Means:
    """What the kernel offers, asked once."""
    return means()


def announce(settings: Settings) -> None:
    """Says in the log what runners are confined by.

    Raises:
        RuntimeError: The settings demand a whole sandbox, and this machine has none.
    """
    found = sandbox_means()
    if settings.sandbox == "require" and found.missing:
        raise RuntimeError(
            f"setting sandbox is 'require', and this machine lacks {'; '.join(found.missing)}"
        )
    (log.warning if found.missing else log.info)(f"sandbox: {found}")
