"""Errors as HTTP answers: problem details of RFC 9457, as JSON.

The detail says what was got, what was expected, and what to do. ``error`` repeats it for clients of the Open Inference
Protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..errors import ImageError
from ..files.limits import Deferred

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
CLIENT_CLOSED = 499  # never sent: the client has gone. nginx's number, for the log


class Problem(Exception):
    """What a request is answered with in place of a result. ``more`` are further members of the JSON."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, dict(headers or {}), dict(more or {})

    def response(self) -> Response:
        """The answer."""
        title = HTTPStatus(self.status).phrase
        content = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return JSONResponse(
            {**content, "error": self.detail, **self.more}, self.status, self.headers, media_type=MEDIA_TYPE
        )


class TooLarge(ImageError):
    """An image that this server does not take because of its size."""


def busy(detail: str) -> Problem:
    """That the server has no room for a request now."""
    return Problem(503, f"{detail}: try again later", {"Retry-After": str(RETRY_SECONDS)})


def problem_of(error: Exception) -> Problem:
    """The answer to an image that cannot be translated. Raises what says nothing about the image."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TooLarge):
        return Problem(413, str(error))
    if isinstance(error, (Deferred, MemoryError)):
        return busy(str(error) or "not enough memory for this image beside others")
    if isinstance(error, ImageError):
        return Problem(422, str(error))
    raise error


async def on_problem(_request: Request, error: Exception) -> Response:
    """Answer with a problem, or with what is known about an image."""
    return problem_of(error).response()


async def on_http_error(_request: Request, error: Exception) -> Response:
    """Answer when no route takes a request."""
    assert isinstance(error, HTTPException)
    details = {
        404: "there is nothing at this address: GET /openapi.json lists the addresses of this server",
        405: f"this address takes {(error.headers or {}).get('Allow', 'other methods')}",
    }
    return Problem(error.status_code, details.get(error.status_code, error.detail), error.headers).response()


async def on_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody reads this answer."""
    return Response(status_code=CLIENT_CLOSED)


async def on_failure(_request: Request, _error: Exception) -> Response:
    """Answer when the server itself is at fault. The log has the traceback."""
    return Problem(500, "the server failed at this request: its log says why").response()


HANDLERS: Mapping[Any, Any] = {
    Problem: on_problem,
    ImageError: on_problem,
    MemoryError: on_problem,
    HTTPException: on_http_error,
    ClientDisconnect: on_disconnect,
    Exception: on_failure,
}
