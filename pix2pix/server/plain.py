"""The plain API: an image file in, an image file out; several in one request, a zip out."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import PurePosixPath

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ImageError
from ..files.jobs import output_name
from ..files.limits import Deferred
from ..model.palette import described
from .limits import Held, body, cancelled, unless_disconnected, whole_body
from .models import Encoded, Model, Service, Upload
from .negotiation import ZIP, Wanted, acceptable, wanted
from .problems import Problem
from .queue import Claim

MOST_FIELDS = 16
FAILURES = "failures.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all files in a zip: the same images give the same bytes


class PlainApi:
    """``/translate`` and ``/models``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """The routes, each of which names a method here."""
        return [
            Route("/models", self.models, methods=["GET"]),
            Route("/translate", self.translate, methods=["POST"]),
            Route("/models/{name}/translate", self.translate, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        """The models, the default one first."""
        models = []
        for model in self._service.models.values():
            generator = model.engine.generator
            models.append(
                {
                    "name": model.name,
                    "size": generator.size,
                    "multiple": generator.multiple,
                    "in_channels": generator.in_channels,
                    "out_channels": generator.out_channels,
                    "takes": generator.takes,
                    "palette": [{"name": n, "colour": c} for n, c in described(generator.palette).items()],
                    "device": str(model.engine.info),
                }
            )
        return JSONResponse({"models": models})

    async def translate(self, request: Request) -> Response:
        """Translate the image in the body, or those in its parts."""
        service = self._service
        model = service.model(request.path_params.get("name"))
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_form = kind == "multipart/form-data"
        if not is_form and kind not in ("", "application/octet-stream") and not kind.startswith("image/"):
            raise Problem(
                415, f"got Content-Type {kind!r}, expected image/..., application/octet-stream or multipart/form-data"
            )
        asked = wanted(service.options, request.query_params.multi_items())
        service.queue.check()
        held = request.state.held
        with service.metrics.timed("body"):
            if is_form:
                uploads, fields = await self._form(request, held)
                if fields:
                    asked = wanted(service.options, [*request.query_params.multi_items(), *fields])
            else:
                uploads = [Upload(await whole_body(request, service.options, held))]
        with service.queue.claim(len(uploads)) as claim:
            work = self._translated(request, model, uploads, asked, claim, held)
            return await unless_disconnected(request.receive, work)

    async def _translated(
        self, request: Request, model: Model, uploads: list[Upload], asked: Wanted, claim: Claim, held: Held
    ) -> Response:
        accept = request.headers.get("accept")
        if len(uploads) == 1:
            result = await self._service.translated(model, uploads[0], asked, accept, claim, held)
            return Response(result.content, media_type=result.media_type, headers={"Vary": "Accept"})
        acceptable(accept, [ZIP])
        names = _names(uploads)
        tasks = [asyncio.ensure_future(self._one(model, upload, asked, claim, held)) for upload in uploads]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            await cancelled(*tasks)
        failed = {u.name: str(result) for u, result in zip(uploads, results, strict=True) if isinstance(result, str)}
        if len(failed) == len(uploads):
            raise Problem(422, "none of these images can be translated", more={"failures": failed})
        made = {
            output_name(name, "same" if asked.format == "same" else result.suffix[1:]): result.content
            for name, result in zip(names, results, strict=True)
            if isinstance(result, Encoded)
        }
        content = await self._service.in_thread(lambda: _zipped(made, failed))
        return Response(content, media_type=ZIP, headers={"Vary": "Accept"})

    async def _one(self, model: Model, upload: Upload, asked: Wanted, claim: Claim, held: Held) -> Encoded | str:
        """The result of one image among several, or why there is none."""
        try:
            return await self._service.translated(model, upload, asked, None, claim, held)
        except Deferred:
            raise
        except ImageError as error:
            return str(error)

    async def _form(self, request: Request, held: Held) -> tuple[list[Upload], list[tuple[str, str]]]:
        """The files of a multipart body, and its other fields. Raises Problem 400 for one that is damaged or empty."""
        options = self._service.options

        async def pieces() -> AsyncIterator[bytes]:
            async for piece in body(request, options, held):
                yield piece

        parser = _InMemory(
            request.headers,
            pieces(),  # type: ignore[arg-type]
            max_files=options.max_queue,
            max_fields=MOST_FIELDS,
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Problem(400, f"the multipart body is damaged: {error.message}") from None
        uploads, fields = [], []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                uploads.append(Upload(value.file, value.filename or ""))
            else:
                fields.append((name, value))
        if not uploads:
            raise Problem(400, "got a multipart body without a file: give each image a part with a filename")
        return uploads, fields


class _InMemory(MultiPartParser):
    """Keeps parts in memory, which the budget counts, rather than in files."""

    spool_max_size = 0  # tempfile's word for: never


def _names(uploads: list[Upload]) -> list[str]:
    """The name of each upload, without folders. Raises Problem 400 if two uploads have one name."""
    names = [PurePosixPath(upload.name.replace("\\", "/")).name or "image" for upload in uploads]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise Problem(400, f"two images are called {repeated[0]!r}: give each a name of its own")
    return names


def _zipped(files: dict[str, bytes], failed: dict[str, str]) -> bytes:
    """A zip of files by name, and of why others failed. Image files are compressed already."""
    if failed:
        files = files | {FAILURES: json.dumps(failed, indent=2).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return buffer.getvalue()
