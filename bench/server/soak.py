"""Load on the HTTP server: ``python -m bench.server.soak MODEL [--seconds 300] [--json FILE]``.

Many clients send images of mixed sizes, some malformed, and some go away half-way. Every answer of 200 must have the
right bytes, and no answer of 5xx but 503 may come. Reports the pixels per second beside the engine's own rate in
memory, measured before on the same images, the 99th percentile of the health check, and the resident memory of the
server after the first fifth of the time and at the end.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import multiprocessing
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import pix2pix

MALFORMED, LEAVING = 0.05, 0.05  # parts of all requests
DISTINCT = 24  # images


class Soak:
    """Clients of one server, and what they see."""

    def __init__(self, port: int, images: list[bytes], seconds: float) -> None:
        self._port, self._images = port, images
        self._end, self._seconds = 0.0, seconds
        self.expected: dict[int, bytes] = {}
        self.statuses: Counter[int] = Counter()
        self.wrong, self.pixels = 0, 0
        self._lock = threading.Lock()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the server."""
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def ask(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        connection.request("POST", "/translate?fit=pad", body)
        response = connection.getresponse()
        return response.status, response.read()

    def learn(self) -> None:
        """What each image's answer is when nothing else is asked. The time begins when this ends."""
        connection = self.connect()
        for i, image in enumerate(self._images):
            status, self.expected[i] = self.ask(connection, image)
            if status != 200:
                raise RuntimeError(f"got {status} for image {i} alone: {self.expected[i]!r}")
        connection.close()
        self._end = time.monotonic() + self._seconds

    def client(self, seed: int) -> None:
        """Ask until the time is over."""
        rng, connection = random.Random(seed), self.connect()
        while time.monotonic() < self._end:
            i, chance = rng.randrange(len(self._images)), rng.random()
            image = self._images[i]
            try:
                if chance < LEAVING:
                    connection.putrequest("POST", "/translate")
                    connection.putheader("Content-Length", str(len(image)))
                    connection.endheaders(image[: rng.randrange(len(image) + 1)])
                    connection.close()
                    continue
                is_malformed = chance < LEAVING + MALFORMED
                status, got = self.ask(connection, image[: len(image) // 2] if is_malformed else image)
            except (OSError, http.client.HTTPException):
                connection.close()
                status, got = 0, b""
            with self._lock:
                self.statuses[status] += 1
                if status == 200:
                    self.wrong += got != self.expected[i]
                    self.pixels += _pixels(image)
            if status == 503:
                time.sleep(0.1)
        connection.close()


class Watch(NamedTuple):
    """Seconds that the health check took each time, and the server's resident memory, (seconds, bytes)."""

    health: list[float]
    resident: list[tuple[float, int]]

    def resident_at(self, seconds: float) -> int:
        """The median of the server's memory in bytes, in the 20 readings from a time on, or the last ones."""
        after = [memory for when, memory in self.resident if when >= seconds]
        readings = after[:20] if len(after) >= 20 else [memory for _, memory in self.resident[-20:]]
        return int(statistics.median(readings))


def watch(port: int, process: int, seconds: float) -> Watch:
    """Time the health check, and read the server's memory. In a process of its own: the clients take all of theirs."""
    connection, seen = http.client.HTTPConnection("127.0.0.1", port, timeout=60), Watch([], [])
    start = time.monotonic()
    while (started := time.monotonic()) < start + seconds:
        connection.request("GET", "/v2/health/ready")
        connection.getresponse().read()
        seen.health.append(time.monotonic() - started)
        status = Path(f"/proc/{process}/status").read_text()
        if found := re.search(r"VmRSS:\s+(\d+)", status):
            seen.resident.append((started - start, int(found[1]) << 10))
        time.sleep(0.05)
    connection.close()
    return seen


def _pixels(image: bytes) -> int:
    with Image.open(io.BytesIO(image)) as opened:
        return opened.width * opened.height


def images_of(multiple: int) -> list[np.ndarray]:
    """Different images of three sizes that a model takes as they are."""
    rng = np.random.default_rng(0)
    sides = [(multiple * a, multiple * b) for a, b in ((1, 1), (1, 2), (2, 1))]
    return [rng.integers(0, 256, (*sides[i % 3], 3), dtype=np.uint8) for i in range(DISTINCT)]


def engine_rate(model: str, images: list[np.ndarray], seconds: float = 5) -> float:
    """Pixels per second of the engine in memory, in batches of equal size."""
    with pix2pix.load(model) as engine:
        batches = [np.stack([i for i in images if i.shape == shape]) for shape in {i.shape for i in images}]
        for batch in batches:
            engine.translate(batch)
        started, pixels = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            for batch in batches:
                engine.translate(batch)
                pixels += batch[..., 0].size
        return pixels / (time.monotonic() - started)


def main(argv: list[str] | None = None) -> int:
    """Run the soak test; the exit status is 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(prog="bench.server.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with pix2pix.load(args.model) as engine:
        pixels = images_of(max(engine.generator.size, engine.generator.multiple))
    files = []
    for each in pixels:
        buffer = io.BytesIO()
        Image.fromarray(each).save(buffer, "PNG")
        files.append(buffer.getvalue())
    rate = engine_rate(args.model, pixels)
    command = [sys.executable, "-m", "pix2pix", "serve", "-m", args.model, "--port", "0", "--max-queue", "128"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"serving on .*:(\d+)$", line):
            break
    else:
        raise RuntimeError("the server did not start")
    log = threading.Thread(target=process.stderr.read, daemon=True)  # else its pipe would fill
    log.start()
    try:
        port = int(found[1])
        soak = Soak(port, files, args.seconds)
        soak.learn()
        apart = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, apart) as other, ThreadPoolExecutor(args.clients) as pool:
            watching = other.submit(watch, port, process.pid, args.seconds)
            for job in [pool.submit(soak.client, seed) for seed in range(args.clients)]:
                job.result()
            seen = watching.result()
    finally:
        process.terminate()
        status = process.wait(60)
    health = sorted(seen.health)
    early, late = seen.resident_at(args.seconds / 5), seen.resident_at(args.seconds)
    report = {
        "clients": args.clients,
        "seconds": args.seconds,
        "statuses": {str(key): count for key, count in sorted(soak.statuses.items())},
        "wrong": soak.wrong,
        "exit_status": status,
        "megapixels_per_second": soak.pixels / args.seconds / 1e6,
        "engine_megapixels_per_second": rate / 1e6,
        "share_of_engine": soak.pixels / args.seconds / rate,
        "health_p99_ms": 1000 * health[int(0.99 * (len(health) - 1))],
        "resident_mb": [early / 1e6, late / 1e6],
        "resident_growth": late / early - 1,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    failed = [key for key in soak.statuses if key >= 500 and key != 503]
    return 1 if soak.wrong or failed or status else 0


if __name__ == "__main__":
    sys.exit(main())
