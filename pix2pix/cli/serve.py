"""The command ``serve``: says what is served and where."""

from __future__ import annotations

import logging
import sys
import threading
import webbrowser
from dataclasses import replace

from ..demo import embedded
from ..demo.canvas import PALETTE
from ..engines.base import Engine
from ..files.options import ServeOptions

EXTRA = ("starlette", "uvicorn", "prometheus_client", "python_multipart")


def run(options: ServeOptions, is_demo: bool = False, opens_browser: bool = False) -> int:
    """Serve until a signal ends it; with ``is_demo``, the embedded model. Says everything on stderr.

    Returns the exit status. ``opens_browser`` shows the page to the user.

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
            if opens_browser:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()  # which may wait for it

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    server.log_to(handler)
    if not is_demo:
        server.serve(options, Printed())
        return 0
    with embedded() as (model, images):
        palette = tuple(PALETTE.items())
        server.serve(replace(options, models=(("facades", model),), palette=palette, examples=images), Printed())
    return 0
