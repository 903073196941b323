"""The command ``serve``: says what is served and where."""

from __future__ import annotations

import logging
import sys

from ..engines.base import Engine
from ..files.options import ServeOptions

EXTRA = ("starlette", "uvicorn", "prometheus_client", "python_multipart")


def run(options: ServeOptions) -> int:
    """Serve until a signal ends it. Everything goes to stderr. Returns the exit status.

    Raises ValueError, RuntimeError or OSError with a message for people if the server cannot start.
    """
    try:
        from ..server import run as server
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise RuntimeError(f"serving needs {error.name}: pip install 'pix2pix[serve]'") from None

    class Printed(server.Listener):
        def loaded(self, name: str, engine: Engine) -> None:
            print(f"model {name}: {engine.info}", file=sys.stderr)
            for remark in engine.generator.remarks:
                print(f"model {name}: {remark}", file=sys.stderr)

        def warned(self, text: str) -> None:
            print(f"warning: {text}", file=sys.stderr)

        def listening(self, url: str) -> None:
            print(f"serving on {url}", file=sys.stderr, flush=True)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    server.log_to(handler)
    server.serve(options, Printed())
    return 0
