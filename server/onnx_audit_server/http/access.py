"""Who may see the console and the metrics: bearer tokens, and a cookie that a form sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from onnx_audit_server import logs
from onnx_audit_server.access import identity
from onnx_audit_server.access.attempts import address_of
from onnx_audit_server.access.guard import Guard, check_scope
from onnx_audit_server.access.quotas import ProcessQuotas
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.http.console import page

LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
COOKIE: Final = "onnx_audit_token"
_OPEN: Final = ("/healthz", LOGIN, LOGOUT)
_OPEN_FOLDER: Final = "/static/"
_LIFETIME: Final = 12 * 3600
"""Seconds after which a browser has to log in again, at most."""
_LONGEST_FORM: Final = 32 << 10
_STATUS: Final[Mapping[str, int]] = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "QUOTA_EXCEEDED": 429,
}

log = logs.get(__name__)


class Access:
    """Lets requests in, and people log in."""

    def __init__(self, guard: Guard, quotas: ProcessQuotas, *, metrics_open: bool) -> None:
        self._guard = guard
        self._quotas = quotas
        self._open = {*_OPEN, "/metrics"} if metrics_open else set(_OPEN)

    @property
    def routes(self) -> list[Route]:
        """The pages of logging in and out; none where nobody is asked."""
        if not self._guard.asks:
            return []
        return [
            Route(LOGIN, self._show_form, methods=["GET"]),
            Route(LOGIN, self._log_in, methods=["POST"]),
            Route(LOGOUT, self._log_out, methods=["POST"]),
        ]

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application behind the check of who asks."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (refusal := await self._refusal(scope)) is not None:
                await refusal(scope, receive, send)
                return
            await app(scope, receive, send)

        return guarded

    async def _refusal(self, scope: Scope) -> Response | None:
        """What to answer a request that is not let in, None for one that is."""
        path: str = scope["path"]
        if path in self._open or path.startswith(_OPEN_FOLDER):
            return None
        headers = Headers(scope=scope)
        try:
            await self._admit(_credentials(headers), scope.get("client"))
        except ServiceError as error:
            wants_page = "text/html" in headers.get("accept", "")
            if error.reason == "UNAUTHENTICATED" and wants_page and scope["method"] == "GET":
                target = path + (
                    f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
                )
                return RedirectResponse(f"{LOGIN}?next={quote(target, safe='')}", 303)
            return _refused(error)
        return None

    async def _admit(self, authorization: str, client: Sequence[Any] | None) -> None:
        address = address_of(str(client[0])) if client else ""
        principal = await self._guard.identify(authorization, address=address)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(principal=principal.name)
        identity.enter(principal)
        check_scope(principal, identity.Scope.READ, "the console")
        self._quotas.count_call(principal)

    async def _show_form(self, request: Request) -> Response:
        return _form(request.query_params.get("next", ""))

    async def _log_in(self, request: Request) -> Response:
        if not _from_here(request):
            return PlainTextResponse("the form is on another site\n", 403)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_FORM:
                return PlainTextResponse("the form is too long\n", 413)
        fields = parse_qs(body.decode(errors="replace"))
        token = fields.get("token", [""])[0].strip()
        target = fields.get("next", [""])[0]
        try:
            await self._admit(f"Bearer {token}", request.client)
        except ServiceError as error:
            log.info("log-in refused", reason=error.reason)
            refused = _form(target, str(error), _STATUS[error.reason])
            refused.headers.update(_retry(error))
            return refused
        log.info("logged in")
        response = RedirectResponse(_inside(target), 303)
        response.set_cookie(
            COOKIE,
            token,
            max_age=_LIFETIME,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def _log_out(self, request: Request) -> Response:
        if not _from_here(request):
            return PlainTextResponse("the form is on another site\n", 403)
        response = RedirectResponse(LOGIN, 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _credentials(headers: Headers) -> str:
    """The authorization header, or the one that the cookie stands for; empty without either."""
    if given := headers.get("authorization"):
        return given
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return f"Bearer {cookie.value}" if cookie is not None else ""


def _refused(error: ServiceError) -> Response:
    headers = {"Cache-Control": "no-store"}
    if error.reason == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = 'Bearer realm="onnx-audit"'
    return PlainTextResponse(f"{error}\n", _STATUS[error.reason], headers | _retry(error))


def _retry(error: ServiceError) -> dict[str, str]:
    if error.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}


def _form(target: str, problem: str = "", status: int = 200) -> Response:
    form = page("login.html.j2", status, target=_inside(target), problem=problem)
    # Without a referrer at all, browsers do not say either where the form comes from.
    form.headers["Referrer-Policy"] = "same-origin"
    return form


def _from_here(request: Request) -> bool:
    """Whether a form was sent from a page of this server, as far as the browser says."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site in {"same-origin", "none"}
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")


def _inside(target: str) -> str:
    """A path on this server to go to, whatever the form says."""
    parts = urlsplit(target)
    inside = target.startswith("/") and not parts.scheme and not parts.netloc
    plain = target.isprintable() and "\\" not in target and not target.startswith("//")
    return target if inside and plain else "/"
