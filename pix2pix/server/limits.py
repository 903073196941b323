"""What requests may take: bytes and seconds of a body, pixels of an image, and the memory of all of them together."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ImageError
from ..files.limits import Admission, Deferred, Need
from ..files.options import ServeOptions
from .problems import Problem, TooLarge, busy

T = TypeVar("T")


class Budget:
    """The bytes that all requests take together, up to ``limit``. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self._used, self._lock = limit, 0, threading.Lock()

    @property
    def used(self) -> int:
        """Bytes taken now."""
        return self._used

    def take(self, count: int) -> bool:
        """Take ``count`` bytes, which may be negative; False if they are not there."""
        with self._lock:
            if count > 0 and self._used + count > self.limit:
                return False
            self._used += count
            return True

    @contextmanager
    def held(self) -> Iterator[Held]:
        """What one request takes, given back at the end of the block."""
        held = Held(self)
        try:
            yield held
        finally:
            held.give_back(held.count)


class Held:
    """The bytes that one request takes: ``count``."""

    def __init__(self, budget: Budget) -> None:
        self.count, self._budget, self._lock = 0, budget, threading.Lock()

    def add(self, count: int) -> bool:
        """Take more; False if they are not there."""
        with self._lock:
            taken = self._budget.take(count)
            self.count += count if taken else 0
        return taken

    def give_back(self, count: int) -> None:
        """Take less."""
        with self._lock:
            self._budget.take(-count)
            self.count -= count

    def admit(self, need: Need, admission: Admission, max_pixels: int) -> None:
        """Take what an image needs, before it is decoded.

        Raises TooLarge for an image that this server never takes, Deferred for one that it cannot take now.
        """
        if (pixels := max(need.pixels, need.width * need.height)) > max_pixels:
            size = f"{need.width}x{need.height}"
            raise TooLarge(f"{size} pixels, {pixels:,} when fitted: expected up to {max_pixels:,}; make it smaller")
        bytes_needed = need.decoding + need.kept + need.results
        if bytes_needed > self._budget.limit:
            raise TooLarge(
                f"{need.width}x{need.height} pixels need {bytes_needed:,} bytes, this server gives all requests "
                f"{self._budget.limit:,}: make the image smaller"
            )
        try:
            admission.admit(need, alone=True)
        except ImageError as error:
            raise TooLarge(str(error)) from None
        if not self.add(bytes_needed):
            raise Deferred("the images that are being translated take all memory that requests may have")


class Accounting:
    """Gives each request what it may take, ``request.state.held``, until its client has read the answer."""

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self._app, self._budget = app, budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}  # which uvicorn takes when most of the rest has been read
            await send(message)

        with self._budget.held() as held:
            scope.setdefault("state", {})["held"] = held
            await self._app(scope, receive, sent)


async def body(request: Request, options: ServeOptions, held: Held) -> AsyncIterator[bytes]:
    """The body of a request in pieces, which ``held`` takes.

    Raises Problem: 411 without a length, 413 for more than ``max_body`` bytes, 408 where it does not come in time, 415
    if it is compressed, 503 if there is no memory for it.
    """
    headers = request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, f"got Content-Encoding {headers['content-encoding']}: send the body as it is")
    if "content-length" not in headers or "transfer-encoding" in headers:
        raise Problem(411, "got a body without a length, or none: send it whole, with Content-Length")
    if int(headers["content-length"]) > options.max_body:
        raise Problem(413, f"got {headers['content-length']} bytes, expected up to {options.max_body}")
    loop = asyncio.get_running_loop()
    end = loop.time() + options.body_timeout
    pieces = request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces), max(0.0, end - loop.time()))
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Problem(408, f"the body did not come within {options.body_timeout:g} s: send it faster") from None
        if not held.add(len(piece)):
            raise busy("other requests take all memory that requests may have")
        yield piece


async def whole_body(request: Request, options: ServeOptions, held: Held) -> io.BytesIO:
    """The body of a request as a file, at its start. Raises Problem as :func:`body` does, 400 if it is empty."""
    file = io.BytesIO()
    async for piece in body(request, options, held):
        file.write(piece)
    if not file.tell():
        raise Problem(400, "got an empty body")
    file.seek(0)
    return file


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes. The body must have been read.

    Raises ClientDisconnect, and what ``work`` raises.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await cancelled(task, gone)


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
