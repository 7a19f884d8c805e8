"""Every setting of the service: from flags, else from the environment (ONNX_AUDIT_*)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20
GIB = 1 << 30


def default_data_dir() -> Path:
    """The folder of a service that was given none: below the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "onnx-audit"


class Settings(BaseSettings):
    """Settings of one process of the service; units are bytes and seconds."""

    model_config = SettingsConfigDict(env_prefix="ONNX_AUDIT_", extra="forbid", frozen=True)

    data: Path = Field(default_factory=default_data_dir)
    """Folder for the embedded database, blobs, uploads under way and scratch space."""
    listen: str = "127.0.0.1:50051"
    """Address of the gRPC server; port 0 takes a free one."""
    http: str = "127.0.0.1:9464"
    """Address of the HTTP server (console, /metrics, /healthz); "none" for no server."""
    database_url: str = ""
    """SQLAlchemy URL of records and queue; empty means SQLite in the data folder."""
    blob_url: str = ""
    """URL of the blob store (file, s3, gs, az); empty means the data folder."""
    worker_name: str = "local"
    """Stable name of this process's worker; work it leaves behind is resumed under this name."""
    slots: int = Field(default=1, ge=1, le=64)
    """Shards that run at once in this worker."""
    device: str = "cpu"
    """Torch device of the shards: "cpu", "cuda" or "cuda:N"."""
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """CPU threads of one shard; figures are reproducible for an equal number."""
    reflection: bool = True
    """Whether the gRPC server describes itself to tools such as grpcurl."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    max_blob_bytes: int = Field(default=16 * GIB, ge=1)
    """Largest blob that is accepted."""
    audit_timeout: float = Field(default=6 * 3600.0, gt=0)
    """Time an audit may run when its request names none, and the most that it may name."""
    inspect_timeout: float = Field(default=60.0, gt=0)
    """Time that reading a newly registered model may take."""
    drain_timeout: float = Field(default=30.0, ge=0)
    """Time that running shards have to finish after SIGTERM before they are handed back."""
    shard_attempts: int = Field(default=3, ge=1)
    """How often a shard is started when its process dies."""
    runner_memory_bytes: int = Field(default=0, ge=0)
    """Address space of the process that runs a shard; 0 sets no limit. Not for CUDA devices."""

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def records_url(self) -> str:
        """URL of records and queue, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data / 'onnx-audit.sqlite'}"
