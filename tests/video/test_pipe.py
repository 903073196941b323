"""``pix2pix translate - --output - --raw WxH``: frames as soon as they are done, and clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pix2pix.cli.parser import parser, pipe_options, translate_options
from pix2pix.files.fitting import pad
from tests.cli.commands import noise, translate

H, W = 37, 50
FRAME = H * W * 3


@contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command with pipes. One that hangs is killed, which its exit status shows."""
    command = [sys.executable, "-m", "pix2pix", "translate", "-", "-o", "-", "--raw", f"{W}x{H}"]
    command += ["-m", "model.safetensors", "--device", "cpu", *argv]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, bufsize=0, **pipes) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()


def read(process: subprocess.Popen[bytes], count: int) -> bytes:
    assert process.stdout is not None
    data = b""
    while len(data) < count and (more := process.stdout.read(count - len(data))):
        data += more
    return data


@pytest.fixture
def frames() -> list[np.ndarray]:
    return [noise(H, W, seed) for seed in range(4)]


@pytest.fixture
def expected(engine, frames) -> list[bytes]:
    return [engine.translate(pad(frame, 32))[:H, :W].tobytes() for frame in frames]


def test_each_frame_comes_before_the_next_one_is_given(frames, expected):
    with started("--tune", "throughput") as process:
        for frame, wanted in zip(frames, expected, strict=True):
            process.stdin.write(frame.tobytes())
            assert read(process, FRAME) == wanted
        process.stdin.close()
        assert process.wait() == 0
        assert process.stdout.read() == b""
        assert b"4 done" in process.stderr.read()


def test_no_frames():
    with started("--json", "j.json", "--quiet") as process:
        process.stdin.close()
        assert process.wait() == 0
    assert json.loads(Path("j.json").read_text())["done"] == 0


def test_frames_in_a_pipe_are_tuned_for_latency():
    for argv, tune in (([], "latency"), (["--tune", "throughput"], "throughput")):
        args = parser().parse_args(["translate", "-", "-o", "-", "--raw", "64x32", "-m", "m", *argv])
        options = pipe_options(args)
        assert options.run.engine.tune == tune and options.size == (32, 64)
    args = parser().parse_args(["translate", "in", "-o", "out", "-m", "m"])
    assert translate_options(args).engine.tune == "throughput"


def test_input_that_ends_within_a_frame(frames, expected):
    with started("--tune", "throughput") as process:
        output, told = process.communicate(frames[0].tobytes() + frames[1].tobytes() + b"abc")
    assert process.returncode == 1
    assert output == expected[0] + expected[1]
    assert b"ended within frame 2: got 3 of" in told and b"Traceback" not in told


def test_a_reader_that_ends(frames):
    with started() as process:
        process.stdin.write(frames[0].tobytes())
        read(process, FRAME)
        process.stdout.close()
        try:
            for _ in range(1000):
                process.stdin.write(frames[1].tobytes())
        except BrokenPipeError:
            pass
        assert process.wait() == 0
        told = process.stderr.read()
        assert b"Traceback" not in told and b"error" not in told.lower(), told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("waits_for", ["input", "reader"])
def test_an_interrupt(frames, number, waits_for):
    with started() as process:
        process.stdin.write(frames[0].tobytes())
        if waits_for == "input":
            read(process, FRAME)
        else:
            writer = threading.Thread(target=fill, args=(process, frames[1].tobytes()), daemon=True)
            writer.start()
            read(process, 1)
        process.send_signal(number)
        assert process.wait() == 130
        told = process.stderr.read()
        assert b"Traceback" not in told, told


def fill(process: subprocess.Popen[bytes], frame: bytes) -> None:
    """Write until the pipe breaks."""
    try:
        while True:
            process.stdin.write(frame)
    except (BrokenPipeError, ValueError):
        pass


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-", "-o", "-"], "give --raw and their size"),
        (["-", "-o", "x.png", "--raw", "8x8"], "from stdin to stdout"),
        (["-", "-o", "-", "--raw", "8x8", "--fit", "resize"], "takes no --fit resize"),
        (["-", "-o", "-", "--raw", "8x8", "--json", "-"], "which the frames go to"),
    ],
)
def test_what_is_refused(capsys, argv, message):
    assert translate(*argv) == 2
    assert message in capsys.readouterr().err
