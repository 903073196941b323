"""The application: all routes, and the checks in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..files.options import ServeOptions
from .access import Guard, Observer
from .inference import InferenceApi
from .limits import Accounting
from .models import Service
from .openapi import document
from .page import Page
from .plain import PlainApi
from .problems import HANDLERS
from .tensors import LENGTH

CORS_SECONDS = 600  # that browsers may remember what an origin may do


def application(service: Service) -> ASGIApp:
    """The ASGI application of a service, which is closed when the application ends."""
    options, page = service.options, Page(service.options)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        service.queue.abandon()
        await asyncio.to_thread(service.close)

    async def metrics(request: Request) -> Response:
        """What the server counts and times."""
        content, media_type = service.metrics.rendered(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    async def openapi(_request: Request) -> Response:
        """The description of this API."""
        return JSONResponse(document(tuple(service.models), options))

    routes = [
        *PlainApi(service).routes(),
        *InferenceApi(service).routes(),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        *page.routes(),
    ]
    inner = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    inner.router.redirect_slashes = False
    app: ASGIApp = Guard(Accounting(inner, service.budget), options, page.public)
    if options.allow_origins:
        app = _shared(app, options)
    return Observer(app, service.metrics)


def _shared(app: ASGIApp, options: ServeOptions) -> ASGIApp:
    """``app`` for pages of other origins, too."""
    return CORSMiddleware(
        app,
        allow_origins=options.allow_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", LENGTH),
        expose_headers=(LENGTH, "Retry-After"),
        max_age=CORS_SECONDS,
    )
