"""The console: pages that show audits, their reports and models; it changes nothing."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from onnx_audit import v1
from onnx_audit.version import __version__
from onnx_audit_server import metrics
from onnx_audit_server.access import identity
from onnx_audit_server.api import names
from onnx_audit_server.api.reports import ReportCalls
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.http import history, progress
from onnx_audit_server.http.security import REPORT_POLICY
from onnx_audit_server.jobs.events import EventTail
from onnx_audit_server.reports.sources import ReportSources
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import ENDED, Records

if TYPE_CHECKING:
    import jinja2

PAGE: Final = 25
"""Audits of a page."""
_EVENTS: Final = 500
_STATUS: Final = {"NOT_FOUND": 404, "INVALID_FIELD": 400, "WRONG_STATE": 409}
_FIRST_METRIC: Final = "distortion.norms[L2].quantiles[0.5]"

Handler = Callable[[Request], Awaitable[Response]]


class Console:
    """Serves the pages."""

    def __init__(self, records: Records, blobs: BlobStore, tail: EventTail) -> None:
        self._records = records
        self._blobs = blobs
        self._tail = tail
        self._reports = ReportCalls(ReportSources(records, blobs), blobs)
        self._closing = asyncio.Event()

    @property
    def routes(self) -> list[Route | Mount]:
        """What the console answers."""
        pages: dict[str, Handler] = {
            "/": self._audits,
            "/audits/{id}": self._audit,
            "/audits/{id}/events": self._events,
            "/audits/{id}/report": self._report,
            "/models": self._models,
            "/history": self._history,
            "/health": self._health,
        }
        static = Path(str(resources.files("onnx_audit_server.http") / "static"))
        return [
            *(Route(path, explained(handler)) for path, handler in pages.items()),
            Mount("/static", StaticFiles(directory=static)),
        ]

    def close(self) -> None:
        """Ends the streams, so that the server can stop."""
        self._closing.set()

    async def _audits(self, request: Request) -> Response:
        states = {metrics.state_label(state): state for state in metrics.STATES}
        wanted = request.query_params.get("state", "")
        if wanted and wanted not in states:
            raise ServiceError("NOT_FOUND", f"there is no state {wanted!r}")
        audits, cursor = await asyncio.to_thread(
            self._records.list_audits,
            PAGE,
            names.decode_token(request.query_params.get("page", "")),
            [states[wanted]] if wanted else [],
        )
        models = await asyncio.to_thread(self._names_of, audits)
        return page(
            "audits.html.j2",
            audits=audits,
            models=models,
            states=list(states),
            wanted=wanted,
            next=names.encode_token(cursor),
            first="page" not in request.query_params,
        )

    async def _audit(self, request: Request) -> Response:
        audit = await self._found(request)
        tally = await asyncio.to_thread(self._tally, audit)
        models = await asyncio.to_thread(self._names_of, [audit])
        return page(
            "audit.html.j2",
            audit=audit,
            identifier=_identifier(audit),
            model=models[audit.model],
            tally=tally,
            live=audit.state not in ENDED,
            auditors=[field.name for field, _ in audit.auditors.ListFields()],
        )

    async def _events(self, request: Request) -> Response:
        audit = await self._found(request)
        text = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        after = int(text) if text.isdecimal() else -1
        if not 0 <= after <= audit.last_sequence:
            raise ServiceError(
                "INVALID_FIELD", f"event {text[:20]!r} is not from 0 to {audit.last_sequence}"
            )
        if audit.state in ENDED and after == audit.last_sequence:
            return Response(status_code=204)  # tells a browser not to come back
        events = self._tail.follow(_identifier(audit), 0)
        return StreamingResponse(
            progress.stream(events, after, self._closing),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _report(self, request: Request) -> Response:
        audit = await self._found(request)
        content = await asyncio.to_thread(self._rendered, audit)
        return HTMLResponse(content, headers={"Content-Security-Policy": REPORT_POLICY})

    async def _models(self, _request: Request) -> Response:
        return page("models.html.j2", names=await asyncio.to_thread(history.names, self._records))

    async def _history(self, request: Request) -> Response:
        name = request.query_params.get("model", "")
        found = await asyncio.to_thread(history.metrics, self._records, self._blobs, name)
        wanted = request.query_params.get("metric", _FIRST_METRIC)
        chosen = next((metric for metric in found if metric.path == wanted), None)
        chosen = chosen or (found[0] if found else None)
        return page(
            "history.html.j2",
            name=name,
            metrics=found,
            chosen=chosen,
            drawing=history.drawing(chosen.points) if chosen else None,
            size=(history.WIDTH, history.HEIGHT),
        )

    async def _health(self, _request: Request) -> Response:
        counts = await asyncio.to_thread(self._records.count_audits)
        states = {
            metrics.state_label(state): sum(n for (found, _), n in counts.items() if found == state)
            for state in metrics.STATES
        }
        return page("health.html.j2", states=states, version=__version__, now=datetime.now(UTC))

    async def _found(self, request: Request) -> v1.Audit:
        name = f"audits/{request.path_params['id']}"
        identifier = names.parse(name, "audits")
        audit = await asyncio.to_thread(self._records.get_audit, identifier)
        if audit is None:
            raise names.not_found(name)
        return audit

    def _names_of(self, audits: list[v1.Audit]) -> dict[str, str]:
        """What people call the models of audits, by `models/{sha256}`."""
        found = {}
        for name in {audit.model for audit in audits}:
            model = self._records.get_model(name.partition("/")[2])
            found[name] = model.display_name if model is not None else ""
        return found

    def _tally(self, audit: v1.Audit) -> progress.Tally:
        """What the audit's events up to now add up to."""
        tally, sequence = progress.Tally(), 0
        while sequence < audit.last_sequence:
            for event in self._records.events_after(_identifier(audit), sequence, _EVENTS):
                sequence = event.sequence
                if sequence <= audit.last_sequence:
                    tally.add(event)
        return tally

    def _rendered(self, audit: v1.Audit) -> bytes:
        request = v1.RenderReportRequest(name=f"{audit.name}/report", format=v1.REPORT_FORMAT_HTML)
        return self._reports.render(request).content


def explained(handler: Handler) -> Handler:
    """Answers a refused request with a page that says why."""

    @functools.wraps(handler)
    async def wrapper(request: Request) -> Response:
        try:
            return await handler(request)
        except ServiceError as error:
            status = _STATUS.get(error.reason, 500)
            return page("error.html.j2", status, status=status, message=str(error))

    return wrapper


def page(template: str, status_code: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401 - as templates take them
    """Renders a template; pages are never kept, for they are out of date at once."""
    content = _environment().get_template(template).render(**values)
    return HTMLResponse(content, status_code, headers={"Cache-Control": "no-store"})


@functools.cache
def _environment() -> jinja2.Environment:
    """Templates in which every name is escaped."""
    import jinja2  # noqa: PLC0415 - long to import, and a server that serves no page needs none

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("onnx_audit_server.http"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "moment": _moment,
        "state": metrics.state_label,
        "verdict": metrics.verdict_label,
        "identifier": _identifier,
    }
    environment.globals["principal"] = identity.current
    environment.globals["anonymous"] = identity.ANONYMOUS
    return environment


def _identifier(audit: v1.Audit) -> str:
    return audit.name.partition("/")[2]


def _moment(moment: Timestamp) -> str:
    """A moment in UTC; empty if there is none."""
    return f"{moment.ToDatetime():%Y-%m-%d %H:%M:%S}" if moment.seconds else ""
