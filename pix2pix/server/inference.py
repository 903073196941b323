"""The Open Inference Protocol, version 2, over HTTP: health, metadata, and inference."""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..files.limits import Need
from .limits import Held, cancelled, unless_disconnected, whole_body
from .models import Model, Service
from .problems import Problem, busy
from .queue import Claim
from .tensors import INPUT, LENGTH, OUTPUT, answer, json_length, parse

MOST_JSON = 8 << 20  # bytes: Python answers nobody while it parses them
JSON_BYTES = 24  # of Python's objects for each byte of JSON, at most, and of the array
COPIES = 3  # of an image's bytes, and of its result's, while they are with the engine and become an answer


class InferenceApi:
    """``/v2``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """The routes, each of which names a method here."""
        return [
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.ready, methods=["GET"]),
            Route("/v2/models/{name}", self.model, methods=["GET"]),
            Route("/v2/models/{name}/ready", self.model_ready, methods=["GET"]),
            Route("/v2/models/{name}/infer", self.infer, methods=["POST"]),
        ]

    async def server(self, _request: Request) -> Response:
        """The server's name, version and extensions."""
        return JSONResponse({"name": "pix2pix", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, _request: Request) -> Response:
        """That the server answers."""
        return JSONResponse({"live": True})

    async def ready(self, _request: Request) -> Response:
        """That the server's models are loaded: it listens only then."""
        return JSONResponse({"ready": True})

    async def model(self, request: Request) -> Response:
        """The tensors that a model takes and makes."""
        model = self._service.model(request.path_params["name"])
        taken, made = model.engine.generator.channels
        return JSONResponse(
            {
                "name": model.name,
                "versions": [],
                "platform": "pix2pix",
                "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, taken]}],
                "outputs": [{"name": OUTPUT, "datatype": "UINT8", "shape": [-1, -1, -1, made]}],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """That a model is loaded."""
        model = self._service.model(request.path_params["name"])
        return JSONResponse({"name": model.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Translate the images of a tensor."""
        service = self._service
        model = service.model(request.path_params["name"])
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind not in ("application/json", "application/octet-stream"):
            raise Problem(415, f"got Content-Type {kind!r}, expected application/json or application/octet-stream")
        service.queue.check()
        held = request.state.held
        with service.metrics.timed("body"):
            body = (await whole_body(request, service.options, held)).getvalue()
        length = json_length(request.headers.get(LENGTH), len(body))
        if length > MOST_JSON:
            raise Problem(413, f"got {length} bytes of JSON, expected up to {MOST_JSON}: send binary tensors")
        work = self._inferred(model, body, length, held)
        content, head = await unless_disconnected(request.receive, work)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={LENGTH: str(head)})

    async def _inferred(self, model: Model, body: bytes, length: int, held: Held) -> tuple[bytes, int | None]:
        service = self._service
        self._take(held, len(body) + JSON_BYTES * length)
        with service.metrics.timed("decode"):
            inference = await service.in_thread(partial(parse, body, length, model.engine.generator.in_channels))
        images = inference.images
        _, height, width, channels = images.shape
        try:
            model.engine.generator.check_size(height, width)
        except ValueError as error:
            raise Problem(422, str(error)) from None
        made = model.engine.generator.out_channels
        each = JSON_BYTES if not inference.is_binary else 1
        copies = images.nbytes * COPIES + images.nbytes // channels * made * (COPIES + each)
        held.admit(Need(width, height, 0, 0, copies, height * width), model.admission, service.options.max_pixels)
        with service.queue.claim(len(images)) as claim:
            outputs = await self._results(model, images, claim)
        with service.metrics.timed("encode"):
            return await service.in_thread(partial(answer, outputs, inference, model.name))

    async def _results(self, model: Model, images: np.ndarray, claim: Claim) -> np.ndarray:
        """The results of images (N,H,W,Cin), which the queue may batch with those of others."""
        tasks = [asyncio.ensure_future(claim.submit(model.lane, image)) for image in images]
        try:
            return np.stack(await asyncio.gather(*tasks))
        finally:
            await cancelled(*tasks)

    def _take(self, held: Held, count: int) -> None:
        if count > self._service.budget.limit:
            raise Problem(413, "this request needs more memory than all may have: send fewer images, or binary tensors")
        if not held.add(count):
            raise busy("other requests take all memory that requests may have")
