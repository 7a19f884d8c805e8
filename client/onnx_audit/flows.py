"""What the clients do, step by step, without doing it.

A flow is a generator that yields steps (a call to make, an upload to stream, a function to run, a
pause) and gets their results; errors of a step are thrown into it. `Client` performs the steps in
the calling thread, `AsyncClient` on the event loop, so that retries, resumed uploads and the order
of calls exist once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from onnx_audit import rpc, v1
from onnx_audit.arrays import load_unit_array, save_arrays
from onnx_audit.errors import DeadlineExceeded, ModelFileError, ServiceError
from onnx_audit.files import LocalBlob, Progress, local_blob, write_requests
from onnx_audit.onnx_files import external_locations
from onnx_audit.probes import Probes, save_probes
from onnx_audit.retries import Attempts, RetryPolicy
from onnx_audit.rpc import RequestT, ResponseT, Rpc
from onnx_audit.status import service_error

T = TypeVar("T")

# A transfer slower than this is taken for a dead connection, and then resumed.
SLOWEST_BYTES_PER_SECOND: Final = 256 * 1024
_DIGESTS_PER_REQUEST: Final = 1000
# A first one may come from somebody else who uploads the same content.
_MISMATCHES: Final = 2


@dataclass(frozen=True)
class Call:
    """Make a unary call; the result is its response."""

    rpc: Rpc[Any, Any]
    request: Message


@dataclass(frozen=True)
class Send:
    """Stream an upload, reading the file as it goes; the result is the response."""

    requests: Iterator[bytes]
    size: int


@dataclass(frozen=True)
class Work:
    """Run a function that may take a while (files, digests); the result is what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


Step: TypeAlias = Call | Send | Work | Sleep
Flow: TypeAlias = Generator[Step, Any, T]


def call(
    method: Rpc[RequestT, ResponseT], request: RequestT, policy: RetryPolicy
) -> Flow[ResponseT]:
    """Makes a call that is safe to repeat."""
    attempts = Attempts(policy)
    while True:
        try:
            response: ResponseT = yield Call(method, request)
        except ServiceError as error:
            yield Sleep(attempts.delay_after(error))
        else:
            return response


def work(function: Callable[[], T]) -> Flow[T]:
    """Runs a function as a step."""
    result: T = yield Work(function)
    return result


def _can_resume(error: ServiceError) -> bool:
    """Whether an upload that broke with this error may go on at the stored offset."""
    # A mismatch means that somebody else uploads the same content: the offset is then asked anew.
    return isinstance(error, DeadlineExceeded) or error.reason == "WRITE_OFFSET_MISMATCH"


def upload_blob(blob: LocalBlob, policy: RetryPolicy, progress: Progress | None) -> Flow[None]:
    """Uploads a file; after a break it goes on where the service's stored part ends."""
    attempts = Attempts(policy)
    furthest = 0
    mismatches = 0
    while True:
        try:
            # Servers behind one address know of each other's finished uploads alone: where one says
            # how far the upload is and another one is to go on, only a new beginning helps.
            status = v1.QueryWriteStatusResponse()
            if mismatches < _MISMATCHES:
                status = yield Call(
                    rpc.QUERY_WRITE_STATUS, v1.QueryWriteStatusRequest(sha256=blob.sha256)
                )
            if status.complete:
                break
            if status.committed_size > furthest:
                furthest = status.committed_size
                attempts.reset()
            requests = write_requests(blob, status.committed_size, progress)
            response: v1.WriteResponse = yield Send(requests, blob.size)
            if response.complete:
                return
            raise service_error(
                "UNAVAILABLE",
                f"the upload of {blob.label} ended at byte {response.committed_size} "
                f"of {blob.size}",
            )
        except ServiceError as error:
            mismatches += error.reason == "WRITE_OFFSET_MISMATCH"
            yield Sleep(attempts.delay_after(error, repeatable=_can_resume(error)))
    if progress is not None:
        progress(blob.label, blob.size, blob.size)


def upload_blobs(
    blobs: Sequence[LocalBlob], policy: RetryPolicy, progress: Progress | None
) -> Flow[None]:
    """Uploads those of some files that the service does not hold."""
    missing: set[str] = set()
    for start in range(0, len(blobs), _DIGESTS_PER_REQUEST):
        digests = [blob.sha256 for blob in blobs[start : start + _DIGESTS_PER_REQUEST]]
        answer = yield from call(rpc.FIND_MISSING, v1.FindMissingRequest(sha256=digests), policy)
        missing.update(answer.missing_sha256)
    for blob in blobs:
        if blob.sha256 in missing:
            yield from upload_blob(blob, policy, progress)
            missing.remove(blob.sha256)  # two files may have the same content
        elif progress is not None:
            progress(blob.label, blob.size, blob.size)


def _model_blobs(path: Path) -> dict[str, LocalBlob]:
    """The files of a model by their location, the ONNX file's being empty and first."""
    locations = external_locations(path)  # also says whether it is ONNX, before much is read
    for location in locations:
        if not (path.parent / location).is_file():
            raise ModelFileError(
                f"{path}: its external data file {location!r} is missing; expected it at "
                f"{path.parent / location}"
            )
    external = {location: local_blob(path.parent / location, location) for location in locations}
    return {"": local_blob(path), **external}


def upload_model(
    path: Path,
    policy: RetryPolicy,
    *,
    display_name: str | None,
    tags: Mapping[str, str] | None,
    progress: Progress | None,
) -> Flow[v1.Model]:
    """Uploads a model's files and registers them."""
    blobs = yield from work(lambda: _model_blobs(path))
    yield from upload_blobs(list(blobs.values()), policy, progress)
    files = [
        v1.ModelFile(path=location, sha256=blob.sha256, size_bytes=blob.size)
        for location, blob in blobs.items()
    ]
    model = v1.Model(
        display_name=display_name if display_name is not None else path.stem,
        onnx_file=files[0],
        external_files=files[1:],
        tags=tags or {},
    )
    return (yield from call(rpc.CREATE_MODEL, v1.CreateModelRequest(model=model), policy))


def upload_unit_array(
    field: str, path: Path, policy: RetryPolicy, *, progress: Progress | None
) -> Flow[str]:
    """Uploads an array that a field of `units` takes; returns its name, `blobs/{sha256}`."""
    arrays = yield from work(lambda: load_unit_array(field, path))
    with tempfile.TemporaryDirectory(prefix="onnx-audit-") as folder:
        file = Path(folder) / "arrays.safetensors"
        yield from work(lambda: save_arrays(arrays, file))
        blob = yield from work(lambda: local_blob(file, path.name))
        yield from upload_blobs([blob], policy, progress)
    return f"blobs/{blob.sha256}"


def upload_probes(
    probes: Probes, policy: RetryPolicy, *, progress: Progress | None
) -> Flow[v1.ProbeSet]:
    """Writes probes in their canonical form, uploads and registers them."""
    with tempfile.TemporaryDirectory(prefix="onnx-audit-") as folder:
        path = Path(folder) / "probes.safetensors"
        yield from work(lambda: save_probes(probes, path))
        blob = yield from work(lambda: local_blob(path, probes.display_name or "probes"))
        yield from upload_blobs([blob], policy, progress)
    probe_set = v1.ProbeSet(
        display_name=probes.display_name,
        sha256=blob.sha256,
        class_names=probes.class_names,
    )
    request = v1.CreateProbeSetRequest(probe_set=probe_set)
    return (yield from call(rpc.CREATE_PROBE_SET, request, policy))


def upload_files(
    paths: Sequence[Path], policy: RetryPolicy, progress: Progress | None
) -> Flow[None]:
    """Uploads files as blobs."""
    blobs = yield from work(lambda: [local_blob(path) for path in paths])
    yield from upload_blobs(blobs, policy, progress)


def upload_report(report: v1.Report, policy: RetryPolicy) -> Flow[str]:
    """Uploads a report as JSON; the result is its name, `blobs/{sha256}`."""
    with tempfile.TemporaryDirectory(prefix="onnx-audit-") as folder:
        path = Path(folder) / "report.json"
        text = json_format.MessageToJson(report, preserving_proto_field_name=True)
        yield from work(lambda: path.write_text(text, encoding="utf-8"))
        blob = yield from work(lambda: local_blob(path))
        yield from upload_blobs([blob], policy, None)
    return f"blobs/{blob.sha256}"
