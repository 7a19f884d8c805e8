"""The server of the HTTP port: metrics for Prometheus, a liveness check, and the console."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from onnx_audit_server import metrics
from onnx_audit_server.access.certificates import CertificateFiles, follow_files
from onnx_audit_server.collectors import RecordsCollector
from onnx_audit_server.http.access import Access
from onnx_audit_server.http.console import Console
from onnx_audit_server.http.security import Security
from onnx_audit_server.jobs.queue import JobQueue
from onnx_audit_server.store.records import Records


async def show_metrics(_request: Request) -> Response:
    """Everything that Prometheus may know."""
    content = await asyncio.to_thread(generate_latest, metrics.REGISTRY)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


async def show_health(_request: Request) -> Response:
    """Says that the process answers."""
    return PlainTextResponse("ok\n")


class _Server(uvicorn.Server):
    """A server that leaves signals to the process's one place for them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves the HTTP port on the running event loop."""

    def __init__(
        self,
        address: str,
        records: Records,
        console: Console | None,
        access: Access,
        queue: JobQueue | None = None,
        certificates: CertificateFiles | None = None,
    ) -> None:
        """Prepares the server.

        Args:
            address: Where to listen, host:port.
            records: What metrics count.
            console: The pages for people; None for a process that serves no API.
            access: Who may see what.
            queue: What else metrics count.
            certificates: Certificate and key with which to speak TLS; None for plain HTTP.
        """
        host, _, port = address.rpartition(":")
        metrics.REGISTRY.register(RecordsCollector(records, queue))
        routes: list[BaseRoute] = [
            Route("/metrics", show_metrics),
            Route("/healthz", show_health),
        ]
        self._console = console
        if console is not None:
            routes += [*console.routes, *access.routes]
        self._host = host
        self._server = _Server(
            uvicorn.Config(
                Security(access.around(Starlette(routes=routes)), host.strip("[]")),
                host=host.strip("[]"),
                port=int(port),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ssl_certfile=certificates.certificate if certificates else None,
                ssl_keyfile=certificates.key if certificates else None,
            )
        )
        if certificates is not None:
            self._server.config.load()
            assert self._server.config.ssl is not None  # noqa: S101 - it was asked for above
            follow_files(self._server.config.ssl, certificates)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Starts to serve; returns the address.

        Raises:
            OSError: The address cannot be had.
        """
        family = socket.AF_INET6 if ":" in self._server.config.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._server.config.host, self._server.config.port))
        # Whoever is told the address can connect at once; the answer comes when the server runs.
        listener.listen(self._server.config.backlog)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        return f"{self._host}:{listener.getsockname()[1]}"

    async def stop(self) -> None:
        """Ends after the requests that are under way; streams end at once."""
        if self._console is not None:
            self._console.close()
        self._server.should_exit = True
        if self._task is not None:
            await self._task
