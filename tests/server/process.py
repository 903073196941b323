"""The server as a process, asked over a socket."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import pix2pix

pytest.importorskip("uvicorn", reason="needs the extra serve")

ROOT = Path(pix2pix.__file__).resolve().parents[1]
# Runs the command line with an engine whose every call takes so many seconds more.
SLOW = """
import sys, time
from pix2pix.cli import main
from pix2pix.cpu.engine import CpuEngine
translate = CpuEngine._translate
def slowly(self, b, out, stop):
    end = time.monotonic() + {seconds}
    while time.monotonic() < end and not stop.is_set():
        time.sleep(0.01)
    translate(self, b, out, stop)
CpuEngine._translate = slowly
sys.exit(main())
"""

COLOUR = ("-m", "colour.safetensors")


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


class Server:
    """``pix2pix serve`` on a free port until the block ends, by default with the model ``colour``.

    ``before`` is code that runs first."""

    def __init__(
        self, folder: Path, *argv: str, slow: float = 0, models: tuple[str, ...] = COLOUR, before: str = ""
    ) -> None:
        start = ["-c", before + SLOW.format(seconds=slow)] if slow or before else ["-m", "pix2pix"]
        command = [sys.executable, *start, "serve", *models, "--port", "0", "--device", "cpu"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([*command, *argv], cwd=folder, env=environment, stderr=subprocess.PIPE)
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line.decode())
            if found := re.match(r"serving on http://.*:(\d+)$", self.lines[-1]):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError("".join(self.lines))
        self._log: list[bytes] = []
        self._reader = threading.Thread(target=lambda: self._log.extend(self.process.stderr), daemon=True)
        self._reader.start()  # a log that nobody reads would fill its pipe, and stop the server

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.end()

    def end(self) -> tuple[int, str]:
        """End it, if it still runs; its exit status, and what it wrote to stderr since it started."""
        self.process.terminate()
        self.process.wait(timeout=30)
        self._reader.join(timeout=30)
        return self.process.returncode, b"".join(self._log).decode()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """The answer to one request. ``_`` in names of headers stands for ``-``."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def translate(self, body: bytes, query: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/translate{query}", body, **headers)

    def metric(self, name: str) -> float:
        """The value of a metric, with its labels in its name."""
        text = self.ask("GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + 10
        while (now := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {now}, expected {value}"
            time.sleep(0.02)


def image(h: int = 32, w: int = 32, seed: int = 0, format: str = "PNG") -> bytes:
    """A file of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    return encoded(pixels, format)


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def multipart(files: dict[str, bytes], **fields: str) -> tuple[bytes, str]:
    """The body of a form with files by name, and its Content-Type."""
    parts = [f'--edge\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()]
    for name, content in files.items():
        head = f'--edge\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join([*parts, b"--edge--\r\n"]), "multipart/form-data; boundary=edge"
