"""``pix2pix watch``: each file once it is whole, none from a half, and a folder that changes all the time."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("watchfiles", reason="pip install 'pix2pix[watch]'")

from pix2pix.cli import main
from tests.cli.commands import names, noise, pixels_of, save, translate

SIZE = 32


@contextmanager
def watching(*argv: str, status: int = 0) -> Iterator[subprocess.Popen[str]]:
    """The command, which ends in good order when it is interrupted."""
    command = [sys.executable, "-m", "pix2pix", "watch", "in", "-o", "out", "-m", "model.safetensors"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [*command, "--size", str(SIZE), "--device", "cpu", *argv], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
            assert process.poll() is None, process.stderr.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == status
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def made(name: str) -> bool:
    return Path("out", name).exists()


def is_of(engine, name: str, seed: int) -> bool:
    """Whether an output is what the model makes of the noise of that seed."""
    return made(name) and bool((pixels_of(f"out/{name}") == engine.translate(noise(SIZE, SIZE, seed))).all())


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(SIZE, SIZE, seed)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def watched(folder) -> Path:
    Path("in").mkdir()
    return folder / "in"


def test_bursts_replacements_renames_and_deletions(engine, watched):
    save("in/before.png", SIZE, SIZE, 99)
    with watching():
        for seed in range(30):
            save(f"in/a{seed}.png", SIZE, SIZE, seed)
        for seed in range(0, 30, 5):
            Path(f"in/a{seed}.png").unlink()
        wait_until(lambda: made("before.png") and made("a1.png"))
        for seed in range(1, 30, 5):
            save(f"in/a{seed}.png", SIZE, SIZE, 100 + seed)
        for seed in range(2, 30, 5):
            (watched / f"a{seed}.png").rename(watched / f"b{seed}.png")
        save("in/deep/er/x.png", SIZE, SIZE, 7)
        save("elsewhere.png", SIZE, SIZE, 8)
        Path("elsewhere.png").rename("in/moved.png")
        wait_until(lambda: is_of(engine, "a26.png", 126) and is_of(engine, "b27.png", 27))
        wait_until(lambda: is_of(engine, "deep/er/x.png", 7) and is_of(engine, "moved.png", 8))
        wait_until(lambda: all(is_of(engine, f"a{s}.png", 100 + s) for s in range(1, 30, 5)))
        wait_until(lambda: all(is_of(engine, f"a{s}.png", s) for s in range(30) if s % 5 in (3, 4)))
        wait_until(lambda: all(is_of(engine, f"b{s}.png", s) for s in range(2, 30, 5)))
    assert is_of(engine, "before.png", 99)
    assert not [name for name in names("out") if name.endswith(".partial")]


def test_a_file_that_is_written_slowly(engine, watched):
    data = encoded(3)
    with watching() as process, open("in/slow.png", "wb", buffering=0) as file:
        for part in (data[:100], data[100:1500], data[1500:]):
            assert not made("slow.png")
            file.write(part)
            time.sleep(1.2)  # longer than a file has to be unchanged
        wait_until(lambda: made("slow.png"))
        assert process.poll() is None
    assert is_of(engine, "slow.png", 3)


def test_a_file_that_stays_damaged_and_one_that_is_repaired(engine, capsys):
    Path("in/bad.png").write_bytes(encoded(1)[:-500])
    Path("in/mended.png").write_bytes(encoded(2)[:-500])
    with watching(status=1) as process:
        save("in/x.png", SIZE, SIZE, 5)
        wait_until(lambda: made("x.png"))
        Path("in/mended.png").write_bytes(encoded(2))
        wait_until(lambda: made("mended.png"))
        while "bad.png" not in (line := process.stderr.readline()):
            assert "mended" not in line
    assert names("out") == [".pix2pix-run.json", "mended.png", "x.png"]
    assert is_of(engine, "mended.png", 2)


def test_the_next_run_goes_on(engine):
    save("in/a.png", SIZE, SIZE, 1)
    with watching():
        wait_until(lambda: made("a.png"))
    stamp = Path("out/a.png").stat().st_mtime_ns
    save("in/b.png", SIZE, SIZE, 2)
    with watching():
        wait_until(lambda: made("b.png"))
    assert translate("in", "-o", "out", "--size", str(SIZE)) == 0
    assert Path("out/a.png").stat().st_mtime_ns == stamp
    assert is_of(engine, "b.png", 2)


def test_an_output_folder_inside_the_watched_one(engine):
    command = [
        sys.executable,
        "-m",
        "pix2pix",
        "watch",
        "in",
        "-o",
        "in/out",
        "-m",
        "model.safetensors",
        "--size",
        "32",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    save("in/a.png", SIZE, SIZE, 1)
    with subprocess.Popen(command, env=environment) as process:
        wait_until(lambda: Path("in/out/a.png").exists())
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert names("in/out") == [".pix2pix-run.json", "a.png"]


def test_a_folder_that_is_gone():
    save("in/a.png", SIZE, SIZE, 1)
    command = [sys.executable, "-m", "pix2pix", "watch", "in", "-o", "out", "-m", "model.safetensors", "--size", "32"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: made("a.png"))
        Path("in/a.png").unlink()
        Path("in").rmdir()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and "there is no file or folder 'in'" in told
    assert np.asarray(Image.open("out/a.png")).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["none", "-o", "out"], "no folder 'none'"), (["in", "-o", "in"], "is the one that is watched")],
)
def test_what_is_refused(capsys, argv, message):
    assert main(["watch", *argv, "-m", "model.safetensors"]) == 2
    assert message in capsys.readouterr().err
