"""Streams that nobody reads, that are full or closed, and signals: the work and its exit status are the same."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pix2pix
from pix2pix.cli.streams import Unfailing, check_written
from tests.cli.commands import names, save

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(pix2pix.__file__).resolve().parents[1])}
TRANSLATE = "{python} -m pix2pix translate in -o out -m model.safetensors --json j.json"

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's devices")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    command = command.replace("{python}", sys.executable)
    return subprocess.run(["bash", "-c", command], env=ENVIRONMENT | environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "streams",
    ["| true", ">/dev/full", ">&-", "2>/dev/full", "2>&-", ">&- 2>&- <&-", "-q 2>&1 | true", ">/dev/full 2>/dev/full"],
)
def test_the_work_does_not_depend_on_who_listens(streams):
    done = shell(f"{TRANSLATE} {streams}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert json.loads(Path("j.json").read_text())["done"] == 5 and len(names("out")) == 6


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("{python} -m pix2pix info model.safetensors | head -n 1", 0, ""),
        ("{python} -m pix2pix info model.safetensors >/dev/full", 2, "No space left"),
        (f"{TRANSLATE.replace('j.json', '-')} >/dev/full", 1, "cannot write the summary: [Errno 28]"),
        ("{python} -m pix2pix translate nothing -o out -m model.safetensors 2>/dev/full", 2, ""),
    ],
)
def test_results_that_are_lost_are_told(command, status, said):
    done = shell(f"set -o pipefail; {command}")
    assert (done.returncode, "Traceback" in done.stderr) == (status, False) and said in done.stderr


def test_characters_that_a_stream_lacks_are_escaped():
    ascii_alone = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = shell("{python} -m pix2pix convert model.safetensors 模.safetensors", **ascii_alone)
    assert done.returncode == 0 and "\\u6a21.safetensors: " in done.stdout
    save("in/模.png")
    assert "6 done" in shell(TRANSLATE, **ascii_alone).stdout
    Path("in/模.png").write_bytes(b"no image")
    assert "failed: in/\\u6a21.png" in shell(TRANSLATE, **ascii_alone).stderr


SLOWLY = """
import signal, sys, time
from pix2pix import cli
from pix2pix.files.fitting import Fitting
read = Fitting.read
def slowly(self, *arguments):
    time.sleep(0.2)
    return read(self, *arguments)
Fitting.read = slowly
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_a_run_in_good_order(name):
    for i in range(40):
        save(f"many/x{i}.png", 32, 32, i)
    arguments = ["translate", "many", "-o", "out", "-m", "model.safetensors", "--batch-size", "1", "--json", "j.json"]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(Path().glob("out/*.png")):
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(getattr(signal, name))
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130 and b" done, " in out and b"give the same command again" in err
    assert json.loads(Path("j.json").read_text())["stopped"] == "interrupted"


INTERRUPTED = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
import pix2pix.cli
sys.exit(pix2pix.cli.main())
"""


@pytest.mark.parametrize("module", ["numpy", "pix2pix.cli.parser", "pix2pix.loading"])
def test_an_interrupt_while_modules_are_imported_has_no_traceback(module):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, "info", module], env=ENVIRONMENT, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"pix2pix: interrupted\n")


def test_a_stream_that_fails_is_left_alone():
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    stream = Unfailing(Broken())
    assert stream.write("text") == 4
    with pytest.raises(OSError, match="No space"):
        check_written(stream)
    closed = io.StringIO()
    closed.close()
    for nobody in (Unfailing(None), Unfailing(closed)):
        nobody.write("text")
        check_written(nobody)
        assert not nobody.isatty()
