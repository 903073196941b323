"""Load on the HTTP server: wrong answers, its share of the engine's rate, its health check, and its memory.

    python -m bench.server.soak [--seconds 300] [--format png|bmp] [--model FILE]

64 clients send image files of mixed sizes, 5 % of them malformed, and 5 % of the clients go away half-way. Every answer
of 200 must have the bytes that the engine and the encoder make alone, and no answer of 5xx but 503 may come. The rate,
in pixels of right answers, is compared with that of the engine from memory to memory on the same images, in alternating
rounds. Decoding, encoding and the clients use the same cores as the engine. The health check is timed, and memory is
read, by a process of its own. The default model has ngf=64 and random weights.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import operator
import random
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pix2pix
from pix2pix.engines.base import Engine
from pix2pix.files import codecs

from .. import common
from .process import Process, cpu_seconds, images, machine_seconds, served

MALFORMED, LEAVING = 0.05, 0.05  # parts of all requests
DISTINCT = 24  # images
ROUND, ENGINE_ROUND = 30.0, 3.0  # seconds of load, then of the engine alone
AFTER = 60.0  # seconds from which memory must stay flat


@dataclass(frozen=True, slots=True)
class File:
    """An image file that is sent, its pixels, and the file that is the right answer."""

    content: bytes
    pixels: int
    expected: bytes


@dataclass
class Soak:
    """Clients of one server, and what they see: answers by status (0: none), wrong ones, pixels of right ones."""

    server: Process
    files: list[File]
    format: str
    end: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    pixels: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def round(self, clients: int, seconds: float) -> float:
        """Let clients ask for so long; pixels per second of right answers."""
        self.end, before = time.monotonic() + seconds, self.pixels
        with ThreadPoolExecutor(clients) as pool:
            for job in [pool.submit(self._client, seed) for seed in range(clients)]:
                job.result()
        return (self.pixels - before) / seconds

    def _client(self, seed: int) -> None:
        rng, connection = random.Random(1000 * int(self.end) + seed), self.server.connect()
        while time.monotonic() < self.end:
            file, chance = rng.choice(self.files), rng.random()
            if chance < LEAVING:
                self._leave(connection, file.content[: rng.randrange(len(file.content) + 1)], len(file.content))
                continue
            is_malformed = chance < LEAVING + MALFORMED
            status, got = self._ask(connection, file.content[: len(file.content) // (2 if is_malformed else 1)])
            with self.lock:
                self.statuses[status] += 1
                if status == 200:
                    self.wrong += got != file.expected
                    self.pixels += file.pixels
            if status == 503:
                time.sleep(0.1)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
        try:
            connection.request("POST", f"/translate?fit=pad&format={self.format}", body)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return 0, b""

    def _leave(self, connection: http.client.HTTPConnection, part: bytes, length: int) -> None:
        try:
            connection.putrequest("POST", "/translate")
            connection.putheader("Content-Length", str(length))
            connection.endheaders(part)
        finally:
            connection.close()


class Watch(NamedTuple):
    """Seconds that the health check took each time, and the server's resident memory, (seconds, bytes)."""

    health: list[float]
    resident: list[tuple[float, int]]

    def resident_from(self, begin: float, end: float) -> int:
        """The median of the server's memory between two times, in bytes."""
        return int(statistics.median(memory for when, memory in self.resident if begin <= when <= end))


def watch(server: Process, seconds: float) -> Watch:
    """Time the health check, and read the server's memory, for so long."""
    connection, seen, start = server.connect(), Watch([], []), time.monotonic()
    while (started := time.monotonic()) < start + seconds:
        connection.request("GET", "/v2/health/ready")
        connection.getresponse().read()
        seen.health.append(time.monotonic() - started)
        if found := re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text()):
            seen.resident.append((started, int(found[1]) << 10))
        time.sleep(0.05)
    connection.close()
    return seen


def engine_rate(engine: Engine, pixels: list[np.ndarray]) -> float:
    """Pixels per second of the engine from memory to memory, in batches of equal size."""
    batches = [np.stack([i for i in pixels if i.shape == shape]) for shape in sorted({i.shape for i in pixels})]
    engine.translate(batches[0])
    started, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < ENGINE_ROUND:
        for batch in batches:
            engine.translate(batch)
            count += batch[..., 0].size
    return count / elapsed


def _cpu(server: Process) -> dict[str, float]:
    """Processor time so far. What the machine has used beyond clients and server is that of other programs."""
    return {"clients": time.process_time(), "server": cpu_seconds(server.pid), "machine": machine_seconds()}


def files_of(engine: Engine, pixels: list[np.ndarray], suffix: str) -> list[File]:
    """Files of images, with their right answers."""
    return [
        File(codecs.encode(each, suffix), each[..., 0].size, codecs.encode(engine.translate(each), suffix))
        for each in pixels
    ]


def measure(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the soak test."""
    pixels, seen, loaded, alone = images(DISTINCT), Watch([], []), [], []
    seconds, apart = min(ROUND, arguments.seconds), multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        engine = stack.enter_context(pix2pix.load(model, device="cpu"))
        other = stack.enter_context(ProcessPoolExecutor(1, apart))
        files = files_of(engine, pixels, f".{arguments.format}")
        server = stack.enter_context(served(model, "--max-queue", str(2 * arguments.clients)))
        soak, began, cpu = (
            Soak(server, files, arguments.format),
            time.monotonic(),
            dict.fromkeys(("clients", "server", "machine"), 0.0),
        )
        for _ in range(round(arguments.seconds / seconds)):
            watching = other.submit(watch, server, seconds)
            before = _cpu(server)
            loaded.append(soak.round(arguments.clients, seconds))
            cpu = {name: cpu[name] + after - before[name] for name, after in _cpu(server).items()}
            seen = Watch(*map(list.__add__, seen, watching.result()))
            alone.append(engine_rate(engine, pixels))
        phases = server.seconds_by_phase()
    last = seen.resident[-1][0]
    early = seen.resident_from(begin := began + min(AFTER, (last - began) / 5), begin + seconds)
    late = seen.resident_from(last - seconds, last)
    health = 1e3 * np.array(seen.health)
    return {
        "answers": {str(key): count for key, count in sorted(soak.statuses.items())},
        "wrong": soak.wrong,
        "megapixels_per_s": [round(each / 1e6, 2) for each in loaded],
        "engine_megapixels_per_s": [round(each / 1e6, 2) for each in alone],
        "share_of_engine": round(statistics.median(map(operator.truediv, loaded, alone)), 3),
        "health_ms": {"median": round(float(np.median(health)), 2), "p99": round(float(np.quantile(health, 0.99)), 2)},
        "resident_mb": [round(early / 1e6, 1), round(late / 1e6, 1)],
        "resident_growth": round(late / early - 1, 4),
        "cpu_seconds": {name: round(each, 1) for name, each in cpu.items()},
        "seconds_by_phase": {name: round(each, 1) for name, each in phases.items()},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the measurement; the exit status is 1 if an answer was wrong, or the server failed."""
    parser = common.argument_parser("bench.server.soak", __doc__)
    parser.add_argument("--model", type=Path, help="(ngf=64, random weights)")
    parser.add_argument("--format", choices=("png", "bmp"), default="png", help="of all files (%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    record = {"model": arguments.model.name if arguments.model else "ngf=64, random weights"}
    record |= {name: getattr(arguments, name) for name in ("format", "clients", "seconds")}
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder) / "model.safetensors"
        if not arguments.model:
            pix2pix.checkpoints.write(model, *common.model())
        record |= measure(model, arguments)
    print(json.dumps(record, indent=2))
    stem = f"-{arguments.model.stem}" if arguments.model else ""
    common.save(f"server{stem}-{arguments.format}", record)
    failed = [key for key in record["answers"] if key == "0" or (key >= "500" and key != "503")]
    return 1 if record["wrong"] or failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
