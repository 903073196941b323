"""Who may ask: the checks of each request, and the headers, log line and count of each answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..files.options import ServeOptions
from .metrics import Metrics
from .problems import Problem

log = logging.getLogger(__name__)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}
LINGER_SECONDS = 1.0
OPEN = ("/v2/health/live", "/v2/health/ready")  # need no token


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is one that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Observer:
    """Adds the security headers to each answer, counts it, and writes its line of the log.

    An answer to a request whose body has not come ends the connection, soon: most clients read no answer before they
    have sent everything.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, count = time.monotonic(), 0, 0
        headers = Headers(scope=scope)
        is_complete = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"

        async def received() -> Message:
            nonlocal is_complete
            message = await receive()
            is_complete = is_complete or not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal status, count
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
                if not is_complete:
                    answer["Connection"] = "close"
            count += len(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body", False) and not is_complete:
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
                with suppress(TimeoutError):
                    await asyncio.wait_for(rest(), LINGER_SECONDS)
            await send(message)

        async def rest() -> None:
            while not is_complete and (await received())["type"] != "http.disconnect":
                pass

        try:
            await self._app(scope, received, sent)
        finally:
            route = scope["endpoint"].__name__ if "endpoint" in scope else "none"
            self._metrics.requests.labels(route, str(status)).inc()
            client = scope["client"][0] if scope.get("client") else "-"
            path = scope["raw_path"].decode("ascii", "replace")
            milliseconds = 1000 * (time.monotonic() - started)
            log.info("%s %s %s %d %d %.1f", client, scope["method"], path, status, count, milliseconds)


class Guard:
    """Refuses requests that must not reach the server's work.

    On a loopback address the Host header must name that, or one of ``hosts``: a page of another site whose name leads
    to this machine (DNS rebinding) is refused. So are requests of pages of other origins, which browsers send without
    being asked. With a token, all requests but those for the page and the server's health must give it.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, public: frozenset[str]) -> None:
        self._app, self._public = app, public | frozenset(OPEN)
        self._hosts = {"localhost", options.host.lower(), *map(str.lower, options.hosts)}
        self._checks_host = is_loopback(options.host)
        self._origins = set(options.allow_origins)
        self._token = None if options.token is None else options.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._refusal(Headers(scope=scope), scope)) is not None:
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, scope: Scope) -> Problem | None:
        host = headers.get("host", "")
        if self._checks_host and not self._is_own(host):
            return Problem(400, f"got Host {host!r}, expected this machine's: ask for localhost, or use --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in self._origins:
            if origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
                return Problem(403, f"got a request of a page of {origin!r}: start the server with --allow-origin")
        if self._token is None or scope["path"] in self._public:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._token):
            return None
        return Problem(401, "got no valid token: send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or _is_loopback_address(name)


def _is_loopback_address(name: str) -> bool:
    return name != "localhost" and is_loopback(name)
