"""What the HTTP server adds to the engine's time when one person draws.

    python -m bench.server.one_user [--requests 200]

One request at a time over one connection to a server of the embedded model (ngf=24): label images of 256x256 as PNG
files, answered as BMP, as the drawing page does, and as PNG. Blocks of requests alternate with blocks of the engine
alone, from memory to memory, on the same images with the same options. Reports medians in milliseconds.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pix2pix
from pix2pix.demo import embedded
from pix2pix.engines.base import Engine
from pix2pix.files import codecs

from .. import common
from .process import Process, served

FORMATS = ("bmp", "png")
BLOCK = 20  # calls
PAUSE = 0.05  # seconds between blocks, in which the threads of an engine stop waiting for work


def timed(call: Callable[[int], Any]) -> list[float]:
    """Milliseconds of each call of a block."""
    time.sleep(PAUSE)
    call(0)
    milliseconds = []
    for i in range(BLOCK):
        started = time.perf_counter()
        call(i)
        milliseconds.append(1e3 * (time.perf_counter() - started))
    return milliseconds


def measure(server: Process, engine: Engine, files: list[bytes], requests: int) -> dict[str, Any]:
    """Medians of a request with each format and of the engine, and what a request takes beyond the engine.

    Raises RuntimeError for an answer that is not the engine's result.
    """
    connection, pixels = server.connect(), [codecs.read(io.BytesIO(file), 3) for file in files]

    def ask(i: int, form: str) -> bytes:
        connection.request("POST", f"/translate?format={form}", files[i % len(files)])
        return connection.getresponse().read()

    for i, image in enumerate(pixels):
        for form in FORMATS:
            if ask(i, form) != codecs.encode(engine.translate(image), f".{form}"):
                raise RuntimeError(f"image {i} as {form} is not the engine's result")
    taken: dict[str, list[float]] = {name: [] for name in ("engine", *FORMATS)}
    for _ in range(-(-requests // BLOCK)):
        taken["engine"] += timed(lambda i: engine.translate(pixels[i % len(pixels)]))
        for form in FORMATS:
            taken[form] += timed(lambda i, form=form: ask(i, form))
    connection.close()
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    beyond = {f"{form}_beyond_engine": medians[form] - medians["engine"] for form in FORMATS}
    return {name: round(value, 2) for name, value in (medians | beyond).items()}


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = common.argument_parser("bench.server.one_user", __doc__)
    parser.add_argument("--requests", type=int, default=200, help="of each format (%(default)s)")
    arguments = parser.parse_args(argv)
    with embedded() as (model, images), served(model) as server, pix2pix.load(model, device="cpu") as engine:
        files = [image.read_bytes() for image in images]
        before = server.seconds_by_phase()
        record = {"requests": arguments.requests, "ms": measure(server, engine, files, arguments.requests)}
        count = 2 * (arguments.requests + arguments.requests // BLOCK + len(files))
        spent = {name: seconds - before.get(name, 0) for name, seconds in server.seconds_by_phase().items()}
        record["mean_ms_by_phase"] = {name: round(1e3 * seconds / count, 2) for name, seconds in spent.items()}
    print(json.dumps(record, indent=2))
    common.save("server-one_user", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
