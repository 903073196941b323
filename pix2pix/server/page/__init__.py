"""The page on which one draws and sees the result: its files, and what they need to know of this server.

The files are read once, at the start. A request's address is only looked up among them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...files.options import ServeOptions

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


class Page:
    """The routes of the page, and ``public``: the addresses that need no token, since they hold nothing secret."""

    def __init__(self, options: ServeOptions) -> None:
        files = {file.name: file for file in resources.files(__name__).iterdir() if Path(file.name).suffix in TYPES}
        self._files = {f"/page/{name}": (file.read_bytes(), Path(name).suffix) for name, file in files.items()}
        self._files["/"] = self._files.pop("/page/index.html")
        examples = [f"/page/example-{i}.png" for i in range(len(options.examples))]
        self._files |= {
            address: (file.read_bytes(), ".png") for address, file in zip(examples, options.examples, strict=True)
        }
        self._settings = {"examples": examples, "token": options.token is not None}
        self.public = frozenset({*self._files, "/page/settings.json"})

    def routes(self) -> list[Route]:
        """The routes, each of which names a method here."""
        return [
            Route("/page/settings.json", self.settings, methods=["GET"]),
            *(Route(address, self.file, methods=["GET"]) for address in self._files),
        ]

    async def settings(self, _request: Request) -> Response:
        """The examples, and whether requests need a token."""
        return JSONResponse(self._settings)

    async def file(self, request: Request) -> Response:
        """One of the page's files."""
        content, suffix = self._files[request.url.path]
        return Response(content, media_type=TYPES[suffix])
