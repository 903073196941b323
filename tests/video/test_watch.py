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

import pytest
from PIL import Image

pytest.importorskip("watchfiles", reason="pip install 'pix2pix[watch]'")

from pix2pix.cli import main
from tests.cli.commands import names, noise, pixels_of, save, translate

SIZE = 32
PATIENCE = 2  # seconds instead of watch.PATIENCE
COMMAND = f"import sys; from pix2pix.video import watch; watch.PATIENCE = {PATIENCE}; from pix2pix.cli import main; "


def started(output: str = "out") -> subprocess.Popen[str]:
    """The command."""
    command = [sys.executable, "-c", COMMAND + "sys.exit(main())", "watch", "in", "-o", output]
    command += ["-m", "model.safetensors", "--size", str(SIZE), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@contextmanager
def watching(output: str = "out", status: int = 0, end: int = signal.SIGINT) -> Iterator[subprocess.Popen[str]]:
    """The command, which ends in good order when it is interrupted."""
    with started(output) as process:
        try:
            yield process
            assert process.poll() is None, process.stderr.read()
            process.send_signal(end)
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


def test_500_files_in_bursts_replaced_renamed_and_deleted(engine, watched):
    save("in/before.png", SIZE, SIZE, 99)
    with watching():
        for seed in range(500):
            save(f"in/a{seed}.png", SIZE, SIZE, seed)
        for seed in range(0, 500, 5):
            Path(f"in/a{seed}.png").unlink()
        wait_until(lambda: made("before.png") and made("a1.png"))
        for seed in range(1, 500, 5):
            save(f"in/a{seed}.png", SIZE, SIZE, 100 + seed)
        for seed in range(2, 500, 5):
            (watched / f"a{seed}.png").rename(watched / f"b{seed}.png")
        save("in/deep/er/x.png", SIZE, SIZE, 7)
        save("elsewhere.png", SIZE, SIZE, 8)
        Path("elsewhere.png").rename("in/moved.png")
        wait_until(lambda: is_of(engine, "a496.png", 596) and is_of(engine, "b497.png", 497))
        wait_until(lambda: is_of(engine, "deep/er/x.png", 7) and is_of(engine, "moved.png", 8))
        wait_until(lambda: all(is_of(engine, f"a{s}.png", 100 + s) for s in range(1, 500, 5)))
        wait_until(lambda: all(is_of(engine, f"a{s}.png", s) for s in range(500) if s % 5 in (3, 4)))
        wait_until(lambda: all(is_of(engine, f"b{s}.png", s) for s in range(2, 500, 5)))
    assert is_of(engine, "before.png", 99)
    assert not [name for name in names("out") if name.endswith(".partial")]


def test_files_that_are_not_whole_yet(engine):
    """One that is written slowly, one that is repaired and one that stays damaged, which is told of."""
    data = encoded(3)
    Path("in/bad.png").write_bytes(encoded(1)[:-500])
    Path("in/mended.png").write_bytes(encoded(2)[:-500])
    with watching(status=1) as process:
        save("in/x.png", SIZE, SIZE, 5)
        wait_until(lambda: made("x.png"))
        Path("in/mended.png").write_bytes(encoded(2))
        with open("in/slow.png", "wb", buffering=0) as file:
            for part in (data[:100], data[100:1500], data[1500:]):
                assert not made("slow.png")
                file.write(part)
                time.sleep(0.9)  # longer than a file has to be unchanged
        wait_until(lambda: made("mended.png") and made("slow.png"))
        while "bad.png" not in (line := process.stderr.readline()):
            assert line and "mended" not in line and "slow" not in line
    assert names("out") == [".pix2pix-run.json", "mended.png", "slow.png", "x.png"]
    assert is_of(engine, "mended.png", 2) and is_of(engine, "slow.png", 3)


def test_the_next_run_goes_on_until_the_folder_is_gone(engine):
    save("in/a.png", SIZE, SIZE, 1)
    with watching(end=signal.SIGTERM):
        wait_until(lambda: made("a.png"))
    stamp = Path("out/a.png").stat().st_mtime_ns
    save("in/b.png", SIZE, SIZE, 2)
    with started() as process:
        wait_until(lambda: made("b.png"))
        Path("in").rename("moved")
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1 and "there is no file or folder 'in'" in told
    Path("moved").rename("in")
    assert translate("in", "-o", "out", "--size", str(SIZE)) == 0
    assert Path("out/a.png").stat().st_mtime_ns == stamp
    assert is_of(engine, "b.png", 2)


def test_an_output_folder_inside_the_watched_one():
    save("in/a.png", SIZE, SIZE, 1)
    with watching("in/out"):
        wait_until(lambda: Path("in/out/a.png").exists())
        time.sleep(1)  # in which an output would be taken for an input
    assert names("in/out") == [".pix2pix-run.json", "a.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["none", "-o", "out"], "no folder 'none'"), (["in", "-o", "in"], "is the one that is watched")],
)
def test_what_is_refused(capsys, argv, message):
    assert main(["watch", *argv, "-m", "model.safetensors"]) == 2
    assert message in capsys.readouterr().err
