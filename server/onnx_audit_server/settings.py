"""Every setting of the service: from flags, else from the environment (ONNX_AUDIT_*)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onnx_audit_server.access.identity import Scope

MIB = 1 << 20
GIB = 1 << 30

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""Signatures that whoever checks them cannot make."""


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
    health: str = "none"
    """Address of a plaintext gRPC port for health checks alone; "none" for no such port."""
    database_url: str = ""
    """SQLAlchemy URL of records and queue; empty means SQLite in the data folder."""
    blob_url: str = ""
    """URL of the blob store (file, s3, gs, az); empty means the data folder."""
    cache_bytes: int = Field(default=20 * GIB, ge=0)
    """Bytes of a remote blob store's content that are kept in the data folder; 0 keeps none."""
    takeover_after: float = Field(default=12.0, ge=1.0)
    """Seconds of silence after which others take a worker for dead and take its work over; the same
    for all workers of a database."""
    store_patience: float = Field(default=3600.0, ge=0)
    """Seconds for which a worker waits for a database or blob store that is out of reach before the
    task fails."""
    worker_name: str = "local"
    """Name of this process's worker, its own among all that share the database."""
    slots: int | None = Field(default=None, ge=1, le=64)
    """Shards that run at once in this worker; empty means one for each of its devices."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:[0-9]+)?)$")
    """Torch devices of the shards: "cpu", "cuda" (all visible ones) or "cuda:N"."""
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
    shard_timeout: float = Field(default=3600.0, gt=0)
    """Time that one command of a shard's process (load, plan, shard, merge) may take."""
    sandbox: Literal["try", "require"] = "try"
    """Whether a process that runs shards may do without what the kernel lacks of its sandbox."""
    runner_memory_bytes: int = Field(default=0, ge=0)
    """Memory that the process of a shard may use; 0 takes three quarters of the machine's, divided
    by the slots."""
    runner_file_bytes: int = Field(default=16 * GIB, ge=MIB)
    """Largest file that the process of a shard may write."""
    runner_device_share: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that torch may take in the process of a shard."""
    model_nodes: int = Field(default=50_000, ge=1)
    """Most nodes of a model, those of subgraphs and of functions at each call counted."""
    model_subgraph_depth: int = Field(default=8, ge=0)
    """Deepest nesting of subgraphs in a model."""
    model_function_depth: int = Field(default=64, ge=0)
    """Deepest nesting of calls of a model's own functions."""
    model_rank: int = Field(default=16, ge=1)
    """Most axes of a tensor that a model stores or computes."""
    model_dimension: int = Field(default=2**31 - 1, ge=1)
    """Largest size of one axis of a tensor that a model stores."""
    model_initializer_bytes: int = Field(default=3 * GIB // 2, ge=1)
    """Most bytes of weights that a model stores, external data included."""
    model_value_bytes: int = Field(default=4 * GIB, ge=1)
    """Largest value that a model computes, for one batch, in bytes; constants are not folded beyond
    it either."""
    model_domains: str = ""
    """Domains of operators that models may use, with commas between; empty takes all known ones."""

    tracing: bool = False
    """Whether spans are exported over OTLP, to where OpenTelemetry's OTEL_* variables say; needs
    the extra "tracing". OTEL_EXPORTER_OTLP_ENDPOINT alone asks for it too."""
    auto_migrate: bool = True
    """Whether a starting server or worker brings the database to the form that it needs; otherwise
    it ends with an error where `onnx-audit migrate` has not done so."""
    retain_audits: float = Field(default=0.0, ge=0)
    """Seconds for which an audit and its report are kept after its end; 0 keeps them for ever."""
    retain_inputs: float = Field(default=0.0, ge=0)
    """Seconds for which a model or probe set that no audit refers to is kept after it was last
    registered; 0 keeps them for ever."""
    retain_blobs: float = Field(default=30 * 86400.0, gt=0)
    """Seconds for which blobs that nothing refers to, such as sections kept for later audits, and
    unfinished uploads are kept after their last use; the same in all processes, and far more than
    passes between an upload and the audit of what was uploaded."""
    gc_interval: float = Field(default=3600.0, ge=0)
    """Seconds between two garbage collections, each in one server of all; 0 for none."""
    tls_cert: Path | None = None
    """File with the server's certificate and those that sign it, in PEM; gRPC then speaks TLS."""
    tls_key: Path | None = None
    """File with the certificate's private key, in PEM, without a passphrase."""
    tls_client_ca: Path | None = None
    """File with the authorities, in PEM, of which every gRPC client must show a certificate."""
    http_tls: bool = False
    """Whether the HTTP port speaks TLS too, with the same certificate."""
    auth: bool = False
    """Whether every call, page and scrape must say who asks; with tls_client_ca or oidc_issuer it
    must in any case."""
    insecure_no_auth: bool = False
    """Whether addresses that other machines reach may be served although nobody is asked who they
    are."""
    metrics_open: bool = False
    """Whether /metrics may be read without a token."""
    oidc_issuer: str = ""
    """Issuer whose JWTs are accepted, exactly as their claim iss has it; empty for none."""
    oidc_audience: str = ""
    """What the claim aud of such a JWT must hold."""
    oidc_jwks: str = ""
    """URL (https) or file of the issuer's keys; empty means where its discovery document says."""
    oidc_algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), min_length=1)
    """Signature algorithms that are accepted."""
    oidc_leeway: float = Field(default=30.0, ge=0, le=300)
    """Seconds by which the issuer's clock may differ."""
    oidc_scope_claim: str = "scope"
    """Claim that holds what the bearer may do: a list, or words between spaces."""
    oidc_scopes: dict[str, Scope] = {f"onnx-audit:{scope}": scope for scope in Scope}
    """Scope by value of that claim; other values count for nothing."""
    certificate_scopes: dict[str, tuple[Scope, ...]] = {}
    """Scopes by the name in a client's certificate; * and ? stand for other characters."""
    quota_requests: float = Field(default=100.0, ge=0)
    """Calls per second of one principal to one process, over some seconds; 0 sets no limit."""
    quota_requests_total: float = Field(default=2000.0, ge=0)
    """Calls per second to one process, over some seconds; 0 sets no limit."""
    quota_refusals: float = Field(default=2.0, ge=0)
    """Credentials per second of one address that one process may refuse, over half a minute; 0 sets
    no limit."""
    quota_uploads: int = Field(default=8, ge=0)
    """Uploads at once of one principal to one process; 0 sets no limit."""
    quota_uploads_total: int = Field(default=64, ge=0)
    """Uploads at once to one process; 0 sets no limit."""
    quota_audits: int = Field(default=100, ge=0)
    """Audits of one principal that are queued or running; 0 sets no limit."""
    quota_audits_total: int = Field(default=10_000, ge=0)
    """Audits that are queued or running; 0 sets no limit."""
    quota_bytes: int = Field(default=256 * GIB, ge=0)
    """Bytes that one principal has uploaded and that are still stored; 0 sets no limit."""
    quota_bytes_total: int = Field(default=4096 * GIB, ge=0)
    """Bytes uploaded by anybody that are still stored; 0 sets no limit."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: one is given without the other")
        if self.tls_cert is None and (self.tls_client_ca or self.http_tls):
            raise ValueError("tls_client_ca and http_tls need tls_cert and tls_key")
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("oidc_issuer needs oidc_audience: tokens for others must not do")
        return self

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def authenticated(self) -> bool:
        """Whether everybody must say who they are."""
        return self.auth or self.tls_client_ca is not None or bool(self.oidc_issuer)

    @property
    def records_url(self) -> str:
        """URL of records and queue, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data / 'onnx-audit.sqlite'}"
