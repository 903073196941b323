"""The server as a process, and a model and images for it."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import common

SIDES = ((1, 1), (1, 2), (2, 1))  # of images, in multiples of EDGE
EDGE = 256  # pixels
WITHIN = 60.0  # seconds in which an answer must come


@dataclass(frozen=True, slots=True)
class Process:
    """A server that runs: its port and its process id."""

    port: int
    pid: int

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)

    def seconds_by_phase(self) -> dict[str, float]:
        """Seconds that its requests have spent in each phase, as its metrics say."""
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(r'^pix2pix_phase_seconds_sum\{phase="(\w+)"\} (\S+)$', text, re.MULTILINE)
        return {phase: float(seconds) for phase, seconds in found}


@contextmanager
def served(model: Path, *options: str) -> Iterator[Process]:
    """A server of a model while the block runs. Raises RuntimeError if it does not start, or does not end with 0."""
    command = [sys.executable, "-m", "pix2pix", "serve", "-m", str(model), "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found, said = None, []
    for line in process.stderr:
        said.append(line)
        if found := re.match(r"serving on .*:(\d+)$", line):
            break
    if found is None:
        raise RuntimeError(f"the server did not start: {''.join(said)}")
    threading.Thread(target=process.stderr.read, daemon=True).start()  # else its pipe would fill
    try:
        yield Process(int(found[1]), process.pid)
    finally:
        process.terminate()
        status = process.wait(WITHIN)
    if status:
        raise RuntimeError(f"the server ended with {status}, expected 0")


def images(n: int) -> list[np.ndarray]:
    """``n`` different images of three sizes that compress like photographs, uint8 (H,W,3)."""
    squares = iter(common.varied_images(2 * n))
    return [
        np.concatenate([next(squares) for _ in range(rows * columns)], axis=0 if rows > 1 else 1)
        for rows, columns in (SIDES[i % len(SIDES)] for i in range(n))
    ]


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """Processor time that all processes of the machine have used."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split(maxsplit=4)[1:4])
    return float(user + nice + system) / os.sysconf("SC_CLK_TCK")
