"""Raw frames through the command line's pipe beside the engine alone: what the pipe adds to the time of a frame.

    python -m bench.video.pipe [--blocks 40] [--frames 3] [--size 1280x720]

The engine's time is that of ``translate`` of one padded frame, tuned for latency. "stream" is the time between two
results while frames are always waiting, as in a pipeline of programs. "round trip" is the time from a frame's first
byte to its result's last, where the next frame comes only then; the client's own writing and reading are part of both.
Short blocks of the three alternate. Networks are the embedded demo model, and a tiny one (ngf=4), beside which the
pipe's share is not lost in the engine's own variation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import pix2pix
from pix2pix import checkpoints, demo
from pix2pix.cpu.topology import available_cores
from pix2pix.engines.base import Engine
from pix2pix.files.fitting import pad
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

from .. import common
from ..clock import seconds_of
from .films import frames

WARM_UP = 3  # frames


class Client:
    """The command with its pipes, and frames of one size, uint8 (H,W,3), that go through it."""

    def __init__(self, model: Path, size: tuple[int, int], threads: int) -> None:
        self._bytes = size[0] * size[1] * 3
        command = [sys.executable, "-m", "pix2pix", "translate", "-", "-o", "-", "--raw", f"{size[1]}x{size[0]}"]
        command += ["-m", str(model), "--device", "cpu", "--threads", str(threads), "--quiet"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def round_trip(self, image: np.ndarray) -> np.ndarray:
        """The result of a frame."""
        self.write(image)
        return self.read(image.shape)

    def write(self, image: np.ndarray) -> None:
        """Give the command a frame."""
        assert self._process.stdin is not None
        left = image.data.cast("B")
        while left:
            left = left[self._process.stdin.write(left) :]

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """Take a result. RuntimeError if the command has ended."""
        assert self._process.stdout is not None
        result = np.empty(shape, np.uint8)
        left = result.data.cast("B")
        while left:
            count = self._process.stdout.readinto(left)
            if not count:
                raise RuntimeError("the command has ended before its input")
            left = left[count:]
        return result

    def close(self) -> None:
        """End the command. RuntimeError if it fails."""
        self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the command ended with {self._process.returncode}")


def stream_seconds(client: Client, images: list[np.ndarray]) -> float:
    """Seconds between two results while frames are always waiting."""

    def feed() -> None:
        for image in [images[0], *images]:
            client.write(image)

    feeder = threading.Thread(target=feed)
    feeder.start()
    client.read(images[0].shape)
    start = time.perf_counter()
    for image in images:
        client.read(image.shape)
    elapsed = time.perf_counter() - start
    feeder.join()
    return elapsed / len(images)


def measure(engine: Engine, client: Client, images: list[np.ndarray], blocks: int) -> dict[str, Any]:
    """Milliseconds of a frame by the engine and through the pipe, and of the differences within blocks."""
    height, width = images[0].shape[:2]
    padded = [pad(image, engine.generator.multiple) for image in images]
    for image, given in zip(images[:WARM_UP], padded, strict=False):
        if not np.array_equal(client.round_trip(image), engine.translate(given)[:height, :width]):
            raise RuntimeError("the pipe's result is not the engine's")
    seconds: dict[str, list[float]] = {"engine": [], "stream": [], "round_trip": []}
    for _ in range(blocks):
        calls = [seconds_of(lambda given=given: engine.translate(given)) for given in padded]
        seconds["engine"].append(float(np.median(calls)))
        seconds["stream"].append(stream_seconds(client, images))
        trips = [seconds_of(lambda image=image: client.round_trip(image)) for image in images]
        seconds["round_trip"].append(float(np.median(trips)))
    added = {name: np.array(seconds[name]) - seconds["engine"] for name in ("stream", "round_trip")}
    record = {
        "median_ms": {name: float(np.median(values)) for name, values in seconds.items()},
        "least_ms": {name: min(values) for name, values in seconds.items()},
        "added_ms": {name: float(np.median(values)) for name, values in added.items()},
        "added_ms_quartiles": {name: np.quantile(values, (0.25, 0.75)).tolist() for name, values in added.items()},
    }
    return {
        kind: {name: np.round(1e3 * np.array(v), 2).tolist() for name, v in d.items()} for kind, d in record.items()
    }


def measure_model(model: Path, images: list[np.ndarray], arguments: argparse.Namespace) -> dict[str, Any]:
    """:func:`measure` for a model file."""
    client = Client(model, images[0].shape[:2], arguments.threads)
    with pix2pix.load(model, device="cpu", threads=arguments.threads, tune="latency") as engine:
        record = measure(engine, client, images, arguments.blocks)
    client.close()
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.argument_parser("bench.video.pipe", __doc__)
    parser.add_argument("--blocks", type=int, default=40, help="(%(default)s)")
    parser.add_argument("--frames", type=int, default=3, help="in a block (%(default)s)")
    parser.add_argument("--size", default="1280x720", help="width x height (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the measurements."""
    arguments = parse(argv)
    width, height = map(int, arguments.size.split("x"))
    images = list(frames(arguments.frames, (height, width)))
    record: dict[str, Any] = {"size": arguments.size, "threads": arguments.threads}
    with tempfile.TemporaryDirectory() as name:
        tiny = Path(name) / "tiny.safetensors"
        generator = unet(ngf=4, depth=5)
        checkpoints.write(tiny, generator, random_weights(generator, common.MODEL_SEED))
        record["tiny"] = measure_model(tiny, images, arguments)
    with demo.embedded() as (model, _):
        record["demo"] = measure_model(model, images, arguments)
    print(json.dumps(record, indent=2))
    common.save("pipe", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
