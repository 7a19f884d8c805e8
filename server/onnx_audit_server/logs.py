"""Structured logs: JSON lines, or coloured ones on a terminal, with the job's context on each."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from onnx_audit_server.redact import redact


def configure(level: str) -> None:
    """Sends this process's logs, those of libraries too, to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    terminal = sys.stderr.isatty()
    final: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(), _without_secrets]
        if terminal
        else [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            _without_secrets,
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The libraries below speak of their own workings; what users need is in our own lines.
    for name in ("dbos", "alembic", "uvicorn", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [logging.NullHandler()]
        library.propagate = True
        library.setLevel(logging.WARNING)


def _without_secrets(_logger: object, _method: str, rendered: Any) -> str:  # noqa: ANN401 - as structlog calls it
    """The last of the processors: takes secrets out of the whole line, tracebacks included."""
    return redact(str(rendered))


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger under a module's name."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
