"""ModelService: registers uploaded files once an isolated process could read them."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from pathlib import PurePosixPath
from typing import Any

import grpc
import structlog

from onnx_audit import v1
from onnx_audit.v1 import model_pb2_grpc
from onnx_audit_server import logs
from onnx_audit_server.api import names
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.jobs.pool import RunnerPool
from onnx_audit_server.jobs.process import RunnerDiedError, RunnerError
from onnx_audit_server.jobs.tasks import copy_model
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import Records

MAX_NAME = 200
MAX_TAGS = 32
MAX_TAG = 100
MAX_FILES = 1000
MAX_PATH_PART = 255
"""Longest name of a file or folder, in bytes."""
MAX_PATH = 1000
"""Longest path, in characters."""
MAX_ONNX_BYTES = (2 << 30) - 1
"""Largest ONNX file, without its external data: where protobuf ends."""
INSPECTIONS = 2
"""Models that are read at once."""

Context = grpc.aio.ServicerContext[Any, Any]
log = logs.get(__name__)


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Serves models."""

    def __init__(
        self, settings: Settings, records: Records, blobs: BlobStore, pool: RunnerPool
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._pool = pool
        self._timeout = settings.inspect_timeout
        self._attempts = settings.shard_attempts
        self._most_bytes = MAX_ONNX_BYTES + settings.model_initializer_bytes
        self._inspections = asyncio.Semaphore(INSPECTIONS)

    async def CreateModel(self, request: v1.CreateModelRequest, context: Context) -> v1.Model:
        """See ModelService."""
        model = v1.Model()
        model.CopyFrom(request.model)
        check_model(model)
        await self._check_files(model)
        digest = model_digest(model)
        model.name = f"models/{digest}"
        known = await asyncio.to_thread(self._records.get_model, digest)
        if known is not None:
            model.summary.CopyFrom(known.summary)
        else:
            model.summary.CopyFrom(await self._inspect(model))
            model.summary.sha256 = digest
            model.summary.files.append(model.onnx_file)
            model.summary.files.extend(sorted(model.external_files, key=lambda file: file.path))
        if request.validate_only:
            return model
        return await asyncio.to_thread(self._records.put_model, digest, model)

    async def GetModel(self, request: v1.GetModelRequest, context: Context) -> v1.Model:
        """See ModelService."""
        digest = names.parse(request.name, "models")
        model = await asyncio.to_thread(self._records.get_model, digest)
        if model is None:
            raise names.not_found(request.name)
        return model

    async def ListModels(
        self, request: v1.ListModelsRequest, context: Context
    ) -> v1.ListModelsResponse:
        """See ModelService."""
        models, cursor = await asyncio.to_thread(
            self._records.list_models,
            names.page_size(request.page_size),
            names.decode_token(request.page_token),
        )
        return v1.ListModelsResponse(models=models, next_page_token=names.encode_token(cursor))

    async def _check_files(self, model: v1.Model) -> None:
        """Sees that every file was uploaded, and notes its size."""
        files = [model.onnx_file, *model.external_files]
        sizes = await asyncio.gather(
            *(asyncio.to_thread(self._blobs.hold, file.sha256) for file in files)
        )
        missing = [file for file, size in zip(files, sizes, strict=True) if size is None]
        if missing:
            listed = ", ".join(
                f"blobs/{file.sha256} ({file.path or 'the ONNX file'})" for file in missing
            )
            raise ServiceError(
                "BLOB_MISSING",
                f"not uploaded: {listed}; upload it with BlobService.Write first",
                metadata={"sha256": missing[0].sha256},
            )
        for file, size in zip(files, sizes, strict=True):
            file.size_bytes = size or 0
        total = sum(file.size_bytes for file in files)
        if total > self._most_bytes:
            # Each gets a copy of its own where the model is read, however often it is named.
            raise ServiceError(
                "LIMIT_EXCEEDED",
                f"{total:,} bytes in the model's files; at most {self._most_bytes:,} are accepted",
                metadata={
                    "limit": "file_bytes",
                    "found": str(total),
                    "allowed": str(self._most_bytes),
                },
            )

    async def _inspect(self, model: v1.Model) -> v1.ModelSummary:
        async with self._inspections:
            deadline = time.monotonic() + self._timeout
            for attempt in range(1, self._attempts + 1):
                try:
                    return await asyncio.to_thread(self._read_in_runner, model, deadline)
                except RunnerError as error:
                    raise ServiceError(error.reason, str(error), metadata=error.metadata) from None
                except RunnerDiedError as error:
                    log.warning("runner died", attempt=attempt, message=str(error))
                    last = error
        raise ServiceError("RUNNER_DIED", f"{last} (in {self._attempts} attempts)")

    def _read_in_runner(self, model: v1.Model, deadline: float) -> v1.ModelSummary:
        def stop() -> Exception | None:
            if time.monotonic() < deadline:
                return None
            return ServiceError(
                "DEADLINE_EXCEEDED",
                f"reading the model took longer than {self._timeout:g} seconds",
            )

        runner = self._pool.take()
        try:
            runner.affinity = model.name
            runner.context = structlog.contextvars.get_contextvars()
            path = copy_model(self._blobs, model, runner.scratch / "read")
            result = runner.scratch / "result"
            runner.call({"op": "inspect", "model": str(path), "result": str(result)}, stop)
            summary = v1.ModelSummary.FromString(runner.result(result))
            shutil.rmtree(path.parent)
        except BaseException:
            self._pool.discard(runner)
            raise
        # An audit of this very model is what most often comes next.
        self._pool.give_back(runner)
        return summary


def check_model(model: v1.Model) -> None:
    """Checks the fields that a caller gives.

    Raises:
        ServiceError: One of them is not as it must be.
    """
    names.check_digest(model.onnx_file.sha256, "model.onnx_file.sha256")
    if model.onnx_file.path:
        raise invalid(("model.onnx_file.path", "must be empty; it names external data only"))
    _check_external_files(model)
    check_display_name(model.display_name, "model.display_name")
    if len(model.tags) > MAX_TAGS:
        raise invalid(("model.tags", f"{len(model.tags)} tags, at most {MAX_TAGS}"))
    for key, value in model.tags.items():
        if not key or len(key) > MAX_TAG or len(value) > MAX_TAG:
            text = f"a key or value is empty or longer than {MAX_TAG} characters"
            raise invalid((f"model.tags[{key[:MAX_TAG]!r}]", text))


def _check_external_files(model: v1.Model) -> None:
    if len(model.external_files) > MAX_FILES:
        raise invalid(("model.external_files", f"more than {MAX_FILES} files"))
    seen = {"model.onnx"}
    for number, file in enumerate(model.external_files):
        field = f"model.external_files[{number}]"
        names.check_digest(file.sha256, f"{field}.sha256")
        if not is_plain_path(file.path):
            text = (
                f"{file.path[:MAX_NAME]!r} is not a relative path of printable characters without "
                f"'..' and backslashes, with at most {MAX_PATH_PART} bytes in each part"
            )
            raise invalid((f"{field}.path", text))
        if file.path in seen:
            raise invalid((f"{field}.path", f"{file.path!r} is given twice"))
        seen.add(file.path)
    for number, file in enumerate(model.external_files):
        within = {str(folder) for folder in PurePosixPath(file.path).parents} & seen
        if within:
            text = f"{file.path!r} lies in {min(within)!r}, which is a file"
            raise invalid((f"model.external_files[{number}].path", text))


def check_display_name(value: str, field: str) -> None:
    """Checks the length of what people call a resource.

    Raises:
        ServiceError: It is too long.
    """
    if len(value) > MAX_NAME:
        raise invalid((field, f"{len(value)} characters, at most {MAX_NAME}"))


def is_plain_path(text: str) -> bool:
    """Whether a location stays below the folder that it is relative to."""
    path = PurePosixPath(text)
    return (
        bool(text)
        and "\\" not in text
        # A line break would let one path look like two in the text that the digest is made of.
        and text.isprintable()
        and all(len(part.encode()) <= MAX_PATH_PART for part in path.parts)
        and len(text) <= MAX_PATH
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path) == text
    )


def model_digest(model: v1.Model) -> str:
    """The digest that names a model, as v1.Model defines it."""
    if not model.external_files:
        return model.onnx_file.sha256
    lines = {"model.onnx": model.onnx_file.sha256}
    lines |= {file.path: file.sha256 for file in model.external_files}
    text = "".join(f"{digest}  {path}\n" for path, digest in sorted(lines.items()))
    return hashlib.sha256(text.encode()).hexdigest()
