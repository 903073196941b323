"""The command as a process: interrupted, killed, and how it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pix2pix
from pix2pix.cli import main
from pix2pix.files import record
from pix2pix.files.record import RECORD_NAME
from tests.cli.commands import names, pixels_of, save, translate

ROOT = Path(pix2pix.__file__).resolve().parents[1]


def process(*argv: str, code: str = "") -> subprocess.Popen:
    start = ["-c", code] if code else ["-m", "pix2pix"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *start, *argv], env=environment, stdout=pipe, stderr=pipe, text=True)


SLOW = """
import signal, sys, time
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cli import main
translate = CpuEngine._translate
def slowly(self, b, out, stop):
    time.sleep(0.1)
    translate(self, b, out, stop)
CpuEngine._translate = slowly
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(how):
    for i in range(40):
        save(f"many/x{i}.png", 32, 32, i)
    argv = ["translate", "many", "-o", "out", "-m", "model.safetensors", "--batch-size", "1", "--json", "j.json"]
    stopped = process(*argv, code=SLOW)
    deadline = time.monotonic() + 30
    while len(list(Path().glob("out/*.png"))) < 3 and stopped.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.send_signal(how)
    started = time.monotonic()
    _, err = stopped.communicate(timeout=30)
    assert time.monotonic() - started < 5
    made = {p.name for p in Path("out").glob("*.png")}
    assert 3 <= len(made) < 40
    for name in made:
        assert pixels_of(f"out/{name}").shape == (32, 32, 3)
    if how == signal.SIGINT:
        assert stopped.returncode == 130 and "give the same command again" in err
        assert json.loads(Path("j.json").read_text())["stopped"] == "interrupted"
        assert not list(Path("out").glob(".*.partial"))
    stamps = {name: Path("out", name).stat().st_mtime_ns for name in made}
    assert main(argv) == 0
    assert {name: Path("out", name).stat().st_mtime_ns for name in made} == stamps
    assert json.loads(Path("j.json").read_text())["skipped"] == len(made)
    assert names("out") == sorted([RECORD_NAME, *(f"x{i}.png" for i in range(40))])


def test_a_full_disk_stops_the_run_with_a_message(monkeypatch, capsys):
    write = record.write_atomically

    def fail(path, data, **options):
        if path.name == "x3.png":
            raise OSError(28, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(record, "write_atomically", fail)
    assert translate("in", "-o", "out", "--gallery", "--json", "j.json") == 1
    assert "stopped: [Errno 28] No space left on device" in capsys.readouterr().err
    assert "No space left" in json.loads(Path("j.json").read_text())["stopped"]


def test_python_m_pix2pix():
    done = process("--version")
    assert done.communicate(timeout=30)[0] == f"pix2pix {pix2pix.__version__}\n" and done.returncode == 0
    failed = process("translate", "nothing", "-o", "out", "-m", "model.safetensors")
    err = failed.communicate(timeout=30)[1]
    assert failed.returncode == 2 and err == "pix2pix: error: there is no file or folder 'nothing'\n"


def test_commands_wait_only_for_what_they_need():
    code = "import sys, pix2pix.cli; sys.exit(any(m in sys.modules for m in ('PIL', 'tqdm', 'safetensors')))"
    assert process(code=code).wait(timeout=30) == 0
