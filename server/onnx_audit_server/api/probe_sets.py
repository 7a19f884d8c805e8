"""ProbeSetService: registers uploaded inputs once they have been read through."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from onnx_audit import v1
from onnx_audit.v1 import probe_set_pb2_grpc
from onnx_audit_server.api import names
from onnx_audit_server.api.models import check_display_name
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import Records
from onnx_auditors.errors import InvalidProbes

MAX_CLASS_NAMES = 100_000

Context = grpc.aio.ServicerContext[Any, Any]


class ProbeSetServicer(probe_set_pb2_grpc.ProbeSetServiceServicer):
    """Serves probe sets."""

    def __init__(self, records: Records, blobs: BlobStore) -> None:
        self._records = records
        self._blobs = blobs

    async def CreateProbeSet(
        self, request: v1.CreateProbeSetRequest, context: Context
    ) -> v1.ProbeSet:
        """See ProbeSetService."""
        probe_set = v1.ProbeSet()
        probe_set.CopyFrom(request.probe_set)
        digest = names.check_digest(probe_set.sha256, "probe_set.sha256")
        check_display_name(probe_set.display_name, "probe_set.display_name")
        if len(probe_set.class_names) > MAX_CLASS_NAMES:
            found = len(probe_set.class_names)
            raise invalid(("probe_set.class_names", f"{found} names, at most {MAX_CLASS_NAMES}"))
        known = await asyncio.to_thread(self._records.get_probe_set, digest)
        if known is not None:
            probe_set.summary.CopyFrom(known.summary)
        else:
            probe_set.summary.CopyFrom(await asyncio.to_thread(self._read, digest))
        probe_set.name = f"probes/{digest}"
        if request.validate_only:
            return probe_set
        return await asyncio.to_thread(self._records.put_probe_set, digest, probe_set)

    async def GetProbeSet(self, request: v1.GetProbeSetRequest, context: Context) -> v1.ProbeSet:
        """See ProbeSetService."""
        digest = names.parse(request.name, "probes")
        probe_set = await asyncio.to_thread(self._records.get_probe_set, digest)
        if probe_set is None:
            raise names.not_found(request.name)
        return probe_set

    async def ListProbeSets(
        self, request: v1.ListProbeSetsRequest, context: Context
    ) -> v1.ListProbeSetsResponse:
        """See ProbeSetService."""
        probe_sets, cursor = await asyncio.to_thread(
            self._records.list_probe_sets,
            names.page_size(request.page_size),
            names.decode_token(request.page_token),
        )
        token = names.encode_token(cursor)
        return v1.ListProbeSetsResponse(probe_sets=probe_sets, next_page_token=token)

    def _read(self, digest: str) -> v1.ProbeSummary:
        from onnx_auditors.probes import summarize  # noqa: PLC0415 - numpy takes long to import

        self._blobs.hold(digest)
        try:
            with self._blobs.as_file(digest) as path:
                return summarize(path, digest)
        except FileNotFoundError:
            raise ServiceError(
                "BLOB_MISSING",
                f"not uploaded: blobs/{digest}; upload it with BlobService.Write first",
                metadata={"sha256": digest},
            ) from None
        except InvalidProbes as error:
            raise ServiceError(
                error.reason,
                str(error),
                violations=[("probe_set.sha256", str(error))],
                metadata=error.metadata,
            ) from None
